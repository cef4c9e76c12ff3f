//! One or several ranks in threads over a fixture model, and rows of the fixtures.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use longstrap_engine::{Backend, Comm, CpuBackend, CpuComm, CpuOptions, View};
use longstrap_memory_plan::{Name, Options, Plan, Shape};
use longstrap_model::{ModelConfig, Weights};
use safetensors::SafeTensors;

use crate::data::shard::{Placed, Shard, loss_weight, needs, shard};
use crate::layout::tensors;
use crate::model::Parameters;
use crate::optimizer::Adam;
use crate::step::{StepOutcome, Trainer, Update};
use crate::weights;

pub(crate) const MODELS: [&str; 2] = ["llama3", "smollm2"];

/// A fixture model.
pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) shape: Shape,
    pub(crate) reference: serde_json::Value,
}

impl Fixture {
    pub(crate) fn load(model: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../hack/fixtures/data").join(model);
        let config = ModelConfig::load(&dir).unwrap();
        let reference = serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap()).unwrap();
        Self { shape: config.shape(), dir, config, reference }
    }

    pub(crate) fn tensors(&self, file: &str) -> Tensors {
        Tensors(std::fs::read(self.dir.join(file)).unwrap())
    }
}

/// A safetensors file.
pub(crate) struct Tensors(Vec<u8>);

impl Tensors {
    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name)
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub(crate) fn i32(&self, name: &str) -> Vec<i32> {
        self.f32(name).into_iter().map(|x| x.to_bits() as i32).collect()
    }

    /// A row as the fixtures name it, with a prefix of its names.
    pub(crate) fn row(&self, prefix: &str) -> TestRow {
        let (ids, targets) = (self.i32(&format!("{prefix}tokens")), self.i32(&format!("{prefix}targets")));
        let (segments, weights) =
            (self.i32(&format!("{prefix}segments")), self.f32(&format!("{prefix}weights")));
        let mut row = TestRow::default();
        for (i, &segment) in segments.iter().enumerate() {
            if row.pieces.len() as i32 == segment {
                row.pieces.push(Placed { source: segment as u16, tokens: 0, targets: vec![], weight: 1.0 });
                row.ids.push(vec![]);
            }
            let piece = row.pieces.last_mut().unwrap();
            if targets[i] >= 0 {
                let next = piece.tokens as u32 + 1;
                piece.targets.push(next..next + 1);
                piece.weight = weights[i];
            }
            piece.tokens += 1;
            row.ids.last_mut().unwrap().push(ids[i] as u32);
        }
        row
    }
}

/// A row with its tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestRow {
    pub(crate) pieces: Vec<Placed>,
    pub(crate) ids: Vec<Vec<u32>>,
}

impl TestRow {
    /// Samples of these lengths with made-up tokens; loss on all.
    pub(crate) fn of(lengths: &[usize], vocab: usize) -> Self {
        let mut state = 12345u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocab as u32
        };
        let ids: Vec<Vec<u32>> = lengths.iter().map(|&n| (0..n).map(|_| next()).collect()).collect();
        let piece = |(i, &n): (usize, &usize)| Placed {
            source: (i % 2) as u16,
            tokens: n,
            targets: vec![1..n as u32],
            weight: 1.0,
        };
        Self { pieces: lengths.iter().enumerate().map(piece).collect(), ids }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.pieces.iter().map(|p| p.tokens).sum()
    }

    pub(crate) fn weight(&self) -> f64 {
        loss_weight(&self.pieces)
    }

    pub(crate) fn shard(&self, rank: usize, world: usize) -> Shard {
        let read: Vec<Vec<u32>> = needs(&self.pieces, rank, world)
            .into_iter()
            .map(|n| self.ids[n.piece][n.range].to_vec())
            .collect();
        shard(&self.pieces, rank, world, &read)
    }
}

/// What a test does with one rank.
pub(crate) type Job<'j, T> = dyn Fn(&Trainer<'_>, &dyn Comm) -> T + Sync + 'j;

/// Wraps a rank's communicator: for planted breakages and measurements.
pub(crate) type Wrap<'w> = dyn Fn(usize, CpuComm) -> Box<dyn Comm> + Sync + 'w;

