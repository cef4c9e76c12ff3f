//! How far the work is, in tokens: a slot is worth the tokens that its calls will read and write,
//! by estimate, and counts in full once it is filled. Telemetry only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use longstrap_runtime::{Dropped as DroppedCount, Progress};

use crate::bench::Bench;
use crate::sample::{Dropped, Filled};
use crate::shard::ShardManifest;
use crate::slots::{Kind, Slot};

/// Tokens of the calls of a long-output slot: one prompt and one request.
const LONG_OUTPUT_TOKENS: u64 = 1000;
/// What prompts add to the tokens of the documents that are read.
const OVERHEAD: f64 = 1.2;

/// Progress of the slots of a run.
pub(crate) struct Meter {
    progress: Progress,
    expected: HashMap<Slot, u64>,
    state: Mutex<State>,
    slots: u64,
}

/// What this worker has filled so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filling {
    /// Slots.
    pub(crate) slots: u64,
    /// Of them, with a sample.
    pub(crate) kept: u64,
    /// Dropped candidates by reason.
    pub(crate) dropped: BTreeMap<Dropped, u64>,
}

#[derive(Default)]
struct State {
    own: Filling,
    spent: HashMap<Slot, u64>,
    done: u64,
    filled: u64,
    kept: u64,
    dropped: BTreeMap<Dropped, u64>,
}

impl Meter {
    /// A meter for all slots of the run.
    pub(crate) fn new(bench: &Bench, progress: Progress) -> Meter {
        let expected = bench
            .run
            .plan
            .all()
            .into_iter()
            .map(|slot| match slot.kind {
                Kind::LongInput => (slot, (bench.lengths[slot.index as usize] as f64 * OVERHEAD) as u64),
                Kind::LongOutput => (slot, LONG_OUTPUT_TOKENS),
            })
            .collect();
        Meter { progress, expected, state: Mutex::default(), slots: bench.run.plan.slots() }
    }

    /// Counts a shard that was committed, by whomever.
    pub(crate) fn committed(&self, slots: &[Slot], manifest: &ShardManifest) {
        let mut state = self.lock();
        for slot in slots {
            state.spent.remove(slot);
            state.done += self.expected.get(slot).copied().unwrap_or(0);
        }
        state.filled += slots.len() as u64;
        state.kept += manifest.kept;
        for (reason, count) in &manifest.dropped {
            *state.dropped.entry(*reason).or_default() += count;
        }
        self.report(&state);
    }

    /// Counts tokens of a call for a slot; it never seems full before it is.
    pub(crate) fn spent(&self, slot: Slot, tokens: u64) {
        let limit = self.expected.get(&slot).map_or(0, |tokens| tokens * 99 / 100);
        let mut state = self.lock();
        let spent = state.spent.entry(slot).or_default();
        *spent = (*spent + tokens).min(limit);
        self.report(&state);
    }

    /// Counts a slot of this worker; what it has filled so far.
    pub(crate) fn filled(&self, filled: &Filled) -> Filling {
        let own = &mut self.lock().own;
        own.slots += 1;
        own.kept += u64::from(filled.sample.is_some());
        for reason in &filled.dropped {
            *own.dropped.entry(*reason).or_default() += 1;
        }
        own.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn report(&self, state: &State) {
        let total: u64 = self.expected.values().sum();
        let done = state.done + state.spent.values().sum::<u64>();
        self.progress.work(done as f64, total as f64, "tokens");
        self.progress.update(|report| {
            report.activity = format!("writing samples: {} of {} slots filled", state.filled, self.slots);
            report.count = state.kept;
            report.of = self.slots;
            report.dropped = state
                .dropped
                .iter()
                .map(|(reason, count)| DroppedCount { reason: reason.to_string(), count: *count })
                .collect();
        });
    }
}
