//! Model shape, lengths and options in; the table of buffers out. No tensors, no I/O.
//!
//! Invariant: the trainer allocates exactly what [`Plan`] lists, so what is printed, what is
//! refused and what is used are one number.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod fit;
mod plan;
mod shape;
mod table;
#[cfg(test)]
mod tests;

pub use fit::{Alternative, CheckpointCost, RunFiles, alternatives, largest_context, run_disk};
pub use plan::{Buffer, Dtype, Name, Options, Plan, SHARD_ELEMENTS, Space, padded};
pub use shape::{Group, Shape};
pub use table::human;
