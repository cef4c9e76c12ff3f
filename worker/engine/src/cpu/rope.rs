//! Rotary position embedding: tables and rotation of the two halves of each head.
//!
//! Invariant: the angle is the f32 product of position and inverse frequency, its sine and cosine
//! those of that product, as `transformers` computes them.

use super::arena::Mat;
use super::pool::Exec;
use super::simd::multiversion;

/// cos, sin of pos · inv_freq.
pub(crate) fn table(
    exec: &Exec,
    pos: Mat<'_, u32>,
    inv_freq: Mat<'_, f32>,
    cos: Mat<'_, f32>,
    sin: Mat<'_, f32>,
) {
    // A sine costs about as much as a hundred additions.
    exec.rows(pos.rows, inv_freq.cols * 128, |rows| {
        for r in rows {
            let position = pos.row(r)[0] as f32;
            for ((freq, cos), sin) in inv_freq.row(0).iter().zip(cos.row_mut(r)).zip(sin.row_mut(r)) {
                // The exact sine of the f32 product, rounded once.
                let angle = f64::from(position * freq);
                *cos = angle.cos() as f32;
                *sin = angle.sin() as f32;
            }
        }
    });
}

#[inline(always)]
fn rotate_generic<const FMA: bool>(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (low[i], high[i]);
            let s = sign * sin[i];
            low[i] = a * cos[i] - b * s;
            high[i] = b * cos[i] + a * s;
        }
    }
}
multiversion! {
    fn rotate_row(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) = rotate_generic
}

/// Rotates every head of x in place, or back.
pub(crate) fn rotate(exec: &Exec, x: Mat<'_, f32>, cos: Mat<'_, f32>, sin: Mat<'_, f32>, inverse: bool) {
    let sign = if inverse { -1.0 } else { 1.0 };
    exec.rows(x.rows, x.cols, |rows| {
        for r in rows {
            rotate_row(x.row_mut(r), cos.row(r), &sin.row(r)[..cos.cols], sign);
        }
    });
}
