//! What the files of a source were when they were read, so that it is noticed later when they are
//! others. They are read for it, which costs seconds where normalising costs hours.
//!
//! Invariant: a function of the files' names below the source and of their bytes; the same files
//! elsewhere are the same.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use longstrap_storage::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::document::Source;

/// The files of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceFiles {
    /// Name of the source in the manifest.
    pub name: String,
    /// How many there are.
    pub files: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// Digest of their names and contents.
    pub digest: Digest,
}

/// The content of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileContent {
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
}

impl FileContent {
    /// Of a file of this machine.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(path: &Path) -> std::io::Result<FileContent> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(FileContent { bytes, digest: hasher.finish() }),
                n => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    }
}

impl SourceFiles {
    /// Of a source and the contents of its files, in their order.
    pub fn new(source: &Source, contents: &[FileContent]) -> SourceFiles {
        let mut hasher = Hasher::default();
        for (key, content) in source.files.iter().zip(contents) {
            hasher.update(format!("{key} {}\n", content.digest));
        }
        SourceFiles {
            name: source.name.clone(),
            files: contents.len() as u64,
            bytes: contents.iter().map(|content| content.bytes).sum(),
            digest: hasher.finish(),
        }
    }
}

impl fmt::Display for SourceFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.files {
            0 => f.write_str("no file"),
            1 => write!(f, "1 file of {} bytes", self.bytes),
            n => write!(f, "{n} files of {} bytes", self.bytes),
        }
    }
}
