//! The normalised corpus in object storage: parquet parts, one index object, the held-out text and
//! its phrases, committed by one working manifest. Workers fetch it into a local folder.

use std::path::Path;

use longstrap_storage::{AttemptId, Commit, CommitOutcome, Digest, Hasher, ObjectRef, Store, keys};
use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::{CorpusError, Result};
use crate::index::Bm25;
use crate::normalise::{Normalised, Report};
use crate::overlap::Phrases;
use crate::shards::{read_documents, write_documents};
use crate::shelf::{Shelf, ShelfWriter};
use crate::source_files::SourceFiles;
use crate::{pack_dir, unpack};

/// Text bytes after which a parquet part ends.
const PART_BYTES: u64 = 256 << 20;
const FORMAT_VERSION: u32 = 1;

/// What stands in `corpus/corpus.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorpusManifest {
    /// Version of this layout.
    pub format_version: u32,
    /// The writer: it knows its own manifest again by it.
    pub attempt_id: AttemptId,
    /// Digest of what decided it besides the files (fields, seed, tokenizer): the caller's.
    pub settings: Digest,
    /// The files that it was made of, by source; empty: an earlier version did not write it down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceFiles>,
    /// Digest of the content (documents and held-out text): the same for every writer.
    pub digest: Digest,
    /// Documents for synthesis, in order.
    pub parts: Vec<ObjectRef>,
    /// The BM25 index, an archive.
    pub index: ObjectRef,
    /// Held-out documents.
    pub held_out: Option<ObjectRef>,
    /// Phrases that no sample may hold.
    pub phrases: Option<ObjectRef>,
    /// Counts.
    pub report: Report,
}

/// A corpus on this machine, ready for workers.
#[derive(Debug)]
pub struct Corpus {
    /// Documents by number.
    pub documents: Shelf,
    /// Search over them.
    pub index: Bm25,
}

/// Reads the committed manifest, when there is one.
///
/// # Errors
/// Storage; a manifest that cannot be read.
pub async fn load_manifest(store: &Store) -> Result<Option<CorpusManifest>> {
    match store.try_get(keys::CORPUS_MANIFEST).await? {
        None => Ok(None),
        Some(bytes) => parse(&bytes).map(Some),
    }
}

fn parse(bytes: &[u8]) -> Result<CorpusManifest> {
    serde_json::from_slice(bytes).map_err(|e| CorpusError::Damaged {
        object: keys::CORPUS_MANIFEST.to_owned(),
        message: format!("cannot be read, or was written by another version: {e}"),
    })
}

/// Writes a normalised corpus and commits it; when another writer was first, its manifest is
/// returned and our objects are deleted. `dir` holds working files.
///
/// # Errors
/// Storage, local disk, and those of `progress`, which is told the documents indexed.
pub async fn publish(
    store: &Store,
    attempt: &AttemptId,
    normalised: &Normalised,
    settings: Digest,
    dir: &Path,
    progress: &mut (dyn FnMut(usize) -> Result<()> + Send),
) -> Result<CorpusManifest> {
    let upload = Upload { store, attempt };
    let mut content = Hasher::default();
    let mut parts = Vec::new();
    let mut next = 0;
    while next < normalised.documents.len() {
        let path = dir.join("part.parquet");
        next = write_part(&path, &normalised.documents, next)?;
        let part = upload.file(&path, &format!("documents-{:05}.parquet", parts.len())).await?;
        content.update(part.digest.as_bytes());
        parts.push(part);
    }

    let index_dir = dir.join("index");
    remove_dir(&index_dir)?;
    Bm25::build(&index_dir, &normalised.documents, progress)?;
    let archive = dir.join("index.archive");
    pack_dir(&index_dir, &archive)?;
    let index = upload.file(&archive, "index.archive").await?;

    let (mut held_out, mut phrases) = (None, None);
    if !normalised.held_out.is_empty() {
        let path = dir.join("heldout.parquet");
        write_documents(&path, normalised.held_out.iter().cloned().map(Ok))?;
        let object = upload.file(&path, "heldout.parquet").await?;
        content.update(object.digest.as_bytes());
        held_out = Some(object);
        let key = keys::working(keys::CORPUS, attempt, "phrases.bin");
        phrases = Some(store.put_ref(&key, normalised.phrases.to_bytes()).await?);
    }
    let manifest = CorpusManifest {
        format_version: FORMAT_VERSION,
        attempt_id: attempt.clone(),
        settings,
        sources: normalised.sources.clone(),
        digest: content.finish(),
        parts,
        index,
        held_out,
        phrases,
        report: normalised.report.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| CorpusError::Damaged {
        object: keys::CORPUS_MANIFEST.to_owned(),
        message: e.to_string(),
    })?;
    let commit = Commit::Working { attempt_id: attempt.clone() };
    match store.commit(keys::CORPUS_MANIFEST, bytes, &commit).await? {
        CommitOutcome::Won => Ok(manifest),
        CommitOutcome::Lost(theirs) => {
            remove_objects(store, &manifest).await?;
            parse(&theirs)
        }
    }
}

