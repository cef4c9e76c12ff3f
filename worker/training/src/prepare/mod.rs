//! The first step of a run: everything that decides content is resolved, tokenised and written
//! down, and what can never work ends here, before an accelerator is asked for.
//!
//! Invariant: done twice it writes the same `run.json`; what is already tokenised is not again.

pub(crate) mod capacity;
mod changes;
pub(crate) mod sources;
mod tokenise;
mod tokens;

use std::path::Path;

use anyhow::Context as _;
use longstrap_corpus::Phrases;
use longstrap_crds::context_extension_run as crd;
use longstrap_crds::task::{PinnedData, RunSpec};
use longstrap_crds::{ContextExtensionRunSpec, Reason};
use longstrap_dataset::HeldOutFile;
use longstrap_memory_plan::{Options, Placement, Plan, RunFiles, Shape, checkpoint_bytes, run_disk};
use longstrap_model::{ChatTemplate, LossOn, ModelConfig, ModelError, Tokenizer, Weights, check_hf};
use longstrap_runtime::{StepContext, StepError, StepResult, machine};
use longstrap_storage::{Digest, Hasher, RunCommit, keys};

use crate::evaluate;
use crate::optimizer::Adam;
use crate::run::{
    FORMAT_VERSION, HeldOutPin, ModelPin, SourcePin, StagePin, TrainingRun, export_dtype, resolve_evaluation,
    resolve_stages,
};
use crate::weights;
use sources::OpenSource;

/// Runs the step.
///
/// # Errors
/// See [`StepError`].
pub async fn prepare(ctx: &StepContext) -> StepResult {
    ctx.claim_storage().await?;
    let spec = training_spec(ctx)?;
    let model = open_model(ctx, spec).await?;
    let stages = resolve_stages(spec, model.config.rope.theta);
    check_windows(spec, &stages, model.config.max_position_embeddings)?;

    let mut data = ctx.task.data.clone();
    data.sort_by(|a, b| a.name.cmp(&b.name));
    let mut opened = Vec::with_capacity(data.len());
    for pinned in &mut data {
        ctx.progress.activity(format!("reading data source {}", pinned.name));
        let source = sources::open(ctx, pinned).await?;
        pinned.digest = Some(source.digest.clone());
        warn_of_other_counts(pinned, &source, &model);
        opened.push(source);
    }
    let pins = source_pins(spec, &data)?;
    let held_out = data.iter().zip(&opened).find_map(|(d, s)| Some((d, s.held_out.as_ref()?)));
    check_capacity(ctx, spec, &model, &stages, 0)?;
    let seed = spec.training.seed;
    if let Some(wanted) = resolve_evaluation(spec) {
        let Some((source, held_out)) = held_out else {
            return Err(StepError::invalid(
                Reason::InvalidData,
                "spec.evaluation needs held-out text and no data source has any: set heldOut in the SynthesisJob, or leave evaluation out",
            ));
        };
        ctx.progress.activity("checking the held-out text");
        let texts = sources::held_out_texts(ctx, source, &held_out.name, &held_out.digest).await?;
        evaluate::check(wanted, &stages, model.pin.window, seed, &texts, &model.tokenizer)?;
    }
    let phrases = match held_out {
        Some((source, held_out)) => sources::phrases(ctx, source, held_out).await?,
        None => Phrases::default(),
    };
    let manifest = tokens::write(ctx, &model, &pins, &opened, &stages, seed, &phrases).await?;
    let run = TrainingRun {
        format_version: FORMAT_VERSION,
        model: model.pin.clone(),
        data: pins,
        held_out: held_out.map(|(source, held_out)| pin_held_out(source, held_out, manifest.leaks)),
        tokens: manifest.content(),
        stages,
        seed,
        adam: Adam::default(),
        evaluation: resolve_evaluation(spec),
        export: export_dtype(spec, model.config.dtype),
    };
    check_capacity(ctx, spec, &model, &run.stages, manifest.sources.iter().map(|s| s.ids.bytes / 4).sum())?;
    let fingerprint = match ctx.store.commit_run(&run).await? {
        RunCommit::Committed(fingerprint) => fingerprint,
        RunCommit::Changed(changes) => {
            let list: Vec<String> =
                changes::describe(&changes, spec).iter().map(|line| format!("  {line}")).collect();
            return Err(StepError::invalid(
                Reason::FingerprintMismatch,
                format!(
                    "{} holds a run with other inputs; changed since:\n{}\nPut them back, start over with --restart-from stage or --restart-from data, or take another --out folder (spec.storage.uri)",
                    ctx.store.uri(),
                    list.join("\n")
                ),
            ));
        }
    };
    ctx.termination.write(|message| {
        message.fingerprint = Some(fingerprint.to_string());
        message.data.clone_from(&data);
        message.checkpoint_bytes = Some(checkpoint_bytes(model.shape));
        message.committed = 1;
    })?;
    Ok(())
}

