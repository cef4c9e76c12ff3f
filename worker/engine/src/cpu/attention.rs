//! Attention of a block of queries to a block of keys by tiles with a running softmax.
//!
//! The query heads of one KV head are stacked, so that both products of a tile are large matrix
//! products. Invariant: a tile of queries goes through the key tiles in order, starting from the
//! `o` and `lse` that earlier blocks left; a query that sees no key of this block keeps both as
//! they are, bit for bit.

use std::f32::consts::{LN_2, LOG2_E};

use super::arena::{Mat, Operand, Scratch};
use super::few_rows::{self, FEW_ROWS};
use super::gemm::{self, widened};
use super::mask::{KeyTile, Positions, QueryTile, Window};
use super::pool::Exec;
use super::simd::{self, LANES, fma, multiversion, prefetch};
use crate::{Beta, Heads, Transpose};

/// Rows of a tile: queries × heads of a group.
pub(crate) const TILE_ROWS: usize = 384;
/// Keys of a tile: they are cut from the first on, so a query's bits depend on where in a tile each
/// of its keys stands.
pub const KEY_TILE: usize = 256;
/// How many values ahead a decoding step asks for them.
const AHEAD: usize = 16;

/// What both passes read.
pub(crate) struct Inputs<'a> {
    pub(crate) q: Operand<'a>,
    pub(crate) k: Operand<'a>,
    pub(crate) v: Operand<'a>,
    pub(crate) positions: Positions<'a>,
    pub(crate) heads: Heads,
    pub(crate) scale: f32,
}

/// Operands of the forward pass.
pub(crate) struct Forward<'a> {
    pub(crate) inputs: Inputs<'a>,
    pub(crate) o: Mat<'a, f32>,
    pub(crate) lse: Mat<'a, f32>,
}

/// Queries of a tile for groups of `group` heads.
pub(crate) fn tile_queries(group: usize) -> usize {
    (TILE_ROWS / group).max(1)
}

/// Copies the heads of one group of some queries below each other: row i·group + h.
pub(crate) fn stack(x: &Operand<'_>, queries: &QueryTile, factor: f32, out: Mat<'_, f32>, group: usize) {
    let dim = out.cols;
    let mut buffer = Vec::new();
    for i in 0..queries.count {
        let row = x.row(queries.first + i, &mut buffer);
        for h in 0..group {
            simd::scale(factor, &row[h * dim..(h + 1) * dim], out.row_mut(i * group + h));
        }
    }
}

/// Merges one block into o and lse.
pub(crate) fn forward(exec: &Exec, op: &Forward<'_>) {
    let group = op.inputs.heads.query / op.inputs.heads.kv;
    let key_tiles = op.inputs.positions.key_tiles(KEY_TILE);
    // So few queries are a decoding step: each looks at the keys of a cache of its own.
    let queries = if op.o.rows <= FEW_ROWS { 1 } else { tile_queries(group) };
    let query_tiles = op.inputs.positions.query_tiles(queries);
    let work = op.o.rows * op.inputs.k.rows() * op.o.cols;
    exec.run(op.inputs.heads.kv * query_tiles.len(), work, |task, scratch| {
        // The last queries see most: they go first.
        let (tile, kv) = (query_tiles.len() - 1 - task / op.inputs.heads.kv, task % op.inputs.heads.kv);
        forward_tile(op, kv, &query_tiles[tile], &key_tiles, scratch);
    });
}

