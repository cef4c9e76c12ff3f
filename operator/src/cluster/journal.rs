//! What came of each object's last reconcile, for `/debug/state`.
//!
//! Invariant: one short line for each object that exists; no specs, no secrets.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use super::store::Key;
use crate::plan::Plan;

/// What was planned last.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    time: Timestamp,
    phase: Option<&'static str>,
    step: Option<String>,
    attempt: Option<u32>,
    creates: usize,
    deletes: usize,
    /// When the plan wants to look again.
    requeue: Option<Timestamp>,
    /// Why applying it came to nothing, when it did.
    error: Option<String>,
}

/// The last line of each object.
#[derive(Default)]
pub(super) struct Journal(Mutex<BTreeMap<Key, Line>>);

impl Journal {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<Key, Line>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plan was made.
    pub(super) fn planned(&self, key: &Key, plan: &Plan, now: Timestamp) {
        let status = plan.status.common();
        let line = Line {
            time: now,
            phase: status.phase.map(|p| p.as_str()),
            step: status.step.clone(),
            attempt: status.attempt,
            creates: plan.create.len(),
            deletes: plan.delete.len() + plan.lost.len(),
            requeue: plan.requeue,
            error: None,
        };
        self.lines().insert(key.clone(), line);
    }

    /// The reconcile ended with an error.
    pub(super) fn failed(&self, key: &Key, error: &str) {
        if let Some(line) = self.lines().get_mut(key) {
            line.error = Some(error.chars().take(300).collect());
        }
    }

    /// The object is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.lines().remove(key);
    }

    /// What was planned in an earlier term of leading.
    pub(super) fn clear(&self) {
        self.lines().clear();
    }

    /// All lines, by `Kind namespace/name`.
    pub(super) fn all(&self) -> BTreeMap<String, Line> {
        self.lines().iter().map(|(key, line)| (key.to_string(), line.clone())).collect()
    }

    /// Objects that were planned.
    pub(super) fn len(&self) -> usize {
        self.lines().len()
    }
}
