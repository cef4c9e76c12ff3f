//! The two arenas and typed matrices into them: the only place where raw pointers are made.
//!
//! Safety rules, on which every kernel relies:
//! 1. A [`Mat`] is made from a view that was checked against its arena and against overlap with
//!    the other views of its operation, and lives no longer than that operation.
//! 2. Operations of different streams that touch the same elements are ordered by the caller with
//!    events: that is the contract of [`crate::Backend`].
//! 3. Within an operation a row (or a block of columns of a row) is written by one task only.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::bf16;
use memmap2::MmapMut;

use crate::{ALIGNMENT, Dtype, Error, Result, Space, View};

/// One allocation; pages that nobody touches cost nothing.
struct Arena {
    // Keeps the pages alive; all access goes through `base`.
    _pages: MmapMut,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pages belong to the arena alone; concurrent access follows the rules above.
unsafe impl Send for Arena {}
// SAFETY: likewise.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(name: &str, bytes: usize) -> Result<Self> {
        let (mut pages, base) = map(bytes).map_err(|e| {
            Error::Device(format!("cannot allocate the {name} arena of {bytes} bytes: {e}; give the process more memory or choose a smaller plan"))
        })?;
        let _ = &mut pages;
        Ok(Self { _pages: pages, base, bytes })
    }
}

/// Zeroed pages from the system, in huge pages where it offers them.
fn map(bytes: usize) -> std::io::Result<(MmapMut, *mut u8)> {
    let mut pages = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    if bytes >= 32 << 20 {
        // Only a hint: without it the matrices are walked with more TLB misses.
        let _ = pages.advise(memmap2::Advice::HugePage);
    }
    let base = pages.as_mut_ptr();
    Ok((pages, base))
}

/// Both arenas.
pub(crate) struct Memory {
    device: Arena,
    host: Arena,
}

impl Memory {
    pub(crate) fn new(device_bytes: usize, host_bytes: usize) -> Result<Self> {
        Ok(Self { device: Arena::new("device", device_bytes)?, host: Arena::new("host", host_bytes)? })
    }

    const fn arena(&self, space: Space) -> &Arena {
        match space {
            Space::Device => &self.device,
            Space::Host => &self.host,
        }
    }

    /// Refuses a view that leaves its arena.
    pub(crate) const fn check(&self, view: View) -> Result<()> {
        let arena_bytes = self.arena(view.space).bytes;
        if view.end() > arena_bytes { Err(Error::OutOfArena { view, arena_bytes }) } else { Ok(()) }
    }

    /// A matrix of the view's elements.
    ///
    /// # Safety
    /// The view passed [`Memory::check`]; rules 1–3 of this file hold while the matrix is used.
    pub(crate) unsafe fn mat<T: Element>(&self, view: View) -> Mat<'_, T> {
        assert_eq!(view.dtype, T::DTYPE, "a checked operation never mixes element types");
        // SAFETY: `check` proved that the view lies inside the arena.
        let base = unsafe { self.arena(view.space).base.add(view.offset) };
        Mat {
            base: base.cast(),
            rows: view.rows,
            cols: view.cols,
            stride: view.row_stride,
            life: PhantomData,
        }
    }

    /// A matrix that is read as f32.
    ///
    /// # Safety
    /// As [`Memory::mat`].
    pub(crate) unsafe fn operand(&self, view: View) -> Operand<'_> {
        match view.dtype {
            // SAFETY: passed on.
            Dtype::Bf16 => Operand::Bf16(unsafe { self.mat(view) }),
            // SAFETY: passed on.
            _ => Operand::F32(unsafe { self.mat(view) }),
        }
    }

    /// The bytes of the view, row by row, or all in one row where they follow each other and
    /// `join` is set.
    ///
    /// # Safety
    /// As [`Memory::mat`].
    pub(crate) unsafe fn bytes(&self, view: View, join: bool) -> Mat<'_, u8> {
        let size = view.dtype.size();
        // SAFETY: `check` proved that the view lies inside the arena.
        let base = unsafe { self.arena(view.space).base.add(view.offset) };
        let bytes = Mat {
            base,
            rows: view.rows,
            cols: view.cols * size,
            stride: view.row_stride * size,
            life: PhantomData,
        };
        if join { bytes.joined() } else { bytes }
    }
}

/// Types that an arena holds.
pub(crate) trait Element: Pod + Send + Sync {
    const DTYPE: Dtype;
}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for f64 {
    const DTYPE: Dtype = Dtype::F64;
}
impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}
impl Element for u32 {
    const DTYPE: Dtype = Dtype::U32;
}

/// A matrix in an arena, for the time of one operation (rules 1–3 above).
pub(crate) struct Mat<'a, T> {
    base: *mut T,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    life: PhantomData<&'a Memory>,
}

impl<T> Clone for Mat<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Mat<'_, T> {}

// SAFETY: rules 2 and 3.
unsafe impl<T: Send> Send for Mat<'_, T> {}
// SAFETY: rules 2 and 3.
unsafe impl<T: Sync> Sync for Mat<'_, T> {}

