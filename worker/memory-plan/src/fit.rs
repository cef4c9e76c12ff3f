//! Questions to the plan: does it fit, how far could it go, what would an option buy, what do
//! checkpoints and the run's files cost.
//!
//! Invariant: answers are computed from plans, never from rules of thumb.

use serde::Serialize;

use crate::{Options, Plan, Shape};

/// Longest row that is looked for.
const LONGEST: usize = 1 << 28;

/// Largest row length (a multiple of twice the ranks) whose plan needs at most `memory` bytes per
/// rank; `None` when not even the shortest fits.
#[must_use]
pub fn largest_context(shape: Shape, options: Options, memory: u64) -> Option<usize> {
    let unit = 2 * options.ranks;
    let fits = |units: usize| Plan::new(shape, units * unit, options).total_bytes() as u64 <= memory;
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

/// One change of the options and what it does.
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

/// What each option that is not used yet would buy with `memory` bytes per rank.
#[must_use]
pub fn alternatives(plan: &Plan, memory: u64) -> Vec<Alternative> {
    let now = plan.options;
    let mut list = vec![("twice the ranks", "twice the machines", Options { ranks: 2 * now.ranks, ..now })];
    if now.keep_attention {
        let options = Options { keep_attention: false, ..now };
        list.push(("attention recomputed", "attention's forward runs twice", options));
    }
    if !now.bf16_inputs {
        let options = Options { bf16_inputs: true, ..now };
        list.push(("layer inputs in bf16", "gradients carry its rounding", options));
    }
    if now.checkpoints {
        let options = Options { checkpoints: false, ..now };
        list.push(("no checkpoints", "a lost rank loses the stage", options));
    }
    list.into_iter()
        .map(|(change, price, options)| Alternative {
            change,
            price,
            total_bytes: Plan::new(plan.shape, plan.row, options).total_bytes(),
            largest_context: largest_context(plan.shape, options, memory),
        })
        .collect()
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
        Self { bytes: 12 * plan.shape.parameters() as u64, staging_bytes: 12 * plan.shard_elements() as u64 }
    }

    /// Seconds to write or read it at a bandwidth in bytes per second.
    #[must_use]
    pub fn seconds(&self, bytes_per_second: f64) -> f64 {
        self.bytes as f64 / bytes_per_second
    }
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
