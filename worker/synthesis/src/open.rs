//! What a pod needs from outside to work on a run that is prepared: target model, corpus and
//! generator, each checked against `run.json`.

use std::path::Path;
use std::time::Duration;

use longstrap_corpus::{CorpusManifest, fetch, load_manifest};
use longstrap_crds::synthesis_job::Generator as GeneratorSpec;
use longstrap_crds::task::{ENV_API_KEYS_DIR, RunSpec};
use longstrap_crds::{Reason, SynthesisJobSpec};
use longstrap_inference::GeneratorOptions;
use longstrap_model::{ModelConfig, ModelError, check_hf};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Digest, Run, keys};

use crate::bench::Bench;
use crate::error::SynthError;
use crate::llm::Llm;
use crate::llm::embedded::Embedded;
use crate::llm::openai::{ApiKey, Endpoint, OpenAi};
use crate::run::{FORMAT_VERSION, GeneratorRun, SynthesisRun};
use crate::target::Target;

/// The API key itself, where there is no folder of keys (local runs).
pub const ENV_API_KEY: &str = "LONGSTRAP_API_KEY";

/// The spec of a SynthesisJob's task.
pub(crate) fn spec(ctx: &StepContext) -> StepResult<&SynthesisJobSpec> {
    match &ctx.task.spec {
        RunSpec::SynthesisJob(spec) => Ok(spec),
        RunSpec::ContextExtensionRun(_) => {
            Err(anyhow::anyhow!("the task of a synthesis step holds the spec of a ContextExtensionRun")
                .into())
        }
    }
}

/// The prepared run.
pub(crate) async fn run(ctx: &StepContext) -> StepResult<Run<SynthesisRun>> {
    Ok(ctx.store.read_run::<SynthesisRun>(FORMAT_VERSION).await?)
}

/// Tokenizer and template of the target model.
pub(crate) async fn target(ctx: &StepContext, spec: &SynthesisJobSpec) -> StepResult<Target> {
    let dir = ctx.fetch_dir(&spec.tokenizer.uri).await?;
    Ok(Target::load(&dir).map_err(SynthError::from)?)
}

/// The manifest of the run's corpus.
pub(crate) async fn corpus(ctx: &StepContext, run: &SynthesisRun) -> StepResult<CorpusManifest> {
    let manifest = load_manifest(&ctx.store).await.map_err(SynthError::from)?.ok_or_else(|| {
        anyhow::anyhow!("run.json is there but the corpus that it names is not: was it deleted?")
    })?;
    if manifest.digest != run.corpus.digest {
        let message = format!(
            "{} is not the corpus that this run was prepared with: {}, was {}; put it back, or start over with \
             --restart-from data",
            ctx.store.uri_of(keys::CORPUS_MANIFEST),
            manifest.digest,
            run.corpus.digest
        );
        return Err(StepError::invalid(Reason::DataChanged, message));
    }
    Ok(manifest)
}

/// Everything that the steps work with.
pub(crate) async fn bench(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    run: SynthesisRun,
) -> StepResult<Bench> {
    let target = target(ctx, spec).await?;
    for (what, now, pinned) in [
        ("tokenizer", target.tokenizer().digest(), &run.target.tokenizer),
        ("chat template", target.template().digest(), &run.target.template),
    ] {
        if now != *pinned {
            let message = format!(
                "the {what} at {} is not the one that this run was prepared with: {now}, was {pinned}; put it \
                 back, or use another storage.uri",
                spec.tokenizer.uri
            );
            return Err(SynthError::invalid(Reason::DataChanged, message).into());
        }
    }
    ctx.progress.activity("fetching the corpus");
    let manifest = corpus(ctx, &run).await?;
    let dir = ctx.cache_dir.join("corpus");
    let corpus = fetch(&ctx.store, &manifest, &dir, &|_| ()).await.map_err(SynthError::from)?;
    let phrases = manifest.phrases(&ctx.store).await.map_err(SynthError::from)?;
    Ok(Bench::new(run, corpus, phrases, target)?)
}

