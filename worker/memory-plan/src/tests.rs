//! What the plan promises, on the shapes of real models.

use proptest::prelude::*;

use crate::*;

pub(crate) const SMOLLM2_135M: Shape = Shape {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocab: 49152,
    tied: true,
};

const LLAMA3_8B: Shape = Shape {
    layers: 32,
    hidden: 4096,
    intermediate: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    tied: false,
};

const FILES: RunFiles = RunFiles { stages: 1, keep_last: 2, data_tokens: 60_000, export_bytes: 2 };

#[test]
fn parameters_are_those_of_the_published_models() {
    assert_eq!(SMOLLM2_135M.parameters(), 134_515_008);
    assert_eq!(LLAMA3_8B.parameters(), 8_030_261_248);
}

#[test]
fn a_small_model_trains_at_2k_in_three_gigabytes() {
    let options = Options { threads: 2, checkpoints: false, ..Options::default() };
    let plan = Plan::new(SMOLLM2_135M, 2048, options);
    assert!(plan.total_bytes() < 2_900_000_000, "{plan}");
}

#[test]
fn four_ranks_hold_less_than_a_third_of_the_activations_each() {
    for (shape, length) in [(SMOLLM2_135M, 16 << 10), (SMOLLM2_135M, 2 << 10), (LLAMA3_8B, 128 << 10)] {
        let of = |ranks| Plan::new(shape, length, Options { ranks, ..Options::default() }).activation_bytes();
        let share = of(4) as f64 / of(1) as f64;
        assert!(share <= 0.30, "{share} at {length}");
    }
}

#[test]
fn no_buffer_is_of_the_order_of_the_square_of_the_row_or_of_all_logits() {
    for (shape, length) in [(SMOLLM2_135M, 16 << 10), (LLAMA3_8B, 128 << 10), (LLAMA3_8B, 1 << 20)] {
        for (ranks, keep_attention) in (1..=4).flat_map(|ranks| [(ranks, true), (ranks, false)]) {
            let options = Options { ranks, keep_attention, ..Options::default() };
            for buffer in Plan::new(shape, length, options).buffers {
                let limit = length * shape.vocab.min(length) / 4;
                assert!(
                    buffer.space == Space::Process || buffer.elements() < limit,
                    "{options:?} {buffer:?}"
                );
            }
        }
    }
}

#[test]
fn options_buy_what_they_promise() {
    let again = Options { keep_attention: false, ..Options::default() };
    let plan = Plan::new(SMOLLM2_135M, 16 << 10, again);
    let memory = plan.total_bytes() as u64;
    let now = largest_context(SMOLLM2_135M, Options::default(), memory).unwrap();
    assert_eq!(now, 16 << 10, "attention is computed twice before a length is refused");
    let mut before = (plan.total_bytes(), now);
    for other in alternatives(&plan, memory) {
        let after = (other.total_bytes, other.largest_context.unwrap());
        assert!(after.0 < before.0 && after.1 > before.1, "{other:?}");
        before = after;
    }
    assert_eq!(largest_context(SMOLLM2_135M, plan.options, 1 << 30), None);
}

#[test]
fn layer_inputs_in_host_memory_leave_the_device() {
    let of = |host_inputs| Plan::new(LLAMA3_8B, 128 << 10, Options { host_inputs, ..Options::default() });
    let (device, host) = (of(false), of(true));
    let kept = LLAMA3_8B.layers * (128 << 10) * LLAMA3_8B.hidden * 4;
    assert_eq!(device.device_bytes - host.device_bytes, kept);
    assert_eq!(host.host_bytes - device.host_bytes, kept);
}

#[test]
fn attention_is_computed_twice_when_that_makes_it_fit() {
    let within = |memory| Plan::within(SMOLLM2_135M, 16 << 10, Options::default(), memory);
    let (kept, again) = (within(None), within(Some(0)));
    assert!(kept.options.keep_attention && !again.options.keep_attention);
    assert!(again.total_bytes() < kept.total_bytes());
    let enough = kept.total_bytes() as u64;
    assert_eq!((within(Some(enough)), within(Some(enough - 1))), (kept, again));
}

