//! One rank of a gang: walks the list of its Job (evaluate the base, stage 1, evaluate, stage 2, …)
//! from the first item that storage does not hold.
//!
//! Invariant: an item is done when its manifest is committed; every rank walks the same list and
//! waits for each manifest, so all agree on what comes next without speaking about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_engine::{CpuBackend, CpuComm, CpuOptions, TcpOptions};
use longstrap_evaluation::ModelKind;
use longstrap_memory_plan::{Placement, Plan};
use longstrap_model::{ModelConfig, Rope};
use longstrap_runtime::rank::{AgentLink, RankEnv};
use longstrap_runtime::{StepContext, StepError, StepResult, machine};
use longstrap_storage::{CheckpointId, Digest, Run};
use serde_json::json;
use tokio::runtime::Handle;

use crate::aside::aside;
use crate::checkpoint;
use crate::evaluate::{Evaluation, Subject, evaluate, texts};
use crate::log::RunLog;
use crate::prepare::capacity::check_memory;
use crate::prepare::sources::digest_of;
use crate::prepare::{plan_options, training_spec, weights_digest};
use crate::run::{FORMAT_VERSION, TrainingRun};
use crate::stage::{Gang, OnPlace, StageTraining};
use crate::stage_end::{self, StageManifest};
use crate::tokens::{Rows, TokensManifest};

/// How often a manifest is looked for.
const POLL: Duration = Duration::from_millis(300);

/// Runs one rank to the end of its Job's list.
///
/// # Errors
/// See [`StepError`].
pub async fn rank(ctx: &StepContext, environment: RankEnv, link: AgentLink) -> StepResult {
    rank_observed(ctx, environment, link, Arc::new(|_, _, _| {})).await
}

/// As [`rank`]; `on_place` hears of every place of every step before it runs.
pub(crate) async fn rank_observed(
    ctx: &StepContext,
    environment: RankEnv,
    link: AgentLink,
    on_place: OnPlace,
) -> StepResult {
    let run: Run<TrainingRun> = ctx.store.read_run(FORMAT_VERSION).await?;
    let spec = training_spec(ctx)?;
    let model_dir = ctx.fetch_dir(&spec.model.uri).await?;
    let config =
        ModelConfig::load(&model_dir).map_err(|e| StepError::invalid(Reason::InvalidModel, e.to_string()))?;
    let writer = format!("{}-{}-{}", ctx.attempt_id, environment.generation, environment.rank);
    let mut walk = Walk {
        ctx,
        log: RunLog::new(&ctx.store, &writer),
        run,
        config,
        model_dir,
        place: (environment.rank as usize, environment.world as usize, environment.generation),
        resume: environment.resume,
        environment: Some(environment),
        link,
        gang: None,
    };
    walk.check_model()?;
    for stage in ctx.task.stages.start as usize..ctx.task.stages.end as usize {
        let items = Evaluation::all(&walk.run.content);
        let (before, after): (Vec<_>, Vec<_>) =
            items.into_iter().filter(|e| e.stage == stage).partition(|e| e.kind != ModelKind::Trained);
        walk.evaluations(&before).await?;
        walk.train(stage, &on_place).await?;
        walk.evaluations(&after).await?;
    }
    Ok(())
}

struct Walk<'a> {
    ctx: &'a StepContext,
    run: Run<TrainingRun>,
    config: ModelConfig,
    model_dir: std::path::PathBuf,
    /// Newest checkpoint when the gang formed.
    resume: Option<CheckpointId>,
    /// Taken when the gang connects.
    environment: Option<RankEnv>,
    link: AgentLink,
    gang: Option<Gang>,
    log: RunLog,
    /// Rank, world size, generation.
    place: (usize, usize, u64),
}