/// The spec of the task.
///
/// # Errors
/// When the task is of the other kind: a bug of the planner.
pub(crate) fn training_spec(ctx: &StepContext) -> StepResult<&ContextExtensionRunSpec> {
    match &ctx.task.spec {
        RunSpec::ContextExtensionRun(spec) => Ok(spec),
        RunSpec::SynthesisJob(_) => {
            Err(StepError::Failed(anyhow::anyhow!("this step belongs to a ContextExtensionRun")))
        }
    }
}

/// The model that is extended.
pub(crate) struct SourceModel {
    pub(crate) config: ModelConfig,
    pub(crate) shape: Shape,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    pub(crate) pin: ModelPin,
}

async fn open_model(ctx: &StepContext, spec: &ContextExtensionRunSpec) -> StepResult<SourceModel> {
    ctx.progress.activity("reading the model");
    let dir = ctx.fetch_dir(&spec.model.uri).await?;
    let invalid = |e: ModelError| StepError::invalid(Reason::InvalidModel, e.to_string());
    let bad_tokenizer = |e: ModelError| StepError::invalid(Reason::InvalidTokenizer, e.to_string());
    check_hf(&dir).map_err(invalid)?;
    let config = ModelConfig::load(&dir).map_err(invalid)?;
    // Later only its digest is compared.
    if ctx.store.size(keys::RUN).await?.is_none() {
        weights::check_finite(&Weights::open(&dir).map_err(invalid)?, &config.shape())?;
    }
    let tokenizer = Tokenizer::load(&dir).map_err(bad_tokenizer)?;
    let template = ChatTemplate::load(&dir, &tokenizer).map_err(bad_tokenizer)?;
    let pin = ModelPin {
        config: sources::digest_of(&dir.join("config.json"))?,
        weights: weights_digest(&dir)?,
        tokenizer: tokenizer.digest(),
        template: template.digest(),
        window: config.max_position_embeddings,
        rope_base: config.rope.theta,
    };
    Ok(SourceModel { shape: config.shape(), config, tokenizer, template, pin })
}

/// One digest over all weight files, by name.
pub(crate) fn weights_digest(dir: &Path) -> StepResult<Digest> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut names: Vec<String> = list
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.ends_with(".safetensors"))
        .collect();
    names.sort();
    let mut all = Hasher::default();
    for name in names {
        all.update(format!("{name} {}\n", sources::digest_of(&dir.join(&name))?));
    }
    Ok(all.finish())
}

fn check_windows(spec: &ContextExtensionRunSpec, stages: &[StagePin], window: usize) -> StepResult {
    let first = &stages[0];
    if first.context_length <= window && !spec.allow_window_not_extended {
        return Err(StepError::invalid(
            Reason::WindowNotExtended,
            format!(
                "stage {} has contextLength {} and the model's window is already {window}: take a longer first stage, or set allowWindowNotExtended: true",
                first.name, first.context_length
            ),
        ));
    }
    match stages.windows(2).find(|w| w[1].context_length <= w[0].context_length) {
        None => Ok(()),
        Some(w) => Err(StepError::invalid(
            Reason::WindowNotExtended,
            format!(
                "stage {} has contextLength {}, not longer than {} of stage {} before it",
                w[1].name, w[1].context_length, w[0].context_length, w[0].name
            ),
        )),
    }
}

