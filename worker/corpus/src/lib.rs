//! Corpora: readers, hygiene, near-duplicates, held-out groups, shards and the BM25 index.
//!
//! The core is pure and streams: a document's text is in memory only while it is looked at, and
//! everything that decides bytes (order, duplicates, split, ranking) is a function of the files'
//! content, their order by name and the seed.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod document;
mod error;
mod held_out;
mod hygiene;
mod index;
mod near_duplicates;
pub mod needles;
mod normalise;
mod overlap;
mod publish;
mod read;
mod shards;
mod shelf;
mod shingles;
mod source_files;

pub use archive::{pack_dir, unpack};
pub use document::{Document, Format, RawDocument, Source};
pub use error::{CorpusError, Result};
pub use held_out::{Side, Unit, split};
pub use hygiene::Scrubber;
pub use index::{Bm25, Hit};
pub use near_duplicates::{NearDuplicates, Verdict};
pub use normalise::{DropReason, LocalFile, NormaliseOptions, Normalised, Report, normalise};
pub use overlap::{Phrases, PhrasesBuilder};
pub use publish::{Corpus, CorpusManifest, discard, fetch, load_manifest, publish};
pub use read::{list_source, read_file};
pub use shards::{read_documents, write_documents, writer_properties};
pub use shelf::{Shelf, ShelfWriter};
pub use shingles::{Sketch, shingles, sketch, sketch_words, words};
pub use source_files::{FileContent, SourceFiles};
