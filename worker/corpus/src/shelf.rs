//! Documents in a local file, read by number. Memory holds one offset and one length per
//! document, so a corpus of millions of documents is walked without being held.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::document::Document;
use crate::error::{CorpusError, Result};

/// Writes a shelf, one document after the other.
#[derive(Debug)]
pub struct ShelfWriter {
    path: PathBuf,
    file: BufWriter<File>,
    ends: Vec<u64>,
    tokens: Vec<u32>,
}

impl ShelfWriter {
    /// A new, empty shelf at `path`; the file lives as long as the folder of the step.
    pub fn create(path: &Path) -> Result<ShelfWriter> {
        let file = File::create(path).map_err(CorpusError::scratch(path))?;
        Ok(ShelfWriter {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            ends: Vec::new(),
            tokens: Vec::new(),
        })
    }

    /// Adds a document; its number is the count of those before it.
    pub fn push(&mut self, document: &Document) -> Result<()> {
        let bytes = serde_json::to_vec(document).map_err(|e| CorpusError::scratch(&self.path)(e.into()))?;
        self.file.write_all(&bytes).map_err(CorpusError::scratch(&self.path))?;
        let end = self.ends.last().copied().unwrap_or(0) + bytes.len() as u64;
        self.ends.push(end);
        self.tokens.push(document.tokens);
        Ok(())
    }

    /// Closes the shelf for reading.
    pub fn finish(mut self) -> Result<Shelf> {
        self.file.flush().map_err(CorpusError::scratch(&self.path))?;
        let file = File::open(&self.path).map_err(CorpusError::scratch(&self.path))?;
        Ok(Shelf { path: self.path, file, ends: self.ends, tokens: self.tokens })
    }
}

/// Documents by number.
#[derive(Debug)]
pub struct Shelf {
    path: PathBuf,
    file: File,
    ends: Vec<u64>,
    tokens: Vec<u32>,
}

impl Shelf {
    /// Number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Token counts by number.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The document with this number.
    ///
    /// # Panics
    /// When `number` is not below [`Shelf::len`].
    pub fn get(&self, number: usize) -> Result<Document> {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        let mut bytes = vec![0; (self.ends[number] - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(CorpusError::scratch(&self.path))?;
        serde_json::from_slice(&bytes).map_err(|e| CorpusError::scratch(&self.path)(e.into()))
    }
}
