//! Cross-entropy over a tile of logits, and the gradient in their place.
//!
//! Invariant: a token without a target has nll 0 and gradient 0; the largest logit is subtracted
//! before any exponential.

use super::arena::Mat;
use super::elementwise::in_table;
use super::pool::Exec;
use super::simd;

/// Target that means "none".
const NO_TARGET: u32 = u32::MAX;

/// Views of the operation.
pub(crate) struct CrossEntropy<'a> {
    pub(crate) logits: Mat<'a, f32>,
    pub(crate) targets: Mat<'a, u32>,
    pub(crate) weights: Mat<'a, f32>,
    pub(crate) nll: Mat<'a, f32>,
    pub(crate) scale: f32,
    pub(crate) grad: bool,
}

/// nll per token; the logits become their gradient when `grad` is set.
pub(crate) fn cross_entropy(exec: &Exec, op: &CrossEntropy<'_>) {
    exec.rows(op.logits.rows, 4 * op.logits.cols, |rows| {
        for t in rows {
            let target = op.targets.row(t)[0];
            let nll = &mut op.nll.row_mut(t)[0];
            if target == NO_TARGET {
                *nll = 0.0;
                if op.grad {
                    op.logits.row_mut(t).fill(0.0);
                }
                continue;
            }
            let target = in_table(target, op.logits.cols);
            let logits = op.logits.row(t);
            let max = simd::max(logits);
            let sum = simd::exp_sum(logits, max);
            *nll = (f64::from(max) - f64::from(logits[target]) + sum.ln()) as f32;
            if op.grad {
                let weight = op.weights.row(t)[0] * op.scale;
                let row = op.logits.row_mut(t);
                simd::softmax_grad(row, max, (f64::from(weight) / sum) as f32);
                row[target] -= weight;
            }
        }
    });
}
