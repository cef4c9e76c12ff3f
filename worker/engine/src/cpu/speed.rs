//! The machine's own rate, by which all speeds are normalised.

use std::time::{Duration, Instant};

use super::pool::Exec;
use super::{arena::Mat, gemm};
use crate::{Beta, Result, Transpose};

/// Edge of the measured product: large enough that packing is negligible.
const EDGE: usize = 1536;

/// f32 rate of large matrix products, 10⁹ multiplications and additions per second: the best of
/// repeated products on `threads` threads for about `seconds`, so that neighbours' noise counts
/// least.
///
/// # Errors
/// When the system refuses threads or memory.
pub fn measure_gemm_gflops(threads: usize, seconds: f64) -> Result<f64> {
    let threads = threads.max(1);
    let exec = Exec::new(threads)?;
    let n = EDGE * EDGE;
    let (mut a, mut b) = (vec![0.5f32; n], vec![0.25f32; n]);
    // One product a thread: the rate of the machine, not of a split.
    let mut c = vec![0.0f32; threads * n];
    let (a, b) = (Mat::from_slice(&mut a, EDGE, EDGE), Mat::from_slice(&mut b, EDGE, EDGE));
    let c = Mat::from_slice(&mut c, threads * EDGE, EDGE);
    let (end, mut best) = (Instant::now() + Duration::from_secs_f64(seconds.max(0.0)), 0.0f64);
    loop {
        let start = Instant::now();
        exec.run(threads, usize::MAX, |task, _| {
            let part = c.block(task * EDGE, EDGE, 0, EDGE);
            gemm::block(a, Transpose::No, b, Transpose::No, part, Beta::Zero, 1.0);
        });
        let flops = 2.0 * (EDGE * EDGE * EDGE * threads) as f64;
        best = best.max(flops / start.elapsed().as_secs_f64() / 1e9);
        if Instant::now() >= end {
            return Ok(best);
        }
    }
}
