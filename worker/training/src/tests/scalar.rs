//! Layer and model of scalar references against central differences in f64, and the trainer (fast
//! kernels, f32) against that model. Both see every breakage of [`FAULTS`].

use longstrap_engine::{CpuBackend, CpuComm, CpuOptions};
use longstrap_memory_plan::{Options, Plan, Shape};
use longstrap_model::{Rope, RopeScaling};
use longstrap_random::Draw;

use super::rig::{Gradients, TestRow, gradients, step, update};
use super::scalar_model::{FAULTS, Fault, ScalarModel, Tensors, zeros};
use crate::data::shard::Placed;
use crate::layout::tensors;
use crate::step::Trainer;

const EPS: f32 = 1e-5;

/// Grouped queries, a head narrower or wider than hidden / heads, ragged everywhere.
const TINY: Shape = Shape {
    layers: 2,
    hidden: 10,
    intermediate: 14,
    heads: 4,
    kv_heads: 2,
    head_dim: 4,
    vocab: 19,
    tied: true,
};
const WIDER: Shape = Shape {
    layers: 2,
    hidden: 48,
    intermediate: 70,
    heads: 6,
    kv_heads: 2,
    head_dim: 6,
    vocab: 97,
    tied: false,
};

/// Samples in one row: prompts without loss, a sample of one token, other loss weights.
fn row(shape: Shape, lengths: &[usize]) -> TestRow {
    let mut row = TestRow::of(lengths, shape.vocab);
    for (i, piece) in row.pieces.iter_mut().enumerate() {
        let targets = (1 + i as u32 % 2)..piece.tokens as u32;
        let targets = if targets.is_empty() { vec![] } else { vec![targets] };
        *piece = Placed { weight: [0.5, 2.0, 1.25][i % 3], targets, ..piece.clone() };
    }
    row
}

fn frequencies(shape: Shape) -> Vec<f32> {
    Rope { theta: 100.0, scaling: RopeScaling::Default }.inverse_frequencies(shape.head_dim)
}

fn model(shape: Shape, row: &TestRow) -> ScalarModel {
    ScalarModel::new(shape, EPS, &frequencies(shape), row.shard(0, 1), row.weight())
}

/// Numbers that f32 holds: matrices keep the size of what they are given, norms are near 1.
fn weights(shape: Shape, draw: &mut Draw) -> Tensors {
    let mut tensor = |t: crate::layout::Tensor| {
        let size = (3.0 / t.cols as f64).sqrt();
        let number = |u: f64| if t.rows == 1 { 1.0 + 0.3 * u } else { size * u };
        let data = (0..t.elements()).map(|_| f64::from(number(2.0 * draw.unit() - 1.0) as f32)).collect();
        (t.name, data)
    };
    tensors(&shape).into_iter().map(&mut tensor).collect()
}

/// Tensor, element, slope of the loss.
type Slopes = Vec<(String, usize, f64)>;

/// Elements of each tensor that are moved.
const SAMPLED: usize = 12;
/// Central differences with step h are off by h²/6·|f‴| + u·|f|/h: with h = 1e-5, f near 3 and its
/// rounding a few u = 1e-16, that is 1e-10, and 1e-8 of the tensors' largest gradients, all above 0.01.
const STEP: f64 = 1e-5;
const SLOPE: f64 = 1e-7;

fn slopes(w: &Tensors, draw: &mut Draw, loss: impl Fn(&Tensors) -> f64) -> Slopes {
    let mut found = Slopes::new();
    for (name, data) in w {
        for _ in 0..SAMPLED {
            let i = draw.below(data.len());
            let at = |d: f64| {
                let mut moved = w.clone();
                moved.get_mut(name).unwrap()[i] += d;
                loss(&moved)
            };
            found.push((name.clone(), i, (at(STEP) - at(-STEP)) / (2.0 * STEP)));
        }
    }
    found
}

/// The largest difference from a slope, in parts of the tensor's largest gradient.
fn furthest(slopes: &Slopes, g: &Tensors) -> f64 {
    let each = slopes.iter().map(|(name, i, slope)| {
        let largest = g[name].iter().fold(slope.abs(), |a, g| a.max(g.abs()));
        (slope - g[name][*i]).abs() / largest.max(1e-30)
    });
    worst(each)
}

/// The largest of some numbers; what is no number is infinite.
fn worst(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| if x.is_nan() { f64::INFINITY } else { x }).fold(0.0, f64::max)
}

#[test]
fn a_layer_has_the_slopes_of_its_differences() {
    let row = row(TINY, &[5, 1, 4, 3]);
    let model = model(TINY, &row);
    let mut draw = Draw::new(b"scalar layer", &[]);
    let numbers = |draw: &mut Draw| {
        (0..model.tokens() * TINY.hidden).map(|_| 2.0 * draw.unit() - 1.0).collect::<Vec<f64>>()
    };
    let mut w = weights(TINY, &mut draw);
    w.retain(|name, _| name.starts_with("model.layers.1."));
    // The input is one more tensor to move.
    w.insert("x".into(), numbers(&mut draw));
    let d_y = numbers(&mut draw);
    let loss = |w: &Tensors| model.layer(w, 1, &w["x"]).iter().zip(&d_y).map(|(y, d)| y * d).sum();
    let slopes = slopes(&w, &mut draw, loss);
    let gradients = |fault| {
        let mut g = zeros(&w);
        let d_x = model.layer_grad(&w, 1, &w["x"], &d_y, fault, &mut g);
        g.insert("x".into(), d_x);
        g
    };
    let whole = furthest(&slopes, &gradients(Fault::None));
    assert!(whole < SLOPE, "{whole:.1e}");
    for fault in &FAULTS[..8] {
        let broken = furthest(&slopes, &gradients(*fault));
        assert!(broken > 1e5 * SLOPE, "{fault:?}: {broken:.1e}");
    }
}

