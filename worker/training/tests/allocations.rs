//! A counting allocator: during a step nothing large is allocated outside the arena, but the
//! bounded packing of a matrix product.

#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use longstrap_engine::{CpuBackend, CpuComm, CpuOptions};
use longstrap_memory_plan::{Options, Plan, Shape};
use longstrap_training::data::shard::{Placed, needs, shard};
use longstrap_training::optimizer::Adam;
use longstrap_training::step::{Trainer, Update};

/// Remembers the largest allocation.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROW: usize = 1024;

/// The largest allocation in the second of two steps, on `ranks` ranks in threads.
fn largest_in_a_step(shape: Shape, ranks: usize) -> usize {
    let options = Options { ranks, threads: 2, checkpoints: false, ..Options::default() };
    let plan = Plan::new(shape, ROW, options);
    let options = CpuOptions { device_bytes: plan.device_bytes, host_bytes: plan.host_bytes, threads: 2 };
    let backends: Vec<_> = (0..ranks).map(|_| CpuBackend::new(options).unwrap()).collect();
    let comms = match ranks {
        1 => vec![CpuComm::solo(&backends[0])],
        _ => CpuComm::channels(&backends, Duration::from_secs(60)),
    };
    let row = [Placed { source: 0, tokens: ROW, targets: vec![1..ROW as u32], weight: 1.0 }];
    let update =
        Update { step: 1, learning_rate: 1e-3, adam: Adam::default(), total_weight: (ROW - 1) as f64 };
    // All ranks have done the first step before the count begins, and all have begun to count
    // before the second.
    let barrier = Barrier::new(ranks);
    let run = |rank: usize, backend: &CpuBackend, comm: &CpuComm| {
        let trainer = Trainer::new(backend, comm, &plan, 1e-5);
        let read: Vec<Vec<u32>> = needs(&row, rank, ranks)
            .into_iter()
            .map(|n| n.range.map(|i| (i * 31 % shape.vocab) as u32).collect())
            .collect();
        let shard = shard(&row, rank, ranks, &read);
        for _ in 0..2 {
            barrier.wait();
            LARGEST.store(0, Ordering::Relaxed);
            barrier.wait();
            trainer.begin().unwrap();
            trainer.accumulate(&update, 0, &shard, &|_| true).unwrap();
            trainer.finish(&update, &|_| true).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for (rank, (backend, comm)) in backends.iter().zip(&comms).enumerate() {
            let run = &run;
            scope.spawn(move || run(rank, backend, comm));
        }
    });
    LARGEST.load(Ordering::Relaxed)
}

#[test]
fn a_step_allocates_nothing_large_outside_the_arena() {
    let small = Shape {
        layers: 2,
        hidden: 64,
        intermediate: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 8192,
        tied: true,
    };
    // Here one copy of all logits would be 32 MiB, of the scores 4 MiB, of the residual 256 KiB.
    for ranks in [1, 2] {
        let largest = largest_in_a_step(small, ranks);
        assert!(largest <= 1 << 20, "{largest} bytes at once on {ranks} ranks");
    }
    // The widths of SmolLM2-135M: packing of a product grows with them, up to its bound.
    let wide =
        Shape { layers: 1, hidden: 576, intermediate: 1536, heads: 9, kv_heads: 3, head_dim: 64, ..small };
    let largest = largest_in_a_step(wide, 1);
    assert!(largest <= 4 << 20, "{largest} bytes at once");
    // The measure can see.
    LARGEST.store(0, Ordering::Relaxed);
    drop(std::hint::black_box(vec![1u8; 5 << 20]));
    assert!(LARGEST.load(Ordering::Relaxed) >= 5 << 20);
}
