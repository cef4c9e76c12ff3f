//! Runs the tasks of one operation on the backend's own threads, each with its working memory.
//!
//! Invariant: what a task computes depends on its number alone. How many threads there are, and
//! which one takes a task, changes no bit.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::arena::Scratch;
use crate::{Error, Result};

/// Working memory of one thread for the tiles of attention and for converted operands.
pub const SCRATCH_BYTES: usize = 12 << 20;

/// Work below this many elementary steps is done by the calling thread: waking others takes longer.
const SMALL: usize = 1 << 15;

/// Threads and their working memory.
pub(crate) struct Exec {
    pool: Option<rayon::ThreadPool>,
    scratch: Vec<Mutex<Scratch>>,
    shared: Mutex<Scratch>,
}

impl Exec {
    /// `threads` threads; with one, everything runs on the caller.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let pool = if threads > 1 {
            let built = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("compute-{i}"))
                .build()
                .map_err(|e| Error::Device(format!("cannot start {threads} compute threads: {e}")))?;
            Some(built)
        } else {
            None
        };
        let scratch = (0..threads.max(1))
            .map(|_| Scratch::new(SCRATCH_BYTES).map(Mutex::new))
            .collect::<Result<_>>()?;
        Ok(Self { pool, scratch, shared: Mutex::new(Scratch::new(SCRATCH_BYTES)?) })
    }

    /// Runs `f(0) … f(tasks − 1)` in any order. `steps` is the work of all tasks together.
    pub(crate) fn run(&self, tasks: usize, steps: usize, f: impl Fn(usize, &mut Scratch) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 && steps > SMALL => pool.install(|| {
                (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
                    let thread = rayon::current_thread_index().unwrap_or(0);
                    f(task, &mut lock(&self.scratch[thread]));
                });
            }),
            _ => {
                let mut scratch = lock(&self.scratch[0]);
                for task in 0..tasks {
                    f(task, &mut scratch);
                }
            }
        }
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
    pub(crate) fn shared(&self) -> std::sync::MutexGuard<'_, Scratch> {
        lock(&self.shared)
    }
}

/// Elements of a piece of [`Exec::pieces`].
pub(crate) const PIECE: usize = 1 << 15;

/// A panic in another task is reported by the pool; the scratch it held has no meaning to keep.
fn lock(scratch: &Mutex<Scratch>) -> std::sync::MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}
