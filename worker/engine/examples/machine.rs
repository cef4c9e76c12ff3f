//! Rates of this machine and of the kernels at the shapes of SmolLM2-135M:
//! `cargo run --release -p longstrap-engine --example machine -- [threads] [filter]`.

use std::sync::Arc;
use std::time::Instant;

use longstrap_engine::{
    Attention, AttentionGrad, Backend, Beta, CpuBackend, CpuOptions, CrossEntropy, Dtype, Gemm, Heads, Mask,
    Op, Result, Space, Stream, Transpose, View, instruction_set, measure_gemm_gflops,
};

const C: Stream = Stream::Compute;

/// Seconds of the main thread on a CPU, so that neighbours count little; wall time elsewhere than
/// on Linux, and with more threads than one.
fn cpu_seconds() -> f64 {
    use std::sync::LazyLock;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static ONE: LazyLock<bool> = LazyLock::new(|| std::env::args().nth(1).is_none_or(|a| a == "1"));
    let on_cpu = std::fs::read_to_string("/proc/self/schedstat").ok();
    let nanoseconds = on_cpu.and_then(|s| s.split(' ').next()?.parse::<f64>().ok()).filter(|_| *ONE);
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64(), |n| n / 1e9)
}

struct Bench {
    backend: Arc<CpuBackend>,
    next: usize,
    rate: f64,
    filter: String,
}

impl Bench {
    fn view(&mut self, rows: usize, cols: usize, dtype: Dtype) -> View {
        let view = View::dense(Space::Device, self.next, rows, cols, dtype);
        self.next = view.end().next_multiple_of(64);
        view
    }

    fn f32(&mut self, rows: usize, cols: usize) -> Result<View> {
        let view = self.view(rows, cols, Dtype::F32);
        self.backend.fill(C, view, 0.1)?;
        Ok(view)
    }

    fn ids(&mut self, ids: impl Iterator<Item = u32>) -> Result<View> {
        let bytes: Vec<u8> = ids.flat_map(u32::to_le_bytes).collect();
        let view = self.view(bytes.len() / 4, 1, Dtype::U32);
        self.backend.write(view, &bytes)?;
        Ok(view)
    }

    /// Best of some runs, as a rate and a share of the machine's.
    fn time(&mut self, name: &str, flops: f64, mut run: impl FnMut(&CpuBackend) -> Result<()>) -> Result<()> {
        let start = self.next;
        if name.contains(&self.filter) {
            // The clock has ticks of some milliseconds.
            let once = (0..5).map(|_| {
                let wall = Instant::now();
                run(&self.backend).map(|()| wall.elapsed().as_secs_f64())
            });
            let once = once.collect::<Result<Vec<_>>>()?.into_iter().fold(f64::INFINITY, f64::min);
            let times = (0.04 / once).ceil().max(1.0);
            let (mut best, begin) = (f64::INFINITY, Instant::now());
            while begin.elapsed().as_secs_f64() < 0.7 {
                let start = cpu_seconds();
                for _ in 0..times as usize {
                    run(&self.backend)?;
                }
                best = best.min((cpu_seconds() - start) / times);
            }
            let rate = flops / best / 1e9;
            if name.starts_with("large") {
                self.rate = rate;
            }
            println!("{name:32} {:9.3} ms {rate:7.1} GFLOP/s {:5.2}", best * 1e3, rate / self.rate);
        }
        self.next = start;
        Ok(())
    }
}

fn product(
    b: &mut Bench,
    name: &str,
    (m, n, k): (usize, usize, usize),
    ta: Transpose,
    tb: Transpose,
) -> Result<()> {
    let start = b.next;
    let a = if ta == Transpose::No { b.f32(m, k)? } else { b.f32(k, m)? };
    let w = if tb == Transpose::No { b.f32(k, n)? } else { b.f32(n, k)? };
    let op = Gemm { a, ta, b: w, tb, c: b.f32(m, n)?, beta: Beta::One };
    b.time(&format!("{name} {m}x{n}x{k}"), Op::Gemm(op).flops() as f64, |x| x.gemm(C, op))?;
    b.next = start;
    Ok(())
}

