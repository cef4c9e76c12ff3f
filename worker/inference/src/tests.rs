//! The forward pass against `transformers` (hack/fixtures), and the promise that what stands beside
//! a call changes nothing. Each of these was planted and caught: keys not rotated; a query that sees
//! the next key; one cache for all slots; branches that are not cut back; a random stream that
//! belongs to the slot instead of the call.

use std::path::{Path, PathBuf};

use longstrap_model::{Message, ModelConfig, Role};
use serde_json::Value;

use crate::memory::SLOTS;
use crate::{
    Call, Finish, Generator, GeneratorOptions, InferenceError, Model, ModelOptions, Sampling, Scorer,
};

const OPTIONS: ModelOptions =
    ModelOptions { threads: 2, context: 256, caches: SLOTS, block: 128, rope: None };

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/fixtures/data").join(model)
}

fn smoke() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke/model")
}

/// Tensors of a fixture as bytes of four.
struct Row(Vec<u8>);

impl Row {
    fn load(model: &str, file: &str) -> Self {
        Self(std::fs::read(fixture(model).join(file)).unwrap())
    }

    fn get<T: bytemuck::AnyBitPattern>(&self, name: &str) -> Vec<T> {
        let all = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        all.tensor(name).unwrap().data().chunks(4).map(bytemuck::pod_read_unaligned).collect()
    }
}

#[test]
fn logits_and_losses_are_those_of_transformers() {
    for name in ["llama3", "smollm2"] {
        let row = Row::load(name, "single.safetensors");
        let tokens: Vec<u32> = row.get("row.tokens");
        let mut model = Model::open(&fixture(name), OPTIONS).unwrap();
        let config = model.config().clone();
        for (field, factor) in [("logits", 1.0), ("logits.rope_base_x4", 4.0)] {
            model.set_rope(config.extended(256, config.rope.theta * factor).rope).unwrap();
            let expected: Vec<f32> = row.get(field);
            // In two parts, the second from the middle of a block, in another cache than the first.
            model.read_block(3, 0, &tokens[..60]).unwrap();
            model.read_block(3, 60, &tokens[60..]).unwrap();
            let mut logits = Vec::new();
            for i in 60..tokens.len() {
                model.row_logits(i - 60, &mut logits).unwrap();
                let expected = &expected[i * config.vocab_size..(i + 1) * config.vocab_size];
                let error = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error <= 1e-4, "{name} {field} position {i}: {error}");
            }
        }
        let mut scorer = Scorer::new(model);
        scorer.set_rope(config.rope).unwrap();
        let losses = scorer.prefill(&tokens, &mut |_| {}).unwrap();
        let expected: Vec<f32> = row.get("nll");
        assert_eq!(losses.len(), tokens.len() - 1);
        for (i, (a, b)) in losses.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 1e-4, "{name} position {i}: {a} {b}");
        }
    }
}

#[test]
fn decoding_goes_the_way_of_transformers_in_every_slot() {
    for name in ["llama3", "smollm2"] {
        let reference: Value =
            serde_json::from_slice(&std::fs::read(fixture(name).join("reference.json")).unwrap()).unwrap();
        let ids =
            |field: &str| -> Vec<u32> { serde_json::from_value(reference["greedy"][field].clone()).unwrap() };
        let (prompt, expected) = (ids("prompt"), ids("ids"));
        let model = Model::open(&fixture(name), OPTIONS).unwrap();
        let vocab = model.config().vocab_size;
        let best = |logits: &[f32]| {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.iter().position(|l| *l == max).unwrap() as u32
        };
        let mut logits = Vec::new();
        // Slots 1, 4 and 6 run the same prompt, the others are empty.
        let taken = [1, 4, 6];
        let mut tokens = prompt.clone();
        for slot in taken {
            model.read_block(slot, 0, &prompt).unwrap();
        }
        model.row_logits(prompt.len() - 1, &mut logits).unwrap();
        tokens.push(best(&logits));
        while tokens.len() < prompt.len() + expected.len() {
            let next = (tokens.len() - 1, *tokens.last().unwrap());
            let slots = std::array::from_fn(|i| taken.contains(&i).then_some(next));
            model.decode(&slots, &mut logits).unwrap();
            let of = |slot: usize| &logits[slot * vocab..(slot + 1) * vocab];
            assert!(of(1) == of(4) && of(1) == of(6), "{name}: slots differ");
            tokens.push(best(of(4)));
        }
        assert_eq!(tokens[prompt.len()..], expected, "{name}");
    }
}

