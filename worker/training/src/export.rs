//! The last step of a run: the model as other tools read it, the results and the report.
//!
//! Invariant: bytes are a function of what is committed, so a late writer writes the same; the
//! manifest with the digests comes last.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_evaluation::{HeldOut, PhaseTime, Results, html};
use longstrap_model::{Dtype, Export, MAX_SHARD_BYTES, ModelConfig, Weights};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Commit, Digest, ObjectRef, Run, keys};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::evaluate::Evaluation;
use crate::log::{RunLog, join};
use crate::run::{FORMAT_VERSION, TrainingRun};
use crate::stage_end::StageManifest;
use crate::tokens::TokensManifest;

/// The report.
const REPORT: &str = "report.html";

/// `model/model.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelManifest {
    /// Format of this file.
    pub format_version: u32,
    /// sha256 of `run.json`.
    pub fingerprint: Digest,
    /// Window of the model.
    pub context_length: usize,
    /// Its RoPE base.
    pub rope_base: f64,
    /// Type of its weights.
    pub dtype: Dtype,
    /// Ranks and instructions that each stage was computed with: others give other last bits.
    pub computed_with: Vec<ComputedWith>,
    /// Files of the folder.
    pub files: Vec<ObjectRef>,
}

/// What the last bits of a stage's weights depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComputedWith {
    /// The stage.
    pub stage: String,
    /// Ranks.
    pub world_size: u32,
    /// Instructions.
    pub instruction_set: String,
    /// Steps that were skipped because a gradient was not finite.
    pub skipped: u64,
}

/// Runs the step.
///
/// # Errors
/// See [`StepError`].
pub async fn export(ctx: &StepContext) -> StepResult {
    let start = Instant::now();
    let run: Run<TrainingRun> = ctx.store.read_run(FORMAT_VERSION).await?;
    let mut stages = Vec::with_capacity(run.content.stages.len());
    for stage in &run.content.stages {
        let manifest = StageManifest::load(&ctx.store, &stage.name).await?;
        stages.push(manifest.with_context(|| format!("stage {} is not finished", stage.name))?);
    }
    if ctx.store.try_get(keys::MODEL_MANIFEST).await?.is_none() {
        publish_model(ctx, &run, &stages).await?;
        let mut log = RunLog::new(&ctx.store, &format!("{}-export", ctx.attempt_id));
        log.note("export", start.elapsed(), json!({})).await?;
    }
    publish_results(ctx, &run.content).await?;
    clean(ctx, &run.content, &stages).await?;
    ctx.termination.write(|message| {
        message.fingerprint = Some(run.fingerprint.to_string());
        message.model = Some(ctx.store.uri_of(keys::MODEL));
        message.committed = 1;
    })?;
    Ok(())
}

async fn publish_model(ctx: &StepContext, run: &Run<TrainingRun>, stages: &[StageManifest]) -> StepResult {
    let last = run.content.stages.last().context("a run without stages")?;
    let source = stages.last().context("a run without stages")?.fetch(ctx).await?;
    let bad = |e: longstrap_model::ModelError| StepError::invalid(Reason::DataChanged, e.to_string());
    let config = ModelConfig::load(&source).map_err(bad)?;
    let weights = Weights::open(&source).map_err(bad)?;
    weights.check(&config).map_err(bad)?;
    let folder = ctx.cache_dir.join("model");
    let tensors = config.tensors().len();
    let mut done = 0;
    ctx.progress.activity("writing the model");
    let what = Export {
        config: &config,
        source: &source,
        dtype: run.content.export,
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    let written = longstrap_model::export(&what, &folder, |tensor, values| {
        done += 1;
        ctx.progress.work(f64::from(done), tensors as f64, "tensors");
        weights.copy_f32(&tensor.name, values)
    })
    .map_err(crate::weights::writing_failed)?;
    let mut files = Vec::with_capacity(written.len());
    for file in &written {
        ctx.check_stop()?;
        ctx.progress.activity(format!("uploading {}", file.name));
        let key = format!("{}/{}", keys::MODEL, file.name);
        let sent = |bytes| ctx.progress.work(bytes as f64, file.bytes as f64, "bytes");
        files.push(ctx.store.put_file(&key, &folder.join(&file.name), &sent).await?);
    }
    let computed = |m: &StageManifest| ComputedWith {
        stage: m.stage.clone(),
        world_size: m.world_size,
        instruction_set: m.instruction_set.clone(),
        skipped: m.skipped,
    };
    let manifest = ModelManifest {
        format_version: FORMAT_VERSION,
        fingerprint: run.fingerprint,
        context_length: last.context_length,
        rope_base: last.rope_base,
        dtype: run.content.export,
        computed_with: stages.iter().map(computed).collect(),
        files,
    };
    let mut bytes = serde_json::to_vec_pretty(&manifest).context("model.json")?;
    bytes.push(b'\n');
    let _ = ctx.store.commit(keys::MODEL_MANIFEST, bytes, &Commit::Published).await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

async fn publish_results(ctx: &StepContext, run: &TrainingRun) -> StepResult {
    let times = join(&ctx.store).await?;
    let evaluations = Evaluation::all(run);
    let Some(held_out) = run.held_out.as_ref().filter(|_| !evaluations.is_empty()) else { return Ok(()) };
    ctx.progress.activity("writing results and report");
    let mut models = Vec::with_capacity(evaluations.len());
    for evaluation in evaluations {
        let scores = evaluation.load(&ctx.store, run).await?;
        models.push(scores.with_context(|| format!("{} is missing", evaluation.key(run)))?);
    }
    let held_out = HeldOut {
        digest: held_out.digest.to_string(),
        documents: held_out.documents as usize,
        tokens: held_out.tokens as usize,
        leaks: held_out.leaks as usize,
    };
    let results = Results::new(run.model.window, held_out, models);
    let bytes = results.to_json().context("results.json")?;
    let _ = ctx.store.commit(keys::RESULTS, bytes, &Commit::Published).await?;
    let times: Vec<PhaseTime> =
        times.into_iter().map(|(name, seconds)| PhaseTime { name, seconds }).collect();
    let report = html(&ctx.task.owner.name, &results, &times).context("report")?;
    Ok(ctx.store.put(REPORT, report).await?)
}

/// Removes what dead writers left and no manifest names.
async fn clean(ctx: &StepContext, run: &TrainingRun, stages: &[StageManifest]) -> StepResult {
    let named: BTreeSet<String> = stages.iter().flat_map(|s| &s.files).map(|f| f.key.clone()).collect();
    for stage in &run.stages {
        ctx.store.sweep(&keys::stage(&stage.name), &named, &ctx.attempt_id).await?;
    }
    if let Some(tokens) = TokensManifest::load(&ctx.store).await? {
        let sources = tokens.sources.iter().flat_map(|s| [&s.ids, &s.index]);
        let named = sources.chain(&tokens.plans).map(|o| o.key.clone()).collect();
        ctx.store.sweep(keys::TOKENS, &named, &ctx.attempt_id).await?;
    }
    Ok(())
}
