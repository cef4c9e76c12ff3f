//! Runs the tasks of one operation on the backend's own threads, each with its working memory.
//!
//! Invariant: what a task computes depends on its number alone. How many threads there are, and
//! which one takes a task, changes no bit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::arena::Scratch;
use super::team::Team;
use crate::Result;

/// Working memory of one thread for the tiles of attention and for converted operands.
pub const SCRATCH_BYTES: usize = 12 << 20;

/// Work below this many elementary steps is done by the calling thread: waking others takes longer.
const SMALL: usize = 1 << 15;

/// Threads and their working memory.
pub(crate) struct Exec {
    team: Mutex<Team>,
    shared: Mutex<Scratch>,
}

impl Exec {
    /// `threads` threads, the caller's among them.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let team = Team::new(threads.saturating_sub(1), SCRATCH_BYTES)?;
        Ok(Self { team: Mutex::new(team), shared: Mutex::new(Scratch::new(SCRATCH_BYTES)?) })
    }

    /// Runs `f(0) … f(tasks − 1)` in any order. `steps` is the work of all tasks together.
    pub(crate) fn run(&self, tasks: usize, steps: usize, f: impl Fn(usize, &mut Scratch) + Sync) {
        let mut team = lock(&self.team);
        if tasks > 1 && steps > SMALL { team.run(tasks, &f) } else { team.alone(tasks, &f) }
    }

    /// Runs `f` once for every run of rows of a matrix, cut by its shape alone.
    pub(crate) fn rows(&self, rows: usize, cols: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        const ELEMENTS: usize = 1 << 14;
        let chunk = (ELEMENTS / cols.max(1)).max(1);
        self.run(rows.div_ceil(chunk), rows * cols, |task, _| f(task * chunk..rows.min((task + 1) * chunk)));
    }

    /// Runs `f` for pieces of a flat range, cut by its length alone.
    pub(crate) fn pieces(&self, length: usize, f: impl Fn(usize, std::ops::Range<usize>) + Sync) {
        self.run(length.div_ceil(PIECE), length, |task, _| {
            f(task, task * PIECE..length.min((task + 1) * PIECE))
        });
    }

    /// Working memory that the tasks of one operation share, for sums that a last pass adds up.
    pub(crate) fn shared(&self) -> MutexGuard<'_, Scratch> {
        lock(&self.shared)
    }
}

/// Elements of a piece of [`Exec::pieces`].
pub(crate) const PIECE: usize = 1 << 15;

/// What a panicking task left in working memory has no meaning to keep.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
