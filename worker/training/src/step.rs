//! One optimizer step on one rank: rows in, updated weights out.
//!
//! Invariant: gradients are scaled by 1 / Σ of the weights of the whole step, known before it, so
//! accumulation and ranks add up to one mean; a step whose norm is not finite changes nothing; all
//! ranks hold the same bits afterwards.

use longstrap_engine::{AdamW, Backend, Comm, Stream, Tag, View};
use longstrap_memory_plan::{Group, Name, Plan};

use crate::data::shard::Shard;
use crate::layout::Tensor;
use crate::model::{Model, Parameters, Place, StepResult, Watch, view, visit};
use crate::optimizer::Adam;

const COMPUTE: Stream = Stream::Compute;
/// `Tag::layer` of what belongs to no layer.
const NO_LAYER: u32 = u32::MAX;

/// What one step came to.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// Σ w·nll / Σ w over the whole step.
    pub loss: f64,
    /// Σ nll of each source, unweighted.
    pub source_nll: Vec<f64>,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// False when the norm was not finite and the step was skipped.
    pub applied: bool,
}

/// A tensor inside the flat buffer of its group.
fn cut(parameters: &Parameters, tensor: &Tensor) -> View {
    let flat = parameters.groups.iter().find(|(group, _)| *group == tensor.group);
    let (_, flat) = flat.unwrap_or_else(|| panic!("this model has no {}", tensor.group));
    flat.tensor(tensor.start, tensor.rows, tensor.cols)
}

/// How a step is applied.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Number of the step within its stage, from 1.
    pub step: u64,
    /// Its learning rate.
    pub learning_rate: f64,
    /// The optimizer.
    pub adam: Adam,
    /// Σ of the weights of all targets of the step, all ranks.
    pub total_weight: f64,
}

/// Model and optimizer state of one rank.
pub struct Trainer<'a> {
    /// The model.
    pub model: Model<'a>,
    backend: &'a dyn Backend,
    comm: &'a dyn Comm,
    plan: &'a Plan,
    state: Vec<(Group, [View; 3])>,
}

/// Flat buffers of weights, first and second moment of every group: what a checkpoint holds.
pub fn state_of(plan: &Plan) -> Vec<(Group, [View; 3])> {
    let buffers = |group| [Name::Weights(group), Name::FirstMoment(group), Name::SecondMoment(group)];
    plan.shape.groups().map(|group| (group, buffers(group).map(|name| view(plan, name)))).collect()
}

impl<'a> Trainer<'a> {
    /// A trainer in the arenas of `plan`; nothing is initialised.
    pub fn new(backend: &'a dyn Backend, comm: &'a dyn Comm, plan: &'a Plan, eps: f32) -> Self {
        let state = state_of(plan);
        Self { model: Model::new(backend, comm, plan, eps), backend, comm, plan, state }
    }

