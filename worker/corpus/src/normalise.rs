//! From records to a cleaned, counted, de-duplicated and split corpus, in one pass over the files
//! and one over the kept texts. The result depends on the files in order, the options and nothing
//! else: work is spread over threads, decisions are taken in order.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::document::{Document, RawDocument, Source, title_of};
use crate::error::{CorpusError, Result};
use crate::held_out::{Side, Unit, split};
use crate::hygiene::Scrubber;
use crate::near_duplicates::{NearDuplicates, Verdict};
use crate::overlap::{Phrases, PhrasesBuilder};
use crate::read::{Place, read_file};
use crate::shelf::{Shelf, ShelfWriter};
use crate::shingles::{Sketch, sketch};
use crate::source_files::{FileContent, SourceFiles};

/// Estimated similarity from which a text is a copy of an earlier one.
const DUPLICATE_AT: f64 = 0.7;
/// Estimated similarity from which two texts must not part in the held-out split.
const RELATED_AT: f64 = 0.35;
/// Text bytes that are looked at in parallel.
const BATCH_BYTES: usize = 8 << 20;

/// Why a record is not in the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DropReason {
    /// Null, or bytes that are no UTF-8.
    NoText,
    /// Nothing but white space.
    Empty,
    /// Byte for byte an earlier document.
    ExactDuplicate,
    /// Nearly an earlier document.
    NearDuplicate,
    /// Shares a 12-word phrase with the held-out text, or holds a sentence of the evaluation's needles.
    HeldOutOverlap,
}

/// What was read and kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Records read.
    pub read: u64,
    /// Documents for synthesis.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Held-out documents.
    pub held_out_documents: u64,
    /// Their tokens.
    pub held_out_tokens: u64,
    /// Dropped records by reason.
    pub dropped: BTreeMap<DropReason, u64>,
}

impl Report {
    fn drop_one(&mut self, reason: DropReason) {
        *self.dropped.entry(reason).or_default() += 1;
    }

    fn empty(&self) -> CorpusError {
        let dropped: Vec<String> =
            self.dropped.iter().map(|(reason, count)| format!("{reason:?} {count}")).collect();
        CorpusError::Empty {
            read: self.read,
            dropped: match dropped.is_empty() {
                true => "its files hold no record".to_owned(),
                false => dropped.join(", "),
            },
        }
    }
}

/// What decides the result, besides the files.
pub struct NormaliseOptions<'a> {
    /// Bytes that the target tokenizer has no symbol for.
    pub dropped_bytes: &'a [u8],
    /// Seed of the held-out split.
    pub seed: u64,
    /// Tokens to hold out; 0: none.
    pub held_out_tokens: u64,
    /// Counts tokens of a plain text.
    pub count: &'a (dyn Fn(&str) -> Result<u32, String> + Sync),
    /// Told (activity, done, total) now and then; an error ends the work.
    pub progress: &'a mut dyn FnMut(&str, u64, u64) -> Result<()>,
}

/// A file of a source on this machine.
#[derive(Debug, Clone)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a copy to be deleted once read.
    pub temporary: bool,
}

/// The cleaned corpus, in local working files.
#[derive(Debug)]
pub struct Normalised {
    /// Documents for synthesis.
    pub documents: Shelf,
    /// Documents for evaluation.
    pub held_out: Vec<Document>,
    /// Phrases that no sample may hold.
    pub phrases: Phrases,
    /// What was read, by source.
    pub sources: Vec<SourceFiles>,
    /// Counts.
    pub report: Report,
}

/// Reads the sources in the given order and cleans them; `open` brings a file to this machine;
/// working files are made in `dir`.
///
/// # Errors
/// Broken records with file and row; an empty corpus; a held-out part that is too large.
pub fn normalise(
    sources: &[Source],
    open: &mut dyn FnMut(&Source, &str) -> Result<LocalFile>,
    dir: &Path,
    options: &mut NormaliseOptions<'_>,
) -> Result<Normalised> {
    let mut intake = Intake::new(dir, options)?;
    let files: u64 = sources.iter().map(|source| source.files.len() as u64).sum();
    let mut done = 0;
    let mut read = Vec::with_capacity(sources.len());
    for source in sources {
        let mut contents = Vec::with_capacity(source.files.len());
        for key in &source.files {
            (options.progress)(&format!("reading {} of {}", key, source.name), done, files)?;
            let file = open(source, key)?;
            let place = Place { source, key };
            contents.push(FileContent::of(&file.path).map_err(|e| place.file(e))?);
            let mut batch = Vec::new();
            let mut bytes = 0;
            read_file(source, key, &file.path, &mut |record| {
                bytes += record.text.as_ref().map_or(0, String::len);
                batch.push(record);
                if bytes >= BATCH_BYTES {
                    bytes = 0;
                    intake.take(place, std::mem::take(&mut batch))?;
                }
                Ok(())
            })?;
            intake.take(place, batch)?;
            if file.temporary {
                std::fs::remove_file(&file.path).map_err(CorpusError::scratch(&file.path))?;
            }
            done += 1;
        }
        read.push(SourceFiles::new(source, &contents));
    }
    intake.finish(dir, options, read)
}

