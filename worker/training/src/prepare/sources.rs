//! Training data as users and synthesis leave it: parquet with a `messages` column, or JSON Lines.
//!
//! Invariant: what is read is pinned by digest; an error names the file and the row.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use arrow::array::{Array, AsArray, StringArray};
use arrow::record_batch::RecordBatch;
use longstrap_corpus::Phrases;
use longstrap_crds::Reason;
use longstrap_crds::task::PinnedData;
use longstrap_dataset::{DatasetManifest, HeldOutFile, MANIFEST};
use longstrap_model::Message;
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{Digest, Hasher, Store};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;

const ENDINGS: [&str; 2] = [".jsonl", ".parquet"];

/// A source with its files on this machine.
#[derive(Debug)]
pub(super) struct OpenSource {
    /// Digest of its manifest, or of all its files.
    pub(super) digest: String,
    /// Object names for messages, and local paths.
    pub(super) files: Vec<(String, PathBuf)>,
    pub(super) held_out: Option<HeldOutFile>,
    /// Digests of tokenizer and template that the lengths were counted with.
    pub(super) counted_with: Option<(String, String)>,
}

fn invalid(message: impl Into<String>) -> StepError {
    StepError::invalid(Reason::InvalidData, message)
}

/// Opens a source and brings its files here.
///
/// # Errors
/// Nothing there, another digest than was pinned, files that differ from the manifest.
pub(super) async fn open(ctx: &StepContext, data: &PinnedData) -> StepResult<OpenSource> {
    let (store, only) = locate(ctx, &data.uri).await?;
    let source = match (only, store.try_get(MANIFEST).await?) {
        (None, Some(manifest)) => open_dataset(ctx, data, &store, &manifest).await?,
        (only, _) => open_files(ctx, data, &store, only).await?,
    };
    match &data.digest {
        Some(pinned) if *pinned != source.digest => Err(StepError::invalid(
            Reason::DataChanged,
            format!(
                "data source {} at {} was pinned with {pinned} and is now {}: restore it, or make another run",
                data.name, data.uri, source.digest
            ),
        )),
        _ => Ok(source),
    }
}

/// The folder of a URI, and the file when it names one.
async fn locate(ctx: &StepContext, uri: &str) -> StepResult<(Store, Option<String>)> {
    if let Some((folder, name)) = uri.rsplit_once('/')
        && ENDINGS.iter().any(|e| name.ends_with(e))
    {
        let store = ctx.open(folder).await?;
        // Keys are names as the store has them, %20 of a URI is a space there.
        let file = ctx.open(uri).await?.uri();
        let name = file.strip_prefix(&store.uri()).map_or(name, |name| name.trim_start_matches('/'));
        return Ok((store, Some(name.to_owned())));
    }
    Ok((ctx.open(uri).await?, None))
}

async fn open_dataset(
    ctx: &StepContext,
    data: &PinnedData,
    store: &Store,
    bytes: &[u8],
) -> StepResult<OpenSource> {
    let manifest = DatasetManifest::from_json(bytes)
        .map_err(|e| invalid(format!("{} cannot be read: {e}", store.uri_of(MANIFEST))))?;
    let mut files = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let path = fetch(ctx, data, store, &file.name).await?;
        let digest = digest_of(&path)?;
        if digest != file.digest {
            let uri = store.uri_of(&file.name);
            return Err(StepError::invalid(
                Reason::DataChanged,
                format!("{uri} is {digest}, its manifest says {}: restore the dataset", file.digest),
            ));
        }
        files.push((store.uri_of(&file.name), path));
    }
    Ok(OpenSource {
        digest: Digest::of(bytes).to_string(),
        files,
        held_out: manifest.held_out,
        counted_with: Some((manifest.tokenizer_digest, manifest.template_digest)),
    })
}

