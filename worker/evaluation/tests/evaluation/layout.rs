//! The row: every token is running text or one insertion, and a window that is too small says why.

use longstrap_evaluation::{EvaluationError, Inserted, Kind, Layout, Request, measure, plan};
use longstrap_random::Draw;

use crate::toy::{Breakage, Copier, documents, encode, layout, request};

#[test]
fn every_token_of_the_row_is_text_or_one_insertion() {
    for window in [512, 1024, 3000, 16384] {
        let plan = layout(window);
        let sizes = plan.sizes;
        assert_eq!(plan.prefill.len(), sizes.prefill);
        assert_eq!(sizes.prefill + sizes.branch(), window);
        assert_eq!(plan.continuation.len(), sizes.branch());
        assert_eq!(plan.copies.len(), sizes.branch());
        assert!(plan.needles.iter().all(|n| n.question.len() < sizes.branch()));
        let mut text = Vec::new();
        let mut end = 0;
        for item in &plan.inserted {
            assert!(item.span.start >= end && item.body.start == item.span.start + 2, "{item:?}");
            text.extend_from_slice(&plan.prefill[end..item.span.start]);
            end = item.span.end;
        }
        text.extend_from_slice(&plan.prefill[end..]);
        text.extend_from_slice(&plan.continuation);
        let running = documents(window).join(&encode("\n\n").unwrap()[..]);
        assert_eq!(
            text,
            running[..text.len()],
            "the running text goes on over insertions and into branch (a)"
        );
        for (i, shown) in plan.shown.iter().enumerate() {
            let copy = &plan.copies[i * sizes.passage..][..sizes.passage];
            assert_eq!(&plan.prefill[shown.clone()], copy);
            assert!(!text.windows(copy.len()).any(|w| w == copy), "a passage is not also running text");
        }
        for needle in &plan.needles {
            let hidden = &plan.prefill[needle.at..];
            let question = &needle.question[2..];
            assert!(hidden.starts_with(question));
            assert_eq!(hidden[question.len()], needle.candidates[needle.answer]);
        }
    }
}

#[test]
fn sixteen_k_is_laid_out_as_in_the_reference_measurement() {
    let plan = layout(16384);
    assert_eq!(
        (plan.prefill.len(), plan.sizes.passage, plan.sizes.skip, plan.needles.len()),
        (14848, 192, 32, 8)
    );
    let distances: Vec<i64> =
        plan.shown.iter().enumerate().map(|(i, s)| (14848 + i * 192 - s.start) as i64).collect();
    for (got, want) in distances.iter().zip([14_500, 13_000, 11_400, 9_900, 8_300, 6_800, 5_200, 3_600]) {
        assert!((got - want).abs() < 150, "{distances:?}");
    }
    let depths: Vec<usize> = plan.needles.iter().map(|n| n.at * 16 / 14848).collect();
    assert_eq!(depths, [1, 3, 5, 7, 9, 11, 13, 15]);
}

#[test]
fn the_plan_is_a_function_of_text_window_and_seed() {
    let text = documents(1024);
    assert_eq!(plan(&text, request(1024), &encode).unwrap(), layout(1024));
    let other = plan(&text, Request { seed: 18, ..request(1024) }, &encode).unwrap();
    assert_ne!(other.shown.len(), 0);
    assert_ne!(other, layout(1024));
    // What is hidden is what synthesis and training look for.
    let looked_for = longstrap_corpus::Phrases::default();
    let text_of = |tokens: &[u32]| tokens.iter().map(|&t| char::from_u32(t).unwrap()).collect::<String>();
    assert!(layout(1024).inserted.iter().all(|Inserted { kind, body, .. }| match kind {
        Kind::Needle(_) => looked_for.hits(&text_of(&layout(1024).prefill[body.clone()])) == 1,
        Kind::Passage(_) => true,
    }));
}

/// The orders of seed 17: as the stream of every other seeded choice, a constant.
#[test]
fn answers_and_passages_are_drawn_from_the_seeds_own_stream() {
    let plan = layout(16384);
    let mut draw = Draw::new(&17u64.to_le_bytes(), &[b"evaluation"]);
    let mut order = |n: usize| {
        let mut order: Vec<usize> = (0..n).collect();
        draw.shuffle(&mut order);
        order
    };
    let answers: Vec<usize> = plan.needles.iter().map(|needle| needle.answer).collect();
    assert_eq!(answers, order(8));
    let passage = plan.sizes.passage;
    let running = documents(16384).join(&encode("\n\n").unwrap()[..]);
    let left = running.windows(passage).position(|w| plan.copies.chunks(passage).any(|c| c == w)).unwrap();
    let drawn: Vec<usize> = plan
        .copies
        .chunks(passage)
        .map(|copy| running[left..].chunks(passage).position(|text| text == copy).unwrap())
        .collect();
    assert_eq!(drawn, order(drawn.len()));
}

#[test]
fn what_cannot_be_evaluated_says_why() {
    let text = documents(4096);
    let same = |s: &str| Ok(vec![7; s.len()]);
    let error = |r: Result<Layout, EvaluationError>| r.unwrap_err().to_string();
    let few = error(plan(&documents(600), request(1024), &encode));
    assert!(few.contains("has 600 tokens"), "{few}");
    assert!(few.contains("raise heldOut.tokens"), "{few}");
    assert!(error(plan(&text, request(255), &encode)).contains("too small"));
    let wordy = |s: &str| Ok(s.chars().flat_map(|c| [u32::from(c); 3]).collect());
    assert!(error(plan(&text, request(512), &wordy)).contains("a window of 512 tokens is too small"));
    assert!(error(plan(&text, request(1024), &same)).contains("apart"));
    for (breakage, words) in [
        (
            Breakage::NotANumber,
            "reading the held-out row the model gave a loss that is not finite at token 5",
        ),
        (Breakage::OneShort, "gave 926 values for 927 tokens"),
    ] {
        let mut copier = Copier::new(10);
        copier.breakage = breakage;
        let error = measure(&mut copier, &layout(1024), &mut |_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