#[test]
fn branches_start_from_the_row_and_leave_it_as_it_was() {
    let tokens: Vec<u32> = Row::load("llama3", "single.safetensors").get("row.tokens");
    let (row, rest) = tokens.split_at(70);
    let mut scorer = Scorer::open(&fixture("llama3"), 101, 2, None).unwrap();
    assert!(matches!(scorer.branch(rest, &mut |_| {}), Err(InferenceError::Empty)));
    let whole = scorer.prefill(&tokens, &mut |_| {}).unwrap();
    let mut read = Vec::new();
    let first = scorer.prefill(row, &mut |n| read.push(n)).unwrap();
    assert_eq!(read, [69]);
    let branch = scorer.branch(rest, &mut |_| {}).unwrap();
    assert_eq!((first.len(), branch.len()), (69, 31));
    for (i, (a, b)) in first.iter().chain(&branch).zip(&whole).enumerate() {
        assert!((a - b).abs() <= 1e-5, "position {i}: {a} {b}");
    }
    // Another branch in between, and the first again: the same bits.
    let other: Vec<u32> = rest.iter().rev().copied().collect();
    assert_ne!(scorer.branch(&other, &mut |_| {}).unwrap(), branch);
    assert_eq!(scorer.branch(rest, &mut |_| {}).unwrap(), branch);
    let next = scorer.next(&rest[..5], &[rest[5], 0]).unwrap();
    assert!((next[0] + branch[5]).abs() <= 1e-5, "{next:?} {branch:?}");
    assert_eq!(scorer.branch(rest, &mut |_| {}).unwrap(), branch);

    let long = vec![1; 102];
    assert!(matches!(
        scorer.prefill(&long, &mut |_| {}),
        Err(InferenceError::TooLong { tokens: 102, limit: 101 })
    ));
    assert!(matches!(
        scorer.prefill(&[1, 5000], &mut |_| {}),
        Err(InferenceError::UnknownToken { id: 5000, .. })
    ));
    assert!(matches!(scorer.branch(rest, &mut |_| {}), Err(InferenceError::Empty)), "the row is gone");
}

/// Eleven calls of different lengths, greedy and drawn.
fn calls() -> Vec<Call> {
    let words = ["river", "stone", "of the old town and", "why", "lamp"];
    (0..11)
        .map(|i| {
            let text: Vec<&str> = (0..3 + 5 * (i % 4)).map(|k| words[(i + k) % words.len()]).collect();
            Call {
                messages: vec![Message::new(Role::User, text.join(" "))],
                answer_prefix: if i % 3 == 0 { "The".into() } else { String::new() },
                sampling: Sampling {
                    max_tokens: 4 + 3 * (i % 5),
                    temperature: if i % 2 == 0 { 0.0 } else { 0.9 },
                    top_p: 0.95,
                    seed: i as u64,
                    no_repeat_ngram: 4,
                    ..Sampling::default()
                },
            }
        })
        .collect()
}

