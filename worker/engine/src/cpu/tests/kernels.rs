//! All kernels but attention.

use super::harness::{Device, EPS, close, same_bits};
use crate::{
    AdamW, Backend, Beta, CrossEntropy, Dtype, Gemm, Stream, Transpose, View,
    reference::{self, AdamWStep},
};

const C: Stream = Stream::Compute;
const NO: Transpose = Transpose::No;
const YES: Transpose = Transpose::Yes;

/// An operation on random operands, and the exact operands with what `c` held.
fn product(
    device: &mut Device,
    (m, n, k): (usize, usize, usize),
    (ta, tb): (Transpose, Transpose),
    gap: usize,
    dtype: Dtype,
    beta: Beta,
) -> (Gemm, [Vec<f64>; 3]) {
    let (ar, ac) = if ta == NO { (m, k) } else { (k, m) };
    let (br, bc) = if tb == NO { (k, n) } else { (n, k) };
    let (a, a64) = device.random(ar, ac, gap, dtype);
    let (b, b64) = device.random(br, bc, gap, dtype);
    let (c, old) = device.random(m, n, gap, Dtype::F32);
    let op = Gemm { a, ta, b, tb, c, beta };
    device.backend.gemm(C, op).unwrap();
    (op, [a64, b64, old])
}

fn exact(op: &Gemm, [a, b, old]: &[Vec<f64>; 3]) -> Vec<f64> {
    let k = if op.ta == NO { op.a.cols } else { op.a.rows };
    let mut exact = reference::gemm(a, op.ta, b, op.tb, (op.c.rows, op.c.cols, k));
    if op.beta == Beta::One {
        exact.iter_mut().zip(old).for_each(|(x, old)| *x += old);
    }
    exact
}

const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 70, 33),
    (3, 5, 0),
    (8, 130, 96),
    (16, 64, 17),
    (17, 65, 70),
    (2, 300, 5),
    (130, 257, 66),
    (600, 31, 100),
    (33, 900, 40),
];

#[test]
fn gemm_matches_the_reference() {
    let mut device = Device::new(2, 1);
    for shape in SHAPES {
        for transposed in [(NO, NO), (NO, YES), (YES, NO), (YES, YES)] {
            for (gap, dtype, beta) in
                [(0, Dtype::F32, Beta::Zero), (3, Dtype::F32, Beta::One), (2, Dtype::Bf16, Beta::One)]
            {
                let (op, operands) = product(&mut device, shape, transposed, gap, dtype, beta);
                let bound = EPS * (shape.2 as f64 + 1.0);
                let name = format!("{shape:?} {transposed:?} {dtype:?}");
                close(&name, &device.get(op.c), &exact(&op, &operands), bound);
            }
        }
    }
    // Deeper than a converted block.
    let (op, operands) = product(&mut device, (20, 24, 4500), (NO, YES), 0, Dtype::Bf16, Beta::One);
    close("deep", &device.get(op.c), &exact(&op, &operands), EPS * 4501.0);
}

#[test]
fn gemm_bits_do_not_depend_on_threads_nor_on_other_rows() {
    same_bits(|threads| {
        let mut device = Device::new(threads, 2);
        let mut all = Vec::new();
        for shape in SHAPES.into_iter().chain([(700, 800, 300)]) {
            for transposed in [(NO, NO), (NO, YES), (YES, NO)] {
                let (op, _) = product(&mut device, shape, transposed, 0, Dtype::F32, Beta::One);
                all.extend(device.get(op.c));
            }
        }
        all
    });
    // Decoding: a row is the same alone and among others.
    let mut device = Device::new(2, 3);
    let (a, _) = device.random(8, 576, 0, Dtype::F32);
    let (b, _) = device.random(960, 576, 0, Dtype::F32);
    let c = device.view(8, 960, 0, Dtype::F32);
    let op = Gemm { a, ta: NO, b, tb: YES, c, beta: Beta::Zero };
    device.backend.gemm(C, op).unwrap();
    let together = device.get(c);
    for rows in [0..1, 3..5, 1..8] {
        let part = Gemm { a: a.row_range(rows.clone()), c: c.row_range(rows.clone()), ..op };
        device.backend.fill(C, c, 0.0).unwrap();
        device.backend.gemm(C, part).unwrap();
        assert_eq!(device.get(part.c), together[rows.start * 960..rows.end * 960]);
    }
}

