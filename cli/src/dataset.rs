//! Samples of a published dataset, read for people: one row at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use longstrap_dataset::{DatasetManifest, MANIFEST};
use longstrap_model::{Message, Role};
use longstrap_storage::keys;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::Value;

/// Folder of a dataset in its run.
const DATASET: &str = "dataset";

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) messages: Vec<Message>,
    pub(crate) tokens: u64,
    pub(crate) provenance: Value,
}

/// How deep storage may lie below an output folder: `file:a/b` and its restarts are 3 deep.
const DEPTH: usize = 6;

/// The dataset of each storage below an output folder: of its newest run that has one.
pub(crate) fn find(out: &Path) -> Vec<PathBuf> {
    let mut runs = Vec::new();
    search(out, DEPTH, &mut runs);
    let mut newest: BTreeMap<PathBuf, (u32, PathBuf)> = BTreeMap::new();
    for run in runs {
        let (storage, number) = match restart(&run) {
            Some((storage, number)) => (storage.to_owned(), number),
            None => (run.clone(), 0),
        };
        let known = newest.entry(storage).or_default();
        if number >= known.0 {
            *known = (number, run.join(DATASET));
        }
    }
    newest.into_values().map(|(_, dataset)| dataset).collect()
}

/// Folders below `folder` that hold a dataset.
fn search(folder: &Path, depth: usize, runs: &mut Vec<PathBuf>) {
    if folder.join(DATASET).join(MANIFEST).is_file() {
        runs.push(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.file_name() != ".local" && entry.path().is_dir());
    if depth > 0 {
        folders.for_each(|entry| search(&entry.path(), depth - 1, runs));
    }
}

/// The storage of a run that is its `k`-th restart, and `k`.
fn restart(run: &Path) -> Option<(&Path, u32)> {
    let storage = run.parent()?;
    let number: u32 = run.file_name()?.to_str()?.strip_prefix('r')?.parse().ok()?;
    storage.join(keys::restart_record(number)).is_file().then_some((storage, number))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_run_with_a_dataset_counts_wherever_its_storage_lies() {
        let out = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = out.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        };
        for path in [
            "docs/dataset/dataset.json",
            "docs/r2/restart.json",
            "docs/r2/dataset/dataset.json",
            "docs/r10/restart.json",
            "docs/r10/dataset/dataset.json",
            // Not there yet.
            "docs/r11/restart.json",
            "a/b/dataset/dataset.json",
            // A storage that is called like a restart.
            "r3/dataset/dataset.json",
            ".local/x/dataset/dataset.json",
        ] {
            put(path);
        }
        let found: Vec<PathBuf> = find(out.path());
        let wanted = ["a/b/dataset", "docs/r10/dataset", "r3/dataset"].map(|path| out.path().join(path));
        assert_eq!(found, wanted);
        std::fs::remove_dir_all(out.path().join("docs/r10")).unwrap();
        assert_eq!(find(out.path())[1], out.path().join("docs/r2/dataset"));
    }
}
