//! A backend and a gang without arithmetic, for tests of what is written against the contract.
//!
//! Invariant: every operation is checked as on a real device (shapes, types, arena bounds) and,
//! beyond that, for races: two streams that touch the same elements, one of them writing, must be
//! ordered by an event. A program that runs here needs nothing but the contract.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::op::check_bytes;
use crate::{Backend, Comm, Error, Event, Op, Peer, Result, Space, Stream, Tag, View};

/// What was called, in the order of the calls.
#[derive(Clone, Debug)]
// Short lists in tests: plain values are easier to match on than boxes.
#[allow(clippy::large_enum_variant)]
pub enum Call {
    /// A kernel.
    Op(Stream, Op),
    /// Bytes from the host.
    Write(View),
    /// Bytes to the host.
    Read(View),
    /// An event was recorded on a stream.
    Record(Stream, Event),
    /// A stream waits for an event.
    Wait(Stream, Event),
    /// The host waits for a stream.
    Synchronize(Stream),
    /// A collective: its name, tag, what it reads and what it writes.
    Collective(Stream, &'static str, Tag, Vec<View>, Vec<View>),
}

/// Number of streams.
const STREAMS: usize = 3;
/// How many operations of each stream are known to be finished.
type Clock = [u64; STREAMS];

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 0,
        Stream::Copy => 1,
        Stream::Comm => 2,
    }
}

struct Access {
    name: &'static str,
    view: View,
    writes: bool,
    stream: usize,
    /// Number of the operation in its stream.
    number: u64,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    /// What each stream has seen of all streams.
    clocks: [Clock; STREAMS],
    events: Vec<Clock>,
    accesses: Vec<Access>,
}

impl State {
    /// Notes an operation; refuses it when it races with an earlier one.
    fn access(&mut self, stream: Stream, name: &'static str, reads: &[View], writes: &[View]) -> Result<()> {
        let s = index(stream);
        let seen = self.clocks[s];
        let all = || reads.iter().map(|v| (v, false)).chain(writes.iter().map(|v| (v, true)));
        for (view, write) in all() {
            let race = self.accesses.iter().find(|a| {
                a.stream != s && (write || a.writes) && seen[a.stream] < a.number && a.view.overlaps(view)
            });
            if let Some(a) = race {
                let what = format!(
                    "{view:?} races with {} of {:?} on another stream: no event orders them",
                    a.name, a.view
                );
                return Err(Error::shape(name, what));
            }
        }
        self.clocks[s][s] += 1;
        let number = self.clocks[s][s];
        for (view, writes) in all() {
            self.accesses.push(Access { name, view: *view, writes, stream: s, number });
        }
        // What all streams have seen can race with nothing any more.
        let clocks = self.clocks;
        self.accesses.retain(|a| clocks.iter().any(|c| c[a.stream] < a.number));
        Ok(())
    }

    fn join(&mut self, stream: usize, other: Clock) {
        for (mine, theirs) in self.clocks[stream].iter_mut().zip(other) {
            *mine = (*mine).max(theirs);
        }
    }
}

/// A device that computes nothing.
pub struct RecordingBackend {
    device_bytes: usize,
    host_bytes: usize,
    state: Mutex<State>,
}

impl RecordingBackend {
    /// Arenas of these sizes, without memory.
    #[must_use]
    pub fn new(device_bytes: usize, host_bytes: usize) -> Arc<Self> {
        Arc::new(Self { device_bytes, host_bytes, state: Mutex::default() })
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Kernels so far, of all streams.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        let op = |call: &Call| if let Call::Op(_, op) = call { Some(*op) } else { None };
        self.state().calls.iter().filter_map(op).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_arena(&self, views: &[View]) -> Result<()> {
        for view in views {
            let arena_bytes = match view.space {
                Space::Device => self.device_bytes,
                Space::Host => self.host_bytes,
            };
            if view.end() > arena_bytes {
                return Err(Error::OutOfArena { view: *view, arena_bytes });
            }
        }
        Ok(())
    }

    fn note(
        &self,
        stream: Stream,
        name: &'static str,
        reads: &[View],
        writes: &[View],
        call: Call,
    ) -> Result<()> {
        self.in_arena(reads)?;
        self.in_arena(writes)?;
        let mut state = self.state();
        state.access(stream, name, reads, writes)?;
        state.calls.push(call);
        Ok(())
    }

    fn submit(&self, stream: Stream, op: Op) -> Result<()> {
        op.check()?;
        self.note(stream, op.name(), &op.reads(), &op.writes(), Call::Op(stream, op))
    }
}

impl Backend for RecordingBackend {
    fn write(&self, dst: View, bytes: &[u8]) -> Result<()> {
        check_bytes("write", dst, bytes.len())?;
        self.note(Stream::Compute, "write", &[], &[dst], Call::Write(dst))
    }

    fn read(&self, src: View, bytes: &mut [u8]) -> Result<()> {
        check_bytes("read", src, bytes.len())?;
        bytes.fill(0);
        self.note(Stream::Compute, "read", &[src], &[], Call::Read(src))
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        let mut state = self.state();
        let event = Event(state.events.len() as u64);
        let clock = state.clocks[index(stream)];
        state.events.push(clock);
        state.calls.push(Call::Record(stream, event));
        Ok(event)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        let mut state = self.state();
        let clock = usize::try_from(event.0).ok().and_then(|e| state.events.get(e)).copied();
        let clock =
            clock.ok_or_else(|| Error::Device(format!("{event:?} was never recorded on this backend")))?;
        state.join(index(stream), clock);
        state.calls.push(Call::Wait(stream, event));
        Ok(())
    }

