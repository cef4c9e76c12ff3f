//! Ranks as threads of one process: bytes travel through bounded channels in pieces.
//!
//! Invariant: an exchange alternates between sending a piece and receiving one. A send blocks
//! only while its receiver is more than a channel's depth behind, so the rank that is furthest
//! behind never blocks on a send, and all go on.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::{Link, Side};
use super::{Peer, Tag};
use crate::{Error, Result};

/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// Pieces that may wait in a channel.
const DEPTH: usize = 2;

struct Piece {
    tag: Tag,
    /// Bytes of the whole exchange.
    total: usize,
    bytes: Vec<u8>,
}

struct Ends {
    to: Vec<Option<SyncSender<Piece>>>,
    from: Vec<Option<Receiver<Piece>>>,
}

/// One rank's ends of the channels.
pub(crate) struct ChannelLink {
    rank: Peer,
    world: usize,
    timeout: Duration,
    ends: Mutex<Ends>,
}

impl ChannelLink {
    /// Links of all ranks of a gang.
    pub(crate) fn all(world: usize, timeout: Duration) -> Vec<Self> {
        let mut ends: Vec<_> =
            (0..world).map(|_| Ends { to: Vec::new(), from: (0..world).map(|_| None).collect() }).collect();
        for from in 0..world {
            for to in 0..world {
                let (sender, receiver) = sync_channel(DEPTH);
                ends[from].to.push((from != to).then_some(sender));
                ends[to].from[from] = (from != to).then_some(receiver);
            }
        }
        ends.into_iter()
            .enumerate()
            .map(|(rank, ends)| Self { rank, world, timeout, ends: Mutex::new(ends) })
            .collect()
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, peer: Peer, why: impl Into<String>) -> Error {
        Error::PeerLost { rank: self.rank, peer, why: why.into() }
    }

    fn send(&self, ends: &Ends, peer: Peer, piece: Piece) -> Result<()> {
        let sender = ends.to[peer].as_ref().ok_or_else(|| self.lost(peer, "the link was closed"))?;
        sender.send(piece).map_err(|_| self.lost(peer, "its thread has ended"))
    }

    fn receive(&self, ends: &Ends, peer: Peer, tag: Tag, total: usize) -> Result<Vec<u8>> {
        let receiver = ends.from[peer].as_ref().ok_or_else(|| self.lost(peer, "the link was closed"))?;
        let piece = receiver.recv_timeout(self.timeout).map_err(|e| match e {
            RecvTimeoutError::Timeout => self.lost(peer, format!("nothing came for {:?}", self.timeout)),
            RecvTimeoutError::Disconnected => self.lost(peer, "its thread has ended"),
        })?;
        if (piece.tag, piece.total) != (tag, total) {
            return Err(Error::OutOfStep {
                rank: self.rank,
                peer,
                expected: super::describe(tag, total),
                got: super::describe(piece.tag, piece.total),
            });
        }
        Ok(piece.bytes)
    }
}

impl Link for ChannelLink {
    fn rank(&self) -> Peer {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn exchange(&self, tag: Tag, send: &Side<'_>, recv: &Side<'_>) -> Result<()> {
        let ends = self.ends();
        let (out, into) = (send.bytes(), recv.bytes());
        // An exchange without bytes still is one piece, so that both sides stay in step.
        let pieces = |bytes: usize| bytes.div_ceil(PIECE).max(1);
        let mut source = send.runs().flat_map(|(m, r)| m.row(r).chunks(PIECE));
        let mut rest: &[u8] = &[];
        let mut target = recv.runs().map(|(m, r)| m.row_mut(r));
        let mut space: &mut [u8] = &mut [];
        for i in 0..pieces(out).max(pieces(into)) {
            if i < pieces(out) {
                let length = PIECE.min(out - i * PIECE);
                let mut bytes = Vec::with_capacity(length);
                while bytes.len() < length {
                    if rest.is_empty() {
                        rest = source.next().unwrap_or_default();
                    }
                    let (now, later) = rest.split_at(rest.len().min(length - bytes.len()));
                    bytes.extend_from_slice(now);
                    rest = later;
                }
                self.send(&ends, send.peer, Piece { tag, total: out, bytes })?;
            }
            if i < pieces(into) {
                let bytes = self.receive(&ends, recv.peer, tag, into)?;
                let mut bytes = bytes.as_slice();
                while !bytes.is_empty() {
                    if space.is_empty() {
                        space = target.next().unwrap_or_default();
                    }
                    let length = bytes.len().min(space.len());
                    let (now, later) = std::mem::take(&mut space).split_at_mut(length);
                    now.copy_from_slice(&bytes[..length]);
                    (bytes, space) = (&bytes[length..], later);
                }
            }
        }
        Ok(())
    }

    fn close(&self) {
        let mut ends = self.ends();
        ends.to.iter_mut().for_each(|s| *s = None);
        ends.from.iter_mut().for_each(|r| *r = None);
    }
}
