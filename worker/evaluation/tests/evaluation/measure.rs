//! The scores: what a model recalls, which tokens count where, and that bits repeat.

use std::path::Path;

use longstrap_evaluation::{Phase, PositionLoss, Request, measure, plan, plan_texts};

use crate::toy::{Copier, documents, encode, layout, request, scores};

#[test]
fn a_model_recalls_what_lies_within_its_reach_and_no_more() {
    let plan = layout(2048);
    for reach in [300, 1000, 4000] {
        let got = scores(&mut Copier::new(reach), &plan);
        for r in &got.recall {
            assert_eq!(r.first, 2.0);
            let seen = r.distance < reach;
            assert_eq!(r.copy, if seen { 0.25 } else { 2.0 }, "reach {reach}, {r:?}");
        }
        for n in &got.needles {
            assert_eq!(n.hit, n.distance <= reach, "reach {reach}, {n:?}");
            assert_eq!(n.hit, n.margin > 0.0);
        }
        assert!(got.recall.windows(2).all(|w| w[0].distance > w[1].distance));
    }
}

#[test]
fn inserted_text_is_left_out_of_loss_by_position() {
    let plan = layout(2048);
    let mut copier = Copier::new(4000);
    copier.surcharge = vec![0.0; plan.prefill.len()];
    for item in &plan.inserted {
        copier.surcharge[item.span.clone()].fill(1000.0);
    }
    let got = scores(&mut copier, &plan);
    let inserted: usize = plan.inserted.iter().map(|i| i.span.len()).sum();
    let counted: usize = got.loss_by_position.iter().map(|b| b.tokens).sum();
    assert_eq!(counted, 2048 - inserted - 1, "all positions but the first and the inserted ones");
    assert!(got.loss_by_position.iter().all(|b| b.loss.unwrap() <= 2.0), "{:?}", got.loss_by_position);
    assert!(got.recall.iter().all(|r| r.first == 1002.0 && r.copy == 0.25), "{:?}", got.recall);
    assert_eq!(got.loss_by_position.last().unwrap().tokens, 128, "the end of the window is branch (a)");
}

#[test]
fn progress_reaches_the_end_and_never_goes_back() {
    let plan = layout(1024);
    let mut seen = Vec::new();
    measure(&mut Copier::new(100), &plan, &mut |phase, done, total| seen.push((phase, done, total))).unwrap();
    assert!(seen.windows(2).all(|w| w[0].1 <= w[1].1 && w[0].2 == w[1].2));
    assert!(seen.iter().any(|s| s.0 == Phase::Prefill));
    assert!(matches!(seen.last(), Some((Phase::Needles, done, total)) if done == total));
}

/// Every token counts on one side of the old window, wherever that lies.
#[test]
fn parts_of_the_window_are_cut_at_the_old_window() {
    for old_window in [1, 700, 1000, 1023, 1024, 1025, 2047, 2048, 4096] {
        let plan = plan(&documents(2048), Request { old_window, ..request(2048) }, &encode).unwrap();
        let mut copier = Copier::new(0);
        copier.surcharge = (0..2048).map(|p| if p < old_window { 0.0 } else { 1.0 }).collect();
        let parts = scores(&mut copier, &plan).loss_by_position;
        assert!(parts.windows(2).all(|w| w[0].to == w[1].from && w[0].from < w[0].to), "{parts:?}");
        assert_eq!((parts[0].from, parts.last().unwrap().to), (0, 2048));
        for part in parts {
            let want = (part.tokens > 0).then_some(if part.to <= old_window { 2.0 } else { 3.0 });
            assert_eq!(part.loss, want, "{old_window} {part:?}");
        }
    }
}

/// The smoke model was trained with a window of 256 on text of this kind; its folder says so.
#[test]
fn a_real_model_breaks_down_beyond_its_window_and_repeats_itself_to_the_bit() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke");
    let folder = examples.join("model");
    let corpus = std::fs::read_to_string(examples.join("corpus/corpus.jsonl")).unwrap();
    let document =
        |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    let texts: Vec<String> = corpus.lines().map(document).collect();
    let tokenizer = longstrap_model::Tokenizer::load(&folder).unwrap();
    let layout = plan_texts(&texts, &tokenizer, request(1024)).unwrap();
    let measured = |threads| {
        let mut scorer = longstrap_inference::Scorer::open(&folder, 1024, threads, None).unwrap();
        measure(&mut scorer, &layout, &mut |_, _, _| {}).unwrap()
    };
    let got = measured(1);
    assert_eq!(got, measured(2), "bits depend on no thread count");
    let mean = |parts: &[PositionLoss]| {
        let sum: f64 = parts.iter().map(|p| p.loss.unwrap() * p.tokens as f64).sum();
        sum / parts.iter().map(|p| p.tokens as f64).sum::<f64>()
    };
    let (within, beyond) = got.loss_by_position.split_at(4);
    assert!(mean(within) < 1.6 && mean(beyond) > 2.2, "{:?}", got.loss_by_position);
}
