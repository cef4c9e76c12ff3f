//! Attention: masks, merging of blocks, gradients, decode shapes.

use super::harness::{Device, EPS, close, same_bits};
use crate::reference::{self, Positions};
use crate::{Attention, AttentionGrad, Backend, Dtype, Heads, KEY_TILE, Mask, Stream};

/// Positions of one case: (q_pos, first_key, k_pos).
type Pos = (Vec<u32>, Vec<u32>, Vec<u32>);

fn causal(t: usize) -> Pos {
    ((0..t as u32).collect(), vec![0; t], (0..t as u32).collect())
}

/// Samples of some lengths packed into one row, `pad` tokens of padding behind them.
fn packed(lengths: &[u32], pad: usize) -> Pos {
    let (mut q, mut first, mut start) = (Vec::new(), Vec::new(), 0);
    for n in lengths {
        q.extend(start..start + n);
        first.extend(vec![start; *n as usize]);
        start += n;
    }
    let mut k = q.clone();
    q.extend(vec![start; pad]);
    first.extend(vec![u32::MAX; pad]);
    k.extend(vec![u32::MAX; pad]);
    (q, first, k)
}

/// The queries of a shard against the keys of another, zigzag over 2·ranks chunks.
fn zigzag(t: usize, ranks: usize, of: usize, against: usize) -> Pos {
    let chunk = t / (2 * ranks);
    let shard = |r: usize| -> Vec<u32> {
        let (a, b) = (r * chunk, (2 * ranks - 1 - r) * chunk);
        (a..a + chunk).chain(b..b + chunk).map(|x| x as u32).collect()
    };
    (shard(of), vec![0; 2 * chunk], shard(against))
}

struct Case {
    heads: Heads,
    pos: Pos,
    gap: usize,
    dtype: Dtype,
}

fn cases() -> Vec<Case> {
    let h = |query, kv, dim| Heads { query, kv, dim };
    let case = |heads, pos, gap, dtype| Case { heads, pos, gap, dtype };
    vec![
        case(h(1, 1, 8), causal(1), 0, Dtype::F32),
        case(h(3, 1, 16), causal(5), 3, Dtype::F32),
        case(h(9, 3, 64), causal(700), 64, Dtype::F32),
        case(h(4, 2, 33), causal(301), 1, Dtype::Bf16),
        case(h(9, 3, 64), packed(&[1, 130, 1, 200, 77], 11), 0, Dtype::F32),
        case(h(2, 2, 32), packed(&[300, 1], 0), 5, Dtype::Bf16),
        case(h(4, 1, 32), zigzag(1024, 2, 0, 1), 0, Dtype::F32),
        case(h(4, 1, 32), zigzag(1024, 2, 1, 0), 0, Dtype::F32),
        // A decode step: one query, ragged cache with hidden tail.
        case(h(9, 3, 64), (vec![600], vec![0], (0..601).chain([u32::MAX; 7]).collect()), 0, Dtype::F32),
        case(h(9, 3, 64), (vec![5, 700], vec![0, 300], (0..701).collect()), 0, Dtype::Bf16),
        // Three caches below each other, the second not taken.
        case(h(4, 2, 80), (vec![40, 0, 815], vec![0, u32::MAX, 512], (0..1000).collect()), 9, Dtype::F32),
    ]
}

/// Views and exact values of a case.
struct Setup {
    op: AttentionGrad,
    o: crate::View,
    exact: [Vec<f64>; 4],
}

