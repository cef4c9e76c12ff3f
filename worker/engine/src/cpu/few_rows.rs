//! Matrix products with few rows on the left, as in decoding: what the weights cost is their way
//! from memory, so each is read once, in its own order, and asked for in time.
//!
//! Invariant: a sum runs over the depth in [`LANES`] lanes that are added pairwise, whichever
//! kernel forms it, so a row's bits do not depend on how many rows stand beside it.

use super::arena::{Mat, Operand};
use super::gemm::widened;
use super::pool::Exec;
use super::simd::{self, LANES, add_lanes, fma, multiversion, prefetch};
use crate::Beta;

/// At most this many rows of `a` come here.
pub(crate) const FEW_ROWS: usize = 16;
/// Rows of `b` of one task.
const TASK_ROWS: usize = 64;

/// c ← β·c + a·bᵀ.
pub(crate) fn product(exec: &Exec, a: Operand<'_>, b: Operand<'_>, c: Mat<'_, f32>, beta: Beta) {
    let k = a.cols();
    exec.run(c.cols.div_ceil(TASK_ROWS), c.rows * c.cols * k, |task, scratch| {
        let first = task * TASK_ROWS;
        let b = b.block(first, TASK_ROWS.min(c.cols - first), 0, k);
        let [sa, sb] = match (&a, &b) {
            (Operand::F32(_), Operand::F32(_)) => scratch.split([0, 0]),
            _ => scratch.split([a.rows() * k, b.rows() * k]),
        };
        block(widened(&a, sa), widened(&b, sb), c.block(0, c.rows, first, b.rows()), beta);
    });
}

/// As [`product`], on the calling thread.
pub(crate) fn block(a: Mat<'_, f32>, b: Mat<'_, f32>, c: Mat<'_, f32>, beta: Beta) {
    assert!(a.cols == b.cols && c.rows <= a.rows && c.cols <= b.rows, "operands that do not fit");
    #[cfg(target_arch = "x86_64")]
    if simd::avx512() {
        // SAFETY: the features were detected.
        return unsafe { avx512::block(a, b, c, beta) };
    }
    portable(a, b, c, beta);
}

/// How many elements ahead the rows of `b` are asked for: some of them, more of those of a head's
/// keys, which are short. Behind the last row another task goes on, or nobody: that costs nothing.
fn ahead(b: Mat<'_, f32>) -> usize {
    b.stride * if b.cols < 256 { 16 } else { 4 }
}

/// Adds sums to a row of c, or puts them there; those beyond its end are dropped.
#[inline(always)]
fn put(out: &mut [f32], sums: impl Iterator<Item = f32>, beta: Beta) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if beta == Beta::One { *out + sum } else { sum };
    }
}

/// Products of a row with four: independent sums hide the latency of additions.
#[inline(always)]
fn one_by_four<const FMA: bool>(x: &[f32], w: [&[f32]; 4]) -> [f32; 4] {
    let n = x.len();
    let [w0, w1, w2, w3] = w.map(|r| &r[..n]);
    let (mut s0, mut s1, mut s2, mut s3) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let whole = n / LANES * LANES;
    let vectors = x[..whole]
        .chunks_exact(LANES)
        .zip(w0[..whole].chunks_exact(LANES))
        .zip(w1[..whole].chunks_exact(LANES))
        .zip(w2[..whole].chunks_exact(LANES))
        .zip(w3[..whole].chunks_exact(LANES));
    for ((((x, w0), w1), w2), w3) in vectors {
        for l in 0..LANES {
            s0[l] = fma::<FMA>(x[l], w0[l], s0[l]);
            s1[l] = fma::<FMA>(x[l], w1[l], s1[l]);
            s2[l] = fma::<FMA>(x[l], w2[l], s2[l]);
            s3[l] = fma::<FMA>(x[l], w3[l], s3[l]);
        }
    }
    for (l, i) in (whole..n).enumerate() {
        s0[l] = fma::<FMA>(x[i], w0[i], s0[l]);
        s1[l] = fma::<FMA>(x[i], w1[i], s1[l]);
        s2[l] = fma::<FMA>(x[i], w2[i], s2[l]);
        s3[l] = fma::<FMA>(x[i], w3[i], s3[l]);
    }
    [s0, s1, s2, s3].map(add_lanes)
}

