//! Backward pass of attention: probabilities are formed again from `lse`, tile by tile.
//!
//! Invariant: dq of a query is added over the key tiles in order; dk and dv of a key are summed
//! over query tiles in runs whose number depends on the heads alone, and the runs added in order.
//! No sum is shared between tasks, so the bits do not depend on threads.

use std::f32::consts::{LN_2, LOG2_E};

use super::arena::{Mat, Operand, Scratch};
use super::attention::{Inputs, KEY_TILE, stack, tile_queries};
use super::gemm::{self, widened};
use super::mask::{KeyTile, QueryTile, Window};
use super::pool::{Exec, SCRATCH_BYTES};
use super::simd::{self, exp2, multiversion};
use crate::{Beta, Heads, Transpose};

/// Tasks wanted for one key tile, so that several threads have work.
const TASKS: usize = 8;

/// Operands of the backward pass.
pub(crate) struct Backward<'a> {
    pub(crate) inputs: Inputs<'a>,
    pub(crate) lse: Mat<'a, f32>,
    pub(crate) delta: Mat<'a, f32>,
    pub(crate) d_o: Operand<'a>,
    pub(crate) dq: Mat<'a, f32>,
    pub(crate) dk: Mat<'a, f32>,
    pub(crate) dv: Mat<'a, f32>,
}

/// Adds one block's part to dq, dk, dv.
pub(crate) fn backward(exec: &Exec, op: &Backward<'_>) {
    let Heads { query, kv: kv_heads, dim } = op.inputs.heads;
    let group = query / kv_heads;
    let query_tiles = op.inputs.positions.query_tiles(tile_queries(group));
    // As many KV heads at once as have room for their sums of dk and dv.
    let per_task = 2 * KEY_TILE * dim;
    let room = (SCRATCH_BYTES / size_of::<f32>() / per_task).max(1);
    let heads = kv_heads.min(room);
    let runs = TASKS.div_ceil(heads).min(room / heads).max(1);
    let mut shared = exec.shared();
    let [sums] = shared.split([heads * runs * per_task]);
    let sums = Mat::from_slice(sums, heads * runs * 2, KEY_TILE * dim);
    for keys in op.inputs.positions.key_tiles(KEY_TILE) {
        let window = |q| op.inputs.positions.window(q, &keys).map(|w| (q, w));
        let seeing: Vec<_> = query_tiles.iter().filter_map(window).collect();
        if seeing.is_empty() {
            continue;
        }
        let work = seeing.len() * tile_queries(group) * keys.count * op.dq.cols;
        for first in (0..kv_heads).step_by(heads) {
            let heads = heads.min(kv_heads - first);
            exec.run(heads * runs, work, |task, scratch| {
                let (kv, run) = (first + task / runs, task % runs);
                let (dk, dv) = (sums.row_mut(2 * task), sums.row_mut(2 * task + 1));
                let dk = Mat::from_slice(&mut dk[..keys.count * dim], keys.count, dim);
                let dv = Mat::from_slice(&mut dv[..keys.count * dim], keys.count, dim);
                let tiles = &seeing[run * seeing.len() / runs..(run + 1) * seeing.len() / runs];
                backward_run(op, kv, &keys, tiles, dk, dv, scratch);
            });
            exec.run(heads, heads * keys.count * dim, |head, _| {
                let kv = first + head;
                let dk = op.dk.block(keys.first, keys.count, kv * dim, dim);
                let dv = op.dv.block(keys.first, keys.count, kv * dim, dim);
                for task in
                    (head * runs..(head + 1) * runs).filter(|t| has_tiles(t % runs, runs, seeing.len()))
                {
                    for j in 0..keys.count {
                        let part = j * dim..(j + 1) * dim;
                        simd::add(&sums.row(2 * task)[part.clone()], dk.row_mut(j));
                        simd::add(&sums.row(2 * task + 1)[part], dv.row_mut(j));
                    }
                }
            });
        }
    }
}

