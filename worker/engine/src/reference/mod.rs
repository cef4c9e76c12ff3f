//! Every kernel as obvious scalar loops, generic over f32 and f64: what fast kernels, layers and
//! models are checked against.
//!
//! Invariant: matrices are dense and row-major; nothing here is fast, and nothing is clever.

use crate::{Heads, Transpose};

/// A floating-point type.
pub trait Real:
    Copy
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
{
    /// From f64, rounded.
    fn of(x: f64) -> Self;
    /// As f64.
    fn f64(self) -> f64;
    /// e^x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($ty:ty) => {
        impl Real for $ty {
            fn of(x: f64) -> Self {
                x as $ty
            }
            fn f64(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                <$ty>::exp(self)
            }
            fn ln(self) -> Self {
                <$ty>::ln(self)
            }
            fn sqrt(self) -> Self {
                <$ty>::sqrt(self)
            }
        }
    };
}
real!(f32);
real!(f64);

fn zeros<R: Real>(n: usize) -> Vec<R> {
    vec![R::of(0.0); n]
}

/// op(a)·op(b); op(a): m × k, op(b): k × n.
#[must_use]
pub fn gemm<R: Real>(
    a: &[R],
    ta: Transpose,
    b: &[R],
    tb: Transpose,
    (m, n, k): (usize, usize, usize),
) -> Vec<R> {
    let mut c = zeros(m * n);
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let x = if ta == Transpose::No { a[i * k + l] } else { a[l * m + i] };
                let y = if tb == Transpose::No { b[l * n + j] } else { b[j * k + l] };
                c[i * n + j] += x * y;
            }
        }
    }
    c
}

/// Rows of the table; out: T × cols.
#[must_use]
pub fn embed<R: Real>(ids: &[u32], table: &[R], cols: usize) -> Vec<R> {
    ids.iter().flat_map(|id| table[*id as usize * cols..][..cols].iter().copied()).collect()
}

/// Gradient of the table.
#[must_use]
pub fn embed_grad<R: Real>(ids: &[u32], d_out: &[R], (vocabulary, cols): (usize, usize)) -> Vec<R> {
    let mut d_table = zeros(vocabulary * cols);
    for (t, id) in ids.iter().enumerate() {
        for c in 0..cols {
            d_table[*id as usize * cols + c] += d_out[t * cols + c];
        }
    }
    d_table
}

/// y and rstd.
#[must_use]
pub fn rms_norm<R: Real>(x: &[R], w: &[R], eps: f64) -> (Vec<R>, Vec<R>) {
    let cols = w.len();
    let (mut y, mut rstds) = (Vec::new(), Vec::new());
    for row in x.chunks(cols) {
        let mut sum = R::of(0.0);
        for x in row {
            sum += *x * *x;
        }
        let rstd = R::of(1.0) / (sum / R::of(cols as f64) + R::of(eps)).sqrt();
        y.extend(row.iter().zip(w).map(|(x, w)| *x * rstd * *w));
        rstds.push(rstd);
    }
    (y, rstds)
}

/// dx and dw.
#[must_use]
pub fn rms_norm_grad<R: Real>(x: &[R], w: &[R], rstd: &[R], dy: &[R]) -> (Vec<R>, Vec<R>) {
    let cols = w.len();
    let (mut dx, mut dw) = (zeros(x.len()), zeros(cols));
    for (r, rstd) in rstd.iter().enumerate() {
        let mut common = R::of(0.0);
        for c in 0..cols {
            common += x[r * cols + c] * w[c] * dy[r * cols + c];
        }
        common = common * *rstd * *rstd * *rstd / R::of(cols as f64);
        for c in 0..cols {
            let i = r * cols + c;
            dx[i] = *rstd * w[c] * dy[i] - x[i] * common;
            dw[c] += dy[i] * x[i] * *rstd;
        }
    }
    (dx, dw)
}

/// Rotates the halves of each head; cos, sin: T × half.
#[must_use]
pub fn rope<R: Real>(x: &[R], cos: &[R], sin: &[R], half: usize, cols: usize, inverse: bool) -> Vec<R> {
    let mut out = x.to_vec();
    for t in 0..x.len() / cols {
        for head in (0..cols).step_by(2 * half) {
            for i in 0..half {
                let (a, b) = (x[t * cols + head + i], x[t * cols + head + half + i]);
                let (c, mut s) = (cos[t * half + i], sin[t * half + i]);
                if inverse {
                    s = -s;
                }
                out[t * cols + head + i] = a * c - b * s;
                out[t * cols + head + half + i] = b * c + a * s;
            }
        }
    }
    out
}

/// Whether query `i` sees key `j`: positions of queries, first visible keys, positions of keys.
#[must_use]
pub const fn sees(q_pos: u32, first_key: u32, k_pos: u32) -> bool {
    k_pos != u32::MAX && first_key <= k_pos && k_pos <= q_pos
}

/// Positions of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// Of the queries.
    pub q_pos: &'a [u32],
    /// First key that a query sees.
    pub first_key: &'a [u32],
    /// Of the keys.
    pub k_pos: &'a [u32],
}

