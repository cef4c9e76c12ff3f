//! Readers: one local file in, records out, in order. Every error names file and row, because a
//! broken record in a corpus of thousands of files is found no other way.

mod jsonl;
mod parquet;
mod text;

use std::path::Path;

use longstrap_storage::Store;

use crate::document::{Format, RawDocument, Source};
use crate::error::{CorpusError, Result};

/// Where a record stands, for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) source: &'a Source,
    pub(crate) key: &'a str,
}

impl Place<'_> {
    pub(crate) fn file(self, message: impl ToString) -> CorpusError {
        CorpusError::File {
            corpus: self.source.name.clone(),
            file: self.source.uri_of(self.key),
            message: message.to_string(),
        }
    }

    pub(crate) fn row(self, row: u64, message: impl ToString) -> CorpusError {
        CorpusError::Record {
            corpus: self.source.name.clone(),
            file: self.source.uri_of(self.key),
            row,
            message: message.to_string(),
        }
    }
}

/// Gets each record of a file.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(RawDocument) -> Result<()>;

/// Fills [`Source::files`] with the keys below the root of `store` that belong to the format; a
/// `store` whose root is one file is read as that file (key empty).
///
/// # Errors
/// Storage, and [`CorpusError::NoFiles`].
pub async fn list_source(store: &Store, mut source: Source) -> Result<Source> {
    if let Some(path) = store.local_root()
        && path.is_file()
    {
        source.files = vec![String::new()];
        return Ok(source);
    }
    let all = store.list("").await?;
    let seen = all.len();
    // `list` is sorted by key: the order of documents, and so which duplicate stays, follows.
    source.files = all.into_iter().map(|meta| meta.key).filter(|key| source.format.accepts(key)).collect();
    if source.files.is_empty() {
        if let Some(size) = store.size("").await.ok().flatten()
            && size > 0
        {
            source.files = vec![String::new()];
            return Ok(source);
        }
        let Source { name: corpus, uri, format, .. } = source;
        return Err(CorpusError::NoFiles { corpus, uri, expected: format.endings(), seen });
    }
    Ok(source)
}

/// Reads the records of the local file `path`, which is `key` of the corpus.
///
/// # Errors
/// With file and row; whatever `sink` returns.
pub fn read_file(
    source: &Source,
    key: &str,
    path: &Path,
    sink: &mut dyn FnMut(RawDocument) -> Result<()>,
) -> Result<()> {
    let place = Place { source, key };
    match source.format {
        Format::Parquet => parquet::read(place, source, path, sink),
        Format::JsonLines => jsonl::read(place, source, path, sink),
        Format::Text => text::read(place, path, sink),
    }
}

#[cfg(test)]
mod tests;