#[test]
fn norm_rope_and_mlp_match_the_reference() {
    for (t, d, gap) in [(1, 1, 0), (1, 576, 0), (7, 33, 5), (301, 96, 1), (40, 2050, 0)] {
        let mut device = Device::new(2, t as u64);
        let b = device.backend.clone();
        let (x, x64) = device.random(t, d, gap, Dtype::F32);
        let (w, w64) = device.random(1, d, 0, Dtype::F32);
        let (dy, dy64) = device.random(t, d, gap, Dtype::F32);
        let (dx, dx_old) = device.random(t, d, gap, Dtype::F32);
        let (dw, dw_old) = device.random(1, d, 0, Dtype::F32);
        let (y, rstd) = (device.view(t, d, gap, Dtype::F32), device.view(t, 1, 0, Dtype::F32));
        b.rms_norm(C, x, w, 1e-5, y, rstd).unwrap();
        b.rms_norm_grad(C, x, w, rstd, dy, dx, Beta::One, dw).unwrap();
        let (y64, rstd64) = reference::rms_norm(&x64, &w64, f64::from(1e-5f32));
        let (mut dx64, mut dw64) = reference::rms_norm_grad(&x64, &w64, &rstd64, &dy64);
        dx64.iter_mut().zip(dx_old).for_each(|(a, b)| *a += b);
        dw64.iter_mut().zip(dw_old).for_each(|(a, b)| *a += b);
        let largest = rstd64.iter().fold(1.0, |a: f64, b| a.max(*b));
        close("y", &device.get(y), &y64, 4.0 * EPS * largest);
        close("rstd", &device.get(rstd), &rstd64, 4.0 * EPS * largest);
        close("dx", &device.get(dx), &dx64, 16.0 * EPS * largest * largest);
        close("dw", &device.get(dw), &dw64, 4.0 * EPS * largest * (t as f64 + 1.0).sqrt());
        b.rms_norm_grad(C, x, w, rstd, dy, dx, Beta::Zero, dw).unwrap();
        let (dx64, _) = reference::rms_norm_grad(&x64, &w64, &rstd64, &dy64);
        close("dx alone", &device.get(dx), &dx64, 16.0 * EPS * largest * largest);

        // Gradients in place: x is the gate, dy the up projection.
        let out = device.view(t, d, gap, Dtype::F32);
        b.swiglu(C, x, dy, out).unwrap();
        close("swiglu", &device.get(out), &reference::swiglu(&x64, &dy64), 4.0 * EPS);
        let (d_out, d64) = device.random(t, d, gap, Dtype::Bf16);
        b.swiglu_grad(C, x, dy, d_out).unwrap();
        let (dg, du) = reference::swiglu_grad(&x64, &dy64, &d64);
        close("gate", &device.get(x), &dg, 8.0 * EPS);
        close("up", &device.get(dy), &du, 8.0 * EPS);
    }
}

#[test]
fn rope_turns_and_turns_back() {
    let (t, half, heads) = (50, 32, 3);
    let mut device = Device::new(2, 4);
    let b = device.backend.clone();
    let pos: Vec<u32> = (0..t).map(|i| i * i * 40).collect();
    let freq: Vec<f32> = (0..half).map(|i| 100_000f32.powf(-(i as f32) / half as f32)).collect();
    let (pos_view, inv_freq) = (device.ids(&pos), device.view(1, half, 0, Dtype::F32));
    device.set(inv_freq, &freq);
    let t = t as usize;
    let (cos, sin) = (device.view(t, half, 0, Dtype::F32), device.view(t, half, 0, Dtype::F32));
    b.rope_table(C, pos_view, inv_freq, cos, sin).unwrap();
    let angles: Vec<f64> = pos.iter().flat_map(|p| freq.iter().map(|f| f64::from(*p as f32 * f))).collect();
    let exact = |f: fn(f64) -> f64| angles.iter().map(|a| f(*a)).collect::<Vec<_>>();
    close("cos", &device.get(cos), &exact(f64::cos), EPS);
    close("sin", &device.get(sin), &exact(f64::sin), EPS);
    let (x, x64) = device.random(t, heads * 2 * half, 7, Dtype::F32);
    b.rope(C, x, cos, sin, false).unwrap();
    let turned = reference::rope(&x64, &exact(f64::cos), &exact(f64::sin), half, heads * 2 * half, false);
    close("rope", &device.get(x), &turned, 4.0 * EPS);
    b.rope(C, x, cos, sin, true).unwrap();
    close("back", &device.get(x), &x64, 8.0 * EPS);
}

