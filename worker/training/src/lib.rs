//! Training in stages: row plan, explicit forward and backward, optimizer, checkpoints, export.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod data;
pub mod layout;
pub mod model;
pub mod optimizer;
mod seed;
pub mod step;
#[cfg(test)]
mod tests;
pub mod weights;
