//! Which objects below a storage's root are a run's own: those with a name that only a run gives,
//! and those that its manifests name.
//!
//! Invariant: what is in doubt is foreign and stays. Data goes before the manifest that names it, and
//! the proof that the storage is a run's goes last, so that a clean that was cut off can be repeated.

use std::collections::BTreeSet;

use longstrap_crds::Step;
use longstrap_storage::{AttemptId, CheckpointId, Digest, Meta, ObjectRef, keys};
use serde_json::Value;

/// What an object is to the run, in the order of deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// A committed manifest names it.
    Data,
    /// Written by a pod of the run, named by no manifest.
    Leftover,
    /// Log, report, record.
    Record,
    /// Names other objects, or commits a step.
    Manifest,
    /// `run.json`: it ties manifests to the run.
    Run,
    /// Says whose the storage is: without it nothing is cleaned.
    Owner,
    /// Not the run's. Never deleted.
    Foreign,
}

impl What {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Leftover => "leftover",
            Self::Record => "record",
            Self::Manifest => "manifest",
            Self::Run => "run",
            Self::Owner => "owner",
            Self::Foreign => "foreign",
        }
    }
}

/// A listed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) what: What,
    pub(super) key: String,
    pub(super) bytes: u64,
}

/// The folder of the restart that a key lies in (`""`, `r1`, …), and the key in it.
pub(super) fn place(key: &str) -> (&str, &str) {
    let number = |folder: &str| folder.strip_prefix('r')?.parse::<u32>().ok();
    match key.split_once('/') {
        Some((folder, rest)) if number(folder).is_some_and(|k| k > 0 && keys::restart(k) == folder) => {
            (folder, rest)
        }
        _ => ("", key),
    }
}

/// Whether the object, by its name, may name others.
pub(super) fn names_others(key: &str) -> bool {
    let (_, key) = place(key);
    let of_all = [keys::DATASET, keys::CORPUS_MANIFEST, keys::TOKENS_MANIFEST, keys::MODEL_MANIFEST];
    of_all.contains(&key) || is_shard(key) || is_stage(key) || is_checkpoint(key)
}

fn is_shard(key: &str) -> bool {
    middle(key, "shards/", ".json").and_then(|n| n.parse().ok()).is_some_and(|n| keys::shard(n) == key)
}

fn is_stage(key: &str) -> bool {
    middle(key, "stages/", "/stage.json").is_some_and(|name| keys::stage_manifest(name) == key)
}

fn is_checkpoint(key: &str) -> bool {
    let id = key.rsplit_once('/').and_then(|(folder, _)| folder.parse::<CheckpointId>().ok());
    id.is_some_and(|id| id.manifest_key() == key)
}

fn middle<'k>(key: &'k str, start: &str, end: &str) -> Option<&'k str> {
    key.strip_prefix(start)?.strip_suffix(end)
}

/// Keys that a manifest names, relative to the storage's root. A manifest of another run names
/// nothing: it must carry the id of an attempt, or the fingerprint of the run.
pub(super) fn named(key: &str, manifest: &[u8], fingerprint: Option<Digest>) -> Option<BTreeSet<String>> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let theirs = manifest["fingerprint"].as_str().and_then(|text| text.parse::<Digest>().ok());
    let attempt = manifest["attemptId"].as_str().and_then(|text| text.parse::<AttemptId>().ok());
    let ours = match theirs {
        Some(theirs) => fingerprint == Some(theirs),
        None => attempt.is_some(),
    };
    if !ours {
        return None;
    }
    let (folder, key) = place(key);
    let mut found = BTreeSet::new();
    collect(&manifest, key, &mut found);
    let below = |key: String| if folder.is_empty() { key } else { format!("{folder}/{key}") };
    Some(found.into_iter().map(below).collect())
}

