//! On a backend without arithmetic: the trainer needs nothing but the contract, every two streams
//! that touch the same elements are ordered by an event, and numbers come back only at the end of
//! a step.

use longstrap_engine::testing::{Call, RecordingBackend, RecordingComm};
use longstrap_engine::{Op, Space, Stream};
use longstrap_memory_plan::{Options, Plan};

use super::rig::{Fixture, TestRow, step, update};
use crate::step::Trainer;

fn calls(options: Options) -> (Plan, Vec<Call>) {
    let fixture = Fixture::load("llama3");
    let plan = Plan::new(fixture.shape, 101, options);
    let backend = RecordingBackend::new(plan.device_bytes, plan.host_bytes);
    let comm = RecordingComm::new(&backend, 0, options.ranks);
    let trainer = Trainer::new(backend.as_ref(), &comm, &plan, 1e-5);
    // Twice: a step must not race with the one before it.
    for number in 1..=2 {
        let rows = [TestRow::of(&[50, 51], 320), TestRow::of(&[7], 320)];
        step(&trainer, &comm, &update(number, 100.0), &rows);
    }
    (plan, backend.calls())
}

/// One way to the host and one back for each layer and row, and no race on the way.
#[test]
fn layer_inputs_travel_to_the_host_and_back() {
    let (plan, calls) = calls(Options { host_inputs: true, ..Options::default() });
    let copies = |from: Space, to: Space| {
        let travels = |call: &&Call| matches!(call, Call::Op(_, Op::Copy { src, dst }) if (src.space, dst.space) == (from, to));
        calls.iter().filter(travels).count()
    };
    let rows = 2 * 2 * plan.shape.layers;
    assert_eq!((copies(Space::Device, Space::Host), copies(Space::Host, Space::Device)), (rows, rows));
}

#[test]
fn a_step_needs_the_contract_and_reads_at_its_end() {
    for keep_attention in [true, false] {
        for ranks in 1..=4 {
            let (plan, calls) = calls(Options { ranks, keep_attention, sources: 2, ..Options::default() });
            let reads: Vec<usize> = calls
                .iter()
                .enumerate()
                .filter(|(_, c)| matches!(c, Call::Read(_)))
                .map(|(i, _)| i)
                .collect();
            assert_eq!(reads.len(), 6, "loss, norm and flag of two steps");
            assert_eq!((reads[2] - reads[0], reads[5] - reads[3]), (2, 2), "one after the other");
            assert_eq!(reads[5], calls.len() - 1, "nothing follows");
            assert!(!calls.iter().any(|c| matches!(c, Call::Synchronize(_))), "the host never waits");
            let updates = calls.iter().filter(|c| matches!(c, Call::Op(Stream::Compute, Op::AdamW(_))));
            // Matrices and norms of the layers, embedding, final norm, head.
            assert_eq!(updates.count(), 2 * (2 * plan.shape.layers + 3));
            let exchanges = calls.iter().filter(|c| matches!(c, Call::Collective(_, "exchange", ..))).count();
            // Keys: P − 1 hops forward, again backward (and when attention is recomputed); P home.
            let passes = if keep_attention { 2 } else { 3 };
            let hops = if ranks == 1 { 0 } else { passes * (ranks - 1) + ranks };
            assert_eq!(exchanges, 2 * 2 * plan.shape.layers * hops);
        }
    }
}
