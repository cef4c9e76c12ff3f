//! Random shapes, strides, masks and types against the reference.

use proptest::prelude::*;

use super::harness::{Device, EPS, close};
use crate::reference::{self, Positions};
use crate::{Attention, Backend, Beta, Dtype, Gemm, Heads, Mask, Stream, Transpose};

fn dtype() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]
}

fn transpose() -> impl Strategy<Value = Transpose> {
    prop_oneof![Just(Transpose::No), Just(Transpose::Yes)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gemm(
        (m, n, k) in (1usize..90, 1usize..90, 0usize..90),
        (ta, tb) in (transpose(), transpose()),
        (da, db) in (dtype(), dtype()),
        gap in 0usize..5,
        seed: u64,
    ) {
        let mut device = Device::new(2, seed);
        let (ar, ac) = if ta == Transpose::No { (m, k) } else { (k, m) };
        let (br, bc) = if tb == Transpose::No { (k, n) } else { (n, k) };
        let (a, a64) = device.random(ar, ac, gap, da);
        let (b, b64) = device.random(br, bc, gap, db);
        let (c, old) = device.random(m, n, gap, Dtype::F32);
        // What lies between the rows belongs to others.
        let between = (gap > 0 && m > 1).then(|| crate::View { offset: c.offset + 4 * n, rows: m - 1, cols: gap, ..c });
        if let Some(between) = between {
            device.backend.fill(Stream::Compute, between, 7.0).unwrap();
        }
        device.backend.gemm(Stream::Compute, Gemm { a, ta, b, tb, c, beta: Beta::One }).unwrap();
        let mut want = reference::gemm(&a64, ta, &b64, tb, (m, n, k));
        want.iter_mut().zip(old).for_each(|(x, old)| *x += old);
        close("gemm", &device.get(c), &want, EPS * (k as f64 + 1.0));
        if let Some(between) = between {
            prop_assert!(device.get(between).iter().all(|x| *x == 7.0));
        }
    }

    /// Any positions at all: the mask is three arrays, sorted or not.
    #[test]
    fn attention(
        (t, s) in (1usize..40, 1usize..300),
        (kv, group, dim) in (1usize..3, 1usize..4, 1usize..40),
        kind in dtype(),
        spread in 1u32..400,
        seed: u64,
    ) {
        let mut device = Device::new(2, seed);
        let heads = Heads { query: kv * group, kv, dim };
        let number = |i: usize, salt: u64| {
            let x = (seed ^ salt).wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (x >> 33) as u32
        };
        let hidden = |i: usize, salt: u64, x: u32| if number(i, salt) % 11 == 0 { u32::MAX } else { x };
        let k_pos: Vec<u32> = (0..s).map(|j| hidden(j, 1, number(j, 2) % spread)).collect();
        let q_pos: Vec<u32> = (0..t).map(|i| number(i, 3) % spread).collect();
        let first_key: Vec<u32> = (0..t).map(|i| hidden(i, 4, number(i, 5) % (spread / 2 + 1))).collect();
        let (q, q64) = device.random(t, heads.query * dim, 1, kind);
        let (k, k64) = device.random(s, kv * dim, 2, kind);
        let (v, v64) = device.random(s, kv * dim, 3, kind);
        let (o, lse) = (device.view(t, heads.query * dim, 0, Dtype::F32), device.view(t, heads.query, 0, Dtype::F32));
        device.backend.fill(Stream::Compute, lse, f32::NEG_INFINITY).unwrap();
        let mask = Mask { q_pos: device.ids(&q_pos), first_key: device.ids(&first_key), k_pos: device.ids(&k_pos) };
        let scale = 1.0 / (dim as f32).sqrt();
        device.backend.attn(Stream::Compute, Attention { q, k, v, mask, heads, scale, o, lse }).unwrap();
        let p = Positions { q_pos: &q_pos, first_key: &first_key, k_pos: &k_pos };
        let (want, _) = reference::attn(&q64, &k64, &v64, p, heads, f64::from(scale));
        close("o", &device.get(o), &want, 16.0 * EPS * (1.0 + (dim as f64).sqrt()));
    }
}
