//! The work queue: each object once, when it is due, never twice at the same time.
//!
//! Invariant: an object that was added while it is being worked on is worked on again; one that
//! fails comes back after its own back-off and never delays another.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::Notify, time::Instant};

use super::store::Key;

const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(120);

/// How the work on an object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to do before something changes.
    Idle,
    /// To be looked at again, without anything having gone wrong.
    Again(Instant),
    /// Failed: the back-off of the object decides, or this time, if it is earlier.
    Failed { by: Option<Instant> },
    /// Nothing is wrong here, but what is asked for is not to be had yet, and nobody tells when it is: as
    /// after a failure, without being one.
    Waits { by: Option<Instant> },
}

impl Outcome {
    /// Of work that went as far as this, though something failed.
    pub(super) fn failed(self) -> Self {
        match self {
            Self::Idle => Self::Failed { by: None },
            Self::Again(at) => Self::Failed { by: Some(at) },
            Self::Failed { by } | Self::Waits { by } => Self::Failed { by },
        }
    }
}

/// Tries in vain, one after the other.
#[derive(Clone, Copy, Default)]
struct Vain {
    times: u32,
    /// The last one failed.
    failed: bool,
}

#[derive(Default)]
struct State {
    due: BTreeSet<(Instant, Key)>,
    when: HashMap<Key, Instant>,
    busy: HashSet<Key>,
    vain: HashMap<Key, Vain>,
}

impl State {
    fn add(&mut self, key: Key, at: Instant) {
        if let Some(before) = self.when.get(&key).copied() {
            if before <= at {
                return;
            }
            self.due.remove(&(before, key.clone()));
        }
        self.when.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    /// The first object that is due and not busy, or when to look again.
    fn take(&mut self, now: Instant) -> Result<Key, Option<Instant>> {
        let free = self.due.iter().find(|(_, key)| !self.busy.contains(key)).cloned();
        match free {
            Some((at, key)) if at <= now => {
                self.due.remove(&(at, key.clone()));
                self.when.remove(&key);
                self.busy.insert(key.clone());
                Ok(key)
            }
            Some((at, _)) => Err(Some(at)),
            None => Err(None),
        }
    }
}

/// The queue.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; the state is whole in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about the object changed.
    pub(super) fn add(&self, key: Key) {
        self.add_at(key, Instant::now());
    }

    pub(super) fn add_at(&self, key: Key, at: Instant) {
        self.state().add(key, at);
        self.changed.notify_one();
    }

    /// The next object that is due; it is busy until [`Self::done`].
    pub(super) async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let wait = match self.state().take(Instant::now()) {
                Ok(key) => {
                    // There may be more for the other workers.
                    self.changed.notify_one();
                    return key;
                }
                Err(wait) => wait,
            };
            match wait {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Ends the work on an object.
    pub(super) fn done(&self, key: &Key, outcome: Outcome) {
        let mut state = self.state();
        state.busy.remove(key);
        match outcome {
            Outcome::Idle => {
                state.vain.remove(key);
            }
            Outcome::Again(at) => {
                state.vain.remove(key);
                state.add(key.clone(), at);
            }
            Outcome::Failed { by } | Outcome::Waits { by } => {
                let vain = state.vain.entry(key.clone()).or_default();
                let delay = FIRST_BACK_OFF.saturating_mul(1 << vain.times.min(10)).min(LONGEST_BACK_OFF);
                vain.times = vain.times.saturating_add(1);
                vain.failed = matches!(outcome, Outcome::Failed { .. });
                let at = Instant::now() + delay;
                state.add(key.clone(), by.map_or(at, |by| by.min(at)));
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// How many objects are in which state.
    pub(super) fn sizes(&self) -> Sizes {
        let state = self.state();
        let now = Instant::now();
        let due = state.due.iter().take_while(|(at, _)| *at <= now).count();
        let failing = state.vain.values().filter(|vain| vain.failed).count();
        Sizes { waiting: state.due.len() - due, due, busy: state.busy.len(), failing }
    }
}

/// Objects by their state in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sizes {
    /// For a computed time.
    pub(super) waiting: usize,
    /// For a free worker.
    pub(super) due: usize,
    /// Being worked on.
    pub(super) busy: usize,
    /// Failed last time.
    pub(super) failing: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::Kind;

    fn key(name: &str) -> Key {
        Key { kind: Kind::SynthesisJob, namespace: "ml".into(), name: name.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_again_when_changed_meanwhile() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().await, key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next().await, key("b"), "a is busy");
        assert!(tokio::time::timeout(Duration::from_secs(9), queue.next()).await.is_err());
        queue.done(&key("a"), Outcome::Idle);
        assert_eq!(queue.next().await, key("a"), "it changed while it was busy");
        queue.done(&key("a"), Outcome::Idle);
        queue.done(&key("b"), Outcome::Idle);
        assert_eq!(queue.sizes(), Sizes::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_object_waits_longer_each_time_and_alone() {
        let queue = Queue::default();
        let mut waits = Vec::new();
        queue.add(key("bad"));
        for _ in 0..10 {
            let start = Instant::now();
            assert_eq!(queue.next().await, key("bad"));
            waits.push(start.elapsed().as_millis());
            queue.done(&key("bad"), Outcome::Failed { by: None });
            queue.add(key("good"));
            let start = Instant::now();
            assert_eq!(queue.next().await, key("good"));
            assert_eq!(start.elapsed(), Duration::ZERO);
            queue.done(&key("good"), Outcome::Idle);
        }
        assert_eq!(waits, [0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 120_000]);
        // An edit is tried at once.
        queue.add(key("bad"));
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(queue.sizes().failing, 1);
        // What has to wait is not failing; a deadline comes before the back-off.
        queue.done(&key("bad"), Outcome::Waits { by: Some(Instant::now() + Duration::from_secs(3)) });
        assert_eq!(queue.sizes().failing, 0);
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        // A computed time is kept, and the earlier of two counts.
        let at = |s| Instant::now() + Duration::from_secs(s);
        queue.done(&key("bad"), Outcome::Again(at(50)));
        queue.add_at(key("bad"), at(70));
        queue.add_at(key("bad"), at(20));
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }
}