#[test]
fn cross_entropy_matches_the_reference() {
    for (t, v) in [(1, 1), (5, 17), (40, 1000), (3, 49_152)] {
        let mut device = Device::new(2, v as u64);
        let b = device.backend.clone();
        let (logits, exact) = device.random(t, v, 0, Dtype::F32);
        let scaled: Vec<f32> = exact.iter().map(|x| (*x * 20.0) as f32).collect();
        let exact = device.set(logits, &scaled);
        let targets: Vec<u32> =
            (0..t).map(|i| if i % 4 == 2 { u32::MAX } else { (i * 7919 % v) as u32 }).collect();
        let (weights, w64) = device.random(t, 1, 0, Dtype::F32);
        let nll = device.view(t, 1, 0, Dtype::F32);
        let op =
            CrossEntropy { logits, targets: device.ids(&targets), weights, scale: 0.125, nll, grad: false };
        b.cross_entropy(C, op).unwrap();
        assert_eq!(device.get(logits), scaled, "scoring leaves the logits");
        b.cross_entropy(C, CrossEntropy { grad: true, ..op }).unwrap();
        let (nll64, grad64) = reference::cross_entropy(&exact, &targets, &w64, 0.125);
        close("nll", &device.get(nll), &nll64, 4.0 * EPS * 50.0);
        close("gradient", &device.get(logits), &grad64, 8.0 * EPS * 0.125);
        let sum = device.view(1, 1, 0, Dtype::F64);
        b.weighted_sum(C, nll, weights, sum).unwrap();
        b.weighted_sum(C, nll, weights, sum).unwrap();
        let mut got = [0.0f64];
        b.read(sum, bytemuck::cast_slice_mut(&mut got)).unwrap();
        let want: f64 = 2.0 * device.get(nll).iter().zip(&w64).map(|(n, w)| f64::from(*n) * w).sum::<f64>();
        assert!((got[0] - want).abs() <= 1e-12 * (1.0 + want.abs()), "{got:?} {want}");
    }
}

#[test]
fn lookup_adds_in_token_order() {
    let mut device = Device::new(2, 6);
    let b = device.backend.clone();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let ids: Vec<u32> = (0..700).map(|i| i * i % 13).collect();
        let id_view = device.ids(&ids);
        let (table, table64) = device.random(13, 130, 0, dtype);
        let out = device.view(700, 130, 2, Dtype::F32);
        b.embed(C, id_view, table, out).unwrap();
        close("embed", &device.get(out), &reference::embed(&ids, &table64, 130), 0.0);
        let (d_out, d64) = device.random(700, 130, 0, dtype);
        let (grad, old) = device.random(13, 130, 0, Dtype::F32);
        b.embed_grad(C, id_view, d_out, grad).unwrap();
        let mut want = reference::embed_grad(&ids, &d64, (13, 130));
        want.iter_mut().zip(old).for_each(|(a, b)| *a += b);
        close("embed_grad", &device.get(grad), &want, 4.0 * EPS * 700f64.sqrt());
    }
}