fn forward_tile(op: &Forward<'_>, kv: usize, queries: &QueryTile, keys: &[KeyTile], scratch: &mut Scratch) {
    let Heads { query, kv: kv_heads, dim } = op.inputs.heads;
    let group = query / kv_heads;
    let rows = queries.count * group;
    let mut windows = keys.iter().filter_map(|k| op.inputs.positions.window(queries, k)).peekable();
    if windows.peek().is_none() {
        return;
    }
    let [sq, so, ss, sk, sv, running] =
        scratch.split([rows * dim, rows * dim, rows * KEY_TILE, KEY_TILE * dim, KEY_TILE * dim, 3 * rows]);
    let (q, o) = (Mat::from_slice(sq, rows, dim), Mat::from_slice(so, rows, dim));
    let (max, rest) = running.split_at_mut(rows);
    let (sum, touched) = rest.split_at_mut(rows);
    let columns = kv * group * dim;
    // Scores in units of log2, so that exponentials are powers of two.
    stack(
        &op.inputs.q.block(0, op.inputs.q.rows(), columns, group * dim),
        queries,
        op.inputs.scale * LOG2_E,
        q,
        group,
    );
    let old = op.o.block(0, op.o.rows, columns, group * dim);
    stack(&Operand::F32(old), queries, 1.0, o, group);
    for r in 0..rows {
        let lse = op.lse.row(queries.first + r / group)[kv * group + r % group];
        max[r] = lse * LOG2_E;
        sum[r] = if lse == f32::NEG_INFINITY { 0.0 } else { 1.0 };
        touched[r] = 0.0;
    }
    for Window { first, count, all } in windows {
        let k = widened(&op.inputs.k.block(first, count, kv * dim, dim), sk);
        let v = widened(&op.inputs.v.block(first, count, kv * dim, dim), sv);
        let s = Mat::from_slice(ss, rows, count);
        if rows <= FEW_ROWS {
            few_rows::block(q, k, s, Beta::Zero);
        } else {
            gemm::block(q, Transpose::No, k, Transpose::Yes, s, Beta::Zero, 1.0);
        }
        for r in 0..rows {
            let scores = s.row_mut(r);
            if !all && !op.inputs.positions.hide(queries.first + r / group, first, scores) {
                scores.fill(0.0);
                continue;
            }
            touched[r] = 1.0;
            let new = simd::max(scores).max(max[r]);
            let keep = (max[r] - new).exp2();
            sum[r] = sum[r] * keep + simd::exp2_sum(scores, new);
            max[r] = new;
            if keep != 1.0 {
                o.row_mut(r).iter_mut().for_each(|x| *x *= keep);
            }
        }
        if rows <= FEW_ROWS {
            (0..rows).for_each(|r| weighted_rows(s.row(r), v, o.row_mut(r)));
        } else {
            gemm::block(s, Transpose::No, v, Transpose::No, o, Beta::One, 1.0);
        }
    }
    for r in (0..rows).filter(|r| touched[*r] != 0.0) {
        let (i, h) = (queries.first + r / group, r % group);
        simd::scale(1.0 / sum[r], o.row(r), &mut old.row_mut(i)[h * dim..(h + 1) * dim]);
        op.lse.row_mut(i)[kv * group + h] = (max[r] + sum[r].log2()) * LN_2;
    }
}

#[inline(always)]
fn weighted_rows_generic<const FMA: bool>(p: &[f32], v: Mat<'_, f32>, o: &mut [f32]) {
    const WIDTH: usize = 4 * LANES;
    let whole = o.len() / WIDTH * WIDTH;
    for start in (0..whole).step_by(WIDTH) {
        // Four vectors that stay in registers while the keys pass by.
        let mut sums = [[0.0; LANES]; 4];
        for (sum, o) in sums.iter_mut().zip(o[start..].chunks_exact(LANES)) {
            sum.copy_from_slice(o);
        }
        let [mut s0, mut s1, mut s2, mut s3] = sums;
        for (j, p) in p.iter().enumerate() {
            let next = v.ptr(j, start).wrapping_add(AHEAD * v.stride);
            (0..WIDTH).step_by(LANES).for_each(|l| prefetch(next.wrapping_add(l)));
            let v = &v.row(j)[start..start + WIDTH];
            for l in 0..LANES {
                s0[l] = fma::<FMA>(*p, v[l], s0[l]);
                s1[l] = fma::<FMA>(*p, v[LANES + l], s1[l]);
                s2[l] = fma::<FMA>(*p, v[2 * LANES + l], s2[l]);
                s3[l] = fma::<FMA>(*p, v[3 * LANES + l], s3[l]);
            }
        }
        for (sum, o) in [s0, s1, s2, s3].iter().zip(o[start..].chunks_exact_mut(LANES)) {
            o.copy_from_slice(sum);
        }
    }
    for (j, p) in p.iter().enumerate() {
        for (o, v) in o[whole..].iter_mut().zip(&v.row(j)[whole..]) {
            *o = fma::<FMA>(*p, *v, *o);
        }
    }
}
multiversion! {
    /// o ← o + Σ p[j]·v[j].
    fn weighted_rows(p: &[f32], v: Mat<'_, f32>, o: &mut [f32]) = weighted_rows_generic
}

/// delta[t, h] ← Σ d_o·o over the columns of head h.
pub(crate) fn delta(exec: &Exec, o: Mat<'_, f32>, d_o: Operand<'_>, delta: Mat<'_, f32>) {
    let dim = o.cols / delta.cols;
    exec.rows(o.rows, o.cols, |rows| {
        let mut buffer = Vec::new();
        for t in rows {
            let (o, d_o) = (o.row(t), d_o.row(t, &mut buffer));
            for (h, out) in delta.row_mut(t).iter_mut().enumerate() {
                *out = simd::dot(&o[h * dim..(h + 1) * dim], &d_o[h * dim..(h + 1) * dim]);
            }
        }
    });
}