/// What is known after the first pass.
struct Intake<'a> {
    scrubber: Scrubber,
    count: &'a (dyn Fn(&str) -> Result<u32, String> + Sync),
    exact: HashSet<[u8; 32]>,
    near: NearDuplicates,
    kept: ShelfWriter,
    units: Vec<Unit>,
    report: Report,
}

/// A record after the part of the work that needs no order.
enum Looked {
    Dropped(DropReason),
    Kept { document: Document, hash: [u8; 32], sketch: Box<Sketch> },
}

impl<'a> Intake<'a> {
    fn new(dir: &Path, options: &NormaliseOptions<'a>) -> Result<Intake<'a>> {
        std::fs::create_dir_all(dir).map_err(CorpusError::scratch(dir))?;
        Ok(Intake {
            scrubber: Scrubber::new(options.dropped_bytes),
            count: options.count,
            exact: HashSet::new(),
            near: NearDuplicates::new(DUPLICATE_AT, RELATED_AT),
            kept: ShelfWriter::create(&dir.join("kept.shelf"))?,
            units: Vec::new(),
            report: Report::default(),
        })
    }

    fn take(&mut self, place: Place<'_>, records: Vec<RawDocument>) -> Result<()> {
        let looked: Vec<Result<Looked, (u64, String)>> = records
            .into_par_iter()
            .map(|record| {
                let row = record.row;
                look(&self.scrubber, self.count, place.source, record).map_err(|e| (row, e))
            })
            .collect();
        for record in looked {
            self.report.read += 1;
            let record = record.map_err(|(row, message)| place.row(row, message))?;
            match record {
                Looked::Dropped(reason) => self.report.drop_one(reason),
                Looked::Kept { document, hash, sketch } => {
                    if !self.exact.insert(hash) {
                        self.report.drop_one(DropReason::ExactDuplicate);
                        continue;
                    }
                    match self.near.insert(*sketch) {
                        Verdict::Duplicate(_) => self.report.drop_one(DropReason::NearDuplicate),
                        Verdict::New { related, .. } => {
                            self.units.push(Unit {
                                group: document.group.clone(),
                                tokens: u64::from(document.tokens),
                                related,
                            });
                            self.kept.push(&document)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(
        self,
        dir: &Path,
        options: &mut NormaliseOptions<'_>,
        sources: Vec<SourceFiles>,
    ) -> Result<Normalised> {
        if self.units.is_empty() {
            return Err(self.report.empty());
        }
        let total: u64 = self.units.iter().map(|unit| unit.tokens).sum();
        if options.held_out_tokens.saturating_mul(2) > total {
            return Err(CorpusError::HeldOutTooLarge { wanted: options.held_out_tokens, have: total });
        }
        let sides = split(&self.units, options.seed, options.held_out_tokens);
        let on = |side: Side| -> Vec<usize> { (0..sides.len()).filter(|&n| sides[n] == side).collect() };
        let Intake { kept, mut report, .. } = self;
        let kept = kept.finish()?;
        let held_out: Vec<Document> =
            on(Side::HeldOut).into_iter().map(|n| kept.get(n)).collect::<Result<_>>()?;
        let synthesis = on(Side::Synthesis);

        let mut builder = PhrasesBuilder::new(held_out.iter().map(|d| d.text.as_str()));
        if !held_out.is_empty() {
            for &n in &synthesis {
                let document = kept.get(n)?;
                builder.observe(&document.group, &document.text);
            }
        }
        let phrases = builder.finish();
        let mut documents = ShelfWriter::create(&dir.join("documents.shelf"))?;
        for (done, &n) in synthesis.iter().enumerate() {
            if done % 1024 == 0 {
                (options.progress)("comparing with the held-out text", done as u64, synthesis.len() as u64)?;
            }
            let document = kept.get(n)?;
            if phrases.hits(&document.text) > 0 {
                report.drop_one(DropReason::HeldOutOverlap);
                continue;
            }
            report.documents += 1;
            report.tokens += u64::from(document.tokens);
            documents.push(&document)?;
        }
        report.held_out_documents = held_out.len() as u64;
        report.held_out_tokens = held_out.iter().map(|d| u64::from(d.tokens)).sum();
        let documents = documents.finish()?;
        if documents.is_empty() {
            return Err(report.empty());
        }
        Ok(Normalised { documents, held_out, phrases, sources, report })
    }
}

fn look(
    scrubber: &Scrubber,
    count: &(dyn Fn(&str) -> Result<u32, String> + Sync),
    source: &Source,
    record: RawDocument,
) -> Result<Looked, String> {
    let Some(text) = record.text else {
        return Ok(Looked::Dropped(DropReason::NoText));
    };
    let text = scrubber.scrub(text);
    if text.trim().is_empty() {
        return Ok(Looked::Dropped(DropReason::Empty));
    }
    let hash: [u8; 32] = Sha256::digest(&text).into();
    let id: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let tokens = count(&text)?;
    Ok(Looked::Kept {
        sketch: Box::new(sketch(&text)),
        hash,
        document: Document {
            group: record.group.filter(|group| !group.is_empty()).unwrap_or_else(|| id.clone()),
            id,
            source: source.name.clone(),
            title: title_of(&scrubber.scrub(record.title), &text),
            text,
            tokens,
        },
    })
}