#[test]
fn answers_do_not_depend_on_company_order_or_threads() {
    let open = |threads| Generator::new(&smoke(), GeneratorOptions { threads, context: 256 }).unwrap();
    let mut generator = open(2);
    let mut all = |calls: &[Call]| generator.generate_batch(calls, &mut |_, _| {}).unwrap();
    let calls = calls();
    let together = all(&calls);
    let alone: Vec<_> = calls.iter().flat_map(|c| all(std::slice::from_ref(c))).collect();
    assert_eq!(together, alone);
    let backwards: Vec<Call> = calls.iter().rev().cloned().collect();
    assert_eq!(all(&backwards).into_iter().rev().collect::<Vec<_>>(), together);
    for threads in [1, 3] {
        assert_eq!(
            open(threads).generate_batch(&calls, &mut |_, _| {}).unwrap(),
            together,
            "{threads} threads"
        );
    }
    assert!(together.iter().any(|a| a.ids.len() > 8), "the calls must decode side by side: {together:?}");
    assert!(together[0].text.starts_with("The"));
    let distinct: std::collections::BTreeSet<&str> = together.iter().map(|a| a.text.as_str()).collect();
    assert!(distinct.len() > 6, "{together:?}");
}

#[test]
fn answers_end_where_they_should_and_score_as_they_were_drawn() {
    let mut generator = Generator::new(&smoke(), GeneratorOptions { threads: 2, context: 256 }).unwrap();
    let mut call = calls().remove(0);
    call.sampling.max_tokens = 12;
    call.sampling.no_repeat_ngram = 0;
    let free = generator.generate_batch(std::slice::from_ref(&call), &mut |_, _| {}).unwrap().remove(0);
    assert!(free.ids.len() > 4, "{free:?}");
    assert_eq!(free.prompt_tokens, generator.prompt_tokens(&call).unwrap());

    // A stop string out of the middle of that answer ends the next one before it.
    let generated = &free.text[call.answer_prefix.len()..];
    let mut middle = generated.len() / 2;
    while !generated.is_char_boundary(middle) {
        middle += 1;
    }
    let stop: String = generated[middle..].chars().take(2).collect();
    call.sampling.stop = vec![stop.clone()];
    let cut = generator.generate_batch(std::slice::from_ref(&call), &mut |_, _| {}).unwrap().remove(0);
    assert_eq!(cut.finish, Finish::Stop);
    let end = call.answer_prefix.len() + generated.find(&stop).unwrap();
    assert_eq!(cut.text, free.text[..end]);

    // Greedy tokens are the likeliest: scored in one pass, none is less likely than one half of
    // the alternatives' mass allows, and the sum agrees with scoring the ids.
    let prompt =
        generator.template().prompt(generator.tokenizer(), &call.messages, &call.answer_prefix).unwrap().ids;
    let scores = generator.score_from(&[&prompt[..], &free.ids].concat(), prompt.len()).unwrap();
    assert_eq!(scores.len(), free.ids.len());
    let mut worse = free.ids.clone();
    for (i, s) in scores.iter().enumerate() {
        worse[i] = (free.ids[i] + 1) % 100;
        let other = generator.score_from(&[&prompt[..], &worse[..=i]].concat(), prompt.len()).unwrap()[i];
        assert!(*s >= other, "token {i}: {s} < {other}");
        worse[i] = free.ids[i];
    }
    let likely = generator.score(&call.messages, "The").unwrap();
    assert!(!likely.is_empty() && likely.iter().all(|l| *l <= 0.0));

    call.messages[0].content = "word ".repeat(400);
    let error = generator.generate_batch(&[call], &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("do not fit a context of 256"), "{error}");
}

#[test]
fn a_model_of_numbers_that_are_not_finite_is_an_error() {
    let config = ModelConfig::load(&fixture("smollm2")).unwrap();
    let model = Model::load(config, OPTIONS, |_, out| {
        out.fill(f32::NAN);
        Ok(())
    })
    .unwrap();
    let error = Scorer::new(model).prefill(&[1, 2, 3], &mut |_| {}).unwrap_err();
    assert!(matches!(error, InferenceError::NotFinite), "{error}");
}
