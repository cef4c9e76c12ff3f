//! The first step: everything that decides content is resolved and written down, and what can never
//! work ends here, before a generator is asked for anything.

use std::path::{Path, PathBuf};

use longstrap_corpus::{
    CorpusError, CorpusManifest, LocalFile, NormaliseOptions, Normalised, Source, fetch, list_source,
    load_manifest, normalise, publish,
};
use longstrap_crds::synthesis_job::CorpusFormat;
use longstrap_crds::task::ENV_PROMPTS_DIR;
use longstrap_crds::{Reason, SynthesisJobSpec};
use longstrap_model::{Message, Role};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Digest, RunCommit, Store, keys};
use tokio::runtime::Handle;

use crate::error::{Result, SynthError};
use crate::llm::{Call, Llm, Params};
use crate::open;
use crate::prompts::PromptTexts;
use crate::run::{
    CorpusRun, FORMAT_VERSION, GeneratorRun, Limits, RetrieverRun, SamplesRun, SynthesisRun, TargetRef,
    length_shares, sources,
};
use crate::slots::Plan;
use crate::target::Target;
use crate::variety::Variety;

/// Tokens that a sample has at least besides its frame.
const LEAST_ROOM: u64 = 64;

/// Runs the step.
///
/// # Errors
/// See [`StepError`].
pub async fn prepare(ctx: &StepContext) -> StepResult {
    ctx.claim_storage().await?;
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => Err(StepError::Stopped),
        result = work(ctx) => result,
    }
}

async fn work(ctx: &StepContext) -> StepResult {
    let spec = open::spec(ctx)?;
    let target = open::target(ctx, spec).await?;
    let prompts = PromptTexts::load(longstrap_runtime::env::path(ENV_PROMPTS_DIR).as_deref())
        .map_err(SynthError::from)?;
    let generator = open::generator_run(ctx, &spec.generator).await?;
    let prepared = ctx.store.try_get(keys::RUN).await?.is_some();
    let (manifest, tokens) = corpus(ctx, spec, &target, prepared).await?;
    let run = resolve(spec, &target, generator, &prompts, &manifest);
    if !prepared {
        check(&run, &tokens, &target)?;
        if !run.generator.is_embedded() {
            greet(ctx, spec).await?;
        }
    }
    match ctx.store.commit_run(&run).await? {
        RunCommit::Committed(fingerprint) => {
            ctx.termination.write(|message| message.fingerprint = Some(fingerprint.to_string()))?;
            Ok(())
        }
        RunCommit::Changed(changes) => {
            let changes: Vec<String> = changes.iter().map(|change| format!("  {change}")).collect();
            let message = format!(
                "the manifest is not the one that this unfinished run began with:\n{}\nput it back, start \
                 over with --restart-from data, or use another output folder (storage.uri)",
                changes.join("\n")
            );
            Err(StepError::invalid(Reason::FingerprintMismatch, message))
        }
    }
}

/// What decides the normalised corpus, besides its files.
fn settings(spec: &SynthesisJobSpec, target: &Target) -> Digest {
    let value = serde_json::json!({
        "sources": sources(spec),
        "heldOut": held_out_tokens(spec),
        "seed": spec.seed,
        "tokenizer": target.tokenizer().digest(),
    });
    Digest::of(value.to_string())
}

fn held_out_tokens(spec: &SynthesisJobSpec) -> u64 {
    spec.held_out.as_ref().map_or(0, |held_out| held_out.tokens.get())
}

