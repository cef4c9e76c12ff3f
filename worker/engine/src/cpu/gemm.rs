//! Matrix products: `gemm` on blocks, or the kernels for few rows.
//!
//! Invariant: blocks are cut by shape alone, each is one single-threaded call, so bits do not
//! depend on threads and the buffers that `gemm` packs into stay below 4 MiB a thread: at a depth
//! of 512 a block of 512 × 768 packs 1.0 + 1.5 MiB.

use super::arena::{Mat, Operand};
use super::few_rows::{self, FEW_ROWS};
use super::pool::Exec;
use super::simd::LANES;
use crate::{Beta, Transpose};

/// Bound on what a matrix product packs on one thread (tested with a counting allocator).
pub const PACKING_BYTES: usize = 4 << 20;
/// Rows of a block of the destination.
const BLOCK_ROWS: usize = 512;
/// Columns of a block of the destination.
const BLOCK_COLS: usize = 768;
/// Depth of a block whose operands are converted from bf16.
const BLOCK_DEPTH: usize = 2048;

/// `c ← [c +] factor · op(a)·op(b)` on the calling thread.
pub(crate) fn block(
    a: Mat<'_, f32>,
    ta: Transpose,
    b: Mat<'_, f32>,
    tb: Transpose,
    c: Mat<'_, f32>,
    beta: Beta,
    factor: f32,
) {
    let strides = |m: &Mat<'_, f32>, t: Transpose| match t {
        Transpose::No => (m.rows, m.cols, m.stride as isize, 1),
        Transpose::Yes => (m.cols, m.rows, 1, m.stride as isize),
    };
    let (m, k, a_rs, a_cs) = strides(&a, ta);
    let (kb, n, b_rs, b_cs) = strides(&b, tb);
    assert!(k == kb && m == c.rows && n == c.cols, "{m}x{k} times {kb}x{n} into {}x{}", c.rows, c.cols);
    // SAFETY: the three matrices are inside their arena or scratch, c is written by this task only
    // and overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.ptr(0, 0),
            1,
            c.stride as isize,
            beta == Beta::One,
            a.ptr(0, 0),
            a_cs,
            a_rs,
            b.ptr(0, 0),
            b_cs,
            b_rs,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Length of equal parts of `length`, at most `limit` each, a multiple of a vector.
fn part(length: usize, limit: usize) -> usize {
    let parts = length.div_ceil(limit).max(1);
    length.div_ceil(parts).next_multiple_of(LANES)
}

/// c ← β·c + op(a)·op(b).
pub(crate) fn product(
    exec: &Exec,
    a: Operand<'_>,
    ta: Transpose,
    b: Operand<'_>,
    tb: Transpose,
    c: Mat<'_, f32>,
    beta: Beta,
) {
    let k = if ta == Transpose::No { a.cols() } else { a.rows() };
    if ta == Transpose::No && tb == Transpose::Yes && c.rows <= FEW_ROWS && k > 0 {
        return few_rows::product(exec, a, b, c, beta);
    }
    let rows = part(c.rows, BLOCK_ROWS);
    // A single block row is cut in at least two, so that a second thread has work.
    let cols = if c.rows <= BLOCK_ROWS && c.cols >= 256 {
        part(c.cols, BLOCK_COLS.min(c.cols.div_ceil(2)))
    } else {
        part(c.cols, BLOCK_COLS)
    };
    let across = c.cols.div_ceil(cols);
    let blocks = c.rows.div_ceil(rows) * across;
    exec.run(blocks, c.rows * c.cols * k.max(1), |task, scratch| {
        let (r, n) = (task / across * rows, task % across * cols);
        let dst = c.block(r, rows.min(c.rows - r), n, cols.min(c.cols - n));
        let a_part = |k0, depth| match ta {
            Transpose::No => a.block(r, dst.rows, k0, depth),
            Transpose::Yes => a.block(k0, depth, r, dst.rows),
        };
        let b_part = |k0, depth| match tb {
            Transpose::No => b.block(k0, depth, n, dst.cols),
            Transpose::Yes => b.block(n, dst.cols, k0, depth),
        };
        if let (Operand::F32(a), Operand::F32(b)) = (a_part(0, k), b_part(0, k)) {
            return block(a, ta, b, tb, dst, beta, 1.0);
        }
        let mut beta = beta;
        for k0 in (0..k).step_by(BLOCK_DEPTH) {
            let depth = BLOCK_DEPTH.min(k - k0);
            let [sa, sb] = scratch.split([dst.rows * depth, dst.cols * depth]);
            block(widened(&a_part(k0, depth), sa), ta, widened(&b_part(k0, depth), sb), tb, dst, beta, 1.0);
            beta = Beta::One;
        }
    });
}

/// The operand itself when it is f32, else its conversion in `buffer`.
pub(crate) fn widened<'a>(operand: &Operand<'a>, buffer: &'a mut [f32]) -> Mat<'a, f32> {
    match operand {
        Operand::F32(m) => *m,
        Operand::Bf16(m) => {
            let out = Mat::from_slice(buffer, m.rows, m.cols);
            for r in 0..m.rows {
                super::simd::widen(m.row(r), out.row_mut(r));
            }
            out
        }
    }
}
