//! The normalised corpus of a run: the one that is there when it was made of these files with these
//! settings, else a new one.
//!
//! Invariant: once there is a `run.json`, a corpus is never replaced; what differs is told instead.

use std::path::{Path, PathBuf};

use longstrap_corpus::{
    CorpusError, CorpusManifest, LocalFile, NormaliseOptions, Normalised, Source, SourceFiles, discard,
    fetch, list_source, load_manifest, normalise, publish,
};
use longstrap_crds::SynthesisJobSpec;
use longstrap_crds::synthesis_job::{CorpusFormat, CorpusSource};
use longstrap_runtime::{StepContext, StepResult};
use longstrap_storage::{Digest, Store};
use tokio::runtime::Handle;

use super::changes::SourceChange;
use super::files::source_files;
use crate::error::{Result, SynthError};
use crate::run::sources;
use crate::target::Target;

/// The corpus of a run.
pub(super) struct Corpus {
    pub(super) manifest: CorpusManifest,
    /// Tokens of its documents; not read once the run is prepared.
    pub(super) tokens: Vec<u32>,
    /// Sources whose files are not those that the prepared run was made of.
    pub(super) changes: Vec<SourceChange>,
}

/// The corpus that is there, or a new one.
///
/// # Errors
/// As the store answers; a corpus that cannot be read or gives nothing.
pub(super) async fn open(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    target: &Target,
    prepared: bool,
) -> StepResult<Corpus> {
    let settings = settings(spec, target);
    let dir = ctx.cache_dir.join("normalise");
    if let Some(manifest) = load_manifest(&ctx.store).await.map_err(SynthError::from)? {
        if prepared {
            let changes = changes(ctx, spec, &manifest).await?;
            return Ok(Corpus { manifest, tokens: Vec::new(), changes });
        }
        let mut now = Vec::new();
        for (source, store) in list(ctx, spec).await? {
            now.push(source_files(ctx, &source, &store).await?);
        }
        if manifest.settings == settings && manifest.sources == now {
            let corpus = fetch(&ctx.store, &manifest, &dir, &|_| ()).await.map_err(SynthError::from)?;
            let tokens = corpus.documents.tokens().to_vec();
            return Ok(Corpus { manifest, tokens, changes: Vec::new() });
        }
        tracing::info!("the corpus or what decides about it has changed: it is normalised again");
        discard(&ctx.store, &manifest).await.map_err(SynthError::from)?;
    }
    let listed = list(ctx, spec).await?;
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
    Ok(Corpus { manifest, tokens: normalised.documents.tokens().to_vec(), changes: Vec::new() })
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

/// Tokens to hold out; 0: none.
pub(super) fn held_out_tokens(spec: &SynthesisJobSpec) -> u64 {
    spec.held_out.as_ref().map_or(0, |held_out| held_out.tokens.get())
}

/// The sources by name, with their files.
async fn list(ctx: &StepContext, spec: &SynthesisJobSpec) -> StepResult<Vec<(Source, Store)>> {
    let mut named: Vec<_> = spec.corpus.iter().collect();
    named.sort_by(|a, b| a.name.cmp(&b.name));
    let mut listed = Vec::with_capacity(named.len());
    for source in named {
        let store = ctx.open(&source.uri).await?;
        listed.push((list_source(&store, listing(source)).await.map_err(SynthError::from)?, store));
    }
    Ok(listed)
}

fn listing(source: &CorpusSource) -> Source {
    Source {
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
    }
}

/// The sources whose files are others than those of `manifest`. Those that it does not know are told
/// from `run.json`.
async fn changes(
    ctx: &StepContext,
    spec: &SynthesisJobSpec,
    manifest: &CorpusManifest,
) -> StepResult<Vec<SourceChange>> {
    if manifest.sources.is_empty() {
        tracing::warn!(
            "an earlier version normalised this corpus and kept no digest of its files: it is not known \
             whether they are still the same"
        );
    }
    let mut changes = Vec::new();
    for then in &manifest.sources {
        let Some(source) = spec.corpus.iter().find(|source| source.name == then.name) else { continue };
        let store = ctx.open(&source.uri).await?;
        let now = match list_source(&store, listing(source)).await {
            Ok(listed) => source_files(ctx, &listed, &store).await?,
            Err(CorpusError::NoFiles { .. }) => SourceFiles::new(&listing(source), &[]),
            Err(error) => return Err(SynthError::from(error).into()),
        };
        if now != *then {
            changes.push(SourceChange { uri: source.uri.clone(), then: then.clone(), now });
        }
    }
    Ok(changes)
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
        match super::files::local(store, key) {
            Some(path) => Ok(LocalFile { path, temporary: false }),
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
