//! Threads that help the calling one with the tasks of an operation.
//!
//! Invariant: the caller takes tasks itself and never waits for a helper that has not begun, so a
//! helper that the system wakes late costs nothing: a decoding step has some two hundred
//! operations of a few hundredths of a millisecond. A helper touches a job only between attaching
//! to it and detaching, both under the lock, and the caller stays until nobody is attached.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::arena::Scratch;
use crate::{Error, Result};

/// How long a thread looks for the next job, or for the end of this one, before it sleeps: longer
/// than what lies between two operations, shorter than what a user would notice on an idle core.
const SPIN: Duration = Duration::from_micros(50);

/// The tasks of one operation, on the caller's stack.
struct Job<'a> {
    run: &'a (dyn Fn(usize, &mut Scratch) + Sync),
    tasks: usize,
    next: AtomicUsize,
}

impl Job<'_> {
    /// Takes tasks until none is left.
    fn work(&self, scratch: &mut Scratch) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            (self.run)(task, scratch);
        }
    }
}

/// A job that helpers may attach to.
#[derive(Clone, Copy)]
struct Posted(NonNull<Job<'static>>);

// SAFETY: what it points to is `Sync` but for its lifetime, which the module's invariant keeps.
unsafe impl Send for Posted {}

#[derive(Default)]
struct State {
    posted: Option<Posted>,
    asleep: usize,
    panic: Option<Box<dyn Any + Send>>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Number of the newest job: changed under the lock, watched without it.
    number: AtomicUsize,
    /// Helpers inside the job: likewise.
    attached: AtomicUsize,
    posted: Condvar,
    left: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's life.
    fn help(&self, mut scratch: Scratch) {
        let mut seen = 0;
        loop {
            spin_until(|| self.number.load(Ordering::Relaxed) != seen);
            let mut state = self.lock();
            if state.closed {
                return;
            }
            let number = self.number.load(Ordering::Relaxed);
            if number == seen {
                state.asleep += 1;
                state = self.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
                continue;
            }
            seen = number;
            // None: we come too late, it is done.
            let Some(job) = state.posted else { continue };
            self.attached.fetch_add(1, Ordering::Relaxed);
            drop(state);
            // SAFETY: posted and attached to under one lock: the caller waits for us before the
            // job leaves its stack.
            let job = unsafe { job.0.as_ref() };
            let result = catch_unwind(AssertUnwindSafe(|| job.work(&mut scratch)));
            let mut state = self.lock();
            if let Err(panic) = result {
                state.panic = Some(panic);
            }
            if self.attached.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.left.notify_one();
            }
        }
    }
}

/// Returns when `done`, or after a while.
fn spin_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > SPIN {
            return;
        }
        for _ in 0..16 {
            std::hint::spin_loop();
        }
    }
}

/// The caller and its helpers.
pub(super) struct Team {
    scratch: Scratch,
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A caller with `helpers` threads besides it, each with `bytes` of working memory.
    pub(super) fn new(helpers: usize, bytes: usize) -> Result<Self> {
        let mut team = Self { scratch: Scratch::new(bytes)?, shared: Arc::default(), helpers: Vec::new() };
        for i in 1..=helpers {
            let (shared, scratch) = (Arc::clone(&team.shared), Scratch::new(bytes)?);
            let helper = std::thread::Builder::new()
                .name(format!("compute-{i}"))
                .spawn(move || shared.help(scratch))
                .map_err(|e| Error::Device(format!("cannot start compute thread {i}: {e}")))?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Runs `run(0) … run(tasks − 1)`, each once, in order on the calling thread.
    pub(super) fn alone(&mut self, tasks: usize, run: &(dyn Fn(usize, &mut Scratch) + Sync)) {
        (0..tasks).for_each(|task| run(task, &mut self.scratch));
    }

    /// Runs `run(0) … run(tasks − 1)`, each once, in any order.
    pub(super) fn run(&mut self, tasks: usize, run: &(dyn Fn(usize, &mut Scratch) + Sync)) {
        if self.helpers.is_empty() {
            return self.alone(tasks, run);
        }
        let job = Job { run, tasks, next: AtomicUsize::new(0) };
        let shared = &*self.shared;
        {
            let mut state = shared.lock();
            state.posted = Some(Posted(NonNull::from(&job).cast()));
            shared.number.fetch_add(1, Ordering::Relaxed);
            if state.asleep > 0 {
                shared.posted.notify_all();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| job.work(&mut self.scratch)));
        // From here on nobody attaches any more.
        shared.lock().posted = None;
        spin_until(|| shared.attached.load(Ordering::Relaxed) == 0);
        let mut state = shared.lock();
        while shared.attached.load(Ordering::Relaxed) > 0 {
            state = shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let theirs = state.panic.take();
        drop(state);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.posted.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks; it has none of its own.
            let _ = helper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_and_is_over_when_run_returns() {
        for helpers in 0..4 {
            let mut team = Team::new(helpers, 4096).unwrap();
            for tasks in (0..40).cycle().take(2000) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, &|task, _| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.into_iter().all(|c| c.into_inner() == 1), "{helpers} helpers, {tasks} tasks");
            }
        }
    }

    #[test]
    fn helpers_take_part_and_a_panic_reaches_the_caller() {
        let mut team = Team::new(2, 4096).unwrap();
        let meeting = std::sync::Barrier::new(3);
        for broken in [None, Some(0), Some(1), Some(2), None] {
            // Three tasks that wait for each other end only on three threads.
            let run = AssertUnwindSafe(|| {
                team.run(3, &|task, _| {
                    meeting.wait();
                    assert!(Some(task) != broken, "task {task}");
                });
            });
            let caught = catch_unwind(run).err().map(|e| e.downcast_ref::<String>().cloned());
            assert_eq!(caught, broken.map(|task| Some(format!("task {task}"))));
        }
    }
}
