//! Against the numbers that `transformers` gave (`hack/fixtures`): logits, loss, gradients, AdamW.

use longstrap_memory_plan::{Name, Options, Plan};

use super::rig::*;
use crate::model::{Buffers, tiles, view};

fn options(sources: usize) -> Options {
    Options { sources, checkpoints: false, threads: 2, ..Options::default() }
}

#[test]
fn logits_and_losses_of_every_position() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        for (case, base, logits) in
            [("single", 1.0, "logits"), ("packed", 1.0, "logits"), ("single", 4.0, "logits.rope_base_x4")]
        {
            let file = fixture.tensors(&format!("{case}.safetensors"));
            let row = file.row("row.");
            let config = fixture.config.extended(4096, fixture.config.rope.theta * base);
            let got = on_ranks(&fixture, 101, options(4), &|trainer, _| {
                let frequencies = config.rope.inverse_frequencies(config.head_dim);
                trainer.model.set_inverse_frequencies(&frequencies).unwrap();
                let shard = row.shard(0, 1);
                trainer.begin().unwrap();
                trainer.accumulate(&update(1, row.weight()), 0, &shard, &|_| true).unwrap();
                let nll = read(trainer.backend(), view(trainer.plan(), Name::Nll).row_range(0..101));
                // The head leaves the normed stream behind only until the backward: run it again.
                let acts = trainer.model.buffers.activations(shard.tokens());
                let buffers = trainer.model.buffers.row(shard.tokens(), 1);
                trainer.model.forward(1, 0, &buffers, &acts, &|_| true).unwrap();
                trainer.model.head(&buffers, &acts, 1.0).unwrap();
                let mut all = Vec::new();
                for tile in tiles(shard.tokens(), trainer.plan().logits_tile) {
                    let logits = trainer.model.logits(acts.normed.row_range(tile)).unwrap();
                    all.extend(read(trainer.backend(), logits));
                }
                all.truncate(101 * fixture.shape.vocab);
                (all, nll)
            });
            let difference = max_difference(&got[0].0, &file.f32(logits));
            assert!(difference < 1e-4, "{model} {case} {logits}: {difference}");
            if base == 1.0 {
                assert!(max_difference(&got[0].1, &file.f32("nll")) < 1e-4, "{model} {case}");
            }
        }
    }
}

#[test]
fn loss_and_every_gradient() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        for case in ["single", "packed"] {
            let file = fixture.tensors(&format!("{case}.safetensors"));
            let row = file.row("row.");
            let expected = &fixture.reference["cases"][case];
            for keep_attention in [true, false] {
                let options = Options { keep_attention, ..options(4) };
                let got = on_ranks(&fixture, 101, options, &|trainer, comm| {
                    let outcome = step(trainer, comm, &update(1, row.weight()), std::slice::from_ref(&row));
                    gradients(trainer, outcome)
                });
                let loss = (got[0].outcome.loss - expected["loss"].as_f64().unwrap()).abs();
                assert!(loss < 1e-5, "{model} {case}: loss differs by {loss}");
                let norm = got[0].outcome.grad_norm / expected["grad_norm"].as_f64().unwrap();
                assert!((norm - 1.0).abs() < 1e-5, "{model} {case}: norm {norm}");
                for (name, gradient) in &got[0].by_name {
                    let difference = relative(gradient, &file.f32(&format!("grad.{name}")));
                    assert!(difference < 1e-4, "{model} {case} {name}: {difference}");
                }
            }
        }
    }
}

#[test]
fn plain_loss_of_each_source() {
    let fixture = Fixture::load("smollm2");
    let file = fixture.tensors("packed.safetensors");
    let (row, nll, segments) = (file.row("row."), file.f32("nll"), file.i32("row.segments"));
    let got = on_ranks(&fixture, 101, options(4), &|trainer, comm| {
        step(trainer, comm, &update(1, row.weight()), std::slice::from_ref(&row))
    });
    for (source, sum) in got[0].source_nll.iter().enumerate() {
        let of_source = |(n, s): (&f32, &i32)| if *s == source as i32 { f64::from(*n) } else { 0.0 };
        let expected: f64 = nll.iter().zip(&segments).map(of_source).sum();
        assert!((sum - expected).abs() < 1e-3, "source {source}: {sum}, {expected}");
    }
}