/// o (T × query·dim) and lse (T × query) over all keys at once; o is 0 and lse −∞ where a query
/// sees nothing.
#[must_use]
pub fn attn<R: Real>(
    q: &[R],
    k: &[R],
    v: &[R],
    p: Positions<'_>,
    heads: Heads,
    scale: f64,
) -> (Vec<R>, Vec<R>) {
    let Heads { query, kv, dim } = heads;
    let (t, s) = (p.q_pos.len(), p.k_pos.len());
    let mut o = zeros(t * query * dim);
    let mut lse = vec![R::of(f64::NEG_INFINITY); t * query];
    for i in 0..t {
        for h in 0..query {
            let g = h / (query / kv);
            let keys: Vec<usize> = (0..s).filter(|j| sees(p.q_pos[i], p.first_key[i], p.k_pos[*j])).collect();
            let scores: Vec<R> = keys
                .iter()
                .map(|j| {
                    dot(&q[(i * query + h) * dim..][..dim], &k[(j * kv + g) * dim..][..dim]) * R::of(scale)
                })
                .collect();
            let Some(max) = scores.iter().copied().reduce(|a, b| if b > a { b } else { a }) else { continue };
            let mut sum = R::of(0.0);
            for x in &scores {
                sum += (*x - max).exp();
            }
            for (j, x) in keys.iter().zip(&scores) {
                let weight = (*x - max).exp() / sum;
                for c in 0..dim {
                    o[(i * query + h) * dim + c] += weight * v[(j * kv + g) * dim + c];
                }
            }
            lse[i * query + h] = max + sum.ln();
        }
    }
    (o, lse)
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sum = R::of(0.0);
    for (x, y) in a.iter().zip(b) {
        sum += *x * *y;
    }
    sum
}

/// dq, dk, dv for the gradient of the output.
#[must_use]
pub fn attn_grad<R: Real>(
    (q, k, v): (&[R], &[R], &[R]),
    p: Positions<'_>,
    heads: Heads,
    scale: f64,
    d_o: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let Heads { query, kv, dim } = heads;
    let (o, lse) = attn(q, k, v, p, heads, scale);
    let (mut dq, mut dk, mut dv) = (zeros(q.len()), zeros(k.len()), zeros(v.len()));
    let scale = R::of(scale);
    for i in 0..p.q_pos.len() {
        for h in 0..query {
            let g = h / (query / kv);
            let row = (i * query + h) * dim;
            let delta = dot(&d_o[row..][..dim], &o[row..][..dim]);
            for j in (0..p.k_pos.len()).filter(|j| sees(p.q_pos[i], p.first_key[i], p.k_pos[*j])) {
                let key = (j * kv + g) * dim;
                let score = dot(&q[row..][..dim], &k[key..][..dim]) * scale;
                let weight = (score - lse[i * query + h]).exp();
                let d_score = weight * (dot(&d_o[row..][..dim], &v[key..][..dim]) - delta);
                for c in 0..dim {
                    dv[key + c] += weight * d_o[row + c];
                    dq[row + c] += d_score * scale * k[key + c];
                    dk[key + c] += d_score * scale * q[row + c];
                }
            }
        }
    }
    (dq, dk, dv)
}

fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}

/// silu(gate)·up.
#[must_use]
pub fn swiglu<R: Real>(gate: &[R], up: &[R]) -> Vec<R> {
    gate.iter().zip(up).map(|(g, u)| *g * sigmoid(*g) * *u).collect()
}

/// Gradients of gate and up.
#[must_use]
pub fn swiglu_grad<R: Real>(gate: &[R], up: &[R], d_out: &[R]) -> (Vec<R>, Vec<R>) {
    let one = R::of(1.0);
    let each = gate.iter().zip(up).zip(d_out).map(|((g, u), d)| {
        let s = sigmoid(*g);
        (*d * *u * s * (one + *g * (one - s)), *d * *g * s)
    });
    each.unzip()
}

/// nll per token and the gradient of the logits; a target of `u32::MAX` is none.
#[must_use]
pub fn cross_entropy<R: Real>(logits: &[R], targets: &[u32], weights: &[R], scale: f64) -> (Vec<R>, Vec<R>) {
    let cols = logits.len() / targets.len().max(1);
    let (mut nll, mut grad) = (zeros(targets.len()), zeros(logits.len()));
    for (t, target) in targets.iter().enumerate().filter(|(_, target)| **target != u32::MAX) {
        let row = &logits[t * cols..][..cols];
        let max = row.iter().copied().fold(row[0], |a, b| if b > a { b } else { a });
        let mut sum = R::of(0.0);
        for x in row {
            sum += (*x - max).exp();
        }
        nll[t] = max + sum.ln() - row[*target as usize];
        let weight = weights[t] * R::of(scale);
        for c in 0..cols {
            grad[t * cols + c] = weight * (row[c] - max).exp() / sum;
        }
        grad[t * cols + *target as usize] += -weight;
    }
    (nll, grad)
}

/// Numbers of an AdamW step: learning rate, β1, β2, ε, weight decay, clip factor.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct AdamWStep {
    pub step: u64,
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub factor: f64,
}

/// One update of w, m, v.
pub fn adamw<R: Real>(w: &mut [R], g: &[R], m: &mut [R], v: &mut [R], s: AdamWStep) {
    let (c1, c2) = (1.0 - s.beta1.powf(s.step as f64), 1.0 - s.beta2.powf(s.step as f64));
    for i in 0..w.len() {
        let grad = g[i] * R::of(s.factor);
        m[i] = R::of(s.beta1) * m[i] + R::of(1.0 - s.beta1) * grad;
        v[i] = R::of(s.beta2) * v[i] + R::of(1.0 - s.beta2) * grad * grad;
        let update = (m[i] / R::of(c1)) / ((v[i] / R::of(c2)).sqrt() + R::of(s.epsilon));
        w[i] = w[i] - R::of(s.learning_rate * s.weight_decay) * w[i] - R::of(s.learning_rate) * update;
    }
}

#[cfg(test)]
mod tests;
