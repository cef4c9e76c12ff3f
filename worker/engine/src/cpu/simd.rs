//! Loops over slices that the compiler turns into vector code, once for each instruction set.
//!
//! Invariant: sums have a fixed number of lanes that are added in a fixed order, so a result
//! depends on the data and the instruction set (fused multiply-add or not), never on alignment.

use half::bf16;

/// Instruction set that the kernels use on this machine; results are promised for equal ones only.
#[must_use]
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if avx512() {
            return "avx512";
        }
        if avx2() {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "baseline" }
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && avx2()
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Compiles a function `generic::<FMA>` for AVX-512, for AVX2 and for the target's baseline, and
/// chooses one when called.
macro_rules! multiversion {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(super) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v4($($arg: $ty),*) $(-> $ret)? {
                    $generic::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v3($($arg: $ty),*) $(-> $ret)? {
                    $generic::<true>($($arg),*)
                }
                if $crate::cpu::simd::avx512() {
                    // SAFETY: the features were detected.
                    return unsafe { v4($($arg),*) };
                }
                if $crate::cpu::simd::avx2() {
                    // SAFETY: the features were detected.
                    return unsafe { v3($($arg),*) };
                }
            }
            $generic::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Lanes of a sum.
pub(crate) const LANES: usize = 16;

/// Asks for the cache line of an address, which may be any: a hint, without effect where there is
/// none.
#[inline(always)]
pub(crate) fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// a·b + c, fused where the machine can (a call of the mathematics library where it cannot).
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adds lanes pairwise, in a fixed order.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// 1.5·2²³: adding it rounds to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// 2^x for −126 ≤ x ≤ 127, within 2 ULP; falls to 0 below (also for −∞); a NaN stays one.
#[inline(always)]
pub(crate) fn exp2<const FMA: bool>(x: f32) -> f32 {
    // At −127 the bits of the power are those of 0.
    let clamped = if x < -127.0 { -127.0 } else { x };
    let shifted = clamped + ROUND;
    let r = clamped - (shifted - ROUND);
    let mut p = fma::<FMA>(1.546_144_7e-4, r, 1.340_042_8e-3);
    p = fma::<FMA>(p, r, 9.618_057e-3);
    p = fma::<FMA>(p, r, 5.550_327e-2);
    p = fma::<FMA>(p, r, 0.240_226_5);
    p = fma::<FMA>(p, r, std::f32::consts::LN_2);
    p = fma::<FMA>(p, r, 1.0);
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// e^x for −87 ≤ x ≤ 88, within 2 ULP; e^88 above, falls to 0 below; a NaN stays one.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // ln 2 in two parts: the first has so few bits that n·LN2_HIGH is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // At −88 the bits of the power are those of 0.
    let clamped = if x < -88.0 { -88.0 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = fma::<FMA>(1.394_110_9e-3, r, 8.375_126e-3);
    p = fma::<FMA>(p, r, 4.166_635e-2);
    p = fma::<FMA>(p, r, 0.166_664_15);
    p = fma::<FMA>(p, r, 0.5);
    p = fma::<FMA>(p, r, 1.0);
    p = fma::<FMA>(p, r, 1.0);
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
fn dot_generic<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (pa, pb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (pa.remainder(), pb.remainder());
    for (x, y) in pa.zip(pb) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(x[i], y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in ra.iter().zip(rb).enumerate() {
        lanes[i] = fma::<FMA>(*x, *y, lanes[i]);
    }
    add_lanes(lanes)
}
multiversion! {
    /// Σ a·b over the shorter of the two.
    fn dot(a: &[f32], b: &[f32]) -> f32 = dot_generic
}

#[inline(always)]
fn add_generic<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
multiversion! {
    /// y ← y + x.
    fn add(x: &[f32], y: &mut [f32]) = add_generic
}

#[inline(always)]
fn scale_generic<const FMA: bool>(factor: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = factor * x;
    }
}
multiversion! {
    /// y ← factor·x.
    fn scale(factor: f32, x: &[f32], y: &mut [f32]) = scale_generic
}

#[inline(always)]
fn widen_generic<const FMA: bool>(x: &[bf16], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}
multiversion! {
    /// bf16 → f32, exact.
    fn widen(x: &[bf16], y: &mut [f32]) = widen_generic
}

#[inline(always)]
fn narrow_generic<const FMA: bool>(x: &[f32], y: &mut [bf16]) {
    for (y, x) in y.iter_mut().zip(x) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // A NaN keeps its sign and stays a NaN: rounding could carry it over to an infinity.
        let nan = (bits >> 16) | 0x40;
        *y = bf16::from_bits(if x.is_nan() { nan as u16 } else { rounded as u16 });
    }
}
multiversion! {
    /// f32 → bf16, to nearest, ties to even.
    fn narrow(x: &[f32], y: &mut [bf16]) = narrow_generic
}

#[inline(always)]
fn sum_squares_generic<const FMA: bool>(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..8 {
            lanes[i] += f64::from(chunk[i]) * f64::from(chunk[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lanes[i] += f64::from(*x) * f64::from(*x);
    }
    lanes.iter().sum()
}
multiversion! {
    /// Σ x², in f64.
    fn sum_squares(x: &[f32]) -> f64 = sum_squares_generic
}

#[inline(always)]
fn max_generic<const FMA: bool>(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lanes[i] = if *x > lanes[i] { *x } else { lanes[i] };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}
multiversion! {
    /// Largest element, −∞ of nothing; not a NaN.
    fn max(x: &[f32]) -> f32 = max_generic
}

#[inline(always)]
fn exp2_sum_generic<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            chunk[i] = exp2::<FMA>(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    for (i, x) in chunks.into_remainder().iter_mut().enumerate() {
        *x = exp2::<FMA>(*x - max);
        lanes[i] += *x;
    }
    add_lanes(lanes)
}
multiversion! {
    /// x ← 2^(x − max); returns the sum.
    fn exp2_sum(x: &mut [f32], max: f32) -> f32 = exp2_sum_generic
}

#[inline(always)]
fn exp_sum_generic<const FMA: bool>(x: &[f32], max: f32) -> f64 {
    // Short f32 sums, added up in f64: a vocabulary has 50,000 terms and more.
    let mut total = 0.0;
    for part in x.chunks(1024) {
        let mut lanes = [0.0; LANES];
        let chunks = part.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += exp::<FMA>(chunk[i] - max);
            }
        }
        for (i, x) in rest.iter().enumerate() {
            lanes[i] += exp::<FMA>(*x - max);
        }
        total += f64::from(add_lanes(lanes));
    }
    total
}
multiversion! {
    /// Σ e^(x − max).
    fn exp_sum(x: &[f32], max: f32) -> f64 = exp_sum_generic
}

#[inline(always)]
fn softmax_grad_generic<const FMA: bool>(x: &mut [f32], max: f32, factor: f32) {
    for x in x {
        *x = factor * exp::<FMA>(*x - max);
    }
}
multiversion! {
    /// x ← factor·e^(x − max).
    fn softmax_grad(x: &mut [f32], max: f32, factor: f32) = softmax_grad_generic
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the exact value's f32.
    fn ulp(got: f32, exact: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * 2f64.powi(exact.log2().floor() as i32);
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn exponentials_stay_within_two_ulp() {
        let mut worst = [0.0f64; 3];
        for i in 0..400_000 {
            let x = -87.0 + i as f32 * (174.9 / 400_000.0);
            worst[0] = worst[0].max(ulp(exp::<true>(x), f64::from(x).exp()));
            worst[1] = worst[1].max(ulp(exp::<false>(x), f64::from(x).exp()));
            let y = -125.9 + i as f32 * (252.0 / 400_000.0);
            worst[2] = worst[2].max(ulp(exp2::<true>(y), f64::from(y).exp2()));
        }
        assert!(worst.iter().all(|w| *w <= 2.0), "{worst:?}");
        assert_eq!([f32::NEG_INFINITY, -500.0, -127.0, 0.0].map(exp2::<true>), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!([f32::NEG_INFINITY, -90.0, 0.0].map(exp::<true>), [0.0, 0.0, 1.0]);
        assert!(exp::<true>(1000.0).is_finite());
        assert!(exp::<true>(f32::NAN).is_nan() && exp2::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let x: Vec<f32> = (0..1000)
            .map(|i| f32::from_bits(0x3f80_0000 + i * 1237))
            .chain([f32::NAN, f32::INFINITY, -0.0, f32::MAX, 1e-41])
            .collect();
        let mut y = vec![bf16::ZERO; x.len()];
        narrow(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            assert_eq!(y.to_bits(), bf16::from_f32(*x).to_bits(), "{x}");
        }
    }

    #[test]
    fn sums_see_every_element_once() {
        for n in [0, 1, 15, 16, 17, 33, 2050] {
            let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let exact: f32 = x.iter().map(|v| v * v).sum();
            assert_eq!(dot(&x, &x), exact);
            assert_eq!(sum_squares(&x), f64::from(exact));
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = x.iter().map(|v| f64::from(*v - 3.0).exp()).sum();
            assert!((exp_sum(&x, 3.0) - sum).abs() <= 1e-6 * sum, "{n}");
        }
    }
}