#[test]
fn adamw_follows_the_reference_and_leaves_all_when_not_finite() {
    let n = 70_001;
    let mut device = Device::new(2, 7);
    let b = device.backend.clone();
    let (w, mut w64) = device.random(1, n, 0, Dtype::F32);
    let (g, g64) = device.random(1, n, 0, Dtype::F32);
    let (m, v) = (device.view(1, n, 0, Dtype::F32), device.view(1, n, 0, Dtype::F32));
    let (sum, factor, finite) = (
        device.view(1, 1, 0, Dtype::F64),
        device.view(1, 1, 0, Dtype::F32),
        device.view(1, 1, 0, Dtype::U32),
    );
    b.sum_squares(C, g, sum).unwrap();
    b.clip_factor(C, sum, 1.0, factor, finite).unwrap();
    let norm = g64.iter().map(|x| x * x).sum::<f64>().sqrt();
    let clip = 1.0 / (norm + 1e-6);
    close("factor", &device.get(factor), &[clip], EPS * clip);
    let (mut m64, mut v64) = (vec![0.0; n], vec![0.0; n]);
    let step = |step| AdamW {
        w,
        g,
        m,
        v,
        factor,
        finite,
        step,
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    for t in 1..=3 {
        b.adamw(C, step(t)).unwrap();
        let s = AdamWStep {
            step: t,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            factor: clip,
        };
        reference::adamw(&mut w64, &g64, &mut m64, &mut v64, s);
    }
    close("w", &device.get(w), &w64, 16.0 * EPS);
    close("m", &device.get(m), &m64, 4.0 * EPS * clip);
    // A norm that is not finite: the flag falls and nothing is written.
    let bad = vec![f32::INFINITY; 1];
    device.set(g.col_range(5..6), &bad);
    b.fill(C, sum, 0.0).unwrap();
    b.sum_squares(C, g, sum).unwrap();
    b.clip_factor(C, sum, 1.0, factor, finite).unwrap();
    let before = (device.get(w), device.get(m), device.get(v));
    b.adamw(C, step(4)).unwrap();
    assert_eq!(before, (device.get(w), device.get(m), device.get(v)));
}

#[test]
fn other_kernels_do_not_depend_on_threads() {
    same_bits(|threads| {
        let mut device = Device::new(threads, 8);
        let b = device.backend.clone();
        let (t, d) = (900, 130);
        let (x, _) = device.random(t, d, 3, Dtype::F32);
        let (w, _) = device.random(1, d, 0, Dtype::F32);
        let (dy, _) = device.random(t, d, 0, Dtype::F32);
        let (dx, dw) = (device.view(t, d, 0, Dtype::F32), device.view(1, d, 0, Dtype::F32));
        let (y, rstd) = (device.view(t, d, 0, Dtype::F32), device.view(t, 1, 0, Dtype::F32));
        b.rms_norm(C, x, w, 1e-5, y, rstd).unwrap();
        b.rms_norm_grad(C, x, w, rstd, dy, dx, Beta::One, dw).unwrap();
        b.add(C, x, y).unwrap();
        let sum = device.view(1, 1, 0, Dtype::F64);
        b.sum_squares(C, x, sum).unwrap();
        b.sum_squares(C, dy, sum).unwrap();
        let as_pair = View { cols: 2, row_stride: 2, dtype: Dtype::F32, ..sum };
        [y, dx, dw, as_pair].iter().flat_map(|v| device.get(*v)).collect()
    });
}

#[test]
fn copies_convert_and_fill_every_type() {
    let mut device = Device::new(2, 9);
    let b = device.backend.clone();
    let (x, x64) = device.random(33, 70, 6, Dtype::F32);
    let (narrow, wide) = (device.view(33, 70, 0, Dtype::Bf16), device.view(33, 70, 2, Dtype::F32));
    b.copy(C, x, narrow).unwrap();
    b.copy(C, narrow, wide).unwrap();
    let want: Vec<f64> = x64.iter().map(|x| f64::from(half::bf16::from_f64(*x).to_f32())).collect();
    close("bf16", &device.get(wide), &want, 0.0);
    b.copy(C, x, wide).unwrap();
    close("f32", &device.get(wide), &x64, 0.0);
    let ids = device.ids(&[1, 2, 3]);
    b.fill(C, ids, f32::INFINITY).unwrap();
    let mut got = [0u32; 3];
    b.read(ids, bytemuck::cast_slice_mut(&mut got)).unwrap();
    assert_eq!(got, [u32::MAX; 3]);
}
