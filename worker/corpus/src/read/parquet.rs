//! Parquet: row group by row group, and only the columns that are asked for.

use std::fs::File;
use std::path::Path;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;

use super::{Place, Sink};
use crate::document::{RawDocument, Source};
use crate::error::Result;

/// Rows that are decoded at once.
const BATCH: usize = 1024;

pub(super) fn read(place: Place<'_>, source: &Source, path: &Path, sink: Sink<'_>) -> Result<()> {
    let open = || {
        let file = File::open(path).map_err(|e| place.file(e))?;
        ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|e| place.file(format!("is no whole parquet file: {e}")))
    };
    let columns = Columns::find(source, &open()?).map_err(|message| place.file(message))?;
    let groups = open()?.metadata().num_row_groups();
    let mut row = 0;
    for group in 0..groups {
        let builder = open()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), columns.roots());
        let reader = builder
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(BATCH)
            .build()
            .map_err(|e| place.row(row + 1, format!("row group {group} cannot be read: {e}")))?;
        for batch in reader {
            let batch =
                batch.map_err(|e| place.row(row + 1, format!("row group {group} cannot be read: {e}")))?;
            columns.rows(place, row, &batch, sink)?;
            row += batch.num_rows() as u64;
        }
    }
    Ok(())
}

/// The columns of interest, by name and place in the file.
struct Columns {
    text: (String, usize),
    group: Option<(String, usize)>,
    title: Option<(String, usize)>,
}

impl Columns {
    fn find<T>(
        source: &Source,
        file: &::parquet::arrow::arrow_reader::ArrowReaderBuilder<T>,
    ) -> Result<Columns, String> {
        let schema = file.schema();
        let find = |name: &str| {
            let at = schema.fields().iter().position(|field| field.name() == name)?;
            Some((name.to_owned(), at))
        };
        let need = |name: &str, setting: &str| {
            find(name).ok_or_else(|| {
                let there: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).take(20).collect();
                format!("has no column `{name}` (set {setting}; columns: {})", there.join(", "))
            })
        };
        Ok(Columns {
            text: need(&source.text_field, "textField")?,
            group: source.group_field.as_ref().map(|field| need(field, "groupField")).transpose()?,
            title: find("title").filter(|(_, at)| {
                matches!(
                    schema.field(*at).data_type(),
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                )
            }),
        })
    }

    fn roots(&self) -> Vec<usize> {
        [Some(&self.text), self.group.as_ref(), self.title.as_ref()]
            .into_iter()
            .flatten()
            .map(|(_, at)| *at)
            .collect()
    }

    fn rows(&self, place: Place<'_>, before: u64, batch: &RecordBatch, sink: Sink<'_>) -> Result<()> {
        // One string type for all of utf8, large, view, dictionary and (for groups) numbers.
        let strings = |name: &str| -> Result<arrow::array::LargeStringArray> {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| place.file(format!("column `{name}` was not read")))?;
            let strings = cast(column, &DataType::LargeUtf8)
                .map_err(|e| place.file(format!("column `{name}` is no text: {e}")))?;
            Ok(strings.as_string::<i64>().clone())
        };
        let text = strings(&self.text.0)?;
        let group = self.group.as_ref().map(|(name, _)| strings(name)).transpose()?;
        let title = self.title.as_ref().map(|(name, _)| strings(name)).transpose()?;
        for i in 0..batch.num_rows() {
            let value = |column: &arrow::array::LargeStringArray| {
                column.is_valid(i).then(|| column.value(i).to_owned())
            };
            sink(RawDocument {
                row: before + i as u64 + 1,
                group: group.as_ref().and_then(value),
                title: title.as_ref().and_then(value).unwrap_or_default(),
                text: value(&text),
            })?;
        }
        Ok(())
    }
}
