//! Against the numbers that `transformers` gave (`hack/fixtures`): logits, loss, gradients, AdamW.

use longstrap_engine::{Backend, CpuBackend, CpuComm, CpuOptions};
use longstrap_memory_plan::{Group, Name, Options, Plan};

use super::rig::*;
use crate::layout::Tensor;
use crate::model::{Buffers, tiles, view};
use crate::step::Trainer;

/// What a loss may differ by.
const LOSS: f64 = 1e-5;

fn options(sources: usize) -> Options {
    Options { sources, checkpoints: false, threads: 2, ..Options::default() }
}

#[test]
fn logits_and_losses_of_every_position() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        for (case, base, logits, scaled) in [
            ("single", 1.0, "logits", true),
            ("packed", 1.0, "logits", true),
            ("single", 4.0, "logits.rope_base_x4", true),
            // A planted breakage: the scaling is lost where the base changes.
            ("single", 4.0, "logits.rope_base_x4", false),
        ] {
            let file = fixture.tensors(&format!("{case}.safetensors"));
            let row = file.row("row.");
            let mut config = fixture.config.extended(4096, fixture.config.rope.theta * base);
            if !scaled {
                config.rope.scaling = longstrap_model::RopeScaling::Default;
            }
            let broken = config.rope != fixture.config.extended(4096, config.rope.theta).rope;
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
            assert_eq!(difference < 1e-4, !broken, "{model} {case} {logits}: {difference}");
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

/// What five steps came to.
struct FiveSteps {
    /// Loss and norm of each.
    steps: Vec<(f64, f64)>,
    /// Name, weights, and the norms of both moments of each tensor.
    tensors: Vec<(String, Vec<f32>, [f64; 2])>,
}

/// A planted breakage of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    NormsDecay,
    NoBiasCorrection,
    EpsilonInsideTheRoot,
    ClipRaisesSmallNorms,
    TiedEmbeddingCountsTwice,
    MomentsNotReset,
}

fn five_steps(fixture: &Fixture, fault: Fault) -> FiveSteps {
    let file = fixture.tensors("adamw.safetensors");
    let expected = fixture.reference["adamw"]["steps"].as_array().unwrap();
    let all = crate::layout::tensors(&fixture.shape);
    let steps_of = |trainer: &Trainer<'_>, _: &dyn longstrap_engine::Comm| {
        let weights = || all.iter().map(|t| crate::weights::read(trainer, t).unwrap()).collect::<Vec<_>>();
        let moment = |which: usize, t: &Tensor| {
            let (_, views) = trainer.state().iter().find(|(g, _)| *g == t.group).unwrap();
            read(trainer.backend(), views[which].tensor(t.start, t.rows, t.cols))
        };
        if fault == Fault::MomentsNotReset {
            // Where the stage before left its own.
            for (_, [_, m, v]) in trainer.state() {
                trainer.backend().fill(longstrap_engine::Stream::Compute, *m, 1e-3).unwrap();
                trainer.backend().fill(longstrap_engine::Stream::Compute, *v, 1e-5).unwrap();
            }
        }
        let mut steps = Vec::new();
        for (i, numbers) in expected.iter().enumerate() {
            let rows = [0, 1].map(|r| file.row(&format!("step.{i}.row.{r}.")));
            let weight = rows.iter().map(TestRow::weight).sum();
            let mut update = update(i as u64 + 1, weight);
            update.learning_rate = numbers["learning_rate"].as_f64().unwrap();
            update.adam.max_norm = numbers["clip"].as_f64().unwrap();
            let (norm, before) = (numbers["grad_norm"].as_f64().unwrap(), weights());
            match fault {
                Fault::NoBiasCorrection => update.step = 1_000_000,
                Fault::ClipRaisesSmallNorms if norm < update.adam.max_norm => {
                    update.total_weight *= norm / update.adam.max_norm;
                    update.adam.max_norm = f64::INFINITY;
                }
                _ => {}
            }
            trainer.begin().unwrap();
            for (index, row) in rows.iter().enumerate() {
                trainer.accumulate(&update, index, &row.shard(0, 1), &|_| true).unwrap();
            }
            if fault == Fault::TiedEmbeddingCountsTwice {
                let (_, g) =
                    trainer.model.gradients.groups.iter().find(|(g, _)| *g == Group::Embedding).unwrap();
                let twice = (norm.powi(2) + squares(&read(trainer.backend(), *g))).sqrt();
                update.adam.max_norm *= norm / twice;
            }
            let outcome = trainer.finish(&update, &|_| true).unwrap();
            assert!(outcome.applied);
            steps.push((outcome.loss, outcome.grad_norm));
            let (rate, adam) = (update.learning_rate, update.adam);
            for (t, old) in all.iter().zip(&before) {
                let norms = t.rows == 1;
                let mut new = crate::weights::read(trainer, t).unwrap();
                if fault == Fault::NormsDecay && norms {
                    new.iter_mut().zip(old).for_each(|(w, o)| *w -= (rate * adam.weight_decay) as f32 * o);
                }
                if fault == Fault::EpsilonInsideTheRoot {
                    let (m, v) = (moment(1, t), moment(2, t));
                    let correct = |beta: f64| 1.0 - beta.powi(update.step as i32);
                    let decay = if norms { 0.0 } else { adam.weight_decay };
                    for (i, w) in new.iter_mut().enumerate() {
                        let root = (f64::from(v[i]) / correct(adam.beta2) + adam.epsilon).sqrt();
                        let change = f64::from(m[i]) / correct(adam.beta1) / root + decay * f64::from(old[i]);
                        *w = (f64::from(old[i]) - rate * change) as f32;
                    }
                }
                crate::weights::write(trainer, t, &new).unwrap();
            }
        }
        let of = |t: &Tensor| {
            let norms = [1, 2].map(|which| squares(&moment(which, t)).sqrt());
            (t.name.clone(), crate::weights::read(trainer, t).unwrap(), norms)
        };
        FiveSteps { steps, tensors: all.iter().map(of).collect() }
    };
    on_ranks(fixture, 48, options(3), &steps_of).remove(0)
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// The largest relative difference of any tensor's weights.
fn weights_differ(fixture: &Fixture, got: &FiveSteps) -> f64 {
    let file = fixture.tensors("adamw.safetensors");
    let differences = got.tensors.iter().map(|(n, w, _)| relative(w, &file.f32(&format!("final.{n}"))));
    differences.fold(0.0, f64::max)
}