fn set_up(device: &mut Device, case: &Case) -> Setup {
    let Heads { query, kv, dim } = case.heads;
    let (t, s) = (case.pos.0.len(), case.pos.2.len());
    let (q, q64) = device.random(t, query * dim, case.gap, case.dtype);
    let (k, k64) = device.random(s, kv * dim, case.gap, case.dtype);
    let (v, v64) = device.random(s, kv * dim, case.gap, case.dtype);
    let (d_o, d64) = device.random(t, query * dim, case.gap, case.dtype);
    let mask = Mask {
        q_pos: device.ids(&case.pos.0),
        first_key: device.ids(&case.pos.1),
        k_pos: device.ids(&case.pos.2),
    };
    let mut f32 = |rows, cols| device.view(rows, cols, case.gap, Dtype::F32);
    let (o, lse, delta) = (f32(t, query * dim), f32(t, query), f32(t, query));
    let (dq, dk, dv) = (f32(t, query * dim), f32(s, kv * dim), f32(s, kv * dim));
    let scale = 1.0 / (dim as f32).sqrt();
    let op = AttentionGrad { q, k, v, mask, heads: case.heads, scale, lse, delta, d_o, dq, dk, dv };
    device.backend.fill(Stream::Compute, lse, f32::NEG_INFINITY).unwrap();
    for view in [o, dq, dk, dv] {
        device.backend.fill(Stream::Compute, view, 0.0).unwrap();
    }
    Setup { op, o, exact: [q64, k64, v64, d64] }
}

fn forward(setup: &Setup) -> Attention {
    let AttentionGrad { q, k, v, mask, heads, scale, lse, .. } = setup.op;
    Attention { q, k, v, mask, heads, scale, o: setup.o, lse }
}

fn run(device: &Device, setup: &Setup) {
    let b = &device.backend;
    b.attn(Stream::Compute, forward(setup)).unwrap();
    b.attn_delta(Stream::Compute, setup.o, setup.op.d_o, setup.op.delta).unwrap();
    b.attn_grad(Stream::Compute, setup.op).unwrap();
}

fn positions(pos: &Pos) -> Positions<'_> {
    Positions { q_pos: &pos.0, first_key: &pos.1, k_pos: &pos.2 }
}

#[test]
fn matches_the_reference() {
    for (n, case) in cases().iter().enumerate() {
        let mut device = Device::new(2, n as u64);
        let setup = set_up(&mut device, case);
        run(&device, &setup);
        let [q, k, v, d_o] = &setup.exact;
        let (scale, pos) = (f64::from(setup.op.scale), positions(&case.pos));
        let (o, lse) = reference::attn(q, k, v, pos, case.heads, scale);
        let (dq, dk, dv) = reference::attn_grad((q, k, v), pos, case.heads, scale, d_o);
        // Scores are sums of `dim` products ≤ 1, times the scale: at most √dim.
        let score = (case.heads.dim as f64).sqrt();
        let name = |what| format!("case {n} {what}");
        close(&name("o"), &device.get(setup.o), &o, 16.0 * EPS * (1.0 + score));
        for (got, want) in device.get(setup.op.lse).iter().zip(&lse) {
            let ok = f64::from(*got) == *want || (f64::from(*got) - want).abs() <= 16.0 * EPS * (1.0 + score);
            assert!(ok, "case {n} lse {got} {want}");
        }
        // d_score ≤ 2·dim; keys gather from all queries of a group.
        let queries = (case.pos.0.len() * case.heads.query / case.heads.kv) as f64;
        let bound = 16.0 * EPS * (1.0 + score) * score;
        close(&name("dq"), &device.get(setup.op.dq), &dq, bound);
        close(&name("dk"), &device.get(setup.op.dk), &dk, bound * queries.sqrt());
        close(&name("dv"), &device.get(setup.op.dv), &dv, bound * queries.sqrt());
    }
}