/// Removes a corpus that nothing depends on: its manifest first, so that one that is there is whole.
///
/// # Errors
/// Storage.
pub async fn discard(store: &Store, manifest: &CorpusManifest) -> Result<()> {
    store.delete(keys::CORPUS_MANIFEST).await?;
    remove_objects(store, manifest).await
}

async fn remove_objects(store: &Store, manifest: &CorpusManifest) -> Result<()> {
    for object in manifest.objects() {
        store.delete(&object.key).await?;
    }
    Ok(())
}

/// Writes documents from number `from` on until a part is full; returns the next number.
fn write_part(path: &Path, documents: &Shelf, from: usize) -> Result<usize> {
    let mut next = from;
    let mut bytes = 0;
    let rows = std::iter::from_fn(|| {
        (next < documents.len() && bytes < PART_BYTES).then(|| {
            next += 1;
            documents.get(next - 1).inspect(|document| bytes += document.text.len() as u64)
        })
    });
    write_documents(path, rows)?;
    Ok(next)
}

/// Removes what an earlier process left in a working folder.
fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CorpusError::scratch(dir)(error)),
        _ => Ok(()),
    }
}

struct Upload<'a> {
    store: &'a Store,
    attempt: &'a AttemptId,
}

impl Upload<'_> {
    async fn file(&self, path: &Path, name: &str) -> Result<ObjectRef> {
        let key = keys::working(keys::CORPUS, self.attempt, name);
        Ok(self.store.put_file(&key, path, &|_| ()).await?)
    }
}

/// Brings a committed corpus into the folder `dir` and opens it.
///
/// # Errors
/// Storage; objects that are not what the manifest says.
pub async fn fetch(
    store: &Store,
    manifest: &CorpusManifest,
    dir: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Corpus> {
    std::fs::create_dir_all(dir).map_err(CorpusError::scratch(dir))?;
    let mut shelf = ShelfWriter::create(&dir.join("documents.shelf"))?;
    let local = dir.join("object");
    for part in &manifest.parts {
        store.download_verified(part, &local, progress).await?;
        read_documents(&part.key, &local, &mut |document| shelf.push(&document))?;
    }
    store.download_verified(&manifest.index, &local, progress).await?;
    let index_dir = dir.join("index");
    remove_dir(&index_dir)?;
    unpack(&manifest.index.key, &local, &index_dir)?;
    std::fs::remove_file(&local).map_err(CorpusError::scratch(&local))?;
    Ok(Corpus { documents: shelf.finish()?, index: Bm25::open(&index_dir)? })
}

impl CorpusManifest {
    /// Every object that the manifest names.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        self.parts.iter().chain([&self.index]).chain(&self.held_out).chain(&self.phrases)
    }

    /// The held-out documents.
    ///
    /// # Errors
    /// Storage; an object that is not what the manifest says.
    pub async fn held_out(&self, store: &Store, dir: &Path) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        if let Some(object) = &self.held_out {
            let local = dir.join("heldout.object");
            store.download_verified(object, &local, &|_| ()).await?;
            read_documents(&object.key, &local, &mut |document| {
                documents.push(document);
                Ok(())
            })?;
        }
        Ok(documents)
    }

    /// The phrases that no sample may hold.
    ///
    /// # Errors
    /// Storage; an object that is not what the manifest says.
    pub async fn phrases(&self, store: &Store) -> Result<Phrases> {
        let Some(object) = &self.phrases else {
            return Ok(Phrases::default());
        };
        let bytes = store.get_verified(object).await?;
        Phrases::from_bytes(&bytes).ok_or_else(|| CorpusError::Damaged {
            object: object.key.clone(),
            message: "is no list of 8-byte hashes".to_owned(),
        })
    }
}
