//! What can go wrong with a corpus, said to the person who owns it: which corpus, file and row.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = CorpusError> = std::result::Result<T, E>;

/// An error while reading, normalising or indexing a corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// One record cannot be read; rows count from 1.
    #[error("corpus `{corpus}`, file {file}, row {row}: {message}")]
    Record {
        /// Name of the corpus in the manifest.
        corpus: String,
        /// URI of the file.
        file: String,
        /// Row from 1 (a line of JSON Lines, a row of parquet).
        row: u64,
        /// What is wrong and what is expected.
        message: String,
    },
    /// A whole file cannot be read.
    #[error("corpus `{corpus}`, file {file}: {message}")]
    File {
        /// Name of the corpus in the manifest.
        corpus: String,
        /// URI of the file.
        file: String,
        /// What is wrong and what is expected.
        message: String,
    },
    /// The corpus has no file of its format.
    #[error("corpus `{corpus}`: no file under {uri} ends in {expected} (looked at {seen} files)")]
    NoFiles {
        /// Name of the corpus in the manifest.
        corpus: String,
        /// Where it is to be.
        uri: String,
        /// Endings of the format.
        expected: &'static str,
        /// Files that were there.
        seen: usize,
    },
    /// Nothing is left to work with.
    #[error("the corpus is empty: {read} documents read, none kept ({dropped})")]
    Empty {
        /// Documents read.
        read: u64,
        /// Drops by reason, in words.
        dropped: String,
    },
    /// The corpus cannot give the held-out text that is asked for.
    #[error(
        "heldOut.tokens asks for {wanted} tokens, but the corpus has {have} after cleaning: \
         at most half of a corpus may be held out; ask for less or give more text"
    )]
    HeldOutTooLarge {
        /// Tokens asked for.
        wanted: u64,
        /// Tokens of the whole cleaned corpus.
        have: u64,
    },
    /// A local working file failed: most often a full disk.
    #[error("working file {}: {source}", path.display())]
    Scratch {
        /// The local file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An object of ours does not hold what its manifest says.
    #[error("object {object}: {message}")]
    Damaged {
        /// Key of the object.
        object: String,
        /// What is wrong.
        message: String,
    },
    /// The search index failed.
    #[error("search index: {0}")]
    Index(#[from] tantivy::TantivyError),
    /// The caller's progress function ended the work.
    #[error("told to stop")]
    Stopped,
    /// Object storage failed.
    #[error(transparent)]
    Storage(#[from] longstrap_storage::Error),
}

impl CorpusError {
    /// Attaches a path to an I/O error of a local working file.
    pub(crate) fn scratch(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CorpusError {
        let path = path.into();
        move |source| CorpusError::Scratch { path, source }
    }
}
