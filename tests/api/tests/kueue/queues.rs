//! Kueue as a process beside the control plane, and a ClusterQueue with room for one run.

use std::{path::PathBuf, process::Command};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
    core::GroupVersionKind,
};
use longstrap_api_tests::{ControlPlane, Process, Sandbox, User, http::free_port};
use serde_json::{Value, json};

/// Node label that the flavor asks for.
pub(crate) const ACCELERATOR: &str = "h100";

/// Where Kueue looks for the certificate of its metrics when it does not manage its own.
const METRICS_CERTS: &str = "/etc/kueue/metrics/certs";

fn kind(name: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kueue.x-k8s.io", "v1beta1", name))
}

fn from_env() -> PathBuf {
    std::env::var_os("LONGSTRAP_KUEUE").expect("LONGSTRAP_KUEUE is not set: run `make test-kueue`").into()
}

/// Kueue with only `batch/job`, without webhooks.
pub(crate) struct Kueue {
    _process: Process,
}

impl Kueue {
    /// Installs the CRDs and starts the manager.
    pub(crate) async fn start(s: &Sandbox) -> Self {
        let plane = tokio::task::spawn_blocking(ControlPlane::shared).await.unwrap();
        install_crds(s).await;
        // The webhook server wants a certificate, though nobody calls it.
        let certs = plane.dir().join("kueue-certs");
        std::fs::create_dir_all(&certs).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kueue"])
            .args(["-keyout".into(), certs.join("tls.key"), "-out".into(), certs.join("tls.crt")]
                as [PathBuf; 4])
            .output()
            .unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let config = json!({
            "apiVersion": "config.kueue.x-k8s.io/v1beta1",
            "kind": "Configuration",
            "namespace": "kube-system",
            "health": {"healthProbeBindAddress": "127.0.0.1:0"},
            "metrics": {"bindAddress": "127.0.0.1:0"},
            "webhook": {"port": free_port(), "host": "127.0.0.1", "certDir": certs},
            "leaderElection": {"leaderElect": false},
            "internalCertManagement": {"enable": false},
            "manageJobsWithoutQueueName": false,
            "integrations": {"frameworks": ["batch/job"]},
        });
        let path = plane.dir().join("kueue.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let kubeconfig = plane.kubeconfig(User::Admin, plane.server());
        let env = [("KUBECONFIG", kubeconfig.to_string_lossy().into_owned())];
        // Kueue reads the certificate of its metrics from a folder below /etc: it gets an /etc of its own.
        let script = format!(
            "mount -t tmpfs kueue /etc && mkdir -p {METRICS_CERTS} && cp {certs}/tls.* {METRICS_CERTS} && \
             exec {kueue} --config={config} --feature-gates=VisibilityOnDemand=false",
            certs = certs.display(),
            kueue = from_env().join("kueue").display(),
            config = path.display(),
        );
        let args = ["--map-root-user", "--mount", "sh", "-c", &script].map(str::to_owned);
        let process = Process::start("unshare".as_ref(), &args, &env, &plane.dir().join("kueue.log"));
        Self { _process: process }
    }
}

async fn install_crds(s: &Sandbox) {
    let crds = Api::<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    >::all(s.client.clone());
    for entry in std::fs::read_dir(from_env().join("crds")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let crd: Value = serde_saphyr::from_str(&text).unwrap();
        let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
        crds.patch(&name, &PatchParams::apply("tests").force(), &Patch::Apply(&crd)).await.unwrap();
        s.until(&format!("{name} established"), async || {
            let live = crds.get(&name).await.unwrap();
            let conditions = live.status.and_then(|status| status.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
                Ok(())
            } else {
                Err(name.clone())
            }
        })
        .await;
    }
}

async fn apply(client: &Client, namespace: Option<&str>, doc: Value) {
    let resource = kind(doc["kind"].as_str().unwrap());
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = doc["metadata"]["name"].as_str().unwrap().to_owned();
    api.patch(&name, &PatchParams::apply("tests").force(), &Patch::Apply(&doc)).await.unwrap();
}

/// A LocalQueue in the sandbox with room for `cpus`, its flavor, and two priorities.
pub(crate) async fn queue(s: &Sandbox, queue: &str, cpus: u32) {
    let name = format!("{}-{queue}", s.namespace);
    let api = "kueue.x-k8s.io/v1beta1";
    let flavor = json!({"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": name},
        "spec": {"nodeLabels": {"accelerator": ACCELERATOR}}});
    apply(&s.client, None, flavor).await;
    let quota = json!([{"name": "cpu", "nominalQuota": cpus.to_string()}, {"name": "memory", "nominalQuota": "1000Gi"}]);
    let cluster_queue = json!({"apiVersion": api, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quota}]}],
    }});
    apply(&s.client, None, cluster_queue).await;
    let local = json!({"apiVersion": api, "kind": "LocalQueue", "metadata": {"name": queue, "namespace": s.namespace},
        "spec": {"clusterQueue": name}});
    apply(&s.client, Some(&s.namespace), local).await;
    for (priority, value) in [("low", 1), ("high", 1000)] {
        let class = json!({"apiVersion": api, "kind": "WorkloadPriorityClass", "metadata": {"name": priority}, "value": value});
        apply(&s.client, None, class).await;
    }
}

/// Sets `spec.active` of the workload of the object's only Job that is not finished: what an
/// administrator does to evict it.
pub(crate) async fn set_active(s: &Sandbox, job_uid: &str, active: bool) {
    let workloads: Api<DynamicObject> =
        Api::namespaced_with(s.client.clone(), &s.namespace, &kind("Workload"));
    let name = s
        .until("a workload of the Job", async || {
            let all = workloads.list(&ListParams::default()).await.unwrap();
            let of_job = all
                .into_iter()
                .find(|w| w.metadata.owner_references.iter().flatten().any(|o| o.uid == job_uid));
            of_job.and_then(|w| w.metadata.name).ok_or(job_uid.to_owned())
        })
        .await;
    let patch = Patch::Merge(json!({"spec": {"active": active}}));
    workloads.patch(&name, &PatchParams::default(), &patch).await.unwrap();
}
