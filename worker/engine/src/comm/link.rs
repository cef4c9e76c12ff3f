//! What a transport must do: one full-duplex exchange of bytes between neighbours of a round.
//!
//! Invariant: collectives are rounds of exchanges in which every rank sends to one peer and
//! receives from one; the rounds have the same order everywhere, so an implementation is free of
//! dead-lock when its sends do not wait for its own receives.

use super::{Peer, Tag};
use crate::{Result, cpu::Mat};

/// A transport between the ranks of a gang.
pub(crate) trait Link: Send + Sync {
    fn rank(&self) -> Peer;
    fn world(&self) -> usize;
    /// Sends the bytes of `send` to one peer while receiving those of `recv` from another.
    fn exchange(&self, tag: Tag, send: &Side<'_>, recv: &Side<'_>) -> Result<()>;
    /// Ends all connections, so that peers notice at once instead of waiting for a time-out.
    fn close(&self);
}

/// One direction of an exchange.
pub(crate) struct Side<'a> {
    pub(crate) peer: Peer,
    /// Follow each other in the frame.
    pub(crate) parts: Vec<Mat<'a, u8>>,
}

impl Side<'_> {
    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|m| m.rows * m.cols).sum()
    }

    /// Runs of adjacent bytes, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (&Mat<'_, u8>, usize)> {
        self.parts.iter().flat_map(|m| (0..m.rows).map(move |r| (m, r)))
    }
}