#[test]
fn blocks_of_keys_merge_into_the_whole() {
    let case = Case {
        heads: Heads { query: 6, kv: 2, dim: 32 },
        pos: packed(&[400, 37, 260], 3),
        gap: 0,
        dtype: Dtype::F32,
    };
    let mut device = Device::new(2, 5);
    let setup = set_up(&mut device, &case);
    let whole = forward(&setup);
    for rows in [450..700, 0..3, 3..450] {
        let mask = Mask { k_pos: whole.mask.k_pos.row_range(rows.clone()), ..whole.mask };
        let block =
            Attention { k: whole.k.row_range(rows.clone()), v: whole.v.row_range(rows), mask, ..whole };
        device.backend.attn(Stream::Compute, block).unwrap();
    }
    let [q, k, v, _] = &setup.exact;
    let (o, _) = reference::attn(q, k, v, positions(&case.pos), case.heads, f64::from(setup.op.scale));
    close("merged", &device.get(setup.o), &o, 64.0 * EPS * 6.6);
    // A block that shows nothing to a query changes no bit of it.
    let before = (device.get(setup.o), device.get(setup.op.lse));
    let hidden = device.ids(&vec![u32::MAX; 250]);
    let k_pos = device.ids(&(0..250).map(|j| 10_000 + j).collect::<Vec<_>>());
    for k_pos in [hidden, k_pos] {
        let mask = Mask { k_pos, ..whole.mask };
        let block = Attention { k: whole.k.row_range(0..250), v: whole.v.row_range(0..250), mask, ..whole };
        device.backend.attn(Stream::Compute, block).unwrap();
    }
    // Seen by the last sample only: all other rows keep their bits.
    let mask = Mask { k_pos: device.ids(&[696]), ..whole.mask };
    let block = Attention { k: whole.k.row_range(0..1), v: whole.v.row_range(0..1), mask, ..whole };
    device.backend.attn(Stream::Compute, block).unwrap();
    let after = (device.get(setup.o), device.get(setup.op.lse));
    let cut = 696 * 6 * 32;
    assert_eq!(before.0[..cut], after.0[..cut]);
    assert_eq!(before.1[..696 * 6], after.1[..696 * 6]);
    assert_ne!(before.0[cut..], after.0[cut..]);
}

/// Caught when planted: caches that begin within a tile of keys.
#[test]
fn a_decoding_query_has_the_bits_that_it_has_alone() {
    let capacity = 2 * KEY_TILE;
    let rows = [130, 0, 2 * capacity + 300];
    let case = Case {
        heads: Heads { query: 9, kv: 3, dim: 64 },
        pos: (
            rows.map(|r| r as u32).to_vec(),
            vec![0, u32::MAX, 2 * capacity as u32],
            (0..3 * capacity as u32).collect(),
        ),
        gap: 0,
        dtype: Dtype::F32,
    };
    let mut device = Device::new(2, 10);
    let setup = set_up(&mut device, &case);
    let all = forward(&setup);
    device.backend.attn(Stream::Compute, all).unwrap();
    let together = device.get(all.o);
    assert!(together[576..2 * 576].iter().all(|o| *o == 0.0), "an empty slot sees nothing");
    for i in [0, 2] {
        let (query, keys) = (i..i + 1, i * capacity..rows[i] + 1);
        let mask = Mask {
            q_pos: all.mask.q_pos.row_range(query.clone()),
            first_key: all.mask.first_key.row_range(query.clone()),
            k_pos: all.mask.k_pos.row_range(keys.clone()),
        };
        let alone = Attention {
            q: all.q.row_range(query.clone()),
            k: all.k.row_range(keys.clone()),
            v: all.v.row_range(keys),
            mask,
            o: all.o.row_range(query.clone()),
            lse: all.lse.row_range(query),
            ..all
        };
        device.backend.fill(Stream::Compute, alone.o, 0.0).unwrap();
        device.backend.fill(Stream::Compute, alone.lse, f32::NEG_INFINITY).unwrap();
        device.backend.attn(Stream::Compute, alone).unwrap();
        assert_eq!(device.get(alone.o), together[i * 576..(i + 1) * 576], "query {i}");
    }
}

#[test]
fn threads_change_no_bit() {
    for case in cases() {
        same_bits(|threads| {
            let mut device = Device::new(threads, 9);
            let setup = set_up(&mut device, &case);
            run(&device, &setup);
            let op = setup.op;
            [setup.o, op.lse, op.dq, op.dk, op.dv].iter().flat_map(|v| device.get(*v)).collect()
        });
    }
}
