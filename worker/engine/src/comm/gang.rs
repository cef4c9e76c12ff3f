//! Collectives of a CPU rank, as rounds of exchanges over any transport.
//!
//! Invariant: sums are formed by one rank each, in rank order, and then handed to the others, so
//! all ranks hold the same bits. After an error the link is closed: peers notice at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::channel::ChannelLink;
use super::check;
use super::frame;
use super::link::{Link, Side};
use super::tcp::{TcpLink, TcpOptions};
use super::{Comm, Peer, Tag};
use crate::cpu::{Arenas, Element, Mat};
use crate::{CpuBackend, Dtype, Error, Result, Stream, View};

/// Bytes that one peer contributes to a sum at a time.
const CHUNK: usize = 256 << 10;

/// A rank's part in the collectives of a gang of CPU backends.
pub struct CpuComm {
    backend: Arc<CpuBackend>,
    shared: Arc<Shared>,
}

struct Shared {
    /// None: a gang of one.
    link: Option<Box<dyn Link>>,
    sent: AtomicU64,
    /// What peers contribute to a sum, `CHUNK` bytes each.
    parts: Mutex<Vec<u8>>,
}

impl CpuComm {
    fn with(backend: &Arc<CpuBackend>, link: Option<Box<dyn Link>>) -> Self {
        let world = link.as_ref().map_or(1, |l| l.world());
        let parts = Mutex::new(vec![0; if world > 1 { world * CHUNK } else { 0 }]);
        Self {
            backend: Arc::clone(backend),
            shared: Arc::new(Shared { link, sent: AtomicU64::new(0), parts }),
        }
    }

    /// A gang of one rank: collectives copy or do nothing.
    #[must_use]
    pub fn solo(backend: &Arc<CpuBackend>) -> Self {
        Self::with(backend, None)
    }

    /// Ranks as threads of this process, one per backend and in their order; `timeout` is how
    /// long a peer may be silent inside a collective.
    #[must_use]
    pub fn channels(backends: &[Arc<CpuBackend>], timeout: Duration) -> Vec<Self> {
        let links = ChannelLink::all(backends.len(), timeout);
        backends.iter().zip(links).map(|(b, link)| Self::with(b, Some(Box::new(link)))).collect()
    }

    /// This process as one rank of a gang of processes; returns when all have joined.
    ///
    /// # Errors
    /// [`Error::PeerLost`] when a peer does not come in time or refuses us: both sides are named.
    pub fn tcp(backend: &Arc<CpuBackend>, options: &TcpOptions) -> Result<Self> {
        let link = TcpLink::join(options)?;
        Ok(Self::with(backend, Some(Box::new(link))))
    }

    /// Bytes that a process of a gang of `world` takes beside the arenas, whatever it exchanges: what
    /// peers contribute to a sum, and either the sum or the buffers of the frames in both directions.
    #[must_use]
    pub const fn working_bytes(world: usize) -> usize {
        let frames = 2 * frame::BUFFER;
        let once = if frames > CHUNK { frames } else { CHUNK };
        if world > 1 { world * CHUNK + once } else { 0 }
    }

    /// Checks that the views lie in their arenas and runs a collective in a stream.
    fn enqueue(
        &self,
        stream: Stream,
        views: &[View],
        collective: impl FnOnce(&Round<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.backend.check(views)?;
        let (memory, shared) = (self.backend.memory(), Arc::clone(&self.shared));
        self.backend.enqueue(
            stream,
            Box::new(move || {
                let round = Round { memory: memory.get(), shared: &shared };
                collective(&round).inspect_err(|_| {
                    if let Some(link) = &shared.link {
                        link.close();
                    }
                })
            }),
        )
    }
}

/// A collective while it runs.
struct Round<'a> {
    memory: &'a Arenas,
    shared: &'a Shared,
}

impl<'a> Round<'a> {
    fn rank(&self) -> Peer {
        self.shared.link.as_ref().map_or(0, |l| l.rank())
    }

    fn world(&self) -> usize {
        self.shared.link.as_ref().map_or(1, |l| l.world())
    }

    /// Pairs of a round: whom to send to and whom to receive from, for every round.
    fn pairs(&self) -> impl Iterator<Item = (Peer, Peer)> + use<> {
        let (rank, world) = (self.rank(), self.world());
        (1..world).map(move |k| ((rank + k) % world, (rank + world - k) % world))
    }