/// The normalised corpus, made now or before, and (unless the run is prepared) the token counts of
/// its documents.
async fn corpus(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    target: &Target,
    prepared: bool,
) -> StepResult<(CorpusManifest, Vec<u32>)> {
    let settings = settings(spec, target);
    let dir = ctx.cache_dir.join("normalise");
    if let Some(manifest) = load_manifest(&ctx.store).await.map_err(SynthError::from)? {
        if prepared {
            // What differs is said field by field, from run.json.
            return Ok((manifest, Vec::new()));
        }
        if manifest.settings != settings {
            return Err(StepError::invalid(
                Reason::FingerprintMismatch,
                format!(
                    "{} holds a corpus that was normalised with other settings (corpus, heldOut, seed or \
                     tokenizer): start over with --restart-from data, or use another storage.uri",
                    ctx.store.uri_of(keys::CORPUS)
                ),
            ));
        }
        let corpus = fetch(&ctx.store, &manifest, &dir, &|_| ()).await.map_err(SynthError::from)?;
        return Ok((manifest, corpus.documents.tokens().to_vec()));
    }
    let mut listed = Vec::new();
    let mut named: Vec<_> = spec.corpus.iter().collect();
    named.sort_by(|a, b| a.name.cmp(&b.name));
    for source in named {
        let store = ctx.open(&source.uri).await?;
        let listing = Source {
            name: source.name.clone(),
            uri: source.uri.clone(),
            format: match source.format {
                CorpusFormat::Parquet => longstrap_corpus::Format::Parquet,
                CorpusFormat::JsonLines => longstrap_corpus::Format::JsonLines,
                CorpusFormat::Text => longstrap_corpus::Format::Text,
            },
            text_field: source.text_field().to_owned(),
            group_field: source.group_field.clone(),
            files: Vec::new(),
        };
        listed.push((list_source(&store, listing).await.map_err(SynthError::from)?, store));
    }
    let normalised = run_normalise(ctx, spec, target, listed, &dir).await?;
    ctx.progress.activity("indexing the corpus");
    let total = normalised.documents.len() as f64;
    let progress = ctx.progress.clone();
    let stop = ctx.stop.clone();
    let mut on_document = move |n: usize| {
        progress.work(n as f64, total, "documents");
        if stop.is_cancelled() { Err(CorpusError::Stopped) } else { Ok(()) }
    };
    let manifest = publish(&ctx.store, &ctx.attempt_id, &normalised, settings, &dir, &mut on_document)
        .await
        .map_err(SynthError::from)?;
    Ok((manifest, normalised.documents.tokens().to_vec()))
}

