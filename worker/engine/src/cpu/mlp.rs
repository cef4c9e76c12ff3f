//! SwiGLU and its gradient: elementwise, row by row.

use super::arena::{Mat, Operand};
use super::pool::Exec;
use super::simd::{exp, multiversion};

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn forward_generic<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        *out = g * sigmoid::<FMA>(*g) * u;
    }
}
multiversion! {
    fn forward_row(gate: &[f32], up: &[f32], out: &mut [f32]) = forward_generic
}

#[inline(always)]
fn backward_generic<const FMA: bool>(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    for ((gate, up), d) in gate.iter_mut().zip(up).zip(d_out) {
        let s = sigmoid::<FMA>(*gate);
        let silu = *gate * s;
        let d_gate = d * *up * (s + silu * (1.0 - s));
        *up = d * silu;
        *gate = d_gate;
    }
}
multiversion! {
    fn backward_row(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) = backward_generic
}

/// out ← silu(gate)·up.
pub(crate) fn forward(exec: &Exec, gate: Operand<'_>, up: Operand<'_>, out: Mat<'_, f32>) {
    exec.rows(out.rows, 4 * out.cols, |rows| {
        let (mut gb, mut ub) = (Vec::new(), Vec::new());
        rows.for_each(|r| forward_row(gate.row(r, &mut gb), up.row(r, &mut ub), out.row_mut(r)));
    });
}

/// gate, up ← their gradients.
pub(crate) fn backward(exec: &Exec, gate: Mat<'_, f32>, up: Mat<'_, f32>, d_out: Operand<'_>) {
    exec.rows(gate.rows, 4 * gate.cols, |rows| {
        let mut buffer = Vec::new();
        rows.for_each(|r| backward_row(gate.row_mut(r), up.row_mut(r), d_out.row(r, &mut buffer)));
    });
}
