//! Training of one stage on one rank: rows in, steps, checkpoints, weights out.
//!
//! Invariant: a stop or a failure inside a step leaves weights and moments as they were after the
//! last finished step; that is what a checkpoint then holds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use longstrap_engine::{Backend, Comm, CpuBackend, Stream};
use longstrap_memory_plan::{Name, Plan};
use longstrap_model::{ModelConfig, Weights};
use longstrap_runtime::rank::AgentLink;
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::Digest;
use serde_json::json;
use tokio::runtime::Handle;

use crate::checkpoint::{CheckpointManifest, Position, Running, Writer, restore};
use crate::data::shard::loss_weight;
use crate::log::RunLog;
use crate::model::{self, Place};
use crate::progress::StageProgress;
use crate::run::{StagePin, TrainingRun};
use crate::stage_end::{StageEnd, check_end, write_folder};
use crate::step::{StepOutcome, Trainer, Update};
use crate::tokens::Rows;
use crate::weights;

/// How long a lost peer may be ahead of our own SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// What the stages of a Job share: arenas for the longest, connections to the other ranks.
pub(crate) struct Gang {
    pub(crate) backend: Arc<CpuBackend>,
    /// None once this rank has left the gang.
    pub(crate) comm: Option<Box<dyn Comm>>,
}

/// Hears of stage, step (from 1) and place inside a step.
pub(crate) type OnPlace = Arc<dyn Fn(&str, u64, Place) + Send + Sync>;

/// Everything that a stage needs; it runs on a thread of its own.
pub(crate) struct StageTraining {
    pub(crate) ctx: StepContext,
    pub(crate) link: AgentLink,
    pub(crate) runtime: Handle,
    pub(crate) gang: Gang,
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) plan: Plan,
    pub(crate) rows: Rows,
    pub(crate) run: TrainingRun,
    pub(crate) fingerprint: Digest,
    pub(crate) generation: u64,
    /// Index into the run's stages.
    pub(crate) stage: usize,
    /// Model folder to start from: of the stage before, or the source's.
    pub(crate) start_from: PathBuf,
    /// The same model with the stage's window and base.
    pub(crate) config: ModelConfig,
    /// Go on from here.
    pub(crate) resume: Option<CheckpointManifest>,
    pub(crate) every: Duration,
    pub(crate) keep_last: usize,
    pub(crate) log: RunLog,
    pub(crate) on_place: OnPlace,
}

/// What the first rank has to publish.
pub(crate) struct Finished {
    pub(crate) end: StageEnd,
    pub(crate) folder: PathBuf,
    pub(crate) files: Vec<String>,
}

/// Where the loop stands.
struct State {
    done: u64,
    skipped: u64,
    last_loss: f64,
    saved: u64,
    saved_at: Instant,
    saving: Option<Running>,
}

impl StageTraining {
    fn pin(&self) -> &StagePin {
        &self.run.stages[self.stage]
    }

    /// Trains to the end of the stage; gives gang and log back.
    pub(crate) fn train_and_return(mut self) -> (StepResult<Option<Finished>>, Gang, RunLog) {
        let result = self.train();
        if let Err(error) = self.runtime.block_on(self.log.flush()) {
            // Only timings are lost, and the result may hold the reason.
            tracing::warn!(%error, "the run log was not written");
        }
        (result, self.gang, self.log)
    }

    /// Trains to the end of the stage. The first rank leaves the weights in a folder.
    fn train(&mut self) -> StepResult<Option<Finished>> {
        let plan = self.plan.clone();
        let backend = Arc::clone(&self.gang.backend);
        let comm = self.gang.comm.take().context("this rank has left the gang")?;
        let trainer = Trainer::new(backend.as_ref(), comm.as_ref(), &plan, self.config.rms_norm_eps);
        let mut state = self.begin(&trainer)?;
        while state.done < self.pin().learning_rate.steps {
            match self.step(&trainer, &mut state) {
                Ok(outcome) => self.after_step(&mut state, &outcome)?,
                Err(error) => {
                    // Peers that wait for us shall not wait until the state is saved.
                    drop(comm);
                    return Err(self.leave(state, error));
                }
            }
        }
        if let Some(saving) = state.saving.take() {
            saving.wait()?;
        }
        // All ranks know the same numbers, so all refuse.
        check_end(&self.pin().name, state.done, state.skipped, state.last_loss)?;
        let finished = self.finish(&trainer, &state);
        self.gang.comm = Some(comm);
        finished
    }

