//! Token files and row plans of a run: made once, or taken over.
//!
//! Invariant: with equal inputs the content is equal, whoever made it; a run that starts over at its
//! stages takes the token files of the run before, when model and source are still the same.

use std::path::Path;

use anyhow::Context as _;
use longstrap_corpus::Phrases;
use longstrap_crds::Reason;
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Commit, CommitOutcome, Digest, ObjectRef, RestartFrom, Store, keys};

use super::SourceModel;
use super::sources::OpenSource;
use super::tokenise::Renderer;
use crate::data::row_plan::{RowPlan, Source, StageRows};
use crate::run::{FORMAT_VERSION, SourcePin, StagePin, TrainingRun};
use crate::tokens::{SourceIndex, SourceObjects, TokensManifest};

/// Token files and row plans: those that are there when their inputs are equal, else new ones.
///
/// # Errors
/// As the store answers; samples that cannot be rendered, sources that repeat too often.
pub(super) async fn write(
    ctx: &StepContext,
    model: &SourceModel,
    pins: &[SourcePin],
    opened: &[OpenSource],
    stages: &[StagePin],
    seed: u64,
    phrases: &Phrases,
) -> StepResult<TokensManifest> {
    let kept_out = Digest::of(phrases.to_bytes());
    let inputs = serde_json::to_vec(&(
        &model.pin.tokenizer,
        &model.pin.template,
        model.shape.vocab,
        pins,
        stages,
        seed,
        kept_out,
    ))
    .context("inputs as JSON")?;
    let inputs = Digest::of(inputs);
    if let Some(manifest) = TokensManifest::load(&ctx.store).await? {
        // With other inputs the new `run.json` differs, too, and its commit refuses with the fields;
        // before there is one, nothing depends on what was tokenised.
        if manifest.inputs == inputs || ctx.store.try_get(keys::RUN).await?.is_some() {
            return Ok(manifest);
        }
        ctx.store.delete(keys::TOKENS_MANIFEST).await?;
    }
    let scratch = ctx.cache_dir.join("tokens");
    std::fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let renderer = Renderer {
        tokenizer: &model.tokenizer,
        template: &model.template,
        vocab: model.shape.vocab,
        phrases,
    };
    // Leaks were counted with the phrases of then.
    let earlier = Earlier::load(ctx).await?.filter(|earlier| earlier.tokens.phrases == kept_out);
    let mut leaks = 0;
    let mut objects = Vec::with_capacity(pins.len());
    let mut sources = Vec::with_capacity(pins.len());
    for (pin, source) in pins.iter().zip(opened) {
        let path = scratch.join(&pin.name);
        let taken_over = match &earlier {
            Some(earlier) => earlier.take_over(ctx, model, pin, &path).await?,
            None => None,
        };
        let index = match taken_over {
            Some(index) => index,
            None => renderer.source(ctx, &pin.name, source, pin.loss_on, &path)?,
        };
        let key = keys::working(keys::TOKENS, &ctx.attempt_id, &format!("{}.ids", pin.name));
        let ids = ctx.store.put_file(&key, &path, &|_| {}).await?;
        let index_object = put_json(ctx, &format!("{}.index.json", pin.name), &index).await?;
        objects.push(SourceObjects { name: pin.name.clone(), ids, index: index_object });
        sources.push(plan_source(pin, &index));
        if index.leaks > 0 {
            tracing::warn!(
                "data source {} repeats {} phrases of the evaluation: its results may flatter the trained models",
                pin.name,
                index.leaks
            );
        }
        leaks += index.leaks;
    }
    let mut plans = Vec::with_capacity(stages.len());
    for stage in stages {
        let plan = plan_rows(seed, stage, &sources)?;
        plans.push(put_json(ctx, &format!("{}.rows.json", stage.name), &plan).await?);
    }
    let manifest = TokensManifest {
        attempt_id: ctx.attempt_id.clone(),
        inputs,
        phrases: kept_out,
        leaks,
        sources: objects,
        plans,
    };
    let bytes = serde_json::to_vec_pretty(&manifest).context("tokens.json")?;
    let commit = Commit::Working { attempt_id: ctx.attempt_id.clone() };
    match ctx.store.commit(keys::TOKENS_MANIFEST, bytes, &commit).await? {
        CommitOutcome::Won => Ok(manifest),
        CommitOutcome::Lost(winner) => crate::tokens::json(&ctx.store, keys::TOKENS_MANIFEST, &winner),
    }
}

