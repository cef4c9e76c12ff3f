//! Collectives between the ranks of a gang, on the same views and streams as the kernels.
//!
//! Invariant: every rank enqueues the same sequence of collectives; reductions add in rank order,
//! so all ranks hold the same bits. A frame that belongs elsewhere is an error, never data.

mod channel;
mod check;
mod frame;
mod gang;
mod link;
mod tcp;
#[cfg(test)]
mod tests;

pub(crate) use check::{
    check_all_gather, check_all_reduce, check_all_to_all, check_exchange, check_reduce_scatter,
};
pub use gang::CpuComm;
pub use tcp::TcpOptions;

use crate::{Result, Stream, View};

/// A tag and a length in words.
fn describe(tag: Tag, bytes: usize) -> String {
    format!("step {} layer {} hop {} ({bytes} bytes)", tag.step, tag.layer, tag.hop)
}

/// What a frame belongs to; travels with it and is compared on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tag {
    /// Optimizer step.
    pub step: u32,
    /// Layer, or a number of its own for what belongs to no layer.
    pub layer: u32,
    /// Hop of a ring, or index within a collective.
    pub hop: u32,
}

/// A rank of the gang.
pub type Peer = usize;

/// A gang as one rank sees it. Operations enqueue on a stream (usually [`Stream::Comm`]).
pub trait Comm: Send + Sync {
    /// This rank, 0 ≤ rank < world.
    fn rank(&self) -> Peer;
    /// Number of ranks.
    fn world(&self) -> usize;

    /// Sends some views to one peer while receiving as many bytes from another: full duplex, both
    /// are posted together (two blocking sends of 12 MB dead-lock TCP). Views of one side follow
    /// each other in the frame.
    fn exchange(
        &self,
        stream: Stream,
        tag: Tag,
        send: &[View],
        to: Peer,
        recv: &[View],
        from: Peer,
    ) -> Result<()>;
    /// x ← Σ over ranks of x, f32 or f64, added in rank order.
    fn all_reduce(&self, stream: Stream, tag: Tag, x: View) -> Result<()>;
    /// out (world·r × c) ← the x (r × c) of all ranks, in rank order.
    fn all_gather(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()>;
    /// out (r × c) ← Σ over ranks of their rows rank·r … of x (world·r × c), added in rank order.
    fn reduce_scatter(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()>;
    /// Rows r·n … of x go to rank r; rows r·n … of out come from rank r.
    fn all_to_all(&self, stream: Stream, tag: Tag, x: View, out: View) -> Result<()>;
    /// Payload bytes this rank has sent so far, without frame headers.
    fn bytes_sent(&self) -> u64;
}