fn attention(b: &mut Bench, queries: usize, keys: usize) -> Result<()> {
    let start = b.next;
    let heads = Heads { query: 9, kv: 3, dim: 64 };
    let first = (keys - queries) as u32;
    let (q, k, v) = (b.f32(queries, 576)?, b.f32(keys, 192)?, b.f32(keys, 192)?);
    let mask = Mask {
        q_pos: b.ids((0..queries as u32).map(|i| first + i))?,
        first_key: b.ids((0..queries).map(|_| 0))?,
        k_pos: b.ids(0..keys as u32)?,
    };
    let (o, lse, delta) = (b.f32(queries, 576)?, b.f32(queries, 9)?, b.f32(queries, 9)?);
    let op = Attention { q, k, v, mask, heads, scale: 0.125, o, lse };
    // Pairs that are seen; what is computed for nothing counts as time.
    let pairs = (0..queries).map(|i| keys - queries + i + 1).sum::<usize>() as f64 * 576.0;
    b.time(&format!("attn {queries}x{keys}"), 4.0 * pairs, |x| {
        x.fill(C, lse, f32::NEG_INFINITY)?;
        x.attn(C, op)
    })?;
    if queries > 16 {
        let (d_o, dq) = (b.f32(queries, 576)?, b.f32(queries, 576)?);
        let (dk, dv) = (b.f32(keys, 192)?, b.f32(keys, 192)?);
        let grad = AttentionGrad { q, k, v, mask, heads, scale: 0.125, lse, delta, d_o, dq, dk, dv };
        b.time(&format!("attn_grad {queries}x{keys}"), 10.0 * pairs, |x| x.attn_grad(C, grad))?;
    }
    b.next = start;
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    println!(
        "{} with {threads} threads: {:.1} GFLOP/s",
        instruction_set(),
        measure_gemm_gflops(threads, 3.0)?
    );
    let backend = CpuBackend::new(CpuOptions { device_bytes: 2 << 30, host_bytes: 0, threads })?;
    let mut b = Bench { backend, next: 0, rate: 1.0, filter: String::new() };
    let (no, yes) = (Transpose::No, Transpose::Yes);
    product(&mut b, "large", (2048, 2048, 2048), no, no)?;
    b.filter = args.next().unwrap_or_default();
    for (queries, keys) in [(2048, 2048), (8192, 16_384), (1, 2048), (8, 2048), (128, 2048)] {
        attention(&mut b, queries, keys)?;
    }
    for (name, n, k) in [("qkv", 960, 576), ("o", 576, 576), ("gate,up", 3072, 576), ("down", 576, 1536)] {
        product(&mut b, name, (2048, n, k), no, yes)?;
        product(&mut b, &format!("{name} dx"), (2048, k, n), no, no)?;
        product(&mut b, &format!("{name} dw"), (n, k, 2048), yes, no)?;
        product(&mut b, &format!("{name} prefill"), (128, n, k), no, yes)?;
        product(&mut b, &format!("{name} decode"), (8, n, k), no, yes)?;
    }
    product(&mut b, "head", (512, 49_152, 576), no, yes)?;
    product(&mut b, "head dx", (512, 576, 49_152), no, no)?;
    product(&mut b, "head dw", (49_152, 576, 512), yes, no)?;
    product(&mut b, "head decode", (8, 49_152, 576), no, yes)?;
    let (x, w, y) = (b.f32(2048, 576)?, b.f32(1, 576)?, b.f32(2048, 576)?);
    let (rstd, dx, dw) = (b.f32(2048, 1)?, b.f32(2048, 576)?, b.f32(1, 576)?);
    let elements = 2048.0 * 576.0;
    b.time("rms_norm", elements, |d| d.rms_norm(C, x, w, 1e-5, y, rstd))?;
    b.time("rms_norm_grad", elements, |d| d.rms_norm_grad(C, x, w, rstd, y, dx, Beta::One, dw))?;
    b.time("add", elements, |d| d.add(C, x, y))?;
    let (gate, up, out) = (b.f32(2048, 1536)?, b.f32(2048, 1536)?, b.f32(2048, 1536)?);
    b.time("swiglu", 2048.0 * 1536.0, |d| d.swiglu(C, gate, up, out))?;
    b.time("swiglu_grad", 2048.0 * 1536.0, |d| d.swiglu_grad(C, gate, up, out))?;
    let (logits, weights, nll) = (b.f32(512, 49_152)?, b.f32(512, 1)?, b.f32(512, 1)?);
    let targets = b.ids(0..512)?;
    let loss = CrossEntropy { logits, targets, weights, scale: 1.0, nll, grad: true };
    b.time("cross_entropy", 512.0 * 49_152.0, |d| d.cross_entropy(C, loss))
}