impl<'a, T: Pod> Mat<'a, T> {
    /// A matrix over plain memory, for scratch.
    pub(crate) fn from_slice(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert!(rows * cols <= data.len(), "{rows} x {cols} in {} elements of scratch", data.len());
        Self { base: data.as_mut_ptr(), rows, cols, stride: cols, life: PhantomData }
    }

    /// A row, to read.
    pub(crate) fn row(&self, r: usize) -> &'a [T] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: inside the checked view; rule 2 keeps writers away.
        unsafe { std::slice::from_raw_parts(self.base.add(r * self.stride), self.cols) }
    }

    /// A row, to write: rule 3.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn row_mut(&self, r: usize) -> &'a mut [T] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        // SAFETY: inside the checked view; rules 2 and 3 keep everyone else away.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(r * self.stride), self.cols) }
    }

    /// Address of an element, for `gemm`.
    pub(crate) fn ptr(&self, r: usize, c: usize) -> *mut T {
        debug_assert!(r <= self.rows && c <= self.cols);
        // SAFETY: inside the checked view, or one past it for an empty block that nobody reads.
        unsafe { self.base.add(r * self.stride + c) }
    }

    /// Some rows and columns.
    pub(crate) fn block(&self, r: usize, rows: usize, c: usize, cols: usize) -> Self {
        assert!(r + rows <= self.rows && c + cols <= self.cols, "block leaves its matrix");
        Self { base: self.ptr(r, c), rows, cols, stride: self.stride, life: PhantomData }
    }

    /// Its bytes.
    pub(crate) const fn as_bytes(&self) -> Mat<'a, u8> {
        let size = size_of::<T>();
        Mat {
            base: self.base.cast(),
            rows: self.rows,
            cols: self.cols * size,
            stride: self.stride * size,
            life: PhantomData,
        }
    }

    /// A dense matrix as one row (or as it is).
    pub(crate) const fn joined(self) -> Self {
        if self.stride == self.cols && self.rows > 1 {
            Self { rows: 1, cols: self.rows * self.cols, stride: self.rows * self.cols, ..self }
        } else {
            self
        }
    }
}

/// A matrix that is read as f32, whatever it is stored as.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    F32(Mat<'a, f32>),
    Bf16(Mat<'a, bf16>),
}

impl<'a> Operand<'a> {
    pub(crate) const fn rows(&self) -> usize {
        match self {
            Self::F32(m) => m.rows,
            Self::Bf16(m) => m.rows,
        }
    }

    pub(crate) const fn cols(&self) -> usize {
        match self {
            Self::F32(m) => m.cols,
            Self::Bf16(m) => m.cols,
        }
    }

    pub(crate) fn block(&self, r: usize, rows: usize, c: usize, cols: usize) -> Self {
        match self {
            Self::F32(m) => Self::F32(m.block(r, rows, c, cols)),
            Self::Bf16(m) => Self::Bf16(m.block(r, rows, c, cols)),
        }
    }

    /// A dense matrix as one row (or as it is).
    pub(crate) const fn joined(self) -> Self {
        match self {
            Self::F32(m) => Self::F32(m.joined()),
            Self::Bf16(m) => Self::Bf16(m.joined()),
        }
    }

    /// A row as f32: in place, or converted into `buffer`.
    pub(crate) fn row<'b>(&self, r: usize, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(m) => m.row(r),
            Self::Bf16(m) => {
                buffer.resize(m.cols, 0.0);
                super::simd::widen(m.row(r), buffer);
                buffer
            }
        }
    }

    /// Copies a row, converted.
    pub(crate) fn copy_row(&self, r: usize, out: &mut [f32]) {
        match self {
            Self::F32(m) => out.copy_from_slice(m.row(r)),
            Self::Bf16(m) => super::simd::widen(m.row(r), out),
        }
    }
}

/// Working memory of one thread, mapped once; a task cuts it into pieces.
pub(crate) struct Scratch {
    _pages: MmapMut,
    base: *mut f32,
    floats: usize,
}

// SAFETY: the pages belong to this value alone.
unsafe impl Send for Scratch {}

impl Scratch {
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let (pages, base) = map(bytes).map_err(|e| {
            Error::Device(format!("cannot allocate {bytes} bytes of working memory for a thread: {e}"))
        })?;
        Ok(Self { _pages: pages, base: base.cast(), floats: bytes / size_of::<f32>() })
    }

    /// Disjoint pieces of the given lengths, each aligned to a cache line; their content is what
    /// an earlier task left.
    pub(crate) fn split<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let mut start = 0;
        lengths.map(|length| {
            let begin = start;
            start = (start + length).next_multiple_of(ALIGNMENT / size_of::<f32>());
            assert!(begin + length <= self.floats, "a kernel's tiles exceed its working memory");
            // SAFETY: pieces follow each other without overlap inside the mapping, which `self`
            // keeps alive and, borrowed mutably, hands out once.
            unsafe { std::slice::from_raw_parts_mut(self.base.add(begin), length) }
        })
    }
}
