//! A namespace of a test, with operators of its own; what a test sees of an object, in one line.

use std::{
    fmt::Debug,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

use crate::{ControlPlane, Process, control_plane::from_env};

/// The longest wait for something to become true, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace of a test.
pub struct Sandbox {
    plane: &'static ControlPlane,
    /// Of the administrator.
    pub client: Client,
    /// Its name.
    pub namespace: String,
}

impl Sandbox {
    /// A fresh namespace.
    pub async fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // The first test starts the control plane; the others wait, each on its thread.
        let plane = tokio::task::spawn_blocking(ControlPlane::shared).await.unwrap();
        let client = plane.client().await;
        let namespace = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let new = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &new).await.unwrap();
        Self { plane, client, namespace }
    }

    /// Starts an operator for this namespace; its log lies beside the control plane's.
    pub fn operator(&self, identity: &str) -> Process {
        let program = from_env("LONGSTRAP_BIN_DIR").join("longstrap-operator");
        let args = [
            format!("--namespaces={}", self.namespace),
            format!("--lease-namespace={}", self.namespace),
            format!("--identity={identity}"),
            "--worker-image=registry.example/worker@sha256:1".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            "--workers=4".to_owned(),
        ];
        let env = [("KUBECONFIG", self.plane.kubeconfig().to_string_lossy().into_owned())];
        Process::start(&program, &args, &env, &self.log(identity))
    }

    /// The log of an operator.
    pub fn log(&self, identity: &str) -> PathBuf {
        self.plane.dir().join(format!("{}-{identity}.log", self.namespace))
    }

    /// Typed access to the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Untyped access to one of our kinds.
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("longstrap.io", "v1alpha1", kind));
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
    }

    /// Creates an object of ours.
    pub async fn create(&self, doc: &Value) {
        let object: DynamicObject = serde_json::from_value(doc.clone()).unwrap();
        let api = self.objects(doc["kind"].as_str().unwrap());
        api.create(&PostParams::default(), &object).await.unwrap();
    }

    /// Merges into an object of ours.
    pub async fn edit(&self, kind: &str, name: &str, patch: Value) {
        let api = self.objects(kind);
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// The Jobs of the namespace.
    pub async fn jobs(&self) -> Vec<Job> {
        self.api::<Job>().list(&ListParams::default()).await.unwrap().items
    }

    /// Waits for `check` to succeed.
    pub async fn until<T, E: Debug>(&self, what: &str, check: impl AsyncFn() -> Result<T, E>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match check().await {
                Ok(value) => return value,
                Err(seen) if Instant::now() > give_up => panic!(
                    "{}: not within {PATIENCE:?}: {what}\nseen: {seen:?}\nlogs: {}",
                    self.namespace,
                    self.tail()
                ),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn tail(&self) -> String {
        let mut text = String::new();
        for identity in ["a", "b"] {
            let log = std::fs::read_to_string(self.log(identity)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(12).collect();
            text += &format!("\n-- operator {identity}\n");
            lines.into_iter().rev().for_each(|l| text += &format!("{l}\n"));
        }
        text
    }

    /// Waits until the object is seen as `wanted` (as [`Self::shown`]; `[..]`: whatever Jobs).
    pub async fn expect(&self, kind: &str, name: &str, wanted: &str) {
        self.until(wanted, async || {
            let mut shown = self.shown(kind, name).await;
            if let (true, Some((start, rest))) = (wanted.contains("[..]"), shown.split_once('[')) {
                let end = rest.split_once(']').map_or("", |(_, end)| end);
                shown = format!("{start}[..]{end}");
            }
            if shown == wanted { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// Phase, step/attempt, Jobs (`*`: not finished, `-`: being deleted), conditions with reasons.
    pub async fn shown(&self, kind: &str, name: &str) -> String {
        let Some(object) = self.objects(kind).get_opt(name).await.unwrap() else { return "gone".to_owned() };
        let status = &object.data["status"];
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let uid = object.uid().unwrap();
        let mut jobs: Vec<Job> = self.jobs().await;
        jobs.retain(|j| j.owner_references().iter().any(|o| o.uid == uid));
        jobs.sort_by_key(|j| j.creation_timestamp().map(|t| t.0));
        let jobs: Vec<String> = jobs.iter().map(job).collect();
        let conditions: Vec<String> = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| {
                let not = if c["status"] == "True" { "" } else { "!" };
                format!("{not}{}:{}", word(&c["type"]), word(&c["reason"]))
            })
            .collect();
        format!(
            "{} {}/{} [{}] {}",
            word(&status["phase"]),
            word(&status["step"]),
            status["attempt"],
            jobs.join(" "),
            conditions.join(" ")
        )
    }
}

fn job(job: &Job) -> String {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ended = conditions.into_iter().flatten().any(|c| {
        c.status == "True"
            && ["Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"].contains(&c.type_.as_str())
    });
    let labels = job.labels();
    let sign = match (job.metadata.deletion_timestamp.is_some(), ended) {
        (true, _) => "-",
        (_, true) => "",
        (_, false) => "*",
    };
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    format!("{}-{}{sign}", label("longstrap.io/step"), label("longstrap.io/attempt"))
}

/// A SynthesisJob with two workers.
pub fn synthesis_job(name: &str) -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "SynthesisJob",
        "metadata": {"name": name},
        "spec": {
            "storage": {"uri": format!("s3://b/{name}")},
            "tokenizer": {"uri": "s3://b/model"},
            "corpus": [{"name": "web", "uri": "s3://b/corpus", "format": "Parquet"}],
            "generator": {"endpoints": [{"name": "a", "url": "http://vllm/v1", "model": "m"}], "contextLength": "8Ki"},
            "samples": {"longInput": {"count": 2, "lengths": [{"name": "x", "tokens": 16384}]}},
            "workers": 2,
            "backoffLimit": 1,
        },
    })
}

/// A ContextExtensionRun on two nodes that takes the data of a SynthesisJob.
pub fn extension_run(name: &str, synthesis_job: &str) -> Value {
    json!({
        "apiVersion": "longstrap.io/v1alpha1",
        "kind": "ContextExtensionRun",
        "metadata": {"name": name},
        "spec": {
            "storage": {"uri": format!("s3://b/{name}")},
            "model": {"uri": "s3://b/model"},
            "data": [{"name": "long", "synthesisJobRef": {"name": synthesis_job}}, {"name": "short", "uri": "s3://b/short"}],
            "stages": [{"name": "a", "contextLength": 512, "steps": 2}, {"name": "b", "contextLength": 1024, "steps": 2}],
            "parallelism": {"nodes": 2, "ranksPerNode": 4},
            "backoffLimit": 1,
        },
    })
}
