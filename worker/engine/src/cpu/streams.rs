//! Queues of the Copy and Comm streams, and events between streams.
//!
//! Invariant: jobs of one stream run in order on one thread; after a job has failed the stream
//! runs no other (a later collective would wait for a peer that has stopped), its events still
//! come, and the first error is told by every synchronisation from then on.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::{Error, Event, Result};

/// Work of a stream.
pub(crate) type Job = Box<dyn FnOnce() -> Result<()> + Send>;

/// Events that were recorded and not yet reached.
#[derive(Default)]
pub(crate) struct Events {
    state: Mutex<EventState>,
    reached: Condvar,
}

#[derive(Default)]
struct EventState {
    next: u64,
    pending: HashSet<u64>,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, EventState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new event; reached at once unless `pending`.
    pub(crate) fn create(&self, pending: bool) -> Event {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        if pending {
            state.pending.insert(id);
        }
        Event(id)
    }

    fn reach(&self, event: Event) {
        self.lock().pending.remove(&event.0);
        self.reached.notify_all();
    }

    /// Whether the event was reached.
    pub(crate) fn query(&self, event: Event) -> Result<bool> {
        let state = self.lock();
        if event.0 >= state.next {
            return Err(Error::Device(format!("{event:?} was never recorded on this backend")));
        }
        Ok(!state.pending.contains(&event.0))
    }

    /// Blocks until the event is reached.
    pub(crate) fn wait(&self, event: Event) {
        let mut state = self.lock();
        while state.pending.contains(&event.0) {
            state = self.reached.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

enum Message {
    Run(Job),
    Reach(Event),
    Wait(Event),
}

/// A thread that runs jobs in order.
pub(crate) struct Queue {
    sender: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Error>>>,
    events: Arc<Events>,
}

impl Queue {
    pub(crate) fn new(name: &'static str, events: Arc<Events>) -> Result<Self> {
        let (sender, receiver) = channel();
        let failed = Arc::new(Mutex::new(None));
        let (seen, reached) = (Arc::clone(&failed), Arc::clone(&events));
        let work = move || {
            for message in receiver {
                match message {
                    Message::Reach(event) => reached.reach(event),
                    Message::Wait(event) => reached.wait(event),
                    Message::Run(job) => run(name, job, &seen),
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|e| Error::Device(format!("cannot start the {name} thread: {e}")))?;
        Ok(Self { sender: Some(sender), thread: Some(thread), failed, events })
    }

    fn send(&self, message: Message) -> Result<()> {
        let sent = self.sender.as_ref().map(|s| s.send(message));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::Device("a stream of the backend has ended".to_owned())),
        }
    }

    pub(crate) fn run(&self, job: Job) -> Result<()> {
        self.send(Message::Run(job))
    }

    pub(crate) fn record(&self) -> Result<Event> {
        let event = self.events.create(true);
        self.send(Message::Reach(event))?;
        Ok(event)
    }

    pub(crate) fn wait(&self, event: Event) -> Result<()> {
        self.events.query(event)?;
        self.send(Message::Wait(event))
    }

    /// The first error of a job that has run.
    pub(crate) fn failure(&self) -> Result<()> {
        lock(&self.failed).clone().map_or(Ok(()), Err)
    }

    /// Waits until all jobs have run. A failure is handed over: who has heard it may go on, to
    /// save what a lost peer did not touch.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let event = self.record()?;
        self.events.wait(event);
        lock(&self.failed).take().map_or(Ok(()), Err)
    }
}

fn lock(failed: &Mutex<Option<Error>>) -> MutexGuard<'_, Option<Error>> {
    failed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work of a stream; a panic becomes its error.
pub(crate) fn guard(stream: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::Device(format!("an operation on the {stream} stream failed: {what}")))
    })
}

fn run(stream: &str, job: Job, failed: &Mutex<Option<Error>>) {
    if lock(failed).is_some() {
        return;
    }
    let outcome = guard(stream, job);
    if let Err(error) = outcome {
        *lock(failed) = Some(error);
    }
}

impl Drop for Queue {
    /// Runs what is queued, then ends the thread.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // Its jobs catch their panics.
            let _ = thread.join();
        }
    }
}