    /// Loads weights and moments: from a checkpoint of this stage, or fresh ones.
    fn begin(&self, trainer: &Trainer<'_>) -> StepResult<State> {
        self.ctx.progress.activity("loading weights");
        let frequencies = self.config.rope.inverse_frequencies(self.config.head_dim);
        trainer.model.set_inverse_frequencies(&frequencies).map_err(anyhow::Error::from)?;
        let mut state =
            State { done: 0, skipped: 0, last_loss: 0.0, saved: 0, saved_at: Instant::now(), saving: None };
        match &self.resume {
            Some(checkpoint) => {
                let restored = restore(&self.ctx.store, checkpoint, trainer.backend(), trainer.state());
                self.runtime.block_on(restored)?;
                state.done = checkpoint.stage_step;
                state.skipped = checkpoint.skipped;
                state.saved = checkpoint.stage_step;
                self.warn_of_other_world(checkpoint);
            }
            None => {
                let stored = Weights::open(&self.start_from).context("weights to start from")?;
                weights::load(trainer, &stored)?;
                trainer.reset_moments().map_err(anyhow::Error::from)?;
            }
        }
        Ok(state)
    }

    fn warn_of_other_world(&self, checkpoint: &CheckpointManifest) {
        let world = self.world as u32;
        let instructions = longstrap_engine::instruction_set();
        if self.rank == 0 && (checkpoint.world_size != world || checkpoint.instruction_set != instructions) {
            tracing::warn!(
                "the checkpoint was computed by {} rank(s) with {}, this gang has {world} with {instructions}: the result will differ in its last bits",
                checkpoint.world_size,
                checkpoint.instruction_set
            );
        }
    }

    fn step(&mut self, trainer: &Trainer<'_>, state: &mut State) -> Result<StepOutcome, StepError> {
        let start = Instant::now();
        let rows = &self.rows.plan.steps[state.done as usize].rows;
        let total_weight = rows.iter().map(|r| loss_weight(&self.rows.placed(r))).sum();
        let update = Update {
            step: state.done + 1,
            learning_rate: self.pin().learning_rate.at(state.done + 1),
            adam: self.run.adam,
            total_weight,
        };
        let progress = StageProgress::new(&self.ctx.progress, &self.plan.shape, &self.rows.plan, state.done);
        let watch = |place: Place| {
            (self.on_place)(&self.pin().name, update.step, place);
            progress.at(place);
            !self.ctx.stop.is_cancelled()
        };
        trainer.begin().map_err(engine)?;
        for (index, row) in rows.iter().enumerate() {
            let shard = self.runtime.block_on(self.rows.read(row, self.rank, self.world))?;
            trainer.accumulate(&update, index, &shard, &watch).map_err(engine)?;
        }
        if let Some(saving) = state.saving.take() {
            // The state that is being written must not change.
            self.ctx.progress.activity("waiting for the checkpoint");
            saving.wait()?;
        }
        let outcome = trainer.finish(&update, &watch).map_err(engine)?;
        state.done += 1;
        let tokens: u64 = rows.iter().map(|r| r.tokens).sum();
        self.note_step(&update, &outcome, start.elapsed(), tokens)?;
        Ok(outcome)
    }

    fn note_step(
        &mut self,
        update: &Update,
        outcome: &StepOutcome,
        elapsed: Duration,
        tokens: u64,
    ) -> StepResult {
        let steps = self.pin().learning_rate.steps;
        let rows = &self.rows.plan.steps[update.step as usize - 1].rows;
        let mut counts = vec![0u64; outcome.source_nll.len()];
        for row in rows {
            for placed in self.rows.placed(row) {
                counts[usize::from(placed.source)] +=
                    placed.targets.iter().map(|t| u64::from(t.end - t.start)).sum::<u64>();
            }
        }
        let losses: serde_json::Map<_, _> = (self.run.data.iter().zip(&outcome.source_nll).zip(&counts))
            .filter(|(_, count)| **count > 0)
            .map(|((source, nll), count)| (source.name.clone(), json!(nll / *count as f64)))
            .collect();
        self.ctx.progress.update(|report| {
            report.count = update.step;
            report.of = steps;
            report.loss = outcome.loss;
        });
        if self.rank != 0 {
            return Ok(());
        }
        let tokens_per_second = tokens as f64 / elapsed.as_secs_f64().max(1e-9);
        tracing::info!(
            stage = self.pin().name,
            step = update.step,
            of = steps,
            loss = outcome.loss,
            grad_norm = outcome.grad_norm,
            seconds = elapsed.as_secs_f64(),
            tokens_per_second,
            "step"
        );
        let details = json!({
            "stage": self.pin().name, "step": update.step, "of": steps, "loss": outcome.loss,
            "sourceLoss": losses, "gradNorm": outcome.grad_norm, "applied": outcome.applied,
            "learningRate": update.learning_rate, "tokens": tokens, "tokensPerSecond": tokens_per_second,
        });
        let phase = format!("train {}", self.pin().name);
        let runtime = self.runtime.clone();
        runtime.block_on(self.log.note_step(&phase, elapsed, details))
    }

