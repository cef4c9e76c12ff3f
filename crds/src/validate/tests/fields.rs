//! Bad fields.

use super::*;

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