    /// The backend that everything runs on.
    pub fn backend(&self) -> &'a dyn Backend {
        self.backend
    }

    /// The plan whose arenas this trainer lives in.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// See [`state_of`].
    pub fn state(&self) -> &[(Group, [View; 3])] {
        &self.state
    }

    /// Where a tensor's weights lie.
    ///
    /// # Panics
    /// When the model has no such group: a tensor of another model.
    pub fn weight(&self, tensor: &Tensor) -> View {
        cut(&self.model.weights, tensor)
    }

    /// A fresh optimizer, for the start of a stage.
    ///
    /// # Errors
    /// As the backend reports.
    pub fn reset_moments(&self) -> StepResult {
        for (_, [_, m, v]) in &self.state {
            self.backend.fill(COMPUTE, *m, 0.0)?;
            self.backend.fill(COMPUTE, *v, 0.0)?;
        }
        Ok(())
    }

    /// Forgets what an earlier step left in gradients and sums.
    ///
    /// # Errors
    /// As the backend reports.
    pub fn begin(&self) -> StepResult {
        for (_, view) in &self.model.gradients.groups {
            self.backend.fill(COMPUTE, *view, 0.0)?;
        }
        self.backend.fill(COMPUTE, self.model.buffers.loss_sums, 0.0)?;
        self.backend.fill(COMPUTE, self.model.buffers.norm_sum, 0.0)?;
        Ok(())
    }

    /// Adds the loss and the gradients of row `index` of the step.
    ///
    /// # Errors
    /// An interruption, a lost peer, a failed kernel.
    pub fn accumulate(&self, update: &Update, index: usize, shard: &Shard, watch: &Watch<'_>) -> StepResult {
        let model = &self.model;
        let row = model.buffers.row(shard.tokens(), self.comm.world());
        let acts = model.buffers.activations(shard.tokens());
        let words = |view, data: &[u32]| self.backend.write(view, bytemuck::cast_slice(data));
        words(row.ids, &shard.ids)?;
        words(row.targets, &shard.targets)?;
        words(row.rope_pos, &shard.rope_pos)?;
        words(row.query_pos, &shard.query_pos)?;
        words(row.first_key, &shard.first_key)?;
        words(row.key_pos, &shard.key_pos)?;
        self.backend.write(row.loss_weights, bytemuck::cast_slice(&shard.weights))?;

        model.forward(update.step, index, &row, &acts, watch)?;
        visit(watch, Place::Head { row: index })?;
        model.head(&row, &acts, (1.0 / update.total_weight) as f32)?;
        self.add_source_losses(&row, shard)?;
        model.backward(update.step, index, &row, &acts, watch)
    }

    /// Plain loss of each source, for the log.
    fn add_source_losses(&self, row: &crate::model::RowViews, shard: &Shard) -> StepResult {
        for source in 0..self.plan.options.sources {
            let of_source = |s: &u16| f32::from(u8::from(usize::from(*s) == source));
            let mask: Vec<f32> = shard.sources.iter().map(of_source).collect();
            if mask.contains(&1.0) {
                let sum = self.model.buffers.loss_sums.row_range(1 + source..2 + source);
                self.backend.write(row.source_mask, bytemuck::cast_slice(&mask))?;
                self.backend.weighted_sum(COMPUTE, row.nll, row.source_mask, sum)?;
            }
        }
        Ok(())
    }

    /// Sums gradients over the ranks, clips, updates, and reads what the step came to.
    ///
    /// # Errors
    /// An interruption before the update; a lost peer, a failed kernel.
    pub fn finish(&self, update: &Update, watch: &Watch<'_>) -> StepResult<StepOutcome> {
        let (b, buffers) = (self.backend, &self.model.buffers);
        visit(watch, Place::Reduce)?;
        self.all_reduce(update.step, buffers.loss_sums, 0)?;
        for (i, (_, gradient)) in self.model.gradients.groups.iter().enumerate() {
            self.all_reduce(update.step, *gradient, 1 + i)?;
        }
        // A tied embedding is one buffer and counts once.
        for (_, gradient) in &self.model.gradients.groups {
            b.sum_squares(COMPUTE, *gradient, buffers.norm_sum)?;
        }
        b.clip_factor(COMPUTE, buffers.norm_sum, update.adam.max_norm, buffers.clip_factor, buffers.finite)?;
        visit(watch, Place::Update)?;
        self.apply(update)?;
        self.outcome(update)
    }

    fn all_reduce(&self, step: u64, x: View, index: usize) -> StepResult {
        if self.comm.world() == 1 {
            return Ok(());
        }
        let tag = Tag { step: step as u32, layer: NO_LAYER, hop: index as u32 };
        self.backend.wait(Stream::Comm, self.backend.record(COMPUTE)?)?;
        self.comm.all_reduce(Stream::Comm, tag, x)?;
        self.backend.wait(COMPUTE, self.backend.record(Stream::Comm)?)?;
        Ok(())
    }

    fn apply(&self, update: &Update) -> StepResult {
        let decayed = self.plan.shape.layer_matrices();
        for ((group, [w, m, v]), (_, g)) in self.state.iter().zip(&self.model.gradients.groups) {
            let split = match group {
                Group::Layer(_) => decayed,
                Group::Embedding | Group::Head => w.cols,
                Group::FinalNorm => 0,
            };
            let parts = [(0..split, update.adam.weight_decay), (split..w.cols, 0.0)];
            for (range, weight_decay) in parts.into_iter().filter(|(r, _)| !r.is_empty()) {
                let cut = |view: View| view.col_range(range.clone());
                self.backend.adamw(
                    COMPUTE,
                    AdamW {
                        w: cut(*w),
                        g: cut(*g),
                        m: cut(*m),
                        v: cut(*v),
                        factor: self.model.buffers.clip_factor,
                        finite: self.model.buffers.finite,
                        step: update.step,
                        learning_rate: update.learning_rate,
                        beta1: update.adam.beta1,
                        beta2: update.adam.beta2,
                        epsilon: update.adam.epsilon,
                        weight_decay,
                    },
                )?;
            }
        }
        Ok(())
    }

    fn outcome(&self, update: &Update) -> StepResult<StepOutcome> {
        let buffers = &self.model.buffers;
        let mut sums = vec![0.0f64; buffers.loss_sums.rows];
        let mut norm = [0.0f64];
        let mut finite = [0u32];
        self.backend.read(buffers.loss_sums, bytemuck::cast_slice_mut(&mut sums))?;
        self.backend.read(buffers.norm_sum, bytemuck::cast_slice_mut(&mut norm))?;
        self.backend.read(buffers.finite, bytemuck::cast_slice_mut(&mut finite))?;
        Ok(StepOutcome {
            loss: sums[0] / update.total_weight,
            source_nll: sums.split_off(1),
            grad_norm: norm[0].sqrt(),
            applied: finite[0] != 0,
        })
    }
}
