//! A counting allocator: during a step nothing large is allocated outside the arena, but the
//! bounded packing of a matrix product.

#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use longstrap_engine::{CpuBackend, CpuComm, CpuOptions, TcpOptions};
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

/// How ranks, here threads, reach each other.
#[derive(Clone, Copy, Debug)]
enum Over {
    Channels,
    Tcp,
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A gang over connections of this machine, as of processes.
fn over_tcp(backends: &[Arc<CpuBackend>]) -> Vec<CpuComm> {
    let listeners: Vec<_> = backends.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    std::thread::scope(|scope| {
        let join = |(rank, (backend, listener))| {
            let peers = peers.clone();
            let (token, generation) = (b"token".to_vec(), 1);
            let (join_timeout, timeout) = (PATIENCE, PATIENCE);
            let options = TcpOptions { listener, peers, rank, generation, token, join_timeout, timeout };
            scope.spawn(move || CpuComm::tcp(backend, &options).unwrap())
        };
        let joining: Vec<_> = backends.iter().zip(listeners).enumerate().map(join).collect();
        joining.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The largest allocation in the second of two steps, on `ranks` ranks in threads.
fn largest_in_a_step(shape: Shape, ranks: usize, over: Over) -> usize {
    let options = Options { ranks, threads: 2, checkpoints: false, ..Options::default() };
    let plan = Plan::new(shape, ROW, options);
    let options = CpuOptions { device_bytes: plan.device_bytes, host_bytes: plan.host_bytes, threads: 2 };
    let backends: Vec<_> = (0..ranks).map(|_| CpuBackend::new(options).unwrap()).collect();
    let comms = match (ranks, over) {
        (1, _) => vec![CpuComm::solo(&backends[0])],
        (_, Over::Channels) => CpuComm::channels(&backends, PATIENCE),
        (_, Over::Tcp) => over_tcp(&backends),
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
    for (ranks, over) in [(1, Over::Channels), (2, Over::Channels), (2, Over::Tcp)] {
        let largest = largest_in_a_step(small, ranks, over);
        assert!(largest <= 1 << 20, "{largest} bytes at once on {ranks} ranks over {over:?}");
    }
    // Here what a hop hands on would be 4 MiB, K or V alone 2 MiB.
    let wide_kv = Shape { layers: 1, hidden: 32, heads: 8, kv_heads: 8, head_dim: 128, ..small };
    for over in [Over::Channels, Over::Tcp] {
        let largest = largest_in_a_step(wide_kv, 2, over);
        assert!(largest <= 1 << 20, "{largest} bytes at once over {over:?}");
    }
    // The widths of SmolLM2-135M: packing of a product grows with them, up to its bound.
    let wide =
        Shape { layers: 1, hidden: 576, intermediate: 1536, heads: 9, kv_heads: 3, head_dim: 64, ..small };
    let largest = largest_in_a_step(wide, 1, Over::Channels);
    assert!(largest <= 4 << 20, "{largest} bytes at once");
    // The measure can see.
    LARGEST.store(0, Ordering::Relaxed);
    drop(std::hint::black_box(vec![1u8; 5 << 20]));
    assert!(LARGEST.load(Ordering::Relaxed) >= 5 << 20);
}