    fn bytes(&self, view: View) -> Mat<'a, u8> {
        // SAFETY: checked before it was enqueued; the caller orders the streams.
        unsafe { self.memory.bytes(view, true) }
    }

    fn exchange(&self, tag: Tag, send: Side<'_>, recv: Side<'_>) -> Result<()> {
        if send.peer == self.rank() || recv.peer == self.rank() {
            return self.to_itself(&send, &recv);
        }
        let Some(link) = &self.shared.link else {
            return Err(Error::shape("exchange", format!("there is no rank {} in a gang of one", send.peer)));
        };
        link.exchange(tag, &send, &recv)?;
        self.shared.sent.fetch_add(send.bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn to_itself(&self, send: &Side<'_>, recv: &Side<'_>) -> Result<()> {
        if send.peer != recv.peer || send.bytes() != recv.bytes() {
            return Err(Error::shape(
                "exchange",
                "a rank that sends to itself receives the same from itself",
            ));
        }
        let bytes = send.runs().flat_map(|(m, r)| m.row(r));
        let places = recv.runs().flat_map(|(m, r)| m.row_mut(r));
        places.zip(bytes).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Adds the ranks' versions of `mine` in rank order into `out`, while sending to each peer its
    /// own part of ours (`part(peer)`). All parts are rows of elements, sent in chunks.
    fn reduce<T: Sum>(
        &self,
        tag: &mut Tag,
        part: impl Fn(Peer) -> Mat<'a, T>,
        out: Mat<'a, T>,
    ) -> Result<()> {
        let (rank, world) = (self.rank(), self.world());
        let mut parts = self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let received = Mat::from_slice(parts.as_mut_slice(), world, if world > 1 { CHUNK } else { 0 });
        let chunk = CHUNK / size_of::<T>();
        // Parts may differ by an element: all ranks go through the chunks of the longest.
        let longest = (0..world).map(|p| part(p).cols).max().unwrap_or(0);
        for start in (0..longest).step_by(chunk) {
            let cut = |m: Mat<'a, T>| {
                let start = start.min(m.cols);
                m.block(0, 1, start, chunk.min(m.cols - start))
            };
            let mine = cut(part(rank));
            let room = |peer| received.block(peer, 1, 0, mine.cols * size_of::<T>());
            for (to, from) in self.pairs() {
                let send = Side { peer: to, parts: vec![cut(part(to)).as_bytes()] };
                self.exchange(*tag, send, Side { peer: from, parts: vec![room(from)] })?;
                tag.hop = tag.hop.wrapping_add(1);
            }
            let mut sum = vec![T::ZERO; mine.cols];
            for peer in 0..world {
                if peer == rank {
                    T::add(&mut sum, mine.row(0), peer == 0);
                } else {
                    T::add(&mut sum, bytemuck::cast_slice(room(peer).row(0)), peer == 0);
                }
            }
            cut(out).row_mut(0).copy_from_slice(&sum);
        }
        Ok(())
    }

    /// x ← sum over ranks, a dense row.
    fn all_reduce<T: Sum>(&self, mut tag: Tag, x: Mat<'a, T>) -> Result<()> {
        let world = self.world();
        let part = |peer: Peer| {
            let (start, end) = (x.cols * peer / world, x.cols * (peer + 1) / world);
            x.block(0, 1, start, end - start)
        };
        self.reduce(&mut tag, part, part(self.rank()))?;
        for (to, from) in self.pairs() {
            let send = Side { peer: to, parts: vec![part(self.rank()).as_bytes()] };
            self.exchange(tag, send, Side { peer: from, parts: vec![part(from).as_bytes()] })?;
            tag.hop = tag.hop.wrapping_add(1);
        }
        Ok(())
    }

    fn copy(&self, from: View, to: View) -> Result<()> {
        let side = |view| Side { peer: self.rank(), parts: vec![self.bytes(view)] };
        self.to_itself(&side(from), &side(to))
    }
}

/// Elements that a gang can add.
trait Sum: Element {
    const ZERO: Self;
    /// sum ← x when `first`, else sum + x.
    fn add(sum: &mut [Self], x: &[Self], first: bool);
}

macro_rules! sum {
    ($ty:ty) => {
        impl Sum for $ty {
            const ZERO: Self = 0.0;
            fn add(sum: &mut [Self], x: &[Self], first: bool) {
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum = if first { *x } else { *sum + *x };
                }
            }
        }
    };
}
sum!(f32);
sum!(f64);

