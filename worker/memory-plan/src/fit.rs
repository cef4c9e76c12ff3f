//! Questions to the plan: does it fit, how far could it go, what would an option buy, what do
//! checkpoints and the run's files cost.
//!
//! Invariant: answers are computed from plans, never from rules of thumb.

use serde::Serialize;

use crate::{Options, Plan, Shape};

/// Longest row that is looked for.
const LONGEST: usize = 1 << 28;

/// Largest row length (a multiple of twice the ranks) whose plan, chosen as by [`Plan::within`], needs
/// at most `memory` bytes per rank; `None` when not even the shortest fits.
#[must_use]
pub fn largest_context(shape: Shape, options: Options, memory: u64) -> Option<usize> {
    let unit = 2 * options.ranks;
    let fits = |units: usize| Plan::within(shape, units * unit, options, Some(memory)).fits(memory);
    if !fits(1) {
        return None;
    }
    let (mut low, mut high) = (1, LONGEST / unit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    Some(low * unit)
}

/// A change that a manifest can ask for, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// The change, in words.
    pub change: &'static str,
    /// What it costs, in words.
    pub price: &'static str,
    /// Bytes of a rank at the plan's length with it.
    pub total_bytes: usize,
    /// Largest row with it in the same memory.
    pub largest_context: Option<usize>,
}

/// What a manifest can change, with `memory` bytes per rank. Whether attention's output is kept is
/// no choice of a user: [`Plan::within`] decides it, here too.
#[must_use]
pub fn alternatives(plan: &Plan, memory: u64) -> Vec<Alternative> {
    let times = |change, price, factor: usize| {
        let options = Options { ranks: factor * plan.options.ranks, keep_attention: true, ..plan.options };
        Alternative {
            change,
            price,
            total_bytes: Plan::within(plan.shape, plan.row, options, Some(memory)).total_bytes(),
            largest_context: largest_context(plan.shape, options, memory),
        }
    };
    vec![
        times("2 × the ranks (spec.parallelism)", "2 × the machines", 2),
        times("4 × the ranks (spec.parallelism)", "4 × the machines", 4),
    ]
}

/// Where the ranks of a Job run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Pods.
    pub nodes: u32,
    /// Ranks of a pod.
    pub ranks_per_node: u32,
    /// All pods share one machine; else each has a machine, or a limit, of its own.
    pub one_machine: bool,
}

impl Placement {
    /// What one rank has of a machine, or of a pod, with `machine` bytes.
    #[must_use]
    pub fn share(self, machine: u64) -> u64 {
        let pods = if self.one_machine { self.nodes.max(1) } else { 1 };
        machine / (u64::from(pods) * u64::from(self.ranks_per_node.max(1)))
    }

    /// Memory that decides how a rank plans, the same for all ranks of a gang: what the run says of
    /// its accelerators, and when all ranks see one machine its share of that machine.
    #[must_use]
    pub fn planned_by(self, accelerator: Option<u64>, machine: Option<u64>) -> Option<u64> {
        let seen_by_all = self.one_machine || self.nodes <= 1;
        let share = machine.filter(|_| seen_by_all).map(|bytes| self.share(bytes));
        [accelerator, share].into_iter().flatten().min()
    }
}

/// What one checkpoint costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointCost {
    /// Bytes in storage: weights and two moments in f32.
    pub bytes: u64,
    /// Host memory while it is written.
    pub staging_bytes: u64,
}

impl CheckpointCost {
    /// Of a model. Weights change only at the end of a step, so shards are staged one by one while
    /// the next step computes: staging is one shard, not the whole state.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self { bytes: checkpoint_bytes(plan.shape), staging_bytes: 12 * plan.shard_elements() as u64 }
    }

    /// Seconds to write or read it at a bandwidth in bytes per second.
    #[must_use]
    pub fn seconds(&self, bytes_per_second: f64) -> f64 {
        self.bytes as f64 / bytes_per_second
    }
}

/// Bytes of one checkpoint of a model: weights and two moments in f32.
#[must_use]
pub fn checkpoint_bytes(shape: Shape) -> u64 {
    12 * shape.parameters() as u64
}

/// What decides the disk of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunFiles {
    /// Stages: each leaves its weights.
    pub stages: usize,
    /// Checkpoints kept; one more exists while it is written.
    pub keep_last: usize,
    /// Tokens of the data set (u32 each).
    pub data_tokens: u64,
    /// Bytes of an exported element.
    pub export_bytes: usize,
}

/// Bytes that a run takes in storage at its fullest.
#[must_use]
pub fn run_disk(plan: &Plan, files: RunFiles) -> u64 {
    let parameters = plan.shape.parameters() as u64;
    let checkpoints = if plan.options.checkpoints { files.keep_last as u64 + 1 } else { 0 };
    // Between stages weights stay f32; the export is written once more in its own type.
    checkpoints * CheckpointCost::new(plan).bytes
        + files.stages as u64 * 4 * parameters
        + files.export_bytes as u64 * parameters
        + 4 * files.data_tokens
}
