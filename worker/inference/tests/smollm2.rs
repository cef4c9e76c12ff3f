//! The real model against reference values computed with `transformers` on the same dequantised
//! weights. Set LONGSTRAP_SMOLLM2 to the folder that `hack/fetch-smollm2.sh` prints (`make test`
//! does).
#![allow(clippy::unwrap_used)]

use longstrap_inference::{Call, Generator, GeneratorOptions, Model, ModelOptions, Sampling, Scorer};
use longstrap_model::testing::{self, smollm2 as model};
use longstrap_model::{Message, ModelConfig, Role, Tokenizer, Weights};

/// The repository's own licence, byte for byte Debian's Apache-2.0.
const LICENCE: &str = include_str!("../../../LICENSE");

fn tokens(text: &str) -> Vec<u32> {
    Tokenizer::load(model()).unwrap().encode_ordinary(text).unwrap()
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len() as f64
}

#[test]
#[ignore = "needs the real model: make test sets LONGSTRAP_SMOLLM2"]
fn mean_losses_are_those_of_the_reference() {
    let mut scorer = Scorer::open(model(), 2048, 2, None).unwrap();
    for (name, text, of_256, of_2048) in [
        ("Apache-2.0", LICENCE.to_owned(), Some(2.876_315), 2.624_370),
        ("GPL-3", testing::gpl_3(), Some(3.075_703), 2.981_397),
        ("changelog of tokio", testing::tokio_changelog(), None, 2.224_737),
    ] {
        let losses = scorer.prefill(&tokens(&text)[..2048], &mut |_| {}).unwrap();
        // The first token has no prediction.
        assert_eq!(losses.len(), 2047);
        for (loss, expected) in
            of_256.map(|of| (mean(&losses[..255]), of)).into_iter().chain([(mean(&losses), of_2048)])
        {
            assert!((loss - expected).abs() <= 1e-4, "{name}: {loss}, expected {expected}");
        }
    }
}

/// The reference must be able to tell: with llama.cpp's row order left in Q and K the model runs
/// and is wrong.
#[test]
#[ignore = "needs the real model: make test sets LONGSTRAP_SMOLLM2"]
fn permuted_queries_and_keys_are_noticed() {
    let config = ModelConfig::load(model()).unwrap();
    let weights = Weights::open(model()).unwrap();
    let (dim, columns) = (config.head_dim, config.hidden_size);
    let options = ModelOptions { threads: 2, context: 256, caches: 1, block: 128, rope: None };
    let permuted = Model::load(config, options, |spec, out| {
        weights.copy_f32(&spec.name, out)?;
        if spec.name.contains("q_proj") || spec.name.contains("k_proj") {
            for head in out.chunks_exact_mut(dim * columns) {
                let rows = head.to_vec();
                for (i, row) in head.chunks_exact_mut(columns).enumerate() {
                    let from = i / 2 + i % 2 * dim / 2;
                    row.copy_from_slice(&rows[from * columns..(from + 1) * columns]);
                }
            }
        }
        Ok(())
    })
    .unwrap();
    let loss = mean(&Scorer::new(permuted).prefill(&tokens(LICENCE)[..256], &mut |_| {}).unwrap());
    assert!((loss - 5.6326).abs() <= 1e-3, "{loss}");
}

#[test]
#[ignore = "needs the real model: make test sets LONGSTRAP_SMOLLM2"]
fn greedy_answer_is_that_of_the_reference_among_others_too() {
    let mut generator = Generator::new(model(), GeneratorOptions { threads: 2, context: 512 }).unwrap();
    let call = |text: &str, temperature| Call {
        messages: vec![Message::new(Role::User, text)],
        answer_prefix: String::new(),
        sampling: Sampling { max_tokens: 24, temperature, seed: 3, ..Sampling::default() },
    };
    let moon = call("List three facts about the Moon.", 0.0);
    let expected = [
        33, 30, 378, 8872, 314, 253, 18146, 1248, 281, 653, 3693, 817, 30, 198, 34, 30, 657, 314, 260, 805,
        18146, 1248, 281, 653,
    ];
    let alone = generator.generate_batch(std::slice::from_ref(&moon), &mut |_, _| {}).unwrap();
    assert_eq!(alone[0].ids, expected);
    assert_eq!(alone[0].prompt_tokens, 37);
    let mut calls: Vec<Call> = ["Tell a joke.", "What is Rust?", "Name a colour.", "Who was Ada Lovelace?"]
        .iter()
        .flat_map(|q| [call(q, 0.0), call(q, 0.8)])
        .collect();
    calls.insert(5, moon);
    let crowd = generator.generate_batch(&calls, &mut |_, _| {}).unwrap();
    assert_eq!(crowd[5], alone[0]);
    calls.rotate_left(3);
    let later = generator.generate_batch(&calls, &mut |_, _| {}).unwrap();
    assert_eq!(later[2], alone[0]);
    assert_eq!(later[0], crowd[3]);
}
