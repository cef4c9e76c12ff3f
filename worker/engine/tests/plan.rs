//! What the device uses beside its arenas is what the memory plan says.

use longstrap_engine::CpuOptions;
use longstrap_memory_plan::{Name, Options, Plan, Shape};

#[test]
fn the_plan_counts_the_working_memory_of_the_device() {
    let shape = Shape {
        layers: 2,
        hidden: 64,
        intermediate: 160,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 512,
        tied: true,
    };
    for threads in [1, 2, 16] {
        let plan = Plan::new(shape, 256, Options { threads, ..Options::default() });
        let device = CpuOptions { device_bytes: plan.device_bytes, host_bytes: plan.host_bytes, threads };
        let planned: usize =
            plan.buffers.iter().filter(|b| b.name == Name::KernelScratch).map(|b| b.bytes()).sum();
        assert_eq!(planned, device.working_bytes(), "{threads} threads");
    }
}