/// Normalising is work for threads: it runs beside the reactor, which it asks for files.
async fn run_normalise(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    target: &Target,
    listed: Vec<(Source, Store)>,
    dir: &Path,
) -> StepResult<Normalised> {
    let handle = Handle::current();
    let sources: Vec<Source> = listed.iter().map(|(source, _)| source.clone()).collect();
    let count = |text: &str| match target.tokens(text).map(u32::try_from) {
        Ok(Ok(tokens)) => Ok(tokens),
        Ok(Err(_)) => Err("the text has more tokens than fit 32 bits".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let mut open = |source: &Source, key: &str| -> Result<LocalFile, CorpusError> {
        // The sources come from `listed`.
        let (_, store) = listed.iter().find(|(one, _)| one.name == source.name).expect("a listed source");
        match store.local_root() {
            Some(root) if key.is_empty() => Ok(LocalFile { path: root, temporary: false }),
            Some(root) => Ok(LocalFile { path: root.join(key), temporary: false }),
            None => {
                let path: PathBuf = dir.join("input");
                handle.block_on(store.download(key, &path, &|_| ()))?;
                Ok(LocalFile { path, temporary: true })
            }
        }
    };
    let mut options = NormaliseOptions {
        dropped_bytes: target.tokenizer().dropped_bytes(),
        seed: spec.seed,
        held_out_tokens: held_out_tokens(spec),
        count: &count,
        progress: &mut |activity, done, total| {
            ctx.progress.activity(activity);
            ctx.progress.work(done as f64, total as f64, "files");
            match ctx.stop.is_cancelled() {
                true => Err(CorpusError::Stopped),
                false => Ok(()),
            }
        },
    };
    let work = || normalise(&sources, &mut open, dir, &mut options);
    Ok(tokio::task::block_in_place(work).map_err(SynthError::from)?)
}

fn resolve(
    spec: &SynthesisJobSpec,
    target: &Target,
    generator: GeneratorRun,
    prompts: &PromptTexts,
    manifest: &CorpusManifest,
) -> SynthesisRun {
    let long_output = spec.samples.long_output.as_ref();
    let context_length = spec.generator.context_length.get();
    SynthesisRun {
        format_version: FORMAT_VERSION,
        seed: spec.seed,
        target: TargetRef { tokenizer: target.tokenizer().digest(), template: target.template().digest() },
        corpus: CorpusRun {
            sources: sources(spec),
            held_out_tokens: held_out_tokens(spec),
            digest: manifest.digest,
            documents: manifest.report.documents,
            tokens: manifest.report.tokens,
        },
        limits: Limits::new(generator.is_embedded(), context_length),
        generator,
        context_length,
        retriever: RetrieverRun { method: "bm25".to_owned(), max_documents: spec.retriever.max_documents },
        samples: SamplesRun {
            lengths: length_shares(spec),
            long_output: long_output.map(|output| (output.min_tokens.get(), output.max_tokens.get())),
        },
        variety: Variety::default(),
        prompts: prompts.texts().clone(),
        plan: Plan::new(
            spec.samples.long_input.as_ref().map_or(0, |input| input.count),
            long_output.map_or(0, |output| output.count),
        ),
    }
}

/// Whether what is asked for can be made of this corpus. `tokens`: of its documents.
///
/// # Errors
/// With the numbers.
pub fn check(run: &SynthesisRun, tokens: &[u32], target: &Target) -> Result<()> {
    let empty = [Message::new(Role::User, ""), Message::new(Role::Assistant, "")];
    let frame = target.rendered(&empty)? as u64;
    let have: u64 = tokens.iter().map(|&n| u64::from(n)).sum();
    for share in &run.samples.lengths {
        let invalid = |message: String| {
            Err(SynthError::invalid(
                Reason::InvalidData,
                format!("spec.samples.longInput.lengths[{}]: {message}", share.name),
            ))
        };
        if share.from < frame + LEAST_ROOM {
            return invalid(format!(
                "{} tokens cannot be reached from below: the chat template alone takes {frame}; ask for at \
                 least {}",
                share.from,
                frame + LEAST_ROOM
            ));
        }
        // The answer can fill a thirteenth at most (see the room for it).
        let needed = (share.to - share.to / 13).saturating_sub(frame);
        if have < needed {
            return invalid(format!(
                "{} tokens cannot be reached with this corpus: after cleaning and holding out it has {have} \
                 tokens in {} documents, and one sample needs at least {needed}; ask for shorter samples or \
                 give more text",
                share.to,
                tokens.len()
            ));
        }
        let mut longest = tokens.to_vec();
        longest.sort_unstable_by(|a, b| b.cmp(a));
        let most: u64 =
            longest.iter().take(run.retriever.max_documents as usize).map(|&n| u64::from(n)).sum();
        if most < needed {
            tracing::warn!(
                length = share.to,
                most,
                "retriever.maxDocuments is too small for this length: samples are filled with unread documents"
            );
        }
    }
    if let Some((min, max)) = run.samples.long_output {
        let fit = tokens.iter().filter(|&&n| (min..=max).contains(&u64::from(n))).count() as u64;
        if fit < run.plan.long_output {
            return Err(SynthError::invalid(
                Reason::InvalidData,
                format!(
                    "spec.samples.longOutput: asks for {} documents of {min} to {max} tokens, and this corpus \
                     has {fit}; widen minTokens and maxTokens, lower count, or give more text",
                    run.plan.long_output
                ),
            ));
        }
    }
    Ok(())
}

/// One small call: an endpoint that is away, refuses the key or is no chat server is known before
/// anything waits for it.
async fn greet(ctx: &StepContext, spec: &SynthesisJobSpec) -> StepResult {
    ctx.progress.activity("asking the endpoint for a first answer");
    let params = Params {
        max_tokens: 16,
        temperature: 0.0,
        top_p: 1.0,
        seed: spec.seed,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 0,
    };
    let call = Call { messages: vec![Message::new(Role::User, "Answer with the word: ready")], params };
    open::endpoint(ctx, spec)?.chat(&call).await.map_err(SynthError::from)?;
    Ok(())
}
