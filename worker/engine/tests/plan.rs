//! What the device uses beside its arenas is what the memory plan says.

use longstrap_engine::{CpuComm, CpuOptions};
use longstrap_memory_plan::{Name, Options, Plan, Shape};

const SHAPE: Shape = Shape {
    layers: 2,
    hidden: 64,
    intermediate: 160,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    vocab: 512,
    tied: true,
};

fn planned(plan: &Plan, name: Name) -> usize {
    plan.buffers.iter().filter(|b| b.name == name).map(|b| b.bytes()).sum()
}

#[test]
fn the_plan_counts_the_working_memory_of_the_device() {
    for threads in [1, 2, 16] {
        let plan = Plan::new(SHAPE, 256, Options { threads, ..Options::default() });
        let device = CpuOptions { device_bytes: plan.device_bytes, host_bytes: plan.host_bytes, threads };
        let planned = planned(&plan, Name::KernelScratch);
        assert_eq!(planned, device.working_bytes(), "{threads} threads");
    }
}

#[test]
fn the_plan_counts_the_buffers_of_the_network() {
    // A hop of 128 KiB and of 1 GiB.
    for (length, ranks) in [(1 << 10, 1), (1 << 10, 2), (16 << 20, 2), (1 << 10, 5), (1 << 10, 64)] {
        let plan = Plan::new(SHAPE, length, Options { ranks, ..Options::default() });
        let planned = planned(&plan, Name::CommScratch);
        assert_eq!(planned, CpuComm::working_bytes(ranks), "{ranks} ranks");
    }
}
