//! Training in stages: row plan, explicit forward and backward, optimizer, checkpoints, export.
//!
//! Three entries for pods: [`prepare()`] resolves and tokenises, `rank` trains as one process of a
//! gang, `export` publishes. Invariant: what a run writes is a function of its `run.json`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod data;
pub mod layout;
pub mod model;
pub mod optimizer;
mod prepare;
pub mod run;
mod seed;
pub mod step;
#[cfg(test)]
mod tests;
pub mod tokens;
pub mod weights;

pub use prepare::prepare;
