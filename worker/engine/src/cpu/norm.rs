//! RMSNorm and its gradient.
//!
//! Invariant: the weight's gradient is summed over blocks of rows cut by shape, the blocks added
//! in order.

use super::arena::{Mat, Operand};
use super::pool::Exec;
use super::simd::{LANES, add_lanes, fma, multiversion};
use super::{pool, simd};
use crate::Beta;

#[inline(always)]
fn forward_generic<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let mean = simd::sum_squares(x) / x.len() as f64;
    let rstd = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        *y = x * rstd * w;
    }
    rstd
}
multiversion! {
    /// One row; returns 1/√(mean x² + ε).
    fn forward_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 = forward_generic
}

#[inline(always)]
fn backward_generic<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    rstd: f32,
    dy: &[f32],
    dx: &mut [f32],
    keep: f32,
    dw: &mut [f32],
) {
    let n = x.len().min(w.len()).min(dy.len()).min(dx.len()).min(dw.len());
    let (x, w, dy, dx, dw) = (&x[..n], &w[..n], &dy[..n], &mut dx[..n], &mut dw[..n]);
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(x[start + i] * w[start + i], dy[start + i], lanes[i]);
        }
    }
    for i in whole..n {
        lanes[i - whole] = fma::<FMA>(x[i] * w[i], dy[i], lanes[i - whole]);
    }
    // dx = rstd·(w·dy − x·rstd²·mean(x·w·dy))
    let common = add_lanes(lanes) * rstd * rstd / n as f32;
    for i in 0..n {
        let old = if keep == 0.0 { 0.0 } else { dx[i] };
        dx[i] = old + rstd * (w[i] * dy[i] - x[i] * common);
        dw[i] = fma::<FMA>(dy[i], x[i] * rstd, dw[i]);
    }
}
multiversion! {
    /// One row; `keep` = β; adds to dw.
    fn backward_row(x: &[f32], w: &[f32], rstd: f32, dy: &[f32], dx: &mut [f32], keep: f32, dw: &mut [f32]) = backward_generic
}

/// y, rstd from x and w.
pub(crate) fn forward(
    exec: &Exec,
    x: Operand<'_>,
    w: Operand<'_>,
    eps: f32,
    y: Mat<'_, f32>,
    rstd: Mat<'_, f32>,
) {
    exec.rows(y.rows, y.cols, |rows| {
        let (mut xb, mut wb) = (Vec::new(), Vec::new());
        let w = w.row(0, &mut wb);
        for r in rows {
            rstd.row_mut(r)[0] = forward_row(x.row(r, &mut xb), w, eps, y.row_mut(r));
        }
    });
}

/// Operands of the gradient.
pub(crate) struct Backward<'a> {
    pub(crate) x: Operand<'a>,
    pub(crate) w: Operand<'a>,
    pub(crate) rstd: Mat<'a, f32>,
    pub(crate) dy: Mat<'a, f32>,
    pub(crate) dx: Mat<'a, f32>,
    pub(crate) beta: Beta,
    pub(crate) dw: Mat<'a, f32>,
}

/// Blocks of rows whose parts of dw are summed apart.
const BLOCKS: usize = 16;

/// dx ← β·dx + …, dw += ….
pub(crate) fn backward(exec: &Exec, op: &Backward<'_>) {
    let (rows, cols) = (op.dx.rows, op.dx.cols);
    let mut shared = exec.shared();
    // Very wide rows get fewer blocks, so that their sums fit the working memory.
    let blocks = BLOCKS.min(pool::SCRATCH_BYTES / size_of::<f32>() / cols.max(1)).clamp(1, rows.max(1));
    let [parts] = shared.split([blocks * cols]);
    parts.fill(0.0);
    let sums = Mat::from_slice(parts, blocks, cols);
    let chunk = rows.div_ceil(blocks);
    let keep = if op.beta == Beta::Zero { 0.0 } else { 1.0 };
    exec.run(blocks, rows * cols, |block, _| {
        let (mut xb, mut wb) = (Vec::new(), Vec::new());
        let w = op.w.row(0, &mut wb);
        let dw = sums.row_mut(block);
        for r in (block * chunk).min(rows)..((block + 1) * chunk).min(rows) {
            backward_row(
                op.x.row(r, &mut xb),
                w,
                op.rstd.row(r)[0],
                op.dy.row(r),
                op.dx.row_mut(r),
                keep,
                dw,
            );
        }
    });
    for block in 0..blocks {
        simd::add(sums.row(block), op.dw.row_mut(0));
    }
}