async fn open_files(
    ctx: &StepContext,
    data: &PinnedData,
    store: &Store,
    only: Option<String>,
) -> StepResult<OpenSource> {
    let keys: Vec<String> = match only {
        Some(name) => vec![name],
        None => {
            let listed = store.list("").await?.into_iter().map(|meta| meta.key);
            listed.filter(|k| ENDINGS.iter().any(|e| k.ends_with(e))).collect()
        }
    };
    if keys.is_empty() {
        return Err(invalid(format!(
            "data source {}: there is no *.jsonl or *.parquet file at {}: correct the URI, or put the files there",
            data.name, data.uri
        )));
    }
    let mut all = Hasher::default();
    let mut files = Vec::with_capacity(keys.len());
    for key in keys {
        let path = fetch(ctx, data, store, &key).await?;
        all.update(format!("{key} {}\n", digest_of(&path)?));
        files.push((store.uri_of(&key), path));
    }
    Ok(OpenSource { digest: all.finish().to_string(), files, held_out: None, counted_with: None })
}

/// The local path of a file: in place, or downloaded to the scratch folder.
async fn fetch(ctx: &StepContext, data: &PinnedData, store: &Store, key: &str) -> StepResult<PathBuf> {
    ctx.check_stop()?;
    if let Some(root) = store.local_root() {
        return Ok(root.join(key));
    }
    let path = ctx.cache_dir.join("data").join(&data.name).join(key);
    ctx.progress.activity(format!("fetching {}", store.uri_of(key)));
    store.download(key, &path, &|_| {}).await?;
    Ok(path)
}

/// Digest of a local file.
///
/// # Errors
/// `InvalidData` with the path when it cannot be read.
pub(crate) fn digest_of(path: &Path) -> StepResult<Digest> {
    let unreadable = |e: std::io::Error| invalid(format!("{} cannot be read: {e}", path.display()));
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
    let mut hasher = Hasher::default();
    loop {
        let bytes = reader.fill_buf().map_err(unreadable)?;
        if bytes.is_empty() {
            return Ok(hasher.finish());
        }
        hasher.update(bytes);
        let read = bytes.len();
        reader.consume(read);
    }
}

/// Gives every sample of a file to `sink`, with its place for messages.
///
/// # Errors
/// `InvalidData` with file and row; the sink's.
pub(super) fn read_samples(
    object: &str,
    path: &Path,
    sink: &mut dyn FnMut(&str, Vec<Message>) -> StepResult,
) -> StepResult {
    if object.ends_with(".parquet") {
        read_parquet(object, path, sink)
    } else {
        read_jsonl(object, path, sink)
    }
}

#[derive(Deserialize)]
struct Line {
    messages: Vec<Message>,
}

fn read_jsonl(
    object: &str,
    path: &Path,
    sink: &mut dyn FnMut(&str, Vec<Message>) -> StepResult,
) -> StepResult {
    let file = File::open(path).map_err(|e| invalid(format!("{object} cannot be read: {e}")))?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let place = format!("{object}, line {}", number + 1);
        let line = line.map_err(|e| invalid(format!("{place} cannot be read: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let sample: Line = serde_json::from_str(&line).map_err(|e| {
            invalid(format!(
                "{place} is no sample ({e}); a line looks like {{\"messages\": [{{\"role\": \"user\", \"content\": \"…\"}}, …]}}"
            ))
        })?;
        sink(&place, sample.messages)?;
    }
    Ok(())
}

fn read_parquet(
    object: &str,
    path: &Path,
    sink: &mut dyn FnMut(&str, Vec<Message>) -> StepResult,
) -> StepResult {
    let mut row = 0usize;
    for batch in batches(object, path)? {
        let batch =
            batch.map_err(|e| invalid(format!("{object}, row {row} or later cannot be read: {e}")))?;
        for i in 0..batch.num_rows() {
            let place = format!("{object}, row {row}");
            let messages = messages_of(&batch, i).map_err(|why| invalid(format!("{place}: {why}")))?;
            sink(&place, messages)?;
            row += 1;
        }
    }
    Ok(())
}