#[inline(always)]
fn portable_generic<const FMA: bool>(a: Mat<'_, f32>, b: Mat<'_, f32>, c: Mat<'_, f32>, beta: Beta) {
    for n in (0..c.cols).step_by(4) {
        // Rows beyond the last are computed again from the last and dropped.
        let w = std::array::from_fn(|j| b.row((n + j).min(c.cols - 1)));
        for row in w {
            let next = row.as_ptr().wrapping_add(ahead(b));
            (0..row.len()).step_by(LANES).for_each(|k| prefetch(next.wrapping_add(k)));
        }
        for m in 0..c.rows {
            put(&mut c.row_mut(m)[n..], one_by_four::<FMA>(a.row(m), w).into_iter(), beta);
        }
    }
}
multiversion! {
    /// [`block`] without instructions of one machine.
    fn portable(a: Mat<'_, f32>, b: Mat<'_, f32>, c: Mat<'_, f32>, beta: Beta) = portable_generic
}

/// [`block`] with sixteen sums in registers for some rows at once (loops over so many arrays would
/// be compiled to go through memory), which are added up together.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask3_fmadd_ps,
        _mm512_maskz_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
    };

    use super::{Beta, LANES, Mat, ahead, prefetch, put};

    #[target_feature(enable = "avx512f")]
    pub(super) fn block(a: Mat<'_, f32>, b: Mat<'_, f32>, c: Mat<'_, f32>, beta: Beta) {
        let mut m = 0;
        while m < c.rows {
            // As many rows as decoding has slots, or those of a KV head.
            if c.rows - m > 4 {
                rows::<8, 2>(a, b, c, m, beta);
                m += 8;
            } else {
                rows::<4, 4>(a, b, c, m, beta);
                m += 4;
            }
        }
    }

    /// Up to M rows of `a` from `m` on with all of `b`, N at a time; M·N = 16.
    #[target_feature(enable = "avx512f")]
    fn rows<const M: usize, const N: usize>(
        a: Mat<'_, f32>,
        b: Mat<'_, f32>,
        c: Mat<'_, f32>,
        m: usize,
        beta: Beta,
    ) {
        // Rows beyond the last are computed again from the last and dropped.
        let x = std::array::from_fn(|i| a.row((m + i).min(a.rows - 1)));
        let ahead = ahead(b);
        for n in (0..c.cols).step_by(N) {
            let w = std::array::from_fn(|j| b.row((n + j).min(c.cols - 1)));
            let sums = sixteen::<M, N>(x, w, ahead);
            for i in 0..M.min(c.rows - m) {
                put(&mut c.row_mut(m + i)[n..], (0..N).map(|j| sums[place(i * N + j)]), beta);
            }
        }
    }

    /// Where [`added`] leaves a sum.
    const fn place(sum: usize) -> usize {
        sum % 4 * 4 + sum / 4
    }

    /// Products of M rows with N; asks for the rows `ahead` elements behind the N.
    #[target_feature(enable = "avx512f")]
    fn sixteen<const M: usize, const N: usize>(x: [&[f32]; M], w: [&[f32]; N], ahead: usize) -> [f32; 16] {
        const { assert!(M * N == 16) };
        let mut sums = [_mm512_setzero_ps(); 16];
        let depth = x[0].len();
        assert!(x.iter().chain(&w).all(|r| r.len() == depth));
        let whole = depth / LANES * LANES;
        let mut v = [_mm512_setzero_ps(); N];
        for k in (0..whole).step_by(LANES) {
            for j in 0..N {
                // SAFETY: inside the row.
                v[j] = unsafe { _mm512_loadu_ps(w[j].as_ptr().add(k)) };
                prefetch(w[j].as_ptr().wrapping_add(k + ahead));
            }
            for m in 0..M {
                // SAFETY: inside the row.
                let x = unsafe { _mm512_loadu_ps(x[m].as_ptr().add(k)) };
                for j in 0..N {
                    sums[m * N + j] = _mm512_fmadd_ps(x, v[j], sums[m * N + j]);
                }
            }
        }
        if whole < depth {
            let mask = (1u16 << (depth - whole)) - 1;
            for m in 0..M {
                for j in 0..N {
                    // SAFETY: the mask ends with the row.
                    let (x, w) = unsafe {
                        (
                            _mm512_maskz_loadu_ps(mask, x[m].as_ptr().add(whole)),
                            _mm512_maskz_loadu_ps(mask, w[j].as_ptr().add(whole)),
                        )
                    };
                    sums[m * N + j] = _mm512_mask3_fmadd_ps(x, w, sums[m * N + j], mask);
                }
            }
        }
        let mut out = [0.0; 16];
        // SAFETY: sixteen elements.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), added(sums)) };
        out
    }

    /// The sum of the lanes of each vector, all in the order of [`super::add_lanes`]: halves are
    /// added to halves, two vectors at a time.
    #[target_feature(enable = "avx512f")]
    fn added(v: [__m512; 16]) -> __m512 {
        let mut eights = [v[0]; 8];
        for i in 0..8 {
            let (a, b) = (v[2 * i], v[2 * i + 1]);
            eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
        let mut fours = [v[0]; 4];
        for i in 0..4 {
            let (a, b) = (eights[2 * i], eights[2 * i + 1]);
            fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        }
        let mut twos = [v[0]; 2];
        for i in 0..2 {
            let (a, b) = (fours[2 * i], fours[2 * i + 1]);
            twos[i] = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b));
        }
        let [a, b] = twos;
        _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// One fingerprint serves a machine: both kernels form the same bits.
    #[test]
    fn instructions_of_one_machine_change_no_bit() {
        if !simd::avx512() {
            return;
        }
        for (m, n, k) in
            [(1, 1, 1), (3, 70, 64), (4, 9, 31), (5, 7, 17), (8, 33, 576), (16, 5, 100), (11, 3, 0)]
        {
            let numbers = |len: usize, salt: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + salt) % 1013) as f32 / 501.0 - 1.0).collect()
            };
            let (mut a, mut b) = (numbers(m * k, 1), numbers(n * k, 2));
            let (mut c, mut d) = (numbers(m * n, 3), numbers(m * n, 3));
            let (a, b) = (Mat::from_slice(&mut a, m, k), Mat::from_slice(&mut b, n, k));
            for beta in [Beta::One, Beta::Zero] {
                portable(a, b, Mat::from_slice(&mut c, m, n), beta);
                block(a, b, Mat::from_slice(&mut d, m, n), beta);
                assert!(c.iter().zip(&d).all(|(c, d)| c.to_bits() == d.to_bits()), "{m} {n} {k} {beta:?}");
            }
        }
    }
}