impl Comm for CpuComm {
    fn rank(&self) -> Peer {
        self.shared.link.as_ref().map_or(0, |l| l.rank())
    }

    fn world(&self) -> usize {
        self.shared.link.as_ref().map_or(1, |l| l.world())
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
        check::check_exchange(self.world(), send, to, recv, from)?;
        let (send, recv) = (send.to_vec(), recv.to_vec());
        let views = [send.clone(), recv.clone()].concat();
        self.enqueue(stream, &views, move |round| {
            let side =
                |peer, views: &[View]| Side { peer, parts: views.iter().map(|v| round.bytes(*v)).collect() };
            round.exchange(tag, side(to, &send), side(from, &recv))
        })
    }

    fn all_reduce(&self, stream: Stream, tag: Tag, x: View) -> Result<()> {
        check::check_all_reduce(x)?;
        let row = x.reshape(1, x.len());
        self.enqueue(stream, &[x], move |round| {
            // SAFETY: checked before it was enqueued; the caller orders the streams.
            unsafe {
                match row.dtype {
                    Dtype::F64 => round.all_reduce(tag, round.memory.mat::<f64>(row)),
                    _ => round.all_reduce(tag, round.memory.mat::<f32>(row)),
                }
            }
        })
    }

    fn all_gather(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        check::check_all_gather(self.world(), x, out)?;
        self.enqueue(stream, &[x, out], move |round| {
            let block = |r: Peer| out.row_range(r * x.rows..(r + 1) * x.rows);
            round.copy(x, block(round.rank()))?;
            for (hop, (to, from)) in (tag.hop..).zip(round.pairs()) {
                let recv = Side { peer: from, parts: vec![round.bytes(block(from))] };
                round.exchange(Tag { hop, ..tag }, Side { peer: to, parts: vec![round.bytes(x)] }, recv)?;
            }
            Ok(())
        })
    }

    fn reduce_scatter(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        check::check_reduce_scatter(self.world(), x, out)?;
        let part =
            move |peer: Peer| x.row_range(peer * out.rows..(peer + 1) * out.rows).reshape(1, out.len());
        let mine = out.reshape(1, out.len());
        self.enqueue(stream, &[x, out], move |round| {
            let mut tag = tag;
            // SAFETY: checked before it was enqueued; the caller orders the streams.
            unsafe {
                match x.dtype {
                    Dtype::F64 => {
                        let part = |peer| round.memory.mat::<f64>(part(peer));
                        round.reduce(&mut tag, part, round.memory.mat::<f64>(mine))
                    }
                    _ => {
                        let part = |peer| round.memory.mat::<f32>(part(peer));
                        round.reduce(&mut tag, part, round.memory.mat::<f32>(mine))
                    }
                }
            }
        })
    }

    fn all_to_all(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()> {
        check::check_all_to_all(self.world(), x, out)?;
        let world = self.world();
        let rows = x.rows / world;
        self.enqueue(stream, &[x, out], move |round| {
            let block = |view: View, r: Peer| view.row_range(r * rows..(r + 1) * rows);
            round.copy(block(x, round.rank()), block(out, round.rank()))?;
            for (hop, (to, from)) in (tag.hop..).zip(round.pairs()) {
                let send = Side { peer: to, parts: vec![round.bytes(block(x, to))] };
                let recv = Side { peer: from, parts: vec![round.bytes(block(out, from))] };
                round.exchange(Tag { hop, ..tag }, send, recv)?;
            }
            Ok(())
        })
    }

    fn bytes_sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

impl Drop for CpuComm {
    /// Lets peers that still wait for this rank know that it has ended.
    fn drop(&mut self) {
        // What is queued still runs; an error of it was or will be told by the backend.
        let _ = self.backend.enqueue(Stream::Comm, {
            let shared = Arc::clone(&self.shared);
            Box::new(move || {
                if let Some(link) = &shared.link {
                    link.close();
                }
                Ok(())
            })
        });
    }
}
