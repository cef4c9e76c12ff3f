//! What can go wrong below the contract: a wrong shape (a bug of the caller), a lost peer, a device.

use crate::View;

/// Result of the compute layer.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a backend or a collective.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Views that do not fit together; found before anything is enqueued.
    #[error("{op}: {what}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which view, and what it should have been.
        what: String,
    },
    /// A view that leaves its arena.
    #[error("view {view:?} ends beyond its arena of {arena_bytes} bytes")]
    OutOfArena {
        /// The offending view.
        view: View,
        /// Size of the arena it points into.
        arena_bytes: usize,
    },
    /// A peer closed its connection or did not answer in time.
    #[error("rank {rank} lost its peer {peer}: {why}")]
    PeerLost {
        /// This rank.
        rank: usize,
        /// The peer.
        peer: usize,
        /// Cause, in words.
        why: String,
    },
    /// A frame that belongs to another step, layer or hop: the gang is out of step.
    #[error("rank {rank} expected {expected} from rank {peer} and got {got}")]
    OutOfStep {
        /// This rank.
        rank: usize,
        /// The sender.
        peer: usize,
        /// The tag this rank waited for.
        expected: String,
        /// The tag that came.
        got: String,
    },
    /// The device or the operating system refused.
    #[error("{0}")]
    Device(String),
}

impl Error {
    pub(crate) fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }
}
