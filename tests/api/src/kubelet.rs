//! Plays scheduler and kubelet: pods run and end when the test says so.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use longstrap_crds::{TerminationMessage, names::ANNOTATION_OWNER};
use serde_json::{Value, json};

use crate::Sandbox;

/// How a pod ends.
#[derive(Clone, Debug)]
pub struct End {
    /// Exit code of the container worker.
    pub code: i32,
    /// What it left.
    pub message: TerminationMessage,
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

fn worker(state: Value) -> Value {
    json!([{"name": "worker", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state}])
}

impl Sandbox {
    /// The pods of the namespace.
    pub async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default()).await.unwrap().items
    }

    /// The pods of an object of ours.
    pub async fn pods_of(&self, name: &str) -> Vec<Pod> {
        let owner = format!("{}/{name}", self.namespace);
        let mut pods = self.pods().await;
        pods.retain(|p| p.annotations().get(ANNOTATION_OWNER) == Some(&owner));
        pods
    }

    /// Waits for the one pod of an object.
    pub async fn pod_of(&self, name: &str) -> Pod {
        self.until(&format!("a pod of {name}"), async || {
            let mut pods = self.pods_of(name).await;
            pods.retain(|p| p.metadata.deletion_timestamp.is_none() && phase(p) == "Pending");
            match pods.pop() {
                Some(pod) if pods.is_empty() => Ok(pod),
                _ => Err(pods.len()),
            }
        })
        .await
    }

    /// Merges into the status of a pod.
    pub async fn set(&self, pod: &Pod, status: Value) {
        let api: Api<Pod> = self.api();
        let patch = json!({"status": status});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            // Deleted meanwhile: nothing is left to report about.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            result => drop(result.unwrap()),
        }
    }

    /// Waits until `wanted` pods wait to be started, and starts them.
    pub async fn start_pods(&self, wanted: usize) {
        let pending = self
            .until(&format!("{wanted} pending pods"), async || {
                let pods = self.pods().await;
                let pending: Vec<Pod> = pods
                    .into_iter()
                    .filter(|p| phase(p) == "Pending" && p.metadata.deletion_timestamp.is_none())
                    .collect();
                if pending.len() == wanted { Ok(pending) } else { Err(format!("{} are", pending.len())) }
            })
            .await;
        for pod in pending {
            self.start_pod(&pod).await;
        }
    }

    /// Gives a pod a node, as the scheduler does.
    pub async fn bind(&self, pod: &Pod, node: &str) {
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let params = PostParams::default();
        let pods = self.api::<Pod>();
        pods.create_subresource::<Value, Value>("binding", &name, &params, &binding).await.unwrap();
    }

    /// Starts one pod.
    pub async fn start_pod(&self, pod: &Pod) {
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let status = json!({
            "phase": "Running",
            "startTime": now,
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": worker(json!({"running": {"startedAt": now}})),
        });
        self.set(pod, status).await;
    }

    /// The pods that run.
    pub async fn running(&self) -> Vec<Pod> {
        let mut pods = self.pods().await;
        pods.retain(|p| phase(p) == "Running");
        pods
    }

    /// Ends all pods that run.
    pub async fn end_pods(&self, end: &End) {
        for pod in self.running().await {
            self.end_pod(&pod, end).await;
        }
    }

    /// Ends one pod.
    pub async fn end_pod(&self, pod: &Pod, end: &End) {
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let terminated = json!({"exitCode": end.code, "message": end.message.to_json(), "startedAt": now, "finishedAt": now});
        let status = json!({
            "phase": if end.code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": worker(json!({"terminated": terminated})),
        });
        self.set(pod, status).await;
    }

    /// One step: its pods start, and end well.
    pub async fn succeed(&self, pods: usize) {
        self.start_pods(pods).await;
        self.end_pods(&End::committed()).await;
    }
}

impl End {
    /// Everything is committed; whatever a step can hand on is handed on.
    pub fn committed() -> Self {
        let message = json!({
            "complete": true,
            "dataset": {"uri": "s3://b/docs/dataset", "digest": "sha256:d", "rows": 2, "tokens": 9},
            "model": "s3://b/run/model",
            "data": [{"name": "short", "uri": "s3://b/short", "digest": "sha256:s"}],
        });
        Self { code: 0, message: serde_json::from_value(message).unwrap() }
    }

    /// With an exit code, a reason and words.
    pub fn with(code: i32, message: Value) -> Self {
        Self { code, message: serde_json::from_value(message).unwrap() }
    }
}
