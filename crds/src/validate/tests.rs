//! Bad manifests, each with the exact errors that a person gets to see.

use serde_json::{Value, json};

use super::*;

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

#[test]
fn bad_fields() {
    let endpoint = json!({"name": "a", "url": "http://u:p@h/v1", "model": "m"});
    let rows: Vec<(Value, &str, Value, &[&str])> = vec![
        (
            job(),
            "/apiVersion",
            json!("longstrap.io/v1"),
            &["apiVersion: \"longstrap.io/v1\" is not known; write longstrap.io/v1alpha1"],
        ),
        (
            job(),
            "/kind",
            json!("Job"),
            &["kind: \"Job\" is not known; write SynthesisJob or ContextExtensionRun"],
        ),
        (job(), "/kind", Value::Null, &["kind: is required; write SynthesisJob or ContextExtensionRun"]),
        (
            job(),
            "/metadata/name",
            json!("Docs_1"),
            &[
                "metadata.name: \"Docs_1\" must be lower case letters, digits, '-' and '.', at most 253 characters",
            ],
        ),
        (job(), "/metadata", Value::Null, &["metadata.name: is required"]),
        (job(), "/spec", Value::Null, &["spec: is required"]),
        (job(), "/spec/sead", json!(1), &["spec.sead: unknown field; did you mean seed?"]),
        (job(), "/spec/corpus/0/colour", json!(1), &["spec.corpus[0].colour: unknown field"]),
        (job(), "/spec/retriever", json!({"bm25": {"k1": 1}}), &["spec.retriever.bm25.k1: unknown field"]),
        (job(), "/spec/tokenizer", Value::Null, &["spec.tokenizer: is required"]),
        (job(), "/spec/seed", json!("7"), &["spec.seed: must be a whole number, not a string"]),
        (job(), "/spec/seed", json!(7.0), &["spec.seed: must be written as a whole number"]),
        (job(), "/spec/suspend", json!("yes"), &["spec.suspend: must be a boolean, not a string"]),
        (job(), "/spec/corpus", json!([]), &["spec.corpus: must have at least one item"]),
        (
            job(),
            "/spec/corpus/0/format",
            json!("Csv"),
            &["spec.corpus[0].format: \"Csv\" is not known; write Parquet, JsonLines or Text"],
        ),
        (
            job(),
            "/spec/corpus/-",
            json!({"name": "crates", "uri": "file:x", "format": "Text"}),
            &["spec.corpus[1].name: \"crates\" is used twice; names in this list must differ"],
        ),
        (
            job(),
            "/spec/samples/longInput/count",
            json!(-2),
            &["spec.samples.longInput.count: -2 must be at least 1"],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0/tokens",
            json!("16k"),
            &[
                "spec.samples.longInput.lengths[0].tokens: \"16k\" must be a whole number such as 131072, or with Ki, Mi or Gi such as 128Ki",
            ],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0/tokens",
            json!(0),
            &["spec.samples.longInput.lengths[0].tokens: 0 must be at least 1"],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0/tokens",
            json!("99999999999Gi"),
            &[
                "spec.samples.longInput.lengths[0].tokens: \"99999999999Gi\" is not a length: write a whole number from 1 to 2^53 such as 131072, or with Ki, Mi or Gi such as 128Ki",
            ],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0/tokens",
            json!(true),
            &[
                "spec.samples.longInput.lengths[0].tokens: must be a whole number such as 131072 or a text such as 128Ki, not a boolean",
            ],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0/from",
            json!(4),
            &[
                "spec.samples.longInput.lengths[0]: give either tokens (an exact length) or from and to (a range)",
            ],
        ),
        (
            job(),
            "/spec/samples/longInput/lengths/0",
            json!({"name": "r", "from": "2Ki", "to": 2048}),
            &[
                "spec.samples.longInput.lengths[0].to: 2Ki must be longer than from (2Ki); write tokens for an exact length",
            ],
        ),
        (
            job(),
            "/spec/samples/longOutput",
            json!({"count": 1, "maxTokens": 1024}),
            &["spec.samples.longOutput.maxTokens: 1Ki must not be shorter than minTokens (2Ki)"],
        ),
        (
            job(),
            "/spec/samples/longInput",
            Value::Null,
            &["spec.samples: at least one of longInput and longOutput must be given"],
        ),
        (
            job(),
            "/spec/generator/endpoints",
            json!([{"name": "a", "url": "http://h/v1", "model": "m"}]),
            &["spec.generator: exactly one of endpoints and embedded must be given"],
        ),
        (
            job(),
            "/spec/generator/embedded",
            Value::Null,
            &["spec.generator: exactly one of endpoints and embedded must be given"],
        ),
        (
            job(),
            "/spec/generator",
            json!({"contextLength": 512, "endpoints": [endpoint, endpoint]}),
            &[
                "spec.generator.endpoints: must have at most 1 item",
                "spec.generator.endpoints[0].url: must not contain a user name or password; name a Secret instead",
                "spec.generator.endpoints[1].name: \"a\" is used twice; names in this list must differ",
                "spec.generator.endpoints[1].url: must not contain a user name or password; name a Secret instead",
            ],
        ),
        (
            job(),
            "/spec/storage/uri",
            json!("s3://b/k?X-Amz-Signature=1"),
            &[
                "spec.storage.uri: must not contain a signature, key or token in its query; name a Secret instead",
            ],
        ),
        (
            job(),
            "/spec/storage/uri",
            json!("/tmp/x"),
            &[
                "spec.storage.uri: \"/tmp/x\" must be a URI that begins with s3://, gs://, az://, abfss:// or file:",
            ],
        ),
        (
            run(),
            "/spec/stages/1/contextLength",
            json!(512),
            &[
                "spec.stages[1].contextLength: 512 must be longer than the stage before it (512): every stage extends the window",
            ],
        ),
        (run(), "/spec/stages/0/steps", json!(0), &["spec.stages[0].steps: 0 must be at least 1"]),
        (
            run(),
            "/spec/stages/0/learningRate",
            json!("0"),
            &["spec.stages[0].learningRate: \"0\" must be a positive decimal number such as \"2e-5\""],
        ),
        (
            run(),
            "/spec/training",
            json!({"learningRate": 2e-5}),
            &["spec.training.learningRate: must be a string, not a number"],
        ),
        (
            run(),
            "/spec/parallelism",
            json!({"sequence": "Tree"}),
            &["spec.parallelism.sequence: \"Tree\" is not known; write Auto or Ring"],
        ),
        (
            run(),
            "/spec/data/1/synthesisJobRef",
            json!({"name": "docs"}),
            &["spec.data[1]: exactly one of synthesisJobRef and uri must be given"],
        ),
        (
            run(),
            "/spec/data/1/uri",
            Value::Null,
            &["spec.data[1]: exactly one of synthesisJobRef and uri must be given"],
        ),
        (
            run(),
            "/spec/evaluation/lossByPosition",
            Value::Null,
            &["spec.evaluation: name what is to be measured: lossByPosition, recall, needle"],
        ),
        (
            run(),
            "/spec/podTemplate",
            json!({"spec": {"hostname": "h", "restartPolicy": "Always", "containers": [
            {"name": "worker", "command": ["sh"], "env": [{"name": "API_KEY", "value": "x"}, {"name": "LONGSTRAP_TASK", "value": "x"}]},
        ], "initContainers": [{"name": "worker"}], "volumes": [{"name": "longstrap-task"}]}}),
            &[
                "spec.podTemplate.spec: hostname is set by Longstrap",
                "spec.podTemplate.spec: restartPolicy is set by Longstrap",
                "spec.podTemplate.spec.containers[0]: command and args of the container worker are set by Longstrap",
                "spec.podTemplate.spec.containers[0].env[0]: must take its value from a Secret (valueFrom.secretKeyRef), not from a literal",
                "spec.podTemplate.spec.containers[0].env[1]: is set by Longstrap",
                "spec.podTemplate.spec.initContainers[0]: worker is the name of the main container",
                "spec.podTemplate.spec.volumes[0]: names that begin with longstrap- are used by Longstrap",
            ],
        ),
    ];
    for (doc, pointer, value, errors) in rows {
        let doc = with(doc, pointer, value.clone());
        assert_eq!(shown(&validate(&doc)), errors, "{pointer} = {value}");
        assert_eq!(shown(&parse(&doc).unwrap_err()), errors);
    }
    assert_eq!(
        shown(&validate(&json!([]))),
        [": must be an object with apiVersion, kind, metadata and spec"]
    );
}