/// Runs a job on every rank; the answers in rank order.
pub(crate) fn on_ranks<T: Send>(
    fixture: &Fixture,
    length: usize,
    options: Options,
    job: &Job<'_, T>,
) -> Vec<T> {
    on_wrapped_ranks(fixture, length, options, &|_, comm| Box::new(comm), job)
}

pub(crate) fn on_wrapped_ranks<T: Send>(
    fixture: &Fixture,
    length: usize,
    options: Options,
    wrap: &Wrap<'_>,
    job: &Job<'_, T>,
) -> Vec<T> {
    let plan = Plan::new(fixture.shape, length, options);
    let device = || {
        let sizes = (plan.device_bytes, plan.host_bytes);
        CpuBackend::new(CpuOptions { device_bytes: sizes.0, host_bytes: sizes.1, threads: options.threads })
            .unwrap()
    };
    let backends: Vec<Arc<CpuBackend>> = (0..options.ranks).map(|_| device()).collect();
    let comms = match options.ranks {
        1 => vec![CpuComm::solo(&backends[0])],
        _ => CpuComm::channels(&backends, Duration::from_secs(60)),
    };
    let stored = Weights::open(&fixture.dir).unwrap();
    let run = |rank: usize, backend: &CpuBackend, comm: CpuComm| {
        let comm = wrap(rank, comm);
        let trainer = Trainer::new(backend, comm.as_ref(), &plan, fixture.config.rms_norm_eps);
        weights::load(&trainer, &stored).unwrap();
        let frequencies = fixture.config.rope.inverse_frequencies(fixture.config.head_dim);
        trainer.model.set_inverse_frequencies(&frequencies).unwrap();
        trainer.reset_moments().unwrap();
        job(&trainer, comm.as_ref())
    };
    std::thread::scope(|scope| {
        let run = &run;
        let handles: Vec<_> = (backends.iter().zip(comms).enumerate())
            .map(|(rank, (backend, comm))| scope.spawn(move || run(rank, backend, comm)))
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

pub(crate) fn update(step: u64, total_weight: f64) -> Update {
    Update { step, learning_rate: 1e-3, adam: Adam::default(), total_weight }
}

/// One step over some rows.
pub(crate) fn step(trainer: &Trainer<'_>, comm: &dyn Comm, update: &Update, rows: &[TestRow]) -> StepOutcome {
    let shards: Vec<Shard> = rows.iter().map(|r| r.shard(comm.rank(), comm.world())).collect();
    step_of_shards(trainer, update, &shards)
}

pub(crate) fn step_of_shards(trainer: &Trainer<'_>, update: &Update, shards: &[Shard]) -> StepOutcome {
    trainer.begin().unwrap();
    for (index, shard) in shards.iter().enumerate() {
        trainer.accumulate(update, index, shard, &|_| true).unwrap();
    }
    trainer.finish(update, &|_| true).unwrap()
}

/// Loss and all gradients of a step, by tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gradients {
    pub(crate) outcome: StepOutcome,
    pub(crate) by_name: BTreeMap<String, Vec<f32>>,
}

pub(crate) fn gradients(trainer: &Trainer<'_>, outcome: StepOutcome) -> Gradients {
    let gradients = Parameters::new(trainer.plan(), Name::Gradients);
    let read = |t: crate::layout::Tensor| {
        let (_, flat) = gradients.groups.iter().find(|(g, _)| *g == t.group).unwrap();
        (t.name.clone(), read(trainer.backend(), flat.tensor(t.start, t.rows, t.cols)))
    };
    Gradients { outcome, by_name: tensors(&trainer.plan().shape).into_iter().map(read).collect() }
}

pub(crate) fn read(backend: &dyn Backend, view: View) -> Vec<f32> {
    let mut data = vec![0f32; view.len()];
    backend.read(view, bytemuck::cast_slice_mut(&mut data)).unwrap();
    data
}

/// ‖a − b‖₂ / ‖b‖₂.
pub(crate) fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

pub(crate) fn max_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max)
}

/// The largest relative difference of any tensor's gradient, and of the loss.
pub(crate) fn distance(a: &Gradients, b: &Gradients) -> f64 {
    let tensors = a.by_name.iter().map(|(name, g)| relative(g, &b.by_name[name]));
    tensors.fold((a.outcome.loss - b.outcome.loss).abs(), f64::max)
}
