//! AdamW and the clip factor that it reads.
//!
//! Invariant: with `finite` = 0 nothing is written. A factor of 0 would not do: 0·∞ is NaN.

use super::arena::Mat;
use super::pool::Exec;
use super::simd::multiversion;

/// factor ← min(1, max_norm/(√sum + 1e-6)), finite ← whether √sum is finite.
pub(crate) fn clip_factor(sum: Mat<'_, f64>, max_norm: f64, factor: Mat<'_, f32>, finite: Mat<'_, u32>) {
    let norm = sum.row(0)[0].sqrt();
    finite.row_mut(0)[0] = u32::from(norm.is_finite());
    factor.row_mut(0)[0] = if norm.is_finite() { (max_norm / (norm + 1e-6)).min(1.0) as f32 } else { 0.0 };
}

/// Numbers of one update that do not depend on the element.
#[derive(Clone, Copy)]
pub(super) struct Step {
    factor: f32,
    beta1: f32,
    beta2: f32,
    /// Learning rate over the bias correction of the first moment.
    rate: f32,
    /// 1/√ of the bias correction of the second moment.
    root: f32,
    epsilon: f32,
    /// 1 − learning rate · weight decay.
    decay: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
}

#[inline(always)]
fn update_generic<const FMA: bool>(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Step) {
    let n = w.len().min(g.len()).min(m.len()).min(v.len());
    let (w, g, m, v) = (&mut w[..n], &g[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        let grad = g[i] * s.factor;
        m[i] = s.beta1 * m[i] + s.one_minus_beta1 * grad;
        v[i] = s.beta2 * v[i] + s.one_minus_beta2 * grad * grad;
        w[i] = w[i] * s.decay - s.rate * m[i] / (v[i].sqrt() * s.root + s.epsilon);
    }
}
multiversion! {
    fn update(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Step) = update_generic
}

/// Matrices of one update, all 1 × n, and its factor and flag.
pub(crate) struct Buffers<'a> {
    pub(crate) w: Mat<'a, f32>,
    pub(crate) g: Mat<'a, f32>,
    pub(crate) m: Mat<'a, f32>,
    pub(crate) v: Mat<'a, f32>,
    pub(crate) factor: Mat<'a, f32>,
    pub(crate) finite: Mat<'a, u32>,
}

/// One step; see [`crate::AdamW`].
pub(crate) fn adamw(exec: &Exec, b: &Buffers<'_>, op: &crate::AdamW) {
    if b.finite.row(0)[0] == 0 {
        return;
    }
    // Corrections in f64: 1 − β2^t loses half its digits in f32.
    let correction = |beta: f64| 1.0 - beta.powf(op.step as f64);
    let step = Step {
        factor: b.factor.row(0)[0],
        beta1: op.beta1 as f32,
        beta2: op.beta2 as f32,
        rate: (op.learning_rate / correction(op.beta1)) as f32,
        root: (1.0 / correction(op.beta2).sqrt()) as f32,
        epsilon: op.epsilon as f32,
        decay: (1.0 - op.learning_rate * op.weight_decay) as f32,
        one_minus_beta1: (1.0 - op.beta1) as f32,
        one_minus_beta2: (1.0 - op.beta2) as f32,
    };
    exec.pieces(b.w.cols, |_, range| {
        let [w, g, m, v] = [b.w, b.g, b.m, b.v].map(|x| x.block(0, 1, range.start, range.len()));
        update(w.row_mut(0), g.row(0), m.row_mut(0), v.row_mut(0), step);
    });
}
