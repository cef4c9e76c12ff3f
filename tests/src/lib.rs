//! What the tests that go across crates share: the smoke run, its chat server, its processes.
//!
//! The binaries under test are the ones built beside the tests, or in `LONGSTRAP_BIN_DIR`.
#![allow(clippy::unwrap_used)]

pub mod chat;
pub mod processes;
pub mod smoke;
pub mod tensors;
pub mod tree;

use std::time::{Duration, Instant};

/// Looks until it is so.
///
/// # Panics
/// After three minutes: nothing that is waited for takes so long.
pub fn until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(180), "nothing happened for three minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
}
