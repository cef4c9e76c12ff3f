//! The files of a corpus as they are now, read once for their digest.
//!
//! Invariant: the same as normalising found when no byte has changed, wherever the files are.

use std::path::PathBuf;

use futures::{StreamExt, stream};
use longstrap_corpus::{CorpusError, FileContent, Source, SourceFiles};
use longstrap_runtime::{StepContext, StepResult};
use longstrap_storage::{Hasher, Store};

use crate::error::Result;

/// Files that are read at once.
const READERS: usize = 8;
/// Bytes that are asked of a store at once.
const PIECE: u64 = 8 << 20;

/// The files of a listed source.
///
/// # Errors
/// As the store answers; a file that cannot be read.
pub(super) async fn source_files(
    ctx: &StepContext,
    source: &Source,
    store: &Store,
) -> StepResult<SourceFiles> {
    ctx.progress.activity(format!("looking for changes in the corpus {}", source.name));
    let total = source.files.len() as f64;
    Ok(read_all(source, store, &|done| ctx.progress.work(done as f64, total, "files")).await?)
}

async fn read_all(
    source: &Source,
    store: &Store,
    progress: &(dyn Fn(usize) + Send + Sync),
) -> Result<SourceFiles> {
    let mut reading =
        stream::iter(source.files.clone()).map(|key| read(source, store, key)).buffered(READERS);
    let mut contents = Vec::with_capacity(source.files.len());
    while let Some(content) = reading.next().await {
        contents.push(content?);
        progress(contents.len());
    }
    Ok(SourceFiles::new(source, &contents))
}

/// The path of a file that is on this machine.
pub(super) fn local(store: &Store, key: &str) -> Option<PathBuf> {
    let root = store.local_root()?;
    Some(if key.is_empty() { root } else { root.join(key) })
}

async fn read(source: &Source, store: &Store, key: String) -> Result<FileContent> {
    if let Some(path) = local(store, &key) {
        let content = tokio::task::spawn_blocking(move || FileContent::of(&path)).await;
        return content.map_err(anyhow::Error::from)?.map_err(|error| {
            let (corpus, file) = (source.name.clone(), source.uri_of(&key));
            CorpusError::File { corpus, file, message: error.to_string() }.into()
        });
    }
    // Gone since it was listed: reading it says so with its name.
    let bytes = store.size(&key).await?.unwrap_or(1);
    let mut hasher = Hasher::default();
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + PIECE);
        hasher.update(store.get_range(&key, at..end).await?);
        at = end;
    }
    Ok(FileContent { bytes, digest: hasher.finish() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use longstrap_corpus::Format;

    use super::*;

    fn source(files: &[&str]) -> Source {
        Source {
            name: "web".into(),
            uri: "memory:///web".into(),
            format: Format::Text,
            text_field: "text".into(),
            group_field: None,
            files: files.iter().map(|file| (*file).to_owned()).collect(),
        }
    }

    /// The bytes decide, not where they are; a name and a border between files count, too.
    #[tokio::test]
    async fn the_same_files_are_the_same_in_every_store() {
        let tmp = tempfile::tempdir().unwrap();
        let here = Store::open(&format!("file://{}", tmp.path().display()), &BTreeMap::new()).unwrap();
        let there = Store::open("memory:///web", &BTreeMap::new()).unwrap();
        let long = vec![7; PIECE as usize + 3];
        for store in [&here, &there] {
            store.put("a.txt", "one").await.unwrap();
            store.put("deep/b.txt", long.clone()).await.unwrap();
        }
        let both = source(&["a.txt", "deep/b.txt"]);
        let read = |store: &Store, source: Source| {
            let store = store.clone();
            async move { read_all(&source, &store, &|_| ()).await }
        };
        let first = read(&here, both.clone()).await.unwrap();
        assert_eq!((first.files, first.bytes), (2, PIECE + 6));
        assert_eq!(first.to_string(), format!("2 files of {} bytes", PIECE + 6));
        assert_eq!(read(&there, both.clone()).await.unwrap(), first);
        // The end of the second piece.
        let mut other = long;
        *other.last_mut().unwrap() = 8;
        there.put("deep/b.txt", other).await.unwrap();
        assert_ne!(read(&there, both.clone()).await.unwrap().digest, first.digest);
        there.put("c.txt", "one").await.unwrap();
        let named = |name| read(&there, source(&[name]));
        assert_ne!(named("a.txt").await.unwrap(), named("c.txt").await.unwrap());
        let gone = named("gone.txt").await.unwrap_err().to_string();
        assert!(gone.contains("memory:///web/gone.txt"), "{gone}");
    }
}
