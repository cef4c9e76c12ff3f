//! Samples of a published dataset, read for people: one row at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use longstrap_dataset::{DatasetManifest, MANIFEST};
use longstrap_model::{Message, Role};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::Value;

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) messages: Vec<Message>,
    pub(crate) tokens: u64,
    pub(crate) provenance: Value,
}

/// Folders with a `dataset.json` below an output folder: `JOB/dataset`, `JOB/rK/dataset`.
pub(crate) fn find(out: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let mut folders: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let jobs = below(out);
    let restarts = jobs.iter().flat_map(|job| below(job));
    let candidates = jobs.iter().cloned().chain(restarts).map(|run| run.join("dataset"));
    candidates.filter(|folder| folder.join(MANIFEST).is_file()).collect()
}

/// The sample with this id, or with this number in the order of the files.
pub(crate) fn sample(folder: &Path, wanted: &str) -> Result<Option<Sample>> {
    let path = folder.join(MANIFEST);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let manifest = DatasetManifest::from_json(&bytes).with_context(|| path.display().to_string())?;
    let number: Option<usize> = wanted.parse().ok();
    let mut at = 0;
    for file in &manifest.files {
        let path = folder.join(Path::new(&file.name).file_name().unwrap_or_default());
        let reader = File::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(SerializedFileReader::new(file)?))
            .with_context(|| path.display().to_string())?;
        for row in reader.get_row_iter(None)? {
            let sample = read(&row?).with_context(|| format!("{}, row {at}", path.display()))?;
            if sample.id == wanted || number == Some(at) {
                return Ok(Some(sample));
            }
            at += 1;
        }
    }
    Ok(None)
}

fn read(row: &Row) -> Result<Sample> {
    let text = |name: &str| match column(row, name)? {
        Field::Str(text) => Ok(text.clone()),
        other => bail!("column {name} holds {other}, not text"),
    };
    let messages = match column(row, "messages")? {
        Field::ListInternal(list) => list.elements().iter().map(message).collect::<Result<_>>()?,
        other => bail!("column messages holds {other}, not a list"),
    };
    let tokens = match column(row, "tokens")? {
        Field::UInt(count) => u64::from(*count),
        Field::ULong(count) => *count,
        other => bail!("column tokens holds {other}, not a count"),
    };
    let provenance = serde_json::from_str(&text("provenance")?).unwrap_or_default();
    Ok(Sample { id: text("id")?, kind: text("kind")?, messages, tokens, provenance })
}

fn message(field: &Field) -> Result<Message> {
    let Field::Group(group) = field else { bail!("a message is no group") };
    let (Field::Str(role), Field::Str(content)) = (column(group, "role")?, column(group, "content")?) else {
        bail!("a message's role or content is no text");
    };
    let role: Role = serde_json::from_value(role.as_str().into()).with_context(|| format!("role {role}"))?;
    Ok(Message::new(role, content.as_str()))
}

fn column<'a>(row: &'a Row, name: &str) -> Result<&'a Field> {
    let found = row.get_column_iter().find(|(column, _)| *column == name);
    found.map(|(_, field)| field).ok_or_else(|| anyhow!("there is no column {name}"))
}