#[test]
fn a_model_has_the_slopes_of_its_differences() {
    for tied in [true, false] {
        let shape = Shape { tied, ..TINY };
        let row = row(shape, &[5, 1, 4, 3]);
        let model = model(shape, &row);
        let mut draw = Draw::new(b"scalar model", &[]);
        let w = weights(shape, &mut draw);
        let slopes = slopes(&w, &mut draw, |w| model.loss(w));
        let whole = furthest(&slopes, &model.gradients(&w, Fault::None));
        assert!(whole < SLOPE, "tied {tied}: {whole:.1e}");
        for fault in FAULTS {
            let broken = furthest(&slopes, &model.gradients(&w, fault));
            assert!(broken > 1e5 * SLOPE, "tied {tied}, {fault:?}: {broken:.1e}");
        }
    }
}

/// A step of the trainer on these weights.
fn trained(shape: Shape, row: &TestRow, w: &Tensors, keep_attention: bool) -> Gradients {
    let options = Options { keep_attention, sources: 2, checkpoints: false, ..Options::default() };
    let plan = Plan::new(shape, row.tokens(), options);
    let (device_bytes, host_bytes) = (plan.device_bytes, plan.host_bytes);
    let backend = CpuBackend::new(CpuOptions { device_bytes, host_bytes, threads: 1 }).unwrap();
    let comm = CpuComm::solo(&backend);
    let trainer = Trainer::new(backend.as_ref(), &comm, &plan, EPS);
    for t in tensors(&shape) {
        let data: Vec<f32> = w[&t.name].iter().map(|x| *x as f32).collect();
        crate::weights::write(&trainer, &t, &data).unwrap();
    }
    trainer.model.set_inverse_frequencies(&frequencies(shape)).unwrap();
    trainer.reset_moments().unwrap();
    let outcome = step(&trainer, &comm, &update(1, row.weight()), std::slice::from_ref(row));
    gradients(&trainer, outcome)
}

/// K·ε: a sum of n products in f32 is off by n·u of its terms at most, u = ε/2, and what a gradient
/// passes adds up: every sum of the forward, the same transposed in the backward, one over the
/// tokens for the weights. The factor 2 from u to ε is for what is not a sum.
fn bound(shape: Shape, tokens: usize) -> f64 {
    let norm = shape.hidden;
    let attention = norm + shape.hidden + shape.head_dim + tokens + shape.q_cols();
    let mlp = norm + shape.hidden + shape.intermediate;
    let head = norm + shape.hidden + shape.vocab;
    let sums = 2 * (shape.layers * (attention + mlp) + head) + tokens;
    sums as f64 * f64::from(f32::EPSILON)
}

/// ‖g − g_ref‖₂ / ‖g_ref‖₂ of the furthest tensor.
fn apart(got: &Gradients, reference: &Tensors) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    worst(reference.iter().map(|(name, g)| {
        let difference = length(&mut g.iter().zip(&got.by_name[name]).map(|(g, f)| g - f64::from(*f)));
        // Where the gradient was lost, any other is infinitely far.
        difference / length(&mut g.iter().copied()).max(1e-30)
    }))
}

#[test]
fn the_trainer_has_the_gradients_of_the_scalar_model() {
    for (shape, lengths) in [(TINY, &[5, 1, 4, 3][..]), (WIDER, &[40, 1, 17, 29])] {
        for tied in [true, false] {
            let shape = Shape { tied, ..shape };
            let row = row(shape, lengths);
            let model = model(shape, &row);
            let w = weights(shape, &mut Draw::new(b"trainer", &[]));
            let (bound, reference) = (bound(shape, model.tokens()), model.gradients(&w, Fault::None));
            for keep_attention in [true, false] {
                let got = trained(shape, &row, &w, keep_attention);
                let what = format!("hidden {}, tied {tied}, kept {keep_attention}", shape.hidden);
                let difference = apart(&got, &reference);
                assert!(difference < bound, "{what}: {difference:.1e}, allowed {bound:.1e}");
                let loss = model.loss(&w);
                let difference = (got.outcome.loss / loss - 1.0).abs();
                assert!(difference < bound, "{what}: loss {} for {loss}", got.outcome.loss);
                // A tied embedding is in it once.
                let norm = reference.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
                let difference = (got.outcome.grad_norm / norm - 1.0).abs();
                assert!(difference < bound, "{what}: norm {} for {norm}", got.outcome.grad_norm);
                if keep_attention {
                    for fault in FAULTS {
                        let broken = apart(&got, &model.gradients(&w, fault));
                        assert!(broken > 100.0 * bound, "{what}, {fault:?}: {broken:.1e}, bound {bound:.1e}");
                    }
                }
            }
        }
    }
}
