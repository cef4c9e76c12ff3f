//! Copies, fills, sums over elements, lookup of embeddings.
//!
//! Invariant: a destination row is written by one task; sums over all elements are cut into
//! pieces by length and the pieces added in order, in f64.

use std::sync::Mutex;

use half::bf16;

use super::arena::{Mat, Memory, Operand};
use super::pool::{Exec, PIECE};
use super::simd;
use crate::{Dtype, View};

/// dst ← src; same shape; f32 ↔ bf16, or equal types.
pub(crate) fn copy(exec: &Exec, memory: &Memory, src: View, dst: View) {
    // SAFETY: a checked operation.
    unsafe {
        match (src.dtype, dst.dtype) {
            (Dtype::F32, Dtype::Bf16) => {
                let (src, dst) = (memory.mat::<f32>(src), memory.mat::<bf16>(dst));
                exec.rows(src.rows, src.cols, |rows| {
                    rows.for_each(|r| simd::narrow(src.row(r), dst.row_mut(r)));
                });
            }
            (Dtype::Bf16, Dtype::F32) => {
                let (src, dst) = (memory.mat::<bf16>(src), memory.mat::<f32>(dst));
                exec.rows(src.rows, src.cols, |rows| {
                    rows.for_each(|r| simd::widen(src.row(r), dst.row_mut(r)));
                });
            }
            _ => {
                let size = src.dtype.size();
                let (src, dst) = (memory.bytes(src, false), memory.bytes(dst, false));
                exec.rows(src.rows, src.cols / size, |rows| {
                    rows.for_each(|r| dst.row_mut(r).copy_from_slice(src.row(r)));
                });
            }
        }
    }
}

/// dst ← value.
pub(crate) fn fill(exec: &Exec, memory: &Memory, dst: View, value: f32) {
    // SAFETY: a checked operation.
    unsafe {
        match dst.dtype {
            Dtype::F32 => fill_with(exec, memory.mat::<f32>(dst), value),
            Dtype::Bf16 => fill_with(exec, memory.mat(dst), bf16::from_f32(value)),
            Dtype::F64 => fill_with(exec, memory.mat(dst), f64::from(value)),
            // Saturating: u32::MAX is asked for as +∞.
            Dtype::U32 => fill_with(exec, memory.mat(dst), value as u32),
        }
    }
}

fn fill_with<T: bytemuck::Pod + Send + Sync>(exec: &Exec, dst: Mat<'_, T>, value: T) {
    exec.rows(dst.rows, dst.cols, |rows| rows.for_each(|r| dst.row_mut(r).fill(value)));
}

/// y ← y + x.
pub(crate) fn add(exec: &Exec, x: Operand<'_>, y: Mat<'_, f32>) {
    exec.rows(y.rows, y.cols, |rows| {
        let mut buffer = Vec::new();
        rows.for_each(|r| simd::add(x.row(r, &mut buffer), y.row_mut(r)));
    });
}

/// Refuses an id beyond the table: shapes cannot show it.
pub(super) fn in_table(id: u32, rows: usize) -> usize {
    let row = id as usize;
    assert!(row < rows, "token id {id} is not below the vocabulary's {rows}");
    row
}

/// out[t] ← table[ids[t]].
pub(crate) fn embed(exec: &Exec, ids: Mat<'_, u32>, table: Operand<'_>, out: Mat<'_, f32>) {
    exec.rows(out.rows, out.cols, |rows| {
        rows.for_each(|t| table.copy_row(in_table(ids.row(t)[0], table.rows()), out.row_mut(t)));
    });
}

/// d_table[ids[t]] += d_out[t], in the order of t: tasks share the columns, not the tokens.
pub(crate) fn embed_grad(exec: &Exec, ids: Mat<'_, u32>, d_out: Operand<'_>, d_table: Mat<'_, f32>) {
    const COLS: usize = 64;
    exec.run(d_table.cols.div_ceil(COLS), ids.rows * d_table.cols, |task, _| {
        let first = task * COLS;
        let cols = COLS.min(d_table.cols - first);
        let part = d_out.block(0, d_out.rows(), first, cols);
        let table = d_table.block(0, d_table.rows, first, cols);
        let mut buffer = Vec::new();
        for t in 0..ids.rows {
            simd::add(part.row(t, &mut buffer), table.row_mut(in_table(ids.row(t)[0], table.rows)));
        }
    });
}

/// sum += Σ x·w in f64.
pub(crate) fn weighted_sum(exec: &Exec, x: Mat<'_, f32>, w: Mat<'_, f32>, sum: Mat<'_, f64>) {
    let mut total = Total::new(x.rows);
    exec.pieces(x.rows, |piece, range| {
        let part = range.map(|i| f64::from(x.row(i)[0]) * f64::from(w.row(i)[0])).sum();
        total.set(piece, part);
    });
    sum.row_mut(0)[0] += total.add_up();
}

/// sum += Σ x² in f64.
pub(crate) fn sum_squares(exec: &Exec, x: Operand<'_>, sum: Mat<'_, f64>) {
    let x = x.joined();
    let mut total = if x.rows() == 1 { Total::new(x.cols()) } else { Total::new(x.rows() * PIECE) };
    if x.rows() == 1 {
        exec.pieces(x.cols(), |piece, range| {
            let part = x.block(0, 1, range.start, range.len());
            total.set(piece, simd::sum_squares(part.row(0, &mut Vec::new())));
        });
    } else {
        exec.rows(x.rows(), x.cols(), |rows| {
            let mut buffer = Vec::new();
            rows.for_each(|r| total.set(r, simd::sum_squares(x.row(r, &mut buffer))));
        });
    }
    sum.row_mut(0)[0] += total.add_up();
}

/// Parts of a sum, by piece.
struct Total(Mutex<Vec<f64>>);

impl Total {
    fn new(elements: usize) -> Self {
        Self(Mutex::new(vec![0.0; elements.div_ceil(PIECE)]))
    }

    fn set(&self, piece: usize, value: f64) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[piece] = value;
    }

    /// In the order of the pieces.
    fn add_up(&mut self) -> f64 {
        self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).iter().sum()
    }
}
