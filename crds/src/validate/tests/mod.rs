//! Manifests that are good, and that whatever is valid can be read. What is wrong with others, and
//! with edits, stands in the files of this folder, each with the exact errors that a person sees.

use serde_json::{Value, json};

use super::*;

mod edits;
mod fields;

fn job() -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "SynthesisJob",
        "metadata": {"name": "docs"},
        "spec": {
            "storage": {"uri": "file:dataset"},
            "tokenizer": {"uri": "file:model"},
            "corpus": [{"name": "crates", "uri": "file:corpus.jsonl", "format": "JsonLines", "groupField": "group"}],
            "heldOut": {"tokens": "16Ki"},
            "generator": {"embedded": {"model": {"uri": "file:model"}}, "contextLength": "8Ki"},
            "samples": {"longInput": {"count": 2, "lengths": [{"name": "exact", "tokens": 16384}]}},
        },
    })
}

fn run() -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "ContextExtensionRun",
        "metadata": {"name": "run"},
        "spec": {
            "storage": {"uri": "file:run"},
            "model": {"uri": "file:model"},
            "data": [
                {"name": "long", "synthesisJobRef": {"name": "docs"}, "weight": 8},
                {"name": "short", "uri": "file:short.jsonl"},
            ],
            "stages": [
                {"name": "a", "contextLength": 512, "steps": 2},
                {"name": "b", "contextLength": "1Ki", "steps": 2, "ropeBase": "400000"},
            ],
            "evaluation": {"beforeFirstStage": true, "lossByPosition": {}},
        },
    })
}

/// The document with the value at a pointer set; `null` takes it out.
fn with(mut doc: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = doc.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(items) => match key.parse::<usize>() {
            Ok(i) => items[i] = value,
            Err(_) => items.push(value),
        },
        _ if value.is_null() => {
            parent.as_object_mut().unwrap().remove(key);
        }
        _ => parent[key] = value,
    }
    doc
}

fn shown(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn good_manifests() {
    let none: Vec<String> = Vec::new();
    for doc in [job(), run()] {
        assert_eq!(shown(&validate(&doc)), none);
        let object = parse(&doc).unwrap();
        assert_eq!(object.common().backoff_limit, 6);
        // What we write back is valid and reads the same.
        let again = object.to_json().unwrap();
        assert_eq!(shown(&validate(&again)), none);
        assert_eq!(parse(&again).unwrap(), object);
    }
    for (doc, pointer, value) in [
        (job(), "/spec/heldOut", json!({"tokens": 5})),
        (job(), "/spec/retriever", json!({"maxDocuments": 3})),
        (run(), "/spec/stages/1/learningRate", json!("1.5e-4")),
        (
            run(),
            "/spec/podTemplate",
            json!({
                "metadata": {"labels": {"a": "b"}},
                "spec": {
                    "priorityClassName": "low",
                    "containers": [{"name": "worker", "resources": {"requests": {"cpu": "4"}}, "env": [
                        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}, {"name": "A", "value": "b"},
                    ]}],
                },
            }),
        ),
    ] {
        assert_eq!(shown(&validate(&with(doc, pointer, value))), none, "{pointer}");
    }
    // null is "not given", as for the server.
    let mut doc = job();
    doc["spec"]["heldOut"] = Value::Null;
    doc["spec"]["seed"] = Value::Null;
    assert_eq!(shown(&validate(&doc)), none);
    parse(&doc).unwrap();
}

/// What the repository tells people to copy.
#[test]
fn examples() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).into_iter().flatten())
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for doc in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            if doc["apiVersion"] == API_VERSION {
                assert_eq!(shown(&validate(&doc)), Vec::<String>::new(), "{}", file.display());
            }
        }
    }
}

fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| pointers(value, format!("{at}/{key}"), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| pointers(value, format!("{at}/{i}"), found));
        }
        _ => {}
    }
    found.push(at);
}

/// Schema and types agree: whatever junk stands in whatever place, a document without errors reads.
#[test]
fn what_is_valid_can_be_read() {
    let junk = json!([null, -1, 4294967296_u64, 2.0, "1e99", "9007199254740992", {"name": "a"}]);
    let (mut valid, mut refused) = (0, 0);
    // What parsing writes back has every default written out.
    for doc in [job(), run()].map(|doc| parse(&doc).unwrap().to_json().unwrap()) {
        let mut places = Vec::new();
        pointers(&doc, String::new(), &mut places);
        for place in places.iter().filter(|p| p.starts_with("/spec/")) {
            for junk in junk.as_array().unwrap() {
                let mut doc = doc.clone();
                *doc.pointer_mut(place).unwrap() = junk.clone();
                if !validate(&doc).is_empty() {
                    refused += 1;
                    continue;
                }
                let sound = structure::without_nulls(&shape_of(&doc).unwrap().schema, &doc);
                read(sound).unwrap_or_else(|e| panic!("{place} = {junk}: {e}"));
                valid += 1;
            }
        }
    }
    assert!(valid > 50 && refused > 300, "{valid} valid, {refused} refused");
}
