//! Speed and memory of a training step of SmolLM2-135M's shape with random weights: 2K tokens, one
//! rank, two threads. Prints lines `figure NAME VALUE`; run it from a release build.

#![allow(clippy::single_range_in_vec_init, reason = "targets are a list of ranges")]

use std::time::Instant;

use anyhow::{Context, Result};
use longstrap_engine::{CpuBackend, CpuComm, CpuOptions, measure_gemm_gflops};
use longstrap_memory_plan::{Options, Plan, Shape};
use longstrap_training::data::shard::{Placed, needs, shard};
use longstrap_training::layout::tensors;
use longstrap_training::optimizer::Adam;
use longstrap_training::step::{Trainer, Update};
use longstrap_training::weights;

const SHAPE: Shape = Shape {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocab: 49152,
    tied: true,
};
const TOKENS: usize = 2048;
const THREADS: usize = 2;
const STEPS: u64 = 4;

fn main() -> Result<()> {
    let start = Instant::now();
    let options = Options { threads: THREADS, checkpoints: false, ..Options::default() };
    let plan = Plan::new(SHAPE, TOKENS, options);
    eprintln!("{plan}");
    let before = measure_gemm_gflops(THREADS, 2.0)?;
    let backend = CpuBackend::new(CpuOptions {
        device_bytes: plan.device_bytes,
        host_bytes: plan.host_bytes,
        threads: THREADS,
    })?;
    let comm = CpuComm::solo(&backend);
    let trainer = Trainer::new(backend.as_ref(), &comm, &plan, 1e-5);
    fill_at_random(&trainer)?;

    let row = [Placed { source: 0, tokens: TOKENS, targets: vec![1..TOKENS as u32], weight: 1.0 }];
    let ids = |i: usize| (i * 7919 % SHAPE.vocab) as u32;
    let read: Vec<Vec<u32>> = needs(&row, 0, 1).into_iter().map(|n| n.range.map(ids).collect()).collect();
    let shard = shard(&row, 0, 1, &read);
    let mut fastest = f64::INFINITY;
    for step in 1..=STEPS {
        let begin = Instant::now();
        let total_weight = (TOKENS - 1) as f64;
        let update = Update { step, learning_rate: 1e-4, adam: Adam::default(), total_weight };
        trainer.begin()?;
        trainer.accumulate(&update, 0, &shard, &|_| true)?;
        let outcome = trainer.finish(&update, &|_| true)?;
        let seconds = begin.elapsed().as_secs_f64();
        eprintln!("step {step}: {seconds:.2} s, loss {:.4}, norm {:.3}", outcome.loss, outcome.grad_norm);
        // The first step also touches every page of the arena for the first time.
        if step > 1 {
            fastest = fastest.min(seconds);
        }
    }
    let peak = peak_bytes()?;
    let machine = before.min(measure_gemm_gflops(THREADS, 2.0)?);
    let pairs = (TOKENS * (TOKENS + 1) / 2) as u64;
    let flops = SHAPE.step_flops(TOKENS as u64, pairs, plan.options.keep_attention);
    println!("figure machine_gemm_gflops {machine:.1}");
    println!("figure train_gemm_share_2k {:.3}", flops / fastest / 1e9 / machine);
    println!("figure train_tokens_per_s_2k {:.1}", TOKENS as f64 / fastest);
    println!("figure train_peak_gb_2k {:.3}", peak as f64 / 1e9);
    eprintln!("{:.0} s in all", start.elapsed().as_secs_f64());
    Ok(())
}

/// Weights of about the size that a trained model has.
fn fill_at_random(trainer: &Trainer<'_>) -> Result<()> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    for tensor in tensors(&SHAPE) {
        let scale = if tensor.rows == 1 { 0.0 } else { 2.0 / (tensor.cols as f32).sqrt() };
        let offset = if tensor.rows == 1 { 1.0 } else { 0.0 };
        let data: Vec<f32> = (0..tensor.elements()).map(|_| offset + scale * next()).collect();
        weights::write(trainer, &tensor, &data)?;
    }
    let frequencies: Vec<f32> =
        (0..SHAPE.head_dim / 2).map(|i| 1e5f32.powf(-2.0 * i as f32 / SHAPE.head_dim as f32)).collect();
    trainer.model.set_inverse_frequencies(&frequencies)?;
    trainer.reset_moments()?;
    trainer.backend().synchronize(longstrap_engine::Stream::Compute)?;
    Ok(())
}

/// Highest resident memory of this process so far.
fn peak_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading the peak memory")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("VmHWM is missing")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmHWM is no number")?;
    Ok(kib * 1024)
}