const fn has_tiles(run: usize, runs: usize, tiles: usize) -> bool {
    run * tiles / runs < (run + 1) * tiles / runs
}

/// One run of query tiles against one key tile of one KV head; overwrites dk and dv.
fn backward_run(
    op: &Backward<'_>,
    kv: usize,
    keys: &KeyTile,
    tiles: &[(&QueryTile, Window)],
    dk: Mat<'_, f32>,
    dv: Mat<'_, f32>,
    scratch: &mut Scratch,
) {
    let Heads { query, kv: kv_heads, dim } = op.inputs.heads;
    let group = query / kv_heads;
    let most = tile_queries(group) * group;
    let [sq, sd, sdq, sp, sds, sk, sv] = scratch.split([
        most * dim,
        most * dim,
        most * dim,
        most * KEY_TILE,
        most * KEY_TILE,
        KEY_TILE * dim,
        KEY_TILE * dim,
    ]);
    let whole_k = widened(&op.inputs.k.block(keys.first, keys.count, kv * dim, dim), sk);
    let whole_v = widened(&op.inputs.v.block(keys.first, keys.count, kv * dim, dim), sv);
    for row in 0..keys.count {
        dk.row_mut(row).fill(0.0);
        dv.row_mut(row).fill(0.0);
    }
    let columns = kv * group * dim;
    for (queries, Window { first, count, all }) in tiles {
        let rows = queries.count * group;
        let (q, d_o, dq) = (
            Mat::from_slice(&mut *sq, rows, dim),
            Mat::from_slice(&mut *sd, rows, dim),
            Mat::from_slice(&mut *sdq, rows, dim),
        );
        let [k, v, dk, dv] = [whole_k, whole_v, dk, dv].map(|m| m.block(first - keys.first, *count, 0, dim));
        let (p, ds) = (Mat::from_slice(&mut *sp, rows, *count), Mat::from_slice(&mut *sds, rows, *count));
        stack(
            &op.inputs.q.block(0, op.inputs.q.rows(), columns, group * dim),
            queries,
            op.inputs.scale * LOG2_E,
            q,
            group,
        );
        stack(&op.d_o.block(0, op.d_o.rows(), columns, group * dim), queries, 1.0, d_o, group);
        gemm::block(q, Transpose::No, k, Transpose::Yes, p, Beta::Zero, 1.0);
        gemm::block(d_o, Transpose::No, v, Transpose::Yes, ds, Beta::Zero, 1.0);
        for r in 0..rows {
            let (i, h) = (queries.first + r / group, kv * group + r % group);
            let (probabilities, gradient) = (p.row_mut(r), ds.row_mut(r));
            let lse = op.lse.row(i)[h];
            let hidden =
                lse == f32::NEG_INFINITY || (!all && !op.inputs.positions.hide(i, *first, probabilities));
            if hidden {
                probabilities.fill(0.0);
                gradient.fill(0.0);
            } else {
                softmax_row(probabilities, gradient, lse * LOG2_E, op.delta.row(i)[h]);
            }
        }
        gemm::block(p, Transpose::Yes, d_o, Transpose::No, dv, Beta::One, 1.0);
        // q carries scale·log2(e); ln 2 leaves the scale.
        gemm::block(ds, Transpose::Yes, q, Transpose::No, dk, Beta::One, LN_2);
        gemm::block(ds, Transpose::No, k, Transpose::No, dq, Beta::Zero, op.inputs.scale);
        for r in 0..rows {
            let column = columns + r % group * dim;
            simd::add(dq.row(r), &mut op.dq.row_mut(queries.first + r / group)[column..column + dim]);
        }
    }
}

#[inline(always)]
fn softmax_row_generic<const FMA: bool>(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp2::<FMA>(*p - lse);
        *ds = *p * (*ds - delta);
    }
}
multiversion! {
    /// p ← 2^(p − lse); ds ← p·(ds − delta).
    fn softmax_row(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) = softmax_row_generic
}
