//! Which fields of an object that exists may change, by the API server itself: the table of the API.

use kube::{
    Client,
    core::{Request, Status},
};
use longstrap_api_tests::{RUN, SYNTH, Sandbox, extension_run, synthesis_job};
use serde_json::{Value, json};

/// What is refused, by the path of the field that the server names; `None`: nothing.
type Row = (&'static str, Value, Option<&'static str>);

/// A dry run of a replacement.
async fn replace(client: &Client, namespace: &str, kind: &str, new: &Value) -> Option<Status> {
    let plural = if kind == SYNTH { "synthesisjobs" } else { "contextextensionruns" };
    let name = new["metadata"]["name"].as_str().unwrap();
    let url = format!("/apis/longstrap.io/v1alpha1/namespaces/{namespace}/{plural}");
    let params = kube::api::PostParams { dry_run: true, ..Default::default() };
    let request = Request::new(url).replace(name, &params, new.to_string().into_bytes()).unwrap();
    match client.request::<Value>(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(*status),
        Err(error) => panic!("{error}"),
    }
}

/// Creates the object, then tries each row on it alone.
async fn check(s: &Sandbox, kind: &str, object: &Value, rows: &[Row]) {
    s.create(object).await;
    let name = object["metadata"]["name"].as_str().unwrap();
    let live = serde_json::to_value(s.objects(kind).get(name).await.unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (place, value, refused) in rows {
        let mut new = live.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = new.pointer_mut(parent).unwrap_or_else(|| panic!("{place} has no parent"));
        match parent {
            Value::Array(items) if key == "-" => items.push(value.clone()),
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value.clone(),
            parent => parent[key] = value.clone(),
        }
        let server = replace(&s.client, &s.namespace, kind, &new).await;
        let fields: Option<Vec<String>> = server
            .as_ref()
            .map(|s| s.details.iter().flat_map(|d| &d.causes).map(|c| c.field.clone()).collect());
        let right = match (&fields, refused) {
            (None, None) => true,
            (Some(fields), Some(refused)) => fields.iter().any(|f| f == refused),
            _ => false,
        };
        if !right {
            let message = server.map(|s| s.message).unwrap_or_default();
            wrong.push(format!("{place} becomes {value}: expected {refused:?}, seen {fields:?} {message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_may_change_of_a_synthesis_job() {
    let s = Sandbox::new("edits").await;
    let mut job = synthesis_job("docs");
    let corpus = |name: &str| json!({"name": name, "uri": format!("s3://b/{name}"), "format": "Parquet"});
    job["spec"]["corpus"] = json!([corpus("a"), corpus("b")]);
    let template = json!({"spec": {"containers": [{"name": "worker"}]}});
    let endpoint = |name: &str, model: &str| json!({"name": name, "url": "http://other/v1", "model": model});
    let rows = [
        ("/spec/managedBy", json!("example.com/other"), Some("spec.managedBy")),
        ("/spec/storage/uri", json!("s3://b/other"), Some("spec.storage.uri")),
        ("/spec/tokenizer/uri", json!("s3://b/other"), Some("spec.tokenizer")),
        ("/spec/corpus/0/uri", json!("s3://b/other"), Some("spec.corpus")),
        ("/spec/corpus/-", corpus("c"), Some("spec.corpus")),
        ("/spec/heldOut", json!({"tokens": "64Ki"}), Some("spec.heldOut")),
        ("/spec/generator/contextLength", json!("16Ki"), Some("spec.generator.contextLength")),
        ("/spec/generator/endpoints/0", endpoint("a", "other"), Some("spec.generator")),
        ("/spec/retriever", json!({"bm25": {}, "maxDocuments": 3}), Some("spec.retriever")),
        ("/spec/prompts", json!({"configMapRef": {"name": "p"}}), Some("spec.prompts")),
        ("/spec/samples/longInput/count", json!(3), Some("spec.samples")),
        ("/spec/seed", json!(99), Some("spec.seed")),
        // The order of named things decides nothing.
        ("/spec/corpus", json!([corpus("b"), corpus("a")]), None),
        ("/spec/suspend", json!(true), None),
        ("/spec/backoffLimit", json!(9), None),
        ("/spec/activeDeadlineSeconds", json!(99), None),
        ("/spec/startupDeadlineSeconds", json!(99), None),
        ("/spec/ttlSecondsAfterSuccess", json!(99), None),
        ("/spec/ttlSecondsAfterFailure", json!(99), None),
        ("/spec/cleanChildrenAfterSeconds", json!(99), None),
        ("/spec/recovery", json!({"lostNode": "Wait"}), None),
        ("/spec/storage/adopt", json!(true), None),
        ("/spec/storage/options", json!({"endpoint": "http://minio"}), None),
        ("/spec/storage/credentialsSecretRef", json!({"name": "s3"}), None),
        ("/spec/workers", json!(7), None),
        ("/spec/generator/endpoints/0", endpoint("a", "m"), None),
        ("/spec/image", json!("other@sha256:2"), None),
        ("/spec/podTemplate", template, None),
        ("/spec/auxiliaryQueueName", json!("cpu"), None),
    ];
    check(&s, SYNTH, &job, &rows).await;
}

#[tokio::test]
async fn what_may_change_of_a_run() {
    let s = Sandbox::new("edits").await;
    let run = extension_run("run", "docs");
    let stage =
        |name: &str, length: u32, steps: u32| json!({"name": name, "contextLength": length, "steps": steps});
    let with = |key: &str, value: Value| {
        let mut stage = stage("a", 512, 2);
        stage[key] = value;
        stage
    };
    let rows = [
        ("/spec/storage/uri", json!("s3://b/other"), Some("spec.storage.uri")),
        ("/spec/model/uri", json!("s3://b/other"), Some("spec.model")),
        ("/spec/data/0/weight", json!(3), Some("spec.data")),
        ("/spec/stages/0/steps", json!(3), Some("spec.stages[0].steps")),
        ("/spec/stages/0", with("learningRate", json!("1e-6")), Some("spec.stages[0].learningRate")),
        ("/spec/stages/-", stage("c", 2048, 2), Some("spec.stages")),
        ("/spec/stages", json!([stage("b", 1024, 2), stage("a", 512, 2)]), Some("spec.stages")),
        ("/spec/training", json!({"learningRate": "1e-6"}), Some("spec.training.learningRate")),
        ("/spec/evaluation", json!({"beforeFirstStage": true}), Some("spec.evaluation")),
        ("/spec/export", json!({"dtype": "Float32"}), Some("spec.export")),
        ("/spec/training", json!({"checkpoint": {"everySeconds": 60}}), None),
        ("/spec/allowWindowNotExtended", json!(true), None),
        ("/spec/parallelism/nodes", json!(4), None),
        ("/spec/stages/0", with("parallelism", json!({"nodes": 4})), None),
        ("/spec/stages/0", with("podTemplate", json!({"metadata": {"labels": {"a": "b"}}})), None),
        ("/spec/acceleratorMemory", json!("80Gi"), None),
    ];
    check(&s, RUN, &run, &rows).await;
}