#[test]
fn bf16_layer_inputs_stay_within_their_own_bound() {
    let fixture = Fixture::load("smollm2");
    let file = fixture.tensors("packed.safetensors");
    let row = file.row("row.");
    let got = on_ranks(&fixture, 101, Options { bf16_inputs: true, ..options(4) }, &|trainer, comm| {
        let outcome = step(trainer, comm, &update(1, row.weight()), std::slice::from_ref(&row));
        gradients(trainer, outcome)
    });
    // The forward is the same; the backward starts from inputs of 8 bits.
    assert!(
        (got[0].outcome.loss - fixture.reference["cases"]["packed"]["loss"].as_f64().unwrap()).abs() < 1e-5
    );
    for (name, gradient) in &got[0].by_name {
        let difference = relative(gradient, &file.f32(&format!("grad.{name}")));
        assert!(difference < 2e-2, "{name}: {difference}");
    }
}

#[test]
fn five_steps_of_adamw() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        let file = fixture.tensors("adamw.safetensors");
        let expected = fixture.reference["adamw"]["steps"].as_array().unwrap();
        let got = on_ranks(&fixture, 48, options(3), &|trainer, comm| {
            let mut losses = Vec::new();
            for (i, numbers) in expected.iter().enumerate() {
                let rows = [0, 1].map(|r| file.row(&format!("step.{i}.row.{r}.")));
                let weight = rows.iter().map(TestRow::weight).sum();
                let mut update = update(i as u64 + 1, weight);
                update.learning_rate = numbers["learning_rate"].as_f64().unwrap();
                update.adam.max_norm = numbers["clip"].as_f64().unwrap();
                let outcome = step(trainer, comm, &update, &rows);
                assert!(outcome.applied);
                losses.push((outcome.loss, outcome.grad_norm));
            }
            let all = crate::layout::tensors(&trainer.plan().shape);
            let weights: Vec<_> =
                all.iter().map(|t| (t.name.clone(), crate::weights::read(trainer, t).unwrap())).collect();
            (losses, weights)
        });
        let (losses, weights) = &got[0];
        for ((loss, norm), numbers) in losses.iter().zip(expected) {
            assert!(
                (loss - numbers["loss"].as_f64().unwrap()).abs() < 1e-4,
                "{model}: loss {loss}, {numbers}"
            );
            assert!(
                (norm / numbers["grad_norm"].as_f64().unwrap() - 1.0).abs() < 1e-3,
                "{model}: {norm}, {numbers}"
            );
        }
        for (name, weight) in weights {
            let difference = relative(weight, &file.f32(&format!("final.{name}")));
            assert!(difference < 1e-4, "{model} {name}: {difference}");
        }
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let fixture = Fixture::load("smollm2");
    let row = TestRow::of(&[20, 13], fixture.shape.vocab);
    let unchanged = on_ranks(&fixture, 40, options(2), &|trainer, comm| {
        let all = crate::layout::tensors(&trainer.plan().shape);
        let weights = || all.iter().map(|t| crate::weights::read(trainer, t).unwrap()).collect::<Vec<_>>();
        // An infinite weight of one norm makes every later number infinite or none.
        let norm = all.iter().find(|t| t.name == "model.norm.weight").unwrap();
        let mut broken = crate::weights::read(trainer, norm).unwrap();
        broken[3] = f32::INFINITY;
        crate::weights::write(trainer, norm, &broken).unwrap();
        let before = weights();
        let outcome = step(trainer, comm, &update(1, row.weight()), std::slice::from_ref(&row));
        assert!(!outcome.applied);
        weights() == before
    });
    assert_eq!(unchanged, [true]);
}

#[test]
fn the_arena_is_the_plan() {
    let plan = Plan::new(Fixture::load("llama3").shape, 100, Options { ranks: 3, ..Options::default() });
    let end = plan.buffers.iter().filter(|b| b.space == longstrap_memory_plan::Space::Device);
    let end = end.map(|b| view(&plan, b.name).end()).max().unwrap();
    assert_eq!(end.next_multiple_of(64), plan.device_bytes);
    assert_eq!(Buffers::new(&plan).ring_kv.len(), 2);
}