fn warn_of_other_counts(data: &PinnedData, source: &OpenSource, model: &SourceModel) {
    if let Some((tokenizer, template)) = &source.counted_with
        && (*tokenizer != model.pin.tokenizer || *template != model.pin.template)
    {
        tracing::warn!(
            source = data.name,
            "its lengths were counted with another tokenizer or chat template: samples may be longer or shorter here"
        );
    }
}

fn source_pins(spec: &ContextExtensionRunSpec, data: &[PinnedData]) -> StepResult<Vec<SourcePin>> {
    let pin = |pinned: &PinnedData| {
        let source = spec.data.iter().find(|s| s.name == pinned.name);
        let source = source
            .with_context(|| format!("the task names data source {} and the spec does not", pinned.name))?;
        Ok(SourcePin {
            name: pinned.name.clone(),
            digest: pinned.digest.clone().unwrap_or_default(),
            weight: source.weight(),
            loss_on: match source.loss_on() {
                crd::LossOn::All => LossOn::All,
                crd::LossOn::Response => LossOn::Response,
            },
        })
    };
    data.iter().map(pin).collect()
}

fn pin_held_out(data: &PinnedData, held_out: &HeldOutFile, leaks: u64) -> HeldOutPin {
    HeldOutPin {
        source: data.name.clone(),
        name: held_out.name.clone(),
        digest: held_out.digest,
        documents: held_out.documents,
        tokens: held_out.tokens,
        leaks,
    }
}

/// Options of the memory plan for a spec's ranks.
pub(crate) fn plan_options(ctx: &StepContext, ranks: usize, sources: usize) -> Options {
    Options { ranks, threads: ctx.task.threads_per_rank.max(1) as usize, sources, ..Options::default() }
}

fn check_capacity(
    ctx: &StepContext,
    spec: &ContextExtensionRunSpec,
    model: &SourceModel,
    stages: &[StagePin],
    data_tokens: u64,
) -> StepResult {
    // Pods of a cluster have limits of their own: this one's says nothing about those that train.
    let machine = if ctx.task.one_machine { machine::memory() } else { None };
    let accelerator = spec.accelerator_memory.map(longstrap_crds::Length::get);
    let mut largest = None;
    for (stage, asked) in stages.iter().zip(&spec.stages) {
        let spread = asked.parallelism(&spec.parallelism);
        let ranks = spread.ranks() as usize;
        let placement = Placement {
            nodes: spread.nodes,
            ranks_per_node: spread.ranks_per_node,
            one_machine: ctx.task.one_machine,
        };
        let memory = placement.planned_by(accelerator, machine);
        let options = plan_options(ctx, ranks, spec.data.len());
        let plan = Plan::within(model.shape, stage.context_length, options, memory);
        if let Some(memory) = accelerator {
            capacity::check_memory(&stage.name, &plan, memory, "acceleratorMemory")?;
        }
        if let Some(memory) = machine {
            let what = format!("this machine's memory for each of {ranks} rank(s)");
            capacity::check_memory(&stage.name, &plan, placement.share(memory), &what)?;
        }
        largest = Some(plan);
    }
    let (Some(plan), Some(root)) = (largest, ctx.store.local_root()) else { return Ok(()) };
    let files = RunFiles {
        stages: stages.len(),
        keep_last: spec.training.checkpoint.keep_last as usize,
        data_tokens,
        export_bytes: export_dtype(spec, model.config.dtype).size(),
    };
    // What is there already needs no more room.
    let there = ctx.store.local_root().map_or(0, |r| folder_bytes(&r));
    capacity::check_disk(&root, run_disk(&plan, files).saturating_sub(there))
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    list.flatten().map(size).sum()
}
