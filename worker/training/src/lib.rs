//! Training in stages: row plan, explicit forward and backward, optimizer, checkpoints, export.
//!
//! Three entries for pods: [`prepare()`] resolves and tokenises, [`rank()`] trains as one process of
//! a gang, [`export()`] publishes. Invariant: what a run writes is a function of its `run.json`.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::single_range_in_vec_init, reason = "targets are lists of ranges, often of one")]

mod aside;
pub mod checkpoint;
pub mod data;
mod evaluate;
mod export;
pub mod layout;
mod log;
pub mod model;
pub mod optimizer;
mod prepare;
mod progress;
mod rank;
pub mod run;
mod stage;
mod stage_end;
pub mod step;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod weights;

pub use export::{ComputedWith, ModelManifest, export};
pub use prepare::prepare;
pub use rank::rank;
pub use stage_end::StageManifest;
