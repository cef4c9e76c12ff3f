//! A namespace of a test, with operators of its own; what a test sees of an object, in one line.

use std::{
    fmt::Debug,
    io::Write,
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
use longstrap_crds::{
    Step,
    names::{LABEL_ATTEMPT, LABEL_STEP},
};
use serde_json::{Value, json};

use crate::{ControlPlane, Process, Proxy, Seen, User, Verdict, control_plane::from_env, roles::LEASE};

/// Our kinds.
pub const SYNTH: &str = "SynthesisJob";
/// See [`SYNTH`].
pub const RUN: &str = "ContextExtensionRun";
/// Conditions, as [`Sandbox::shown`], of a Job whose pods have not started.
pub const NEW: &str = "Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied";

/// The longest wait for something to become true, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Image of pods whose object names none.
pub const WORKER_IMAGE: &str = "registry.example/worker@sha256:1";

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
        let client = plane.client(User::Admin).await;
        let namespace = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let new = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &new).await.unwrap();
        Self { plane, client, namespace }
    }

    /// Starts an operator for this namespace; its log lies beside the control plane's.
    pub fn operator(&self, identity: &str) -> Process {
        self.operator_at(identity, self.plane.server(), &[])
    }

    /// As [`Self::operator`], before a proxy or with other options.
    pub fn operator_at(&self, identity: &str, server: &str, options: &[&str]) -> Process {
        let program = from_env("LONGSTRAP_BIN_DIR").join("longstrap-operator");
        let mut args = vec![
            format!("--identity={identity}"),
            format!("--lease-name={LEASE}"),
            format!("--worker-image={WORKER_IMAGE}"),
        ];
        args.extend(options.iter().map(|o| (*o).to_owned()));
        for (option, value) in [
            ("--namespaces=", self.namespace.as_str()),
            ("--lease-namespace=", &self.namespace),
            ("--listen=", "127.0.0.1:0"),
            ("--workers=", "4"),
        ] {
            if !options.iter().any(|o| o.starts_with(option)) {
                args.push(format!("{option}{value}"));
            }
        }
        let kubeconfig = self.plane.kubeconfig(User::Operator, server);
        let env = [("KUBECONFIG", kubeconfig.to_string_lossy().into_owned())];
        Process::start(&program, &args, &env, &self.log(identity))
    }

    /// The API server's address.
    pub fn server(&self) -> &str {
        self.plane.server()
    }

    /// A proxy for an operator.
    pub async fn proxy(&self, rule: impl FnMut(&Seen) -> Verdict + Send + 'static) -> Proxy {
        Proxy::start(self.plane.client(User::Operator).await, rule).await
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

    /// Merges into the status of an object of ours, as its controller would.
    pub async fn set_status(&self, kind: &str, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.objects(kind).patch_status(name, &PatchParams::default(), &patch).await.unwrap();
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

    /// The status of an object of ours.
    pub async fn status(&self, kind: &str, name: &str) -> Value {
        let status = self.objects(kind).get(name).await.unwrap().data["status"].clone();
        note_reasons(&status);
        status
    }

    /// Waits for a field of a status.
    async fn field(&self, kind: &str, name: &str, field: &str, wanted: Value) {
        self.until(&format!("{field} of {name}: {wanted}"), async || {
            let status = self.status(kind, name).await;
            if status[field] == wanted { Ok(()) } else { Err(status) }
        })
        .await;
    }

    /// Waits for a phase.
    pub async fn phase(&self, kind: &str, name: &str, wanted: &str) {
        self.field(kind, name, "phase", json!(wanted)).await;
    }

    /// Waits until a condition is True for a reason (`!Type`: False).
    pub async fn reason(&self, kind: &str, name: &str, condition: &str, reason: &str) {
        let (type_, wanted) = match condition.strip_prefix('!') {
            Some(type_) => (type_, "False"),
            None => (condition, "True"),
        };
        self.until(&format!("{name}: {condition} for {reason}"), async || {
            let status = self.status(kind, name).await;
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            let is = conditions.any(|c| c["type"] == type_ && c["status"] == wanted && c["reason"] == reason);
            if is { Ok(()) } else { Err(status) }
        })
        .await;
    }

    /// Waits for an attempt.
    pub async fn attempt(&self, kind: &str, name: &str, wanted: u32) {
        self.field(kind, name, "attempt", json!(wanted)).await;
    }

    /// Phase, step/attempt, Jobs (`*`: not finished, `-`: being deleted), conditions with reasons.
    pub async fn shown(&self, kind: &str, name: &str) -> String {
        let Some(object) = self.objects(kind).get_opt(name).await.unwrap() else { return "gone".to_owned() };
        let status = &object.data["status"];
        note_reasons(status);
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let uid = object.uid().unwrap();
        let mut jobs: Vec<Job> = self.jobs().await;
        jobs.retain(|j| j.owner_references().iter().any(|o| o.uid == uid));
        // In the order in which they are made: two may be of one second.
        let number = |j: &Job, key: &str| j.labels().get(key).and_then(|n| n.parse::<u32>().ok());
        let step = |j: &Job| j.labels().get(LABEL_STEP).and_then(|s| s.parse::<Step>().ok());
        jobs.sort_by_key(|j| (step(j), number(j, LABEL_ATTEMPT)));
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

/// Keeps the reasons that were seen, for the tests that run afterwards.
fn note_reasons(status: &Value) {
    let Ok(path) = std::env::var("LONGSTRAP_REASONS_LOG") else { return };
    let reasons = status["conditions"].as_array().into_iter().flatten().filter_map(|c| c["reason"].as_str());
    let lines: String = reasons.map(|r| format!("{r}\n")).collect();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
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
    format!("{}-{}{sign}", label(LABEL_STEP), label(LABEL_ATTEMPT))
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