/// Everything in a manifest that looks like a reference: of a working manifest [`ObjectRef`]s, of
/// `dataset.json` files with a name relative to it.
fn collect(value: &Value, manifest: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Ok(object) = serde_json::from_value::<ObjectRef>(value.clone()) {
                found.insert(object.key);
            } else if let (keys::DATASET, Some(name), Some(_)) =
                (manifest, fields.get("name").and_then(Value::as_str), fields.get("digest"))
            {
                found.insert(format!("dataset/{name}"));
            }
            fields.values().for_each(|field| collect(field, manifest, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, manifest, found)),
        _ => {}
    }
}

/// Sorts the listed objects by what they are, in the order of deletion. `manifests` are those that
/// are this run's, `named` what they name.
pub(super) fn classify(listed: &[Meta], manifests: &BTreeSet<String>, named: &BTreeSet<String>) -> Vec<Item> {
    let what = |key: &str| {
        if manifests.contains(key) {
            What::Manifest
        } else if named.contains(key) {
            What::Data
        } else if names_others(key) {
            // It looks like one of ours and is not.
            What::Foreign
        } else {
            by_name(place(key).1)
        }
    };
    let mut items: Vec<Item> = listed
        .iter()
        .map(|meta| Item { what: what(&meta.key), key: meta.key.clone(), bytes: meta.size })
        .collect();
    items.sort_by(|a, b| (a.what, &a.key).cmp(&(b.what, &b.key)));
    items
}

/// What the name alone says.
fn by_name(key: &str) -> What {
    let (folder, name) = key.split_once('/').unwrap_or(("", key));
    let number = || name.strip_suffix(".json").is_some_and(|n| n.parse::<u64>().is_ok());
    let step = || name.strip_suffix(".json").is_some_and(|step| step.parse::<Step>().is_ok());
    match folder {
        "" if key == keys::RUN => What::Run,
        "" if [keys::RESULTS, keys::RUN_LOG, "report.html"].contains(&key) => What::Record,
        "" if key == "restart.json" => What::Manifest,
        keys::OWNERS if number() => What::Owner,
        "gang" if number() => What::Record,
        "steps" if step() => What::Manifest,
        "run-log" if name.ends_with(".jsonl") => What::Record,
        "stages" if is_evaluation(name) => What::Record,
        "dataset" if is_published(key) => What::Leftover,
        keys::CHECKPOINTS if is_checkpoint_data(key) => What::Leftover,
        "shards" | "calls" | "stages" | "probe" | keys::TOKENS | keys::CORPUS | keys::UPLOADS
            if AttemptId::of_key(key).is_some() =>
        {
            What::Leftover
        }
        _ => What::Foreign,
    }
}

fn is_evaluation(name: &str) -> bool {
    name.split_once('/').is_some_and(|(_, file)| middle(file, "evaluation-", ".json").is_some())
}

/// Names under which a dataset is published; before its manifest is, nothing names them.
fn is_published(key: &str) -> bool {
    let part = middle(key, "dataset/part-", ".parquet").or(middle(key, "dataset/jsonl/part-", ".jsonl"));
    part.is_some_and(|n| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit()))
        || [keys::DATASET_CARD, keys::HELD_OUT, "dataset/heldout-phrases.bin"].contains(&key)
}