#[test]
fn every_error_is_told_at_once() {
    let mut doc = run();
    doc["spec"]["modell"] = json!(1);
    doc["spec"].as_object_mut().unwrap().remove("model");
    doc["spec"]["stages"][0]["steps"] = json!("two");
    doc["spec"]["stages"][1]["contextLength"] = json!(100);
    doc["spec"]["data"][0]["uri"] = json!("file:x");
    assert_eq!(
        shown(&validate(&doc)),
        [
            "spec.data[0]: exactly one of synthesisJobRef and uri must be given",
            "spec.model: is required",
            "spec.modell: unknown field; did you mean model?",
            "spec.stages[0].steps: must be a whole number, not a string",
            "spec.stages[1].contextLength: 100 must be longer than the stage before it (512): every stage extends the window",
        ]
    );
}

#[test]
fn edits() {
    let rows: Vec<(Value, &str, Value, &[&str])> = vec![
        (job(), "/spec/workers", json!(4), &[]),
        (job(), "/spec/storage/adopt", json!(true), &[]),
        (job(), "/spec/seed", json!(0), &[]), // The default, written out.
        (job(), "/spec/seed", json!(1), &["spec.seed: seed cannot be changed; make another SynthesisJob"]),
        (
            job(),
            "/spec/heldOut",
            Value::Null,
            &["spec.heldOut: heldOut cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/storage/uri",
            json!("file:other"),
            &["spec.storage.uri: uri cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/generator/contextLength",
            json!("4Ki"),
            &["spec.generator.contextLength: contextLength cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/generator",
            json!({"contextLength": "8Ki", "endpoints": [{"name": "a", "url": "http://h", "model": "m"}]}),
            &[
                "spec.generator.embedded: embedded cannot be changed; make another SynthesisJob",
                "spec.generator.endpoints: endpoints cannot be changed; make another SynthesisJob",
            ],
        ),
        (run(), "/spec/training", json!({"checkpoint": {"everySeconds": 5}}), &[]),
        (
            run(),
            "/spec/training",
            json!({"warmupSteps": 5}),
            &["spec.training.warmupSteps: warmupSteps cannot be changed; make another ContextExtensionRun"],
        ),
        (
            run(),
            "/spec/stages/0/steps",
            json!(3),
            &["spec.stages: stages cannot be changed; make another ContextExtensionRun"],
        ),
        (run(), "/spec/parallelism", json!({"nodes": 2}), &[]),
    ];
    for (old, pointer, value, errors) in rows {
        let new = with(old.clone(), pointer, value.clone());
        assert_eq!(shown(&validate_update(&old, &new)), errors, "{pointer} = {value}");
    }
    // The order of data decides nothing.
    let mut new = run();
    new["spec"]["data"].as_array_mut().unwrap().reverse();
    assert_eq!(shown(&validate_update(&run(), &new)), Vec::<String>::new());
    // A server's endpoint may move; its model may not change.
    let at = |url: &str, model: &str| {
        with(
            job(),
            "/spec/generator",
            json!({"contextLength": "8Ki", "endpoints": [{"name": "a", "url": url, "model": model}]}),
        )
    };
    assert_eq!(shown(&validate_update(&at("http://a", "m"), &at("http://b", "m"))), Vec::<String>::new());
    assert_eq!(
        shown(&validate_update(&at("http://a", "m"), &at("http://a", "n"))),
        ["spec.generator: the model of the endpoints cannot be changed; make another SynthesisJob"]
    );
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
