//! Names buffers of one arena one after the other: the memory plan computes a layout, the trainer
//! allocates exactly its size.
//!
//! Invariant: every buffer starts at a multiple of [`ALIGNMENT`]; offsets depend on the order and
//! the sizes alone.

use crate::{Dtype, Space, View};

/// Every buffer starts at a multiple of this many bytes: a cache line, the widest vector.
pub const ALIGNMENT: usize = 64;

/// Table of an arena's buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    space: Space,
    bytes: usize,
    buffers: Vec<(String, View)>,
}

impl ArenaLayout {
    /// An empty layout of one arena.
    #[must_use]
    pub const fn new(space: Space) -> Self {
        Self { space, bytes: 0, buffers: Vec::new() }
    }

    /// Appends a dense buffer and returns its view.
    pub fn push(&mut self, name: impl Into<String>, rows: usize, cols: usize, dtype: Dtype) -> View {
        let view = View::dense(self.space, self.bytes, rows, cols, dtype);
        self.bytes = (self.bytes + rows * cols * dtype.size()).next_multiple_of(ALIGNMENT);
        self.buffers.push((name.into(), view));
        view
    }

    /// Size of the arena, a multiple of [`ALIGNMENT`].
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Names and views in order.
    #[must_use]
    pub fn buffers(&self) -> &[(String, View)] {
        &self.buffers
    }

    /// The view of a name, the first if a name was used twice.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<View> {
        self.buffers.iter().find(|(n, _)| n == name).map(|(_, view)| *view)
    }
}
