//! The published dataset: parquet parts, a JSON Lines export, the held-out documents and a card.
//! The same samples give the same bytes: nothing here knows a time, a host or who wrote a shard.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use longstrap_corpus::writer_properties;
use longstrap_dataset::{Dropped, HeldOutFile, Usage};
use parquet::arrow::ArrowWriter;
use serde::Serialize;

use crate::error::Result;
use crate::run::SynthesisRun;
use crate::sample::Sample;

/// Text bytes after which a part ends.
const PART_BYTES: usize = 256 << 20;
/// Text bytes after which a row group ends.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// A part on the local disk.
#[derive(Debug)]
pub(crate) struct LocalPart {
    pub(crate) parquet: PathBuf,
    pub(crate) jsonl: PathBuf,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
}

/// Writes samples in order, part after part.
pub(crate) struct PartWriter {
    dir: PathBuf,
    rows: Vec<Sample>,
    row_bytes: usize,
    open: Option<Open>,
    done: Vec<LocalPart>,
}

struct Open {
    part: LocalPart,
    bytes: usize,
    parquet: ArrowWriter<File>,
    jsonl: BufWriter<File>,
}

impl PartWriter {
    /// Parts are made in the folder `dir`.
    pub(crate) fn new(dir: &Path) -> PartWriter {
        PartWriter { dir: dir.to_owned(), rows: Vec::new(), row_bytes: 0, open: None, done: Vec::new() }
    }

    pub(crate) fn push(&mut self, sample: Sample) -> Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        #[derive(Serialize)]
        struct Line<'a> {
            id: String,
            messages: &'a [longstrap_model::Message],
        }
        let line = Line { id: sample.id(), messages: &sample.messages };
        serde_json::to_writer(&mut open.jsonl, &line).map_err(std::io::Error::from)?;
        open.jsonl.write_all(b"\n")?;
        let bytes: usize = sample.messages.iter().map(|message| message.content.len()).sum();
        open.bytes += bytes;
        open.part.rows += 1;
        open.part.tokens += u64::from(sample.tokens);
        self.row_bytes += bytes;
        self.rows.push(sample);
        let full = open.bytes >= PART_BYTES;
        if full || self.row_bytes >= ROW_GROUP_BYTES {
            self.flush(&mut open)?;
        }
        match full {
            true => self.end(open)?,
            false => self.open = Some(open),
        }
        Ok(())
    }

    /// Ends the last part; the parts in order.
    pub(crate) fn finish(mut self) -> Result<Vec<LocalPart>> {
        if let Some(mut open) = self.open.take() {
            self.flush(&mut open)?;
            self.end(open)?;
        }
        Ok(self.done)
    }

    fn begin(&mut self) -> Result<Open> {
        let n = self.done.len();
        let part = LocalPart {
            parquet: self.dir.join(format!("part-{n:05}.parquet")),
            jsonl: self.dir.join(format!("part-{n:05}.jsonl")),
            rows: 0,
            tokens: 0,
        };
        let schema = batch(&[])?.schema();
        let parquet = ArrowWriter::try_new(File::create(&part.parquet)?, schema, Some(writer_properties()))
            .map_err(disk)?;
        let jsonl = BufWriter::new(File::create(&part.jsonl)?);
        Ok(Open { part, bytes: 0, parquet, jsonl })
    }

    fn flush(&mut self, open: &mut Open) -> Result<()> {
        if !self.rows.is_empty() {
            open.parquet.write(&batch(&self.rows)?).map_err(disk)?;
            open.parquet.flush().map_err(disk)?;
        }
        self.rows.clear();
        self.row_bytes = 0;
        Ok(())
    }

    fn end(&mut self, open: Open) -> Result<()> {
        let Open { part, parquet, mut jsonl, .. } = open;
        parquet.close().map_err(disk)?;
        jsonl.flush()?;
        self.done.push(part);
        Ok(())
    }
}

fn disk(error: parquet::errors::ParquetError) -> std::io::Error {
    error.into()
}