#[test]
fn all_ranks_plan_by_the_same_memory() {
    for (accelerator, machine, nodes, one_machine, memory) in [
        (None, None, 1, false, None),
        (None, Some(8), 1, false, Some(4)),
        (Some(3), Some(8), 1, false, Some(3)),
        (Some(5), Some(8), 1, false, Some(4)),
        // Machines may differ: only what the run says is known to all.
        (None, Some(8), 2, false, None),
        (Some(5), Some(8), 2, false, Some(5)),
        // Two pods of one machine share it.
        (None, Some(8), 2, true, Some(2)),
        (Some(1), Some(8), 2, true, Some(1)),
    ] {
        let placement = Placement { nodes, ranks_per_node: 2, one_machine };
        assert_eq!(placement.planned_by(accelerator, machine), memory, "{placement:?}");
        assert_eq!(placement.share(8), if one_machine { 2 } else { 4 }, "{placement:?}");
    }
}

#[test]
fn a_length_that_no_memory_holds_does_not_fit() {
    // The longest contextLength, and the longest number.
    for (length, ranks) in [(1 << 53, 1), (1 << 53, 3), (usize::MAX, 1), (usize::MAX, 7)] {
        for shape in [SMOLLM2_135M, LLAMA3_8B] {
            let options = Options { ranks, threads: usize::MAX, ..Options::default() };
            for plan in
                [Plan::new(shape, length, options), Plan::within(shape, length, options, Some(1 << 62))]
            {
                assert!(!plan.fits(1 << 62), "{plan}");
                assert!(plan.tokens >= length / ranks && plan.activation_bytes() >= 1 << 62, "{plan}");
                for b in &plan.buffers {
                    let bytes = b.rows as u128 * b.cols as u128 * b.dtype.size() as u128;
                    assert_eq!(b.bytes() as u128, bytes.min(usize::MAX as u128), "{b:?}");
                }
                assert!(alternatives(&plan, 1 << 40).iter().all(|a| a.total_bytes >= 1 << 62));
                assert!(run_disk(&plan, FILES) < 1 << 40, "checkpoints do not grow with the row");
            }
        }
    }
}

#[test]
fn bytes_are_read_in_decimal_units() {
    let words = [999, 1_000, 1_234_567, 2_898_000_000, 1_500_000_000_000].map(human);
    assert_eq!(words, ["999 B", "1.00 kB", "1.23 MB", "2.90 GB", "1.50 TB"]);
}

#[test]
fn files_of_the_quick_start_fit_in_seven_gigabytes() {
    let plan = Plan::new(SMOLLM2_135M, 16 << 10, Options { ranks: 2, ..Options::default() });
    let cost = CheckpointCost::new(&plan);
    assert_eq!(cost.bytes, 12 * 134_515_008);
    assert!((cost.seconds(1e8) - 16.14).abs() < 0.01);
    assert_eq!(run_disk(&plan, FILES), 3 * cost.bytes + 6 * 134_515_008 + 240_000);
}

#[test]
fn the_table_names_every_byte() {
    insta::assert_snapshot!(Plan::new(SMOLLM2_135M, 16 << 10, Options { ranks: 3, ..Options::default() }));
}

proptest! {
    #[test]
    fn buffers_lie_side_by_side_on_their_alignment(
        length in 1usize..5000, ranks in 1usize..5, keep_attention: bool, bf16_inputs: bool, host_inputs: bool,
        checkpoints: bool,
    ) {
        let options =
            Options { ranks, threads: 1, keep_attention, bf16_inputs, host_inputs, checkpoints, sources: 2 };
        let plan = Plan::new(Shape { vocab: 301, hidden: 52, layers: 3, ..SMOLLM2_135M }, length, options);
        prop_assert_eq!(plan.row % (2 * ranks), 0);
        prop_assert!(plan.row >= length && plan.row < length + 2 * ranks);
        for (space, total) in [(Space::Device, plan.device_bytes), (Space::Host, plan.host_bytes)] {
            let mut end = 0;
            for b in plan.buffers.iter().filter(|b| b.space == space) {
                prop_assert_eq!(b.offset, end);
                prop_assert_eq!(b.offset % 64, 0);
                end = (b.offset + b.bytes()).next_multiple_of(64);
            }
            prop_assert_eq!(end, total);
        }
    }

    #[test]
    fn more_tokens_never_need_less(length in 1usize..20_000, more in 1usize..1000, ranks in 1usize..4) {
        let of = |l| Plan::new(SMOLLM2_135M, l, Options { ranks, ..Options::default() }).total_bytes();
        prop_assert!(of(length + more) >= of(length));
    }
}
