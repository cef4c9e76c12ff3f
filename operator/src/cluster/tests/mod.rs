//! The process against a small API server in memory.

mod election;
pub(super) mod fake;
mod operator;
mod progress;
mod reconcile;
mod watches;

use clap::Parser;
use serde_json::{Value, json};

use super::{
    Options, events::Recorder, fence::Fence, metrics::Metrics, reconcile::Reconciler, writer::Writer,
};
use fake::Fake;

const SYNTHESIS: &str = "/apis/longstrap.io/v1alpha1 synthesisjobs";
const RUNS: &str = "/apis/longstrap.io/v1alpha1 contextextensionruns";

fn synthesis_job(name: &str) -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "SynthesisJob",
        "metadata": {"name": name, "namespace": "ml", "uid": format!("uid-of-{name}")},
        "spec": {
            "storage": {"uri": format!("s3://b/{name}")},
            "tokenizer": {"uri": "s3://b/model"},
            "corpus": [{"name": "web", "uri": "s3://b/corpus", "format": "Parquet"}],
            "generator": {"endpoints": [{"name": "a", "url": "http://vllm/v1", "model": "m"}], "contextLength": "8Ki"},
            "samples": {"longInput": {"count": 2, "lengths": [{"name": "x", "tokens": 16384}]}},
            "workers": 2,
        },
    })
}

fn extension_run(name: &str) -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "ContextExtensionRun",
        "metadata": {"name": name, "namespace": "ml", "uid": format!("uid-of-{name}")},
        "spec": {
            "storage": {"uri": format!("s3://b/{name}")},
            "model": {"uri": "s3://b/model"},
            "data": [{"name": "short", "uri": "s3://b/short"}],
            "stages": [{"name": "a", "contextLength": 512, "steps": 2}],
        },
    })
}

fn options() -> Options {
    let line = ["operator", "--identity=a", "--worker-image=w@sha256:1", "--cluster=c", "--workers=4"];
    Options::try_parse_from(line).unwrap()
}

/// A writer that leads for a long while.
fn writer(fake: &Fake) -> (Writer, Fence) {
    let fence = Fence::default();
    fence.hold(tokio::time::Instant::now(), std::time::Duration::from_secs(100_000));
    (Writer::new(fake.client(), fake.client(), fence.clone(), Metrics::default()), fence)
}

/// Knows of nothing; nobody writes its Events, but they are counted.
fn reconciler(fake: &Fake) -> (Reconciler, Metrics) {
    let metrics = Metrics::default();
    let reconciler = Reconciler {
        stores: Default::default(),
        writer: writer(fake).0,
        config: options().config("c".into()),
        events: Recorder::new(metrics.clone()).0,
        dry_runs: Default::default(),
        live: Default::default(),
        journal: Default::default(),
        made: Default::default(),
    };
    (reconciler, metrics)
}