/// Digest of what decides an embedded generator's answers: its files, by name.
pub(crate) fn model_digest(dir: &Path) -> StepResult<Digest> {
    let mut files: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut hasher = longstrap_storage::Hasher::default();
    for file in files {
        let name = file.file_name().to_string_lossy().into_owned();
        if !(name.ends_with(".json") || name.ends_with(".safetensors") || name.ends_with(".jinja")) {
            continue;
        }
        hasher.update(format!("{name}\0{}\0", file.metadata()?.len()));
        let mut reader = std::fs::File::open(file.path())?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = std::io::Read::read(&mut reader, &mut buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
    }
    Ok(hasher.finish())
}

/// The generator of a spec as `run.json` holds it.
pub(crate) async fn generator_run(ctx: &StepContext, spec: &GeneratorSpec) -> StepResult<GeneratorRun> {
    if let Some(embedded) = &spec.embedded {
        ctx.progress.activity("reading the embedded model");
        let dir = ctx.fetch_dir(&embedded.model.uri).await?;
        let unsound = |error: ModelError| {
            let message = format!("spec.generator.embedded.model: {error}");
            StepError::invalid(Reason::InvalidModel, message)
        };
        check_hf(&dir).map_err(unsound)?;
        let model =
            tokio::task::spawn_blocking(move || model_digest(&dir)).await.map_err(anyhow::Error::from)??;
        let instruction_set = longstrap_inference::instruction_set().to_owned();
        return Ok(GeneratorRun::Embedded { model, instruction_set });
    }
    match spec.endpoints.as_deref() {
        Some([endpoint, ..]) => Ok(GeneratorRun::Endpoint { model: endpoint.model.clone() }),
        _ => Err(SynthError::invalid(
            Reason::InvalidData,
            "spec.generator: exactly one of endpoints and embedded must be given",
        )
        .into()),
    }
}

/// Refuses more context than the embedded model has: beyond its window it writes nothing of use.
pub(crate) async fn check_window(ctx: &StepContext, spec: &GeneratorSpec) -> StepResult {
    let Some(embedded) = &spec.embedded else { return Ok(()) };
    let dir = ctx.fetch_dir(&embedded.model.uri).await?;
    let invalid = |message| StepError::invalid(Reason::InvalidModel, message);
    let config = ModelConfig::load(&dir).map_err(|error| invalid(error.to_string()))?;
    let (asked, window) = (spec.context_length.get(), config.max_position_embeddings as u64);
    if asked > window {
        return Err(invalid(format!(
            "spec.generator.contextLength: {asked} is longer than the window of the embedded model, {window} \
             (max_position_embeddings in {}): ask for at most {window}, or take a model with a longer window",
            dir.join("config.json").display()
        )));
    }
    Ok(())
}

/// Opens the generator and checks it against the run.
pub(crate) async fn generator(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    run: &SynthesisRun,
) -> StepResult<Box<dyn Llm>> {
    let mut now = generator_run(ctx, &spec.generator).await?;
    now.keep_instruction_set(&run.generator);
    if now != run.generator {
        let message = format!(
            "the generator is not the one that this run was prepared with: {}, was {}",
            now.identity(),
            run.generator.identity()
        );
        return Err(SynthError::invalid(Reason::DataChanged, message).into());
    }
    if let Some(embedded) = &spec.generator.embedded {
        ctx.progress.activity("loading the embedded model");
        let dir = ctx.fetch_dir(&embedded.model.uri).await?;
        let options = GeneratorOptions {
            threads: ctx.task.threads_per_rank.max(1) as usize,
            context: run.context_length as usize,
        };
        let progress = ctx.progress.clone();
        let rate = std::sync::Mutex::new(Rate::new());
        let on_tokens = Box::new(move |tokens| {
            let mut rate = rate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(per_second) = rate.add(tokens) {
                progress.update(|report| report.tokens_per_second = per_second);
            }
        });
        let llm = Embedded::open(&dir, options, on_tokens).await.map_err(SynthError::from)?;
        return Ok(Box::new(llm));
    }
    endpoint(ctx, spec).map(|client| Box::new(client) as Box<dyn Llm>)
}

/// The client of the spec's endpoint.
pub(crate) fn endpoint(ctx: &StepContext, spec: &SynthesisJobSpec) -> StepResult<OpenAi> {
    let Some(endpoint) = spec.generator.endpoints.as_deref().and_then(<[_]>::first) else {
        return Err(SynthError::invalid(Reason::InvalidData, "spec.generator has no endpoint").into());
    };
    let api_key = match (longstrap_runtime::env::path(ENV_API_KEYS_DIR), &endpoint.api_key_secret_ref) {
        (_, None) => ApiKey::None,
        (Some(folder), Some(_)) => ApiKey::File(folder.join(&endpoint.name)),
        (None, Some(_)) => ApiKey::Env(ENV_API_KEY.to_owned()),
    };
    let progress = ctx.progress.clone();
    let client = OpenAi::new(
        Endpoint {
            name: endpoint.name.clone(),
            url: endpoint.url.clone(),
            model: endpoint.model.clone(),
            api_key,
            max_concurrency: endpoint.max_concurrency() as usize,
            outage: Duration::from_secs(ctx.task.outage_timeout_seconds),
            pause: Duration::from_millis(500),
        },
        Box::new(move |why| progress.waiting(why)),
    );
    Ok(client.map_err(SynthError::from)?)
}

/// Tokens per second over about the last minute: telemetry only.
struct Rate {
    since: std::time::Instant,
    tokens: u64,
}

impl Rate {
    fn new() -> Rate {
        Rate { since: std::time::Instant::now(), tokens: 0 }
    }

    fn add(&mut self, tokens: u64) -> Option<f64> {
        self.tokens += tokens;
        let seconds = self.since.elapsed().as_secs_f64();
        if seconds < 0.5 {
            return None;
        }
        let rate = self.tokens as f64 / seconds;
        if seconds > 60.0 {
            // Half of the window is forgotten.
            self.tokens /= 2;
            self.since += std::time::Duration::from_secs_f64(seconds / 2.0);
        }
        Some(rate)
    }
}
