//! The compute contract of Longstrap and its CPU implementation.
//!
//! Invariant: above [`Backend`] no slice of numbers exists. A model is written as operations that
//! enqueue on [`View`]s of two arenas, so another device is another implementation of two traits.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backend;
mod comm;
mod cpu;
mod error;
mod layout;
mod op;
pub mod reference;
pub mod testing;
mod view;

pub use backend::{
    AdamW, Attention, AttentionGrad, Backend, Beta, CrossEntropy, Event, Gemm, Heads, Mask, Stream, Transpose,
};
pub use comm::{Comm, CpuComm, Peer, Tag, TcpOptions};
pub use cpu::{
    CpuBackend, CpuOptions, KEY_TILE, PACKING_BYTES, SCRATCH_BYTES, instruction_set, measure_gemm_gflops,
};
pub use error::{Error, Result};
pub use layout::{ALIGNMENT, ArenaLayout};
pub use op::Op;
pub use view::{Dtype, Space, View};
