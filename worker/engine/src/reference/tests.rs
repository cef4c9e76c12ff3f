//! Gradients of the reference against central differences in f64, and identities that hold
//! whatever the numbers.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn weigh(x: &[f64], w: &[f64]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

/// Compares a gradient with central differences of `loss`: step 1e-5, truncation below 1e-9.
#[track_caller]
fn differences(name: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    let step = 1e-5;
    for i in 0..x.len() {
        let at = |d: f64| {
            let mut x = x.to_vec();
            x[i] += d;
            loss(&x)
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!(
            (slope - gradient[i]).abs() <= 1e-7 * (1.0 + slope.abs()),
            "{name}[{i}]: {slope} {}",
            gradient[i]
        );
    }
}

#[test]
fn attention() {
    let heads = Heads { query: 4, kv: 2, dim: 3 };
    // Two packed samples, padding on both sides, keys out of order.
    let (q_pos, first_key) = (vec![0, 1, 2, 3, 4, 9], vec![0, 0, 0, 3, 3, u32::MAX]);
    let k_pos = [3, 4, 0, 1, u32::MAX, 2];
    let p = Positions { q_pos: &q_pos, first_key: &first_key, k_pos: &k_pos };
    let (q, k, v, w) = (random(72, 1), random(36, 2), random(36, 3), random(72, 4));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| weigh(&attn(q, k, v, p, heads, 0.7).0, &w);
    let (dq, dk, dv) = attn_grad((&q, &k, &v), p, heads, 0.7, &w);
    differences("dq", &q, &dq, |q| loss(q, &k, &v));
    differences("dk", &k, &dk, |k| loss(&q, k, &v));
    differences("dv", &v, &dv, |v| loss(&q, &k, v));
    let (o, lse) = attn(&q, &k, &v, p, heads, 0.7);
    assert!(o[60..].iter().all(|x| *x == 0.0) && lse[20..].iter().all(|x| *x == f64::NEG_INFINITY));
    // The first query of a sample sees itself alone.
    assert_eq!(o[..3], v[12..15]);
}

#[test]
fn norm_mlp_and_rope() {
    let (x, w, dy) = (random(15, 5), random(5, 6), random(15, 7));
    let (_, rstd) = rms_norm(&x, &w, 1e-5);
    let (dx, dw) = rms_norm_grad(&x, &w, &rstd, &dy);
    differences("dx", &x, &dx, |x| weigh(&rms_norm(x, &w, 1e-5).0, &dy));
    differences("dw", &w, &dw, |w| weigh(&rms_norm(&x, w, 1e-5).0, &dy));

    let (gate, up) = (random(15, 8), random(15, 9));
    let (dg, du) = swiglu_grad(&gate, &up, &dy);
    differences("gate", &gate, &dg, |g| weigh(&swiglu(g, &up), &dy));
    differences("up", &up, &du, |u| weigh(&swiglu(&gate, u), &dy));

    let (x, dy) = (random(24, 10), random(24, 11));
    let angles = random(6, 12);
    let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let gradient = rope(&dy, &cos, &sin, 3, 12, true);
    differences("rope", &x, &gradient, |x| weigh(&rope(x, &cos, &sin, 3, 12, false), &dy));
}

#[test]
fn loss_and_lookup() {
    let (logits, weights) = (random(28, 13), vec![1.0, 0.5, 2.0, 3.0]);
    let targets = [6, 0, u32::MAX, 3];
    let (nll, gradient) = cross_entropy(&logits, &targets, &weights, 0.25);
    differences("logits", &logits, &gradient, |x| {
        0.25 * weigh(&cross_entropy(x, &targets, &weights, 0.25).0, &weights)
    });
    assert_eq!(nll[2], 0.0);

    let (ids, table, dy) = ([2, 0, 2, 1], random(9, 14), random(12, 15));
    differences("table", &table, &embed_grad(&ids, &dy, (3, 3)), |t| weigh(&embed(&ids, t, 3), &dy));
}

#[test]
fn products() {
    let (no, yes) = (Transpose::No, Transpose::Yes);
    let (a, b, dc) = (random(6, 16), random(12, 17), random(8, 18));
    let shape = (2, 4, 3);
    differences("a", &a, &gemm(&dc, no, &b, yes, (2, 3, 4)), |a| weigh(&gemm(a, no, &b, no, shape), &dc));
    differences("b", &b, &gemm(&a, yes, &dc, no, (3, 4, 2)), |b| weigh(&gemm(&a, no, b, no, shape), &dc));
    assert_eq!(gemm(&[1.0, 2.0], yes, &[3.0, 4.0], yes, (1, 1, 2)), [11.0]);
}

#[test]
fn adamw_by_hand() {
    let (mut w, mut m, mut v) = ([1.0], [0.0], [0.0]);
    let step = AdamWStep {
        step: 1,
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 0.0,
        weight_decay: 0.5,
        factor: 0.5,
    };
    adamw(&mut w, &[4.0], &mut m, &mut v, step);
    // The first update is the learning rate, whatever the gradient; decay 0.1·0.5 besides.
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    assert!(close(w[0], 1.0 - 0.05 - 0.1) && close(m[0], 0.2) && close(v[0], 0.2), "{w:?} {m:?} {v:?}");
}