    fn query(&self, event: Event) -> Result<bool> {
        if (event.0 as usize) < self.state().events.len() {
            Ok(true)
        } else {
            Err(Error::Device(format!("{event:?} was never recorded on this backend")))
        }
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut state = self.state();
        // The host goes on afterwards, and Compute with it.
        let clock = state.clocks[index(stream)];
        state.join(index(Stream::Compute), clock);
        state.calls.push(Call::Synchronize(stream));
        Ok(())
    }

    crate::op::forward_to_submit!();
}

/// One rank of a gang that exchanges nothing.
pub struct RecordingComm {
    backend: Arc<RecordingBackend>,
    rank: Peer,
    world: usize,
    sent: std::sync::atomic::AtomicU64,
}

impl RecordingComm {
    /// Rank `rank` of `world`, on a recording backend.
    #[must_use]
    pub fn new(backend: &Arc<RecordingBackend>, rank: Peer, world: usize) -> Self {
        Self { backend: Arc::clone(backend), rank, world, sent: 0.into() }
    }

    fn note(
        &self,
        stream: Stream,
        name: &'static str,
        tag: Tag,
        (reads, writes): (&[View], &[View]),
        sent: usize,
    ) -> Result<()> {
        self.sent.fetch_add(sent as u64, std::sync::atomic::Ordering::Relaxed);
        let call = Call::Collective(stream, name, tag, reads.to_vec(), writes.to_vec());
        self.backend.note(stream, name, reads, writes, call)
    }
}

const fn bytes(view: View) -> usize {
    view.len() * view.dtype.size()
}

impl Comm for RecordingComm {
    fn rank(&self) -> Peer {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn exchange(
        &self,
        stream: Stream,
        tag: Tag,
        send: &[View],
        to: Peer,
        recv: &[View],
        from: Peer,
    ) -> Result<()> {
        crate::comm::check_exchange(self.world, send, to, recv, from)?;
        self.note(stream, "exchange", tag, (send, recv), send.iter().map(|v| bytes(*v)).sum())
    }

    fn all_reduce(&self, stream: Stream, tag: Tag, x: View) -> Result<()> {
        crate::comm::check_all_reduce(x)?;
        self.note(stream, "all_reduce", tag, (&[], &[x]), 2 * bytes(x) * (self.world - 1) / self.world)
    }

    fn all_gather(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        crate::comm::check_all_gather(self.world, x, out)?;
        self.note(stream, "all_gather", tag, (&[x], &[out]), bytes(x) * (self.world - 1))
    }

    fn reduce_scatter(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        crate::comm::check_reduce_scatter(self.world, x, out)?;
        self.note(stream, "reduce_scatter", tag, (&[x], &[out]), bytes(out) * (self.world - 1))
    }

    fn all_to_all(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        crate::comm::check_all_to_all(self.world, x, out)?;
        let sent = bytes(x) / self.world * (self.world - 1);
        self.note(stream, "all_to_all", tag, (&[x], &[out]), sent)
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn a_missing_event_is_a_race() {
        let view = |i: usize| View::dense(Space::Device, i * 4096, 10, 10, Dtype::F32);
        let host = View { space: Space::Host, ..view(0) };
        // Offload x while Compute goes on; x may be written again only after the copy.
        let run = |first: bool, second: bool| -> Result<()> {
            let b = RecordingBackend::new(1 << 20, 1 << 20);
            b.fill(Stream::Compute, view(0), 1.0)?;
            let event = b.record(Stream::Compute)?;
            if first {
                b.wait(Stream::Copy, event)?;
            }
            b.copy(Stream::Copy, view(0), host)?;
            let copied = b.record(Stream::Copy)?;
            b.add(Stream::Compute, view(0), view(1))?;
            if second {
                b.wait(Stream::Compute, copied)?;
            }
            b.fill(Stream::Compute, view(0), 2.0)?;
            assert_eq!(b.ops().len(), 4);
            Ok(())
        };
        run(true, true).unwrap();
        assert!(run(false, true).unwrap_err().to_string().contains("copy: "));
        assert!(run(true, false).unwrap_err().to_string().contains("fill: "));
    }

    #[test]
    fn calls_and_bytes_are_recorded() {
        let b = RecordingBackend::new(4096, 0);
        let comm = RecordingComm::new(&b, 1, 4);
        let x = View::dense(Space::Device, 0, 4, 8, Dtype::F32);
        let out = View::dense(Space::Device, 1024, 16, 8, Dtype::F32);
        comm.all_gather(Stream::Comm, Tag::default(), x, out).unwrap();
        assert_eq!(comm.bytes_sent(), 3 * 128);
        assert!(matches!(b.calls()[..], [Call::Collective(Stream::Comm, "all_gather", ..)]));
        let beyond = View { offset: 4000, ..x };
        assert!(matches!(
            b.fill(Stream::Compute, beyond, 0.0),
            Err(Error::OutOfArena { arena_bytes: 4096, .. })
        ));
        assert!(comm.all_gather(Stream::Comm, Tag::default(), x, x).is_err());
    }
}
