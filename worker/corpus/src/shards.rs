//! Documents in parquet, as they are published and shipped to workers. The same documents give
//! the same bytes: fixed row groups, fixed codec, and a `created_by` that names no build.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::UInt32Type;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::document::Document;
use crate::error::{CorpusError, Result};

/// Text bytes after which a row group ends.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// How every parquet file of ours is written.
pub fn writer_properties() -> WriterProperties {
    WriterProperties::builder()
        .set_created_by("longstrap".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Rows are ended by us, by bytes.
        .set_max_row_group_row_count(Some(1 << 20))
        .build()
}

/// Writes documents to a new local parquet file: id, group, source, title, text (utf8), tokens (u32).
///
/// # Errors
/// The file's, and those of the iterator.
pub fn write_documents(path: &Path, documents: impl IntoIterator<Item = Result<Document>>) -> Result<()> {
    let failed = |e: parquet::errors::ParquetError| CorpusError::scratch(path)(e.into());
    let file = File::create(path).map_err(CorpusError::scratch(path))?;
    let schema = batch(&[]).map_err(|e| CorpusError::scratch(path)(std::io::Error::other(e)))?;
    let mut writer =
        ArrowWriter::try_new(file, schema.schema(), Some(writer_properties())).map_err(failed)?;
    let mut rows: Vec<Document> = Vec::new();
    let mut bytes = 0;
    let mut flush = |rows: &mut Vec<Document>| {
        let batch = batch(rows).map_err(|e| CorpusError::scratch(path)(std::io::Error::other(e)))?;
        rows.clear();
        writer.write(&batch).map_err(failed)?;
        writer.flush().map_err(failed)
    };
    for document in documents {
        let document = document?;
        bytes += document.text.len();
        rows.push(document);
        if bytes >= ROW_GROUP_BYTES {
            flush(&mut rows)?;
            bytes = 0;
        }
    }
    if !rows.is_empty() {
        flush(&mut rows)?;
    }
    writer.close().map_err(failed).map(drop)
}

/// Reads a file of [`write_documents`]; `object` names it in errors.
///
/// # Errors
/// [`CorpusError::Damaged`], and those of `sink`.
pub fn read_documents(object: &str, path: &Path, sink: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
    let damaged = |e: &dyn std::fmt::Display| CorpusError::Damaged {
        object: object.to_owned(),
        message: e.to_string(),
    };
    let file = File::open(path).map_err(CorpusError::scratch(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.with_batch_size(256).build())
        .map_err(|e| damaged(&e))?;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(&e))?;
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| damaged(&format!("has no column `{name}`")))
        };
        let text = |name: &str| {
            column(name)?
                .as_string_opt::<i32>()
                .ok_or_else(|| damaged(&format!("column `{name}` is no utf8")))
        };
        let (id, group, source) = (text("id")?, text("group")?, text("source")?);
        let (title, body) = (text("title")?, text("text")?);
        let tokens = column("tokens")?
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| damaged(&"column `tokens` is no uint32"))?;
        for i in 0..batch.num_rows() {
            sink(Document {
                id: id.value(i).to_owned(),
                group: group.value(i).to_owned(),
                source: source.value(i).to_owned(),
                title: title.value(i).to_owned(),
                text: body.value(i).to_owned(),
                tokens: tokens.value(i),
            })?;
        }
    }
    Ok(())
}

fn batch(rows: &[Document]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text = |of: fn(&Document) -> &str| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    };
    let tokens: ArrayRef = Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.tokens)));
    RecordBatch::try_from_iter([
        ("id", text(|row| &row.id)),
        ("group", text(|row| &row.group)),
        ("source", text(|row| &row.source)),
        ("title", text(|row| &row.title)),
        ("text", text(|row| &row.text)),
        ("tokens", tokens),
    ])
}