    fn after_step(&self, state: &mut State, outcome: &StepOutcome) -> StepResult {
        state.last_loss = outcome.loss;
        if !outcome.applied {
            state.skipped += 1;
            tracing::warn!(step = state.done, "the gradient is not finite: the step was skipped");
        }
        let due = state.saved_at.elapsed() >= self.every && state.done < self.pin().learning_rate.steps;
        if due && self.rank == 0 {
            state.saving = Some(self.writer().start(self.position(state))?);
            (state.saved, state.saved_at) = (state.done, Instant::now());
        }
        Ok(())
    }

    /// Ends inside a step: saves the state after the last finished one when told to stop.
    fn leave(&self, mut state: State, error: StepError) -> StepError {
        let told = match &error {
            StepError::Stopped => true,
            // A peer that was told first is lost to us before our own signal comes.
            _ => self.runtime.block_on(async {
                tokio::time::timeout(STOP_GRACE, self.ctx.stop.cancelled()).await.is_ok()
            }),
        };
        let saved = match state.saving.take() {
            Some(saving) => saving.wait(),
            None => Ok(()),
        };
        if !told {
            return error;
        }
        // The lost peer is known; the state that shall be read is whole.
        if let Err(error) = self.gang.backend.synchronize(Stream::Comm) {
            tracing::debug!(%error, "while told to stop");
        }
        if self.rank != 0 || state.done == 0 {
            return StepError::Stopped;
        }
        let result = match saved {
            Ok(()) if state.saved == state.done => Ok(()),
            _ => {
                self.ctx.progress.activity("saving the last finished step");
                self.writer().write(&self.position(&state))
            }
        };
        match result {
            Ok(()) => StepError::Stopped,
            Err(error) => error,
        }
    }

    fn position(&self, state: &State) -> Position {
        Position {
            generation: self.generation,
            fingerprint: self.fingerprint,
            stage: self.pin().name.clone(),
            stage_step: state.done,
            step: self.run.steps_before(self.stage) + state.done,
            skipped: state.skipped,
            world_size: self.world as u32,
            instruction_set: longstrap_engine::instruction_set().to_owned(),
        }
    }

    fn writer(&self) -> Writer {
        let backend: Arc<dyn Backend> = Arc::clone(&self.gang.backend) as Arc<dyn Backend>;
        Writer {
            state: crate::step::state_of(&self.plan),
            staging: model::view(&self.plan, Name::CheckpointStaging),
            backend,
            store: self.ctx.store.clone(),
            attempt_id: self.ctx.attempt_id.clone(),
            scratch: self.ctx.cache_dir.join(format!("checkpoint-{}", self.generation)),
            runtime: self.runtime.clone(),
            progress: self.ctx.progress.clone(),
            link: self.link.clone(),
            keep_last: self.keep_last,
        }
    }

    fn finish(&self, trainer: &Trainer<'_>, state: &State) -> StepResult<Option<Finished>> {
        if self.rank != 0 {
            return Ok(None);
        }
        self.ctx.progress.activity("writing the stage's weights");
        let folder = self.ctx.cache_dir.join(format!("stage-{}-{}", self.pin().name, self.generation));
        let files = write_folder(trainer, &self.config, &self.start_from, &folder)?;
        let end = StageEnd {
            fingerprint: self.fingerprint,
            stage: self.pin().name.clone(),
            skipped: state.skipped,
            last_loss: state.last_loss,
            world_size: self.world as u32,
        };
        Ok(Some(Finished { end, folder, files }))
    }
}

fn engine(error: model::StepError) -> StepError {
    match error {
        model::StepError::Interrupted => StepError::Stopped,
        model::StepError::Engine(error) => StepError::Failed(error.into()),
    }
}