/// Samples as a record batch: id, kind, messages, tokens, provenance.
fn batch(samples: &[Sample]) -> Result<RecordBatch> {
    let text = |values: Vec<String>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let fields = Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ]);
    let messages = || samples.iter().flat_map(|sample| &sample.messages);
    let roles: ArrayRef =
        Arc::new(StringArray::from_iter_values(messages().map(|message| message.role.name())));
    let contents: ArrayRef =
        Arc::new(StringArray::from_iter_values(messages().map(|message| message.content.as_str())));
    let turns = StructArray::new(fields.clone(), vec![roles, contents], None);
    let item = Arc::new(Field::new("item", DataType::Struct(fields), false));
    let lengths = samples.iter().map(|sample| sample.messages.len());
    let list: ArrayRef =
        Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(turns), None));
    let provenance: Vec<String> = samples
        .iter()
        .map(|sample| serde_json::to_string(&sample.provenance))
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::from)?;
    let tokens: ArrayRef = Arc::new(UInt32Array::from_iter_values(samples.iter().map(|s| s.tokens)));
    Ok(RecordBatch::try_from_iter([
        ("id", text(samples.iter().map(Sample::id).collect())),
        ("kind", text(samples.iter().map(|sample| format!("{:?}", sample.kind())).collect())),
        ("messages", list),
        ("tokens", tokens),
        ("provenance", text(provenance)),
    ])
    .map_err(anyhow::Error::from)?)
}

/// Figures for the card.
pub(crate) struct CardFigures<'a> {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) long_input: u64,
    pub(crate) long_output: u64,
    pub(crate) short: u64,
    pub(crate) dropped: &'a BTreeMap<Dropped, u64>,
    pub(crate) held_out: Option<&'a HeldOutFile>,
    pub(crate) usage: Usage,
}

/// The dataset card: what is in it, how it was made, what it is not good for.
pub(crate) fn card(run: &SynthesisRun, figures: &CardFigures<'_>) -> String {
    let mut text = String::from(
        "---\nconfigs:\n- config_name: default\n  data_files: \"part-*.parquet\"\ntags:\n- synthetic\n- \
         long-context\n---\n# Long-context instruction data\n\nSynthetic samples for extending the context \
         window of a language model: an instruction over many documents with an answer (`LongInput`), or an \
         instruction with a long document as the answer (`LongOutput`).\n\n",
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("- {name}: {value}\n"));
    line(
        "Samples",
        format!("{} ({} long-input, {} long-output)", figures.rows, figures.long_input, figures.long_output),
    );
    line("Tokens", format!("{}, rendered with the chat template of the model to be trained", figures.tokens));
    for share in &run.samples.lengths {
        let length = match share.from == share.to {
            true => format!("exactly {} tokens (at least 99 % full)", share.from),
            false => format!("{} to {} tokens, log-uniform", share.from, share.to),
        };
        line("Length", format!("{length}, weight {}", share.weight));
    }
    line("Written by", run.generator.identity());
    line(
        "Corpus",
        format!(
            "{} documents, {} tokens after cleaning ({})",
            run.corpus.documents, run.corpus.tokens, run.corpus.digest
        ),
    );
    match figures.held_out {
        Some(held_out) => line(
            "Held out for evaluation",
            format!(
                "{} documents, {} tokens, by group and near-duplicates; phrases of the evaluation that the samples repeat: {}",
                held_out.documents, held_out.tokens, held_out.leaks
            ),
        ),
        None => line("Held out for evaluation", "nothing".to_owned()),
    }
    line("Seed", run.seed.to_string());
    if figures.short > 0 {
        line(
            "Slots that stayed empty",
            format!("{} (after {} candidates each)", figures.short, run.limits.tries),
        );
    }
    for (reason, count) in figures.dropped {
        line("Dropped candidates", format!("{count} {reason}"));
    }
    let usage = figures.usage;
    line(
        "Generator calls",
        format!("{} ({} tokens read, {} written)", usage.calls, usage.prompt_tokens, usage.completion_tokens),
    );
    text.push_str(
        "\nColumns: `id`, `kind`, `messages` (list of role and content), `tokens`, `provenance` (JSON: \
         documents with ids, ranks, scores and places in characters, seeds, prompts, usage). Train on all \
         tokens, prompts included.\n\nThe texts of the documents are those of the corpus, under their own \
         licences. What the generator wrote may be wrong.\n",
    );
    if run.generator.is_embedded() {
        text.push_str(
            "\nThe generator is a small embedded model: answers quote the documents word for word. This set \
             shows that the machinery works; it proves no data quality.\n",
        );
    }
    text
}