/// The run before, when this one keeps its data.
pub(super) struct Earlier {
    store: Store,
    run: TrainingRun,
    tokens: TokensManifest,
}

impl Earlier {
    /// The run that a restart keeps the data of; none when it has not come so far.
    ///
    /// # Errors
    /// As the store answers; a malformed `run.json`.
    pub(super) async fn load(ctx: &StepContext) -> StepResult<Option<Self>> {
        if ctx.restart.as_ref().is_none_or(|r| r.from != RestartFrom::Stage) {
            return Ok(None);
        }
        let store = ctx.storage.sub(&keys::restart(ctx.restarts - 1));
        let there = store.try_get(keys::RUN).await?.is_some();
        match TokensManifest::load(&store).await? {
            Some(tokens) if there => {
                let run = store.read_run(FORMAT_VERSION).await?.content;
                Ok(Some(Self { store, run, tokens }))
            }
            _ => Ok(None),
        }
    }

    /// Copies a source's ids to `out` when nothing that decides them has changed.
    ///
    /// # Errors
    /// As the store answers; torn objects.
    pub(super) async fn take_over(
        &self,
        ctx: &StepContext,
        model: &SourceModel,
        pin: &SourcePin,
        out: &Path,
    ) -> StepResult<Option<SourceIndex>> {
        let (then, now) = (&self.run.model, &model.pin);
        let same_model =
            (&then.config, &then.tokenizer, &then.template) == (&now.config, &now.tokenizer, &now.template);
        let same_source = |p: &&SourcePin| {
            (&p.name, &p.digest, p.loss_on) == (&pin.name, &pin.digest, pin.loss_on) && same_model
        };
        let objects = self.tokens.sources.iter().find(|s| s.name == pin.name);
        let (Some(objects), Some(_)) = (objects, self.run.data.iter().find(same_source)) else {
            return Ok(None);
        };
        ctx.progress.activity(format!("taking over the tokens of data source {}", pin.name));
        self.store.download_verified(&objects.ids, out, &|_| ctx.progress.update(|_| ())).await?;
        let index = self.store.get_verified(&objects.index).await?;
        crate::tokens::json(&self.store, &objects.index.key, &index).map(Some)
    }
}

async fn put_json(ctx: &StepContext, name: &str, value: &impl serde::Serialize) -> StepResult<ObjectRef> {
    let bytes = serde_json::to_vec(value).with_context(|| name.to_owned())?;
    Ok(ctx.store.put_ref(&keys::working(keys::TOKENS, &ctx.attempt_id, name), bytes).await?)
}

fn plan_source(pin: &SourcePin, index: &SourceIndex) -> Source {
    let samples = index.samples.iter().map(crate::tokens::IndexedSample::size).collect();
    Source { name: pin.name.clone(), weight: pin.weight, samples }
}

fn plan_rows(seed: u64, stage: &StagePin, sources: &[Source]) -> StepResult<RowPlan> {
    let rows = StageRows {
        name: stage.name.clone(),
        length: stage.context_length,
        steps: stage.learning_rate.steps as usize,
        tokens_per_step: stage.tokens_per_step,
        max_epochs: stage.max_epochs,
    };
    let plan = RowPlan::new(seed, &rows, sources)
        .map_err(|e| StepError::invalid(Reason::InvalidData, e.to_string()))?;
    for used in &plan.sources {
        let (name, stage) = (&used.name, &stage.name);
        if used.epochs > 1.0 {
            tracing::warn!("stage {stage} goes {:.1} times through data source {name}", used.epochs);
        }
        if used.too_long > 0 {
            tracing::info!("{} samples of data source {name} are too long for stage {stage}", used.too_long);
        }
        if used.without_loss > 0 {
            tracing::warn!("{} samples of data source {name} have no token with a loss", used.without_loss);
        }
    }
    Ok(plan)
}
