//! What a row plan promises, on the quick start's numbers and on random ones.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn source(name: &str, weight: u32, tokens: &[u32]) -> Source {
    let samples =
        tokens.iter().map(|&tokens| SampleSize { tokens, targets: tokens.saturating_sub(1) }).collect();
    Source { name: name.into(), weight, samples }
}

fn stage(length: usize, steps: usize, tokens_per_step: Option<u64>) -> StageRows {
    StageRows { name: "s".into(), length, steps, tokens_per_step, max_epochs: 8 }
}

#[test]
fn the_quick_start_has_a_full_row_and_a_packed_one_in_each_step() {
    let shorts: Vec<u32> = (0..40).map(|i| 110 + 7 * i).collect();
    for seed in 0..50 {
        let longs = [16_350, 2_100 + 25 * seed as u32, 16_372, 3_100];
        let sources = [source("long", 12, &longs), source("short", 1, &shorts)];
        let plan = RowPlan::new(seed, &stage(16_384, 2, Some(20_480)), &sources).unwrap();
        for step in &plan.steps {
            let [full, packed] = &step.rows[..] else { panic!("{step:?}") };
            assert!(full.tokens >= 16_221 && full.pieces.len() <= 2, "{full:?}");
            assert!((3_900..5_700).contains(&packed.tokens), "{packed:?}");
            assert!(
                packed.pieces.iter().any(|p| p.source == 0) && packed.pieces.iter().any(|p| p.source == 1)
            );
        }
        assert!(plan.sources.iter().all(|s| s.epochs <= 1.0), "{:?}", plan.sources);
    }
}

#[test]
fn what_does_not_fit_is_counted_and_what_repeats_too_often_refused() {
    let plan = RowPlan::new(1, &stage(100, 1, None), &[source("a", 1, &[101, 1, 40, 30])]).unwrap();
    let used = &plan.sources[0];
    assert_eq!((used.usable, used.too_long, used.without_loss, used.drawn), (2, 1, 1, 2));
    let error = RowPlan::new(1, &stage(100, 1, None), &[source("a", 1, &[101])]).unwrap_err();
    assert!(error.to_string().contains("1 of 1 are longer than 100"), "{error}");
    let error = RowPlan::new(1, &stage(100, 9, None), &[source("a", 1, &[90])]).unwrap_err();
    assert!(matches!(error, PlanError::TooManyEpochs { max: 8, .. }), "{error}");
}

#[test]
fn shares_are_tokens_and_epochs_differ_in_order() {
    let sources = [source("a", 3, &[50; 400]), source("b", 1, &[200; 100])];
    let plan = RowPlan::new(5, &stage(1000, 20, Some(1000)), &sources).unwrap();
    assert_eq!((plan.sources[0].tokens, plan.sources[1].tokens), (15_000, 5_000));
    let only = [source("a", 1, &[10; 50])];
    let plan = RowPlan::new(5, &stage(500, 2, None), &only).unwrap();
    let order = |i: usize| plan.steps[i].rows[0].pieces.iter().map(|p| p.sample).collect::<Vec<_>>();
    assert_ne!(order(0), order(1));
    assert_eq!(plan.sources[0].epochs, 2.0);
}

/// Another digest means that equal specs give other rows: raise `FORMAT_VERSION` of `run.json`.
#[test]
fn the_rows_of_a_spec_never_change() {
    let lengths = |n: u32, step: u32| (0..n).map(|i| 20 + (i * step) % 450).collect::<Vec<_>>();
    let sources = [source("a", 3, &lengths(40, 37)), source("b", 1, &lengths(15, 11))];
    let digest = |tokens_per_step| {
        let plan = RowPlan::new(11, &stage(512, 6, tokens_per_step), &sources).unwrap();
        longstrap_storage::Digest::of(serde_json::to_vec(&plan).unwrap()).to_string()
    };
    assert_eq!(digest(None), "sha256:5425279b2365483203bb9c898975b010dca76294892c30e386715b4c2bde0cd2");
    assert_eq!(digest(Some(1200)), "sha256:44356d35e88ec0ca6ee2719956ddfad4b546df8fda6f67fc7d52051d131719aa");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn invariants(
        seed: u64, length in 16usize..400, steps in 1usize..40, budget in proptest::option::of(1u64..2000),
        a in proptest::collection::vec(2u32..500, 1..60), b in proptest::collection::vec(2u32..60, 1..60),
        weight in 1u32..10,
    ) {
        let mut stage = stage(length, steps, budget);
        stage.max_epochs = u32::MAX;
        let sources = [source("a", weight, &a), source("b", 1, &b)];
        let Ok(plan) = RowPlan::new(seed, &stage, &sources) else {
            let none = |s: &[u32]| s.iter().all(|&t| t as usize > length);
            prop_assert!(none(&a) || none(&b));
            return Ok(());
        };
        prop_assert_eq!(&plan, &RowPlan::new(seed, &stage, &sources).unwrap());
        prop_assert_eq!(plan.steps.len(), steps);
        let mut uses: HashMap<Piece, u64> = HashMap::new();
        for step in &plan.steps {
            prop_assert!(!step.rows.is_empty());
            match budget {
                Some(b) => prop_assert!(step.rows.iter().map(|r| r.tokens).sum::<u64>() >= b),
                None => prop_assert_eq!(step.rows.len(), 1),
            }
            for row in &step.rows {
                let size = |p: &Piece| sources[p.source as usize].samples[p.sample as usize];
                prop_assert!(row.tokens <= length as u64 && !row.pieces.is_empty());
                prop_assert_eq!(row.tokens, row.pieces.iter().map(|p| u64::from(size(p).tokens)).sum::<u64>());
                prop_assert_eq!(row.targets, row.pieces.iter().map(|p| u64::from(size(p).targets)).sum::<u64>());
                row.pieces.iter().for_each(|p| *uses.entry(*p).or_default() += 1);
            }
        }
        // A sample comes again only when all others of its source came once more, too.
        for (index, used) in plan.sources.iter().enumerate() {
            let most = uses.iter().filter(|(p, _)| p.source as usize == index).map(|(_, n)| *n).max().unwrap_or(0);
            prop_assert!(most <= used.epochs.ceil() as u64);
        }
    }
}
