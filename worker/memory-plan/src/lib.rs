//! Model shape, lengths and options in; the table of buffers out. No tensors, no I/O.
//!
//! Invariant: the trainer allocates exactly what [`Plan`] lists, so what is printed, what is
//! refused and what is used are one number.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buffer;
mod fit;
mod plan;
mod shape;
mod table;
#[cfg(test)]
mod tests;

pub use buffer::{Buffer, Dtype, Name, Space};
pub use fit::{
    Alternative, CheckpointCost, Placement, RunFiles, alternatives, checkpoint_bytes, largest_context,
    run_disk,
};
pub use plan::{Options, Plan, SHARD_ELEMENTS, padded};
pub use shape::{Group, Shape};
pub use table::human;