fn is_checkpoint_data(key: &str) -> bool {
    let in_folder = key.rsplit_once('/').is_some_and(|(folder, _)| folder.parse::<CheckpointId>().is_ok());
    in_folder && key.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RUN: &[u8] = b"{\"formatVersion\": 1}";

    fn digest() -> String {
        Digest::of(RUN).to_string()
    }

    fn refer(key: &str) -> Value {
        json!({"key": key, "digest": digest(), "bytes": 1})
    }

    #[test]
    fn manifests_name_their_objects() {
        let dataset = json!({
            "fingerprint": digest(),
            "files": [{"name": "part-00000.parquet", "digest": digest(), "rows": 1, "tokens": 1}],
            "heldOut": {"name": "heldout.parquet", "digest": digest(), "phrases": {"name": "heldout-phrases.bin", "digest": digest()}},
        });
        let tokens = json!({"attemptId": "1-0-a", "sources": [{"name": "long", "ids": refer("tokens/1-0-a/long.ids")}]});
        let stage =
            json!({"attemptId": "1-0-a", "fingerprint": digest(), "files": [refer("stages/a/1-0-a/w")]});
        let foreign = json!({"fingerprint": Digest::of(b"another").to_string(), "files": [refer("mine")]});
        let anonymous = json!({"files": [refer("mine")]});
        for (key, manifest, wanted) in [
            (
                "dataset/dataset.json",
                &dataset,
                Some("dataset/heldout-phrases.bin dataset/heldout.parquet dataset/part-00000.parquet"),
            ),
            ("tokens/tokens.json", &tokens, Some("tokens/1-0-a/long.ids")),
            ("r2/stages/a/stage.json", &stage, Some("r2/stages/a/1-0-a/w")),
            ("model/model.json", &foreign, None),
            ("model/model.json", &anonymous, None),
        ] {
            let found = named(key, manifest.to_string().as_bytes(), Some(Digest::of(RUN)));
            let found = found.map(|keys| keys.into_iter().collect::<Vec<_>>().join(" "));
            assert_eq!(found.as_deref(), wanted, "{key}");
        }
        assert_eq!(named("model/model.json", b"no JSON", None), None);
    }

    #[test]
    fn the_name_alone_says_little() {
        for (key, what) in [
            ("run.json", What::Run),
            ("r1/run.json", What::Run),
            ("r1/restart.json", What::Manifest),
            ("owner/0.json", What::Owner),
            ("gang/12.json", What::Record),
            ("steps/train-0.json", What::Manifest),
            ("results.json", What::Record),
            ("report.html", What::Record),
            ("run-log/1-0-a-export-000000.jsonl", What::Record),
            ("stages/a/evaluation-base.json", What::Record),
            ("stages/a/1-0-a/model.safetensors", What::Leftover),
            ("shards/2-1-b/7.jsonl", What::Leftover),
            ("ckpt/3/40/layer-0-0000000000.safetensors", What::Leftover),
            ("dataset/part-00012.parquet", What::Leftover),
            // A user's own files, some of them close.
            ("notes.txt", What::Foreign),
            ("rx/run.json", What::Foreign),
            ("r0/run.json", What::Foreign),
            ("other/run.json", What::Foreign),
            ("owner/readme.json", What::Foreign),
            ("steps/mine.json", What::Foreign),
            ("dataset/part-1.parquet", What::Foreign),
            ("dataset/part-abcde.parquet", What::Foreign),
            ("model/config.json", What::Foreign),
            ("ckpt/notes.safetensors", What::Foreign),
            ("1-0-a/data", What::Foreign),
            // Names of manifests that were not found to be this run's.
            ("shards/0.json", What::Foreign),
            ("model/model.json", What::Foreign),
        ] {
            let listed = [Meta { key: key.to_owned(), size: 1 }];
            let items = classify(&listed, &BTreeSet::new(), &BTreeSet::new());
            assert_eq!(items.first().unwrap().what, what, "{key}");
        }
    }

    #[test]
    fn data_goes_before_its_manifest_and_the_owner_last() {
        let listed: Vec<Meta> =
            ["model/model.json", "model/w", "notes", "owner/0.json", "run.json", "uploads/1-0-a/x.json"]
                .map(|key| Meta { key: key.to_owned(), size: 1 })
                .into();
        let items = classify(
            &listed,
            &["model/model.json".to_owned()].into(),
            &["model/w".to_owned(), "run.json.not".to_owned()].into(),
        );
        let order: Vec<_> = items.iter().map(|i| format!("{}:{}", i.key, i.what.as_str())).collect();
        assert_eq!(
            order,
            [
                "model/w:data",
                "uploads/1-0-a/x.json:leftover",
                "model/model.json:manifest",
                "run.json:run",
                "owner/0.json:owner",
                "notes:foreign"
            ]
        );
    }
}