#[test]
fn five_steps_of_adamw() {
    for model in MODELS {
        let fixture = Fixture::load(model);
        let reference = &fixture.reference["adamw"];
        let got = five_steps(&fixture, Fault::None);
        for (i, ((loss, norm), numbers)) in
            got.steps.iter().zip(reference["steps"].as_array().unwrap()).enumerate()
        {
            let difference = (loss - numbers["loss"].as_f64().unwrap()).abs();
            assert!(difference < LOSS, "{model}, step {i}: loss differs by {difference}");
            let ratio = norm / numbers["grad_norm"].as_f64().unwrap();
            assert!((ratio - 1.0).abs() < 1e-4, "{model}, step {i}: norm {ratio}");
        }
        assert!(weights_differ(&fixture, &got) < 1e-4, "{model}: {}", weights_differ(&fixture, &got));
        for (name, _, moments) in &got.tensors {
            for (norm, key) in moments.iter().zip(["m_norm", "v_norm"]) {
                let ratio = norm / reference["final"][name][key].as_f64().unwrap();
                assert!((ratio - 1.0).abs() < 1e-4, "{model} {name} {key}: {ratio}");
            }
        }
    }
}

#[test]
fn broken_optimizers_are_seen() {
    let fixture = Fixture::load("smollm2");
    for fault in [
        Fault::NormsDecay,
        Fault::NoBiasCorrection,
        Fault::EpsilonInsideTheRoot,
        Fault::ClipRaisesSmallNorms,
        Fault::TiedEmbeddingCountsTwice,
        Fault::MomentsNotReset,
    ] {
        let difference = weights_differ(&fixture, &five_steps(&fixture, fault));
        assert!(difference > 1e-4, "{fault:?}: {difference}");
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

#[test]
fn a_step_needs_all_of_the_plan_and_no_byte_more() {
    let fixture = Fixture::load("smollm2");
    let plan = Plan::new(fixture.shape, 101, Options { sources: 2, ..Options::default() });
    let row = TestRow::of(&[50, 51], fixture.shape.vocab);
    // A step, and what a checkpoint stages.
    let works = |device_bytes: usize, host_bytes: usize| {
        let options = CpuOptions { device_bytes, host_bytes, threads: 1 };
        let backend = CpuBackend::new(options).unwrap();
        let comm = CpuComm::solo(&backend);
        let trainer = Trainer::new(backend.as_ref(), &comm, &plan, 1e-5);
        let update = update(1, row.weight());
        let staging = view(&plan, Name::CheckpointStaging);
        let run = || {
            trainer.begin()?;
            trainer.accumulate(&update, 0, &row.shard(0, 1), &|_| true)?;
            trainer.finish(&update, &|_| true)?;
            backend.read(staging, &mut vec![0; 4 * staging.len()])?;
            crate::model::StepResult::Ok(())
        };
        run().is_ok()
    };
    assert!(works(plan.device_bytes, plan.host_bytes));
    assert!(!works(plan.device_bytes - 64, plan.host_bytes));
    assert!(!works(plan.device_bytes, plan.host_bytes - 64));
}
