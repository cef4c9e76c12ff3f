//! The embedded generator and scorer: a short-context model run by the engine itself, with a
//! key-value cache, batched decoding, explicit sampling, and likelihoods of given tokens.
//!
//! Invariant: what a call answers, and every bit of a score, depends on the call, the weights and
//! the instruction set; never on the calls beside it, their order, or the number of threads.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod generator;
mod memory;
mod model;
mod sample;
mod score;
#[cfg(test)]
mod tests;

pub use error::{InferenceError, Result};
pub use generator::{Answer, Call, Finish, Generator, GeneratorOptions};
pub use longstrap_engine::instruction_set;
pub use model::{Model, ModelOptions};
pub use sample::Sampling;
pub use score::Scorer;