impl Walk<'_> {
    /// The model must be the one that `prepare` saw; one rank reads the weights for all.
    fn check_model(&self) -> StepResult {
        let pin = &self.run.content.model;
        let changed = |what: &str, found: &Digest, pinned: &Digest| {
            let message = format!(
                "{what} of {} is {found}, the run is bound to {pinned}: restore the model, or make another run",
                self.model_dir.display()
            );
            Err(StepError::invalid(Reason::DataChanged, message))
        };
        let config = digest_of(&self.model_dir.join("config.json"))?;
        if config != pin.config {
            return changed("config.json", &config, &pin.config);
        }
        if self.place.0 == 0 {
            let weights = weights_digest(&self.model_dir)?;
            if weights != pin.weights {
                return changed("the digest of the weights", &weights, &pin.weights);
            }
        }
        Ok(())
    }

    /// Measures what this rank has to, and waits until all of `items` are committed.
    async fn evaluations(&mut self, items: &[Evaluation]) -> StepResult {
        let mut missing = Vec::new();
        for item in items {
            if item.load(&self.ctx.store, &self.run.content).await?.is_none() {
                missing.push(*item);
            }
        }
        let (rank, world, _) = self.place;
        // Several at once share the machine; a single one has it to itself.
        let sharing = missing.len().min(world);
        let threads = match sharing {
            0 | 1 => self.ctx.task.threads_per_rank * self.ctx.task.ranks_per_node,
            _ => self.ctx.task.threads_per_rank,
        };
        for (i, item) in missing.iter().enumerate() {
            if i % world == rank {
                self.evaluate(*item, threads.max(1) as usize).await?;
            }
        }
        for item in missing {
            let run = self.run.content.clone();
            self.wait_for(&item.describe(&run), &item.key(&run)).await?;
        }
        Ok(())
    }

    async fn evaluate(&mut self, item: Evaluation, threads: usize) -> StepResult {
        let start = Instant::now();
        let run = self.run.content.clone();
        let held_out = run.held_out.as_ref().context("an evaluation without held-out text")?;
        let texts = Arc::new(texts(self.ctx, held_out).await?);
        let stage = &run.stages[item.stage];
        let (dir, rope_base, rope) = match item.kind {
            ModelKind::Base => (self.model_dir.clone(), run.model.rope_base, None),
            ModelKind::BaseChange => {
                let rope = Rope { theta: stage.rope_base, ..self.config.rope };
                (self.model_dir.clone(), stage.rope_base, Some(rope))
            }
            ModelKind::Trained => {
                let manifest = StageManifest::load(&self.ctx.store, &stage.name).await?;
                let manifest = manifest.context("a trained model that is not there")?;
                (manifest.fetch(self.ctx).await?, stage.rope_base, None)
            }
        };
        let subject = Subject { evaluation: item, dir, rope, rope_base, threads };
        evaluate(self.ctx, &run, texts, subject).await?;
        self.log.note(&item.describe(&run), start.elapsed(), json!({"window": stage.context_length})).await
    }

    /// Waits for another rank's commit; says so, and so shows that it lives.
    async fn wait_for(&self, what: &str, key: &str) -> StepResult {
        let start = Instant::now();
        while self.ctx.store.size(key).await?.is_none() {
            let seconds = start.elapsed().as_secs();
            self.ctx.progress.activity(format!("another rank is {what} ({seconds} s)"));
            tokio::select! {
                () = self.ctx.stop.cancelled() => return Err(StepError::Stopped),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        Ok(())
    }

    fn plan(&self, stage: usize) -> StepResult<Plan> {
        let run = &self.run.content;
        let options = plan_options(self.ctx, self.place.1, run.data.len());
        let accelerator = training_spec(self.ctx)?.accelerator_memory.map(longstrap_crds::Length::get);
        let memory = self.placement().planned_by(accelerator, machine::memory());
        Ok(Plan::within(self.config.shape(), run.stages[stage].context_length, options, memory))
    }

    fn placement(&self) -> Placement {
        let task = &self.ctx.task;
        Placement { nodes: task.workers, ranks_per_node: task.ranks_per_node, one_machine: task.one_machine }
    }

    /// Trains a stage unless it is committed.
    async fn train(&mut self, stage: usize, on_place: &OnPlace) -> StepResult {
        let name = self.run.content.stages[stage].name.clone();
        let (rank, world, generation) = self.place;
        if StageManifest::load(&self.ctx.store, &name).await?.is_some() {
            return Ok(());
        }
        self.ctx.progress.update(|report| {
            report.stage.clone_from(&name);
            report.of = self.run.content.stages[stage].learning_rate.steps;
            report.count = 0;
        });
        let resume = self.resume(stage).await?;
        self.connect().await?;
        let (start_from, before) = match stage {
            0 => (self.model_dir.clone(), self.config.clone()),
            _ => {
                let previous = &self.run.content.stages[stage - 1].name;
                let manifest = StageManifest::load(&self.ctx.store, previous).await?;
                let manifest = manifest.with_context(|| format!("stage {previous} is not finished"))?;
                let dir = manifest.fetch(self.ctx).await?;
                let config = ModelConfig::load(&dir).context("the stage before")?;
                (dir, config)
            }
        };
        let pin = &self.run.content.stages[stage];
        let manifest =
            TokensManifest::load(&self.ctx.store).await?.context("tokens/tokens.json is missing")?;
        if manifest.content() != self.run.content.tokens {
            let message = "tokens/tokens.json is not the one that run.json names: restore the storage";
            return Err(StepError::invalid(Reason::DataChanged, message));
        }
        let spec = training_spec(self.ctx)?;
        let training = StageTraining {
            link: self.link.clone(),
            runtime: Handle::current(),
            gang: self.gang.take().context("the gang has connected")?,
            rank,
            world,
            plan: self.plan(stage)?,
            rows: Rows::open(&self.ctx.store, &manifest, stage).await?,
            run: self.run.content.clone(),
            fingerprint: self.run.fingerprint,
            generation,
            stage,
            start_from,
            config: before.extended(pin.context_length, pin.rope_base),
            resume,
            every: Duration::from_secs(spec.training.checkpoint.every_seconds),
            keep_last: spec.training.checkpoint.keep_last as usize,
            log: self.log.clone(),
            on_place: Arc::clone(on_place),
            ctx: self.ctx.clone(),
        };
        tracing::info!(stage = name, rank, world, generation, "training");
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("training".to_owned()).spawn(move || {
            // Nobody listens when the process is ending.
            drop(send.send(training.train_and_return()));
        })?;
        let (finished, gang, log) = receive.await.context("the training thread has ended")?;
        (self.gang, self.log) = (Some(gang), log);
        if let Some(finished) = finished? {
            stage_end::commit(self.ctx, &finished.end, &finished.folder, &finished.files).await?;
            std::fs::remove_dir_all(&finished.folder)?;
        }
        let key = longstrap_storage::keys::stage_manifest(&name);
        self.wait_for(&format!("writing the weights of stage {name}"), &key).await
    }

    /// The checkpoint to go on from, when it is one of this stage.
    async fn resume(&mut self, stage: usize) -> StepResult<Option<checkpoint::CheckpointManifest>> {
        // Once: by the next stage it is old, and perhaps deleted.
        let Some(id) = self.resume.take() else { return Ok(None) };
        let manifest = checkpoint::load_manifest(&self.ctx.store, id, &self.run.fingerprint).await?;
        Ok((manifest.stage == self.run.content.stages[stage].name).then_some(manifest))
    }

    /// Allocates the arenas and meets the other ranks, once.
    async fn connect(&mut self) -> StepResult {
        let Some(environment) = self.environment.take() else { return Ok(()) };
        let stages = self.ctx.task.stages.start as usize..self.ctx.task.stages.end as usize;
        let plans: Vec<(usize, Plan)> = stages.map(|s| Ok((s, self.plan(s)?))).collect::<StepResult<_>>()?;
        let longest = plans.iter().max_by_key(|(_, plan)| plan.device_bytes);
        let (stage, longest) = longest.context("a Job without stages")?;
        if let Some(memory) = machine::memory() {
            check_memory(
                &self.run.content.stages[*stage].name,
                longest,
                self.placement().share(memory),
                "a rank's share of this machine's memory",
            )?;
        }
        let options = CpuOptions {
            device_bytes: longest.device_bytes,
            host_bytes: longest.host_bytes,
            threads: longest.options.threads,
        };
        self.ctx.progress.activity("waiting for the other ranks");
        let patience = Duration::from_secs(self.ctx.task.rank_timeout_seconds);
        // One that was told to stop may never come.
        let met = aside(self.ctx, "meeting", move || meet(environment, options, patience)).await?;
        self.gang = Some(met?);
        Ok(())
    }
}

/// Blocks until all ranks have come.
fn meet(environment: RankEnv, options: CpuOptions, patience: Duration) -> StepResult<Gang> {
    let backend = CpuBackend::new(options).map_err(anyhow::Error::from)?;
    let comm = match environment.world {
        1 => CpuComm::solo(&backend),
        _ => CpuComm::tcp(
            &backend,
            &TcpOptions {
                listener: environment.listener,
                peers: environment.peers,
                rank: environment.rank as usize,
                generation: environment.generation,
                token: environment.token.into_bytes(),
                join_timeout: patience,
                timeout: patience,
            },
        )
        .map_err(anyhow::Error::from)?,
    };
    Ok(Gang { backend, comm: Some(Box::new(comm)) })
}
