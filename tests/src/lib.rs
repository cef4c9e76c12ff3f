//! What the tests that go across crates share: the smoke run, its chat server, its processes.
//!
//! The binaries under test are the ones built beside the tests, or in `LONGSTRAP_BIN_DIR`.
#![allow(clippy::unwrap_used)]

pub mod chat;
pub mod processes;
pub mod smoke;
pub mod tensors;
pub mod tree;
