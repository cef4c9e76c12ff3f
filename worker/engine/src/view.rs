//! A view names numbers without holding them: plain data, no lifetime, any device.
//!
//! Invariant: rows are contiguous; two views that are written at the same time never overlap
//! (the caller's duty, checked where it is cheap).

use std::ops::Range;

/// Which arena a view points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Memory next to the arithmetic: HBM of an accelerator, plain memory on a CPU.
    Device,
    /// Pinned host memory: offloaded activations, staging of checkpoints and of the network.
    Host,
}

/// Type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16: converted inside the operation, accumulated in f32.
    Bf16,
    /// IEEE double: sums of losses and squares only.
    F64,
    /// Token ids, positions, flags.
    U32,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::F64 => 8,
        }
    }
}

/// A matrix in an arena: `rows` × `cols`, the elements of a row adjacent, rows `row_stride`
/// elements apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The arena.
    pub space: Space,
    /// Bytes from the start of the arena; a multiple of the element's size.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance of two rows in elements, ≥ `cols`.
    pub row_stride: usize,
    /// Element type.
    pub dtype: Dtype,
}

impl View {
    /// A dense matrix at `offset` bytes.
    #[must_use]
    pub const fn dense(space: Space, offset: usize, rows: usize, cols: usize, dtype: Dtype) -> Self {
        Self { space, offset, rows, cols, row_stride: cols, dtype }
    }

    /// Elements, without what lies between rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True when there is nothing to do for any operation.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// True when rows follow each other without a gap.
    #[must_use]
    pub const fn is_dense(&self) -> bool {
        self.row_stride == self.cols || self.rows <= 1
    }

    /// First byte behind the view in its arena.
    #[must_use]
    pub const fn end(&self) -> usize {
        if self.is_empty() {
            return self.offset;
        }
        self.offset + ((self.rows - 1) * self.row_stride + self.cols) * self.dtype.size()
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// When the range leaves the view: a bug of the caller.
    #[must_use]
    pub fn row_range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {self:?}");
        Self {
            offset: self.offset + range.start * self.row_stride * self.dtype.size(),
            rows: range.end - range.start,
            ..*self
        }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// When the range leaves the view: a bug of the caller.
    #[must_use]
    pub fn col_range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {self:?}");
        Self { offset: self.offset + range.start * self.dtype.size(), cols: range.end - range.start, ..*self }
    }

    /// The same elements of a dense view as another matrix.
    ///
    /// # Panics
    /// When the view is not dense or the number of elements differs: a bug of the caller.
    #[must_use]
    pub fn reshape(&self, rows: usize, cols: usize) -> Self {
        assert!(self.is_dense() && rows * cols == self.len(), "{self:?} as {rows} x {cols}");
        Self { rows, cols, row_stride: cols, ..*self }
    }

    /// A dense matrix inside this dense view, from element `start` on: a tensor of a flat buffer.
    ///
    /// # Panics
    /// When it leaves the view: a bug of the caller.
    #[must_use]
    pub fn tensor(&self, start: usize, rows: usize, cols: usize) -> Self {
        assert!(self.is_dense() && start + rows * cols <= self.len(), "{start}+{rows}x{cols} of {self:?}");
        Self { offset: self.offset + start * self.dtype.size(), rows, cols, row_stride: cols, ..*self }
    }

    /// Whether the two share an element, as far as it can be told without enumerating: exact for
    /// views with the same row stride (column ranges of one matrix) and for dense ones; of other
    /// pairs only those are reported whose byte ranges meet and of which one is dense.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() || !same_space(self.space, other.space) {
            return false;
        }
        if self.end() <= other.offset || other.end() <= self.offset {
            return false;
        }
        let (a, b) = (self.dtype.size(), other.dtype.size());
        let pitch = if self.rows > 1 { self.row_stride * a } else { other.row_stride * b };
        if (self.rows <= 1 || other.rows <= 1 || pitch == other.row_stride * b)
            && self.cols * a <= pitch
            && other.cols * b <= pitch
        {
            // Columns of one matrix: compare where their rows start within a pitch.
            let (low, low_width, high, high_width) = if self.offset <= other.offset {
                (self.offset, self.cols * a, other.offset, other.cols * b)
            } else {
                (other.offset, other.cols * b, self.offset, self.cols * a)
            };
            let shift = (high - low) % pitch;
            return shift < low_width || shift + high_width > pitch;
        }
        self.is_dense() || other.is_dense()
    }
}

const fn same_space(a: Space, b: Space) -> bool {
    matches!((a, b), (Space::Device, Space::Device) | (Space::Host, Space::Host))
}