/// A column of texts.
///
/// # Errors
/// `InvalidData` with file and column.
pub(crate) fn read_texts(object: &str, path: &Path, column: &str) -> StepResult<Vec<String>> {
    let mut texts = Vec::new();
    for batch in batches(object, path)? {
        let batch = batch.map_err(|e| invalid(format!("{object} cannot be read: {e}")))?;
        let values = batch.column_by_name(column).and_then(|c| c.as_any().downcast_ref::<StringArray>());
        let values = values.ok_or_else(|| invalid(format!("{object} has no column {column} of texts")))?;
        texts.extend(values.iter().flatten().map(str::to_owned));
    }
    Ok(texts)
}

fn batches(
    object: &str,
    path: &Path,
) -> StepResult<impl Iterator<Item = std::result::Result<RecordBatch, arrow::error::ArrowError>>> {
    let unreadable =
        |e: &dyn std::fmt::Display| invalid(format!("{object} is no readable parquet file: {e}"));
    let file = File::open(path).map_err(|e| unreadable(&e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(&e))?;
    builder.with_batch_size(64).build().map_err(|e| unreadable(&e))
}

fn messages_of(batch: &RecordBatch, row: usize) -> std::result::Result<Vec<Message>, String> {
    let wrong =
        || "there is no column messages of type list<struct<role: string, content: string>>".to_owned();
    let column = batch.column_by_name("messages").ok_or_else(wrong)?;
    let list = column.as_list_opt::<i32>().ok_or_else(wrong)?.value(row);
    let turns = list.as_struct_opt().ok_or_else(wrong)?;
    let field = |name: &str| turns.column_by_name(name)?.as_string_opt::<i32>().cloned();
    let (roles, contents) = (field("role").ok_or_else(wrong)?, field("content").ok_or_else(wrong)?);
    let turn = |i: usize| {
        let role = serde_json::from_value(roles.value(i).into());
        let role =
            role.map_err(|_| format!("{:?} is no role: system, user, assistant or tool", roles.value(i)))?;
        Ok(Message::new(role, contents.value(i)))
    };
    (0..turns.len()).map(turn).collect()
}

/// The phrases that no training sample should repeat.
///
/// # Errors
/// As the store answers; other bytes than the manifest says.
pub(super) async fn phrases(
    ctx: &StepContext,
    data: &PinnedData,
    held_out: &HeldOutFile,
) -> StepResult<Phrases> {
    let file = &held_out.phrases;
    let (uri, path) = pinned_file(ctx, data, &file.name, &file.digest).await?;
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Phrases::from_bytes(&bytes)
        .ok_or_else(|| invalid(format!("{uri} is no list of 8-byte hashes: restore the dataset")))
}

/// Reads the held-out texts of a dataset.
///
/// # Errors
/// As the store answers; other bytes than the manifest says.
pub(crate) async fn held_out_texts(
    ctx: &StepContext,
    data: &PinnedData,
    name: &str,
    digest: &Digest,
) -> StepResult<Vec<String>> {
    let (uri, path) = pinned_file(ctx, data, name, digest).await?;
    read_texts(&uri, &path, "text")
}

/// URI and local path of a file of a dataset that has to have this digest.
async fn pinned_file(
    ctx: &StepContext,
    data: &PinnedData,
    name: &str,
    digest: &Digest,
) -> StepResult<(String, PathBuf)> {
    let (store, _) = locate(ctx, &data.uri).await?;
    let path = fetch(ctx, data, &store, name).await.context("held-out documents")?;
    let (uri, found) = (store.uri_of(name), digest_of(&path)?);
    if found != *digest {
        let message = format!("{uri} is {found}, the run is bound to {digest}: restore the dataset");
        return Err(StepError::invalid(Reason::DataChanged, message));
    }
    Ok((uri, path))
}

#[cfg(test)]
mod tests;
