//! The data synthesis workflow: instruct, retrieve, summarise, respond, assemble.
//!
//! Three steps of a pod: [`prepare`] resolves everything that decides content, [`generate`] fills
//! shards of slots, [`finalize`] publishes the dataset. The invariant: same spec and same answers
//! give the same bytes, whatever was killed in between.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bench;
mod candidate;
mod dataset;
mod error;
mod finalize;
mod generate;
pub mod llm;
mod meter;
mod open;
mod prepare;
pub mod prompts;
pub mod run;
pub mod sample;
mod seed;
pub mod shard;
pub mod slots;
mod steps;
mod target;
mod text;
pub mod variety;

pub use bench::Bench;
pub use error::SynthError;
pub use finalize::finalize;
pub use generate::{Worker, committed, generate};
pub use open::ENV_API_KEY;
pub use prepare::{check, prepare};
pub use target::Target;

#[cfg(test)]
mod tests;
