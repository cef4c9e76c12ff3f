//! What is kept of a kind, in which form, and by what it is found.
//!
//! Invariant: whatever nothing reads (managed fields, what kubectl applied, specs of pods, templates of
//! Jobs) is dropped on arrival; the rest is kept as text, a quarter of its size as structs, and read anew
//! for each plan.

use std::marker::PhantomData;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ContainerStatus, Pod, PodSpec, PodStatus, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, ResourceExt};
use longstrap_crds::{
    CommonSpec, CommonStatus, ContextExtensionRun, Phase, SynthesisJob,
    common::MANAGED_BY,
    names::{CONTAINER, LABEL_OWNER},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{place::Place, store::Name};

/// A copy of the manifest that `kubectl apply` leaves.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// By what an object is looked up besides its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Term {
    /// UID of the object of ours that it belongs to: its own, or the owner's by label.
    Owner(String),
    /// A SynthesisJob whose data it takes.
    Data(Name),
    /// Where it keeps what it writes.
    Place(Place),
}

/// What is kept of a kind, and by what it is found.
pub(super) trait Kept:
    Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
    /// Drops what nothing reads of this kind.
    fn slim(&mut self) {}
    /// UID of the object of ours that it belongs to: its own, or the owner's by label.
    fn owner(&self) -> Option<String>;
    /// It is an object for this operator to work on.
    fn is_ours(&self) -> bool {
        false
    }
    /// Its status, when it is an object of ours.
    fn status(&self) -> Option<&CommonStatus> {
        None
    }
    /// By what else it is found.
    fn terms(&self) -> Vec<Term> {
        Vec::new()
    }
}

/// Drops what nothing reads, of any kind.
pub(super) fn slimmed<K: Kept>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
    object.slim();
    object
}

/// An object as text, with what is looked at in all of them.
#[derive(Debug)]
pub(super) struct Packed<K> {
    pub(super) uid: String,
    /// It is an object for this operator to work on.
    pub(super) ours: bool,
    pub(super) phase: Option<Phase>,
    pub(super) step: Option<String>,
    pub(super) attempt: Option<u32>,
    json: Box<[u8]>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kept> Packed<K> {
    /// Of an object that was read from JSON.
    pub(super) fn new(object: &K) -> Self {
        let status = object.status();
        Self {
            uid: object.meta().uid.clone().unwrap_or_default(),
            ours: object.is_ours(),
            phase: status.and_then(|s| s.phase),
            step: status.and_then(|s| s.step.clone()),
            attempt: status.and_then(|s| s.attempt),
            json: serde_json::to_vec(object).expect("it was read from JSON").into_boxed_slice(),
            kind: PhantomData,
        }
    }

    /// The object.
    pub(super) fn open(&self) -> K {
        serde_json::from_slice(&self.json).expect("it was written from such an object")
    }
}

/// Nobody else manages it, and it is not being deleted.
fn is_for_us(metadata: &ObjectMeta, spec: &CommonSpec) -> bool {
    spec.managed_by == MANAGED_BY && metadata.deletion_timestamp.is_none()
}

impl Kept for SynthesisJob {
    fn is_ours(&self) -> bool {
        is_for_us(&self.metadata, &self.spec.common)
    }
    fn status(&self) -> Option<&CommonStatus> {
        self.status.as_ref().map(|s| &s.common)
    }
    fn owner(&self) -> Option<String> {
        self.uid()
    }
    fn terms(&self) -> Vec<Term> {
        vec![Term::Place(Place::of(&self.metadata, &self.spec.common))]
    }
}

impl Kept for ContextExtensionRun {
    fn is_ours(&self) -> bool {
        is_for_us(&self.metadata, &self.spec.common)
    }
    fn status(&self) -> Option<&CommonStatus> {
        self.status.as_ref().map(|s| &s.common)
    }
    fn owner(&self) -> Option<String> {
        self.uid()
    }
    fn terms(&self) -> Vec<Term> {
        let namespace = self.metadata.namespace.clone().unwrap_or_default();
        let data = self.spec.data.iter().filter_map(|d| d.synthesis_job_ref.as_ref());
        let data = data.map(|r| Term::Data((namespace.clone(), r.name.clone())));
        data.chain([Term::Place(Place::of(&self.metadata, &self.spec.common))]).collect()
    }
}

impl Kept for Job {
    fn slim(&mut self) {
        if let Some(spec) = &mut self.spec {
            spec.template = PodTemplateSpec::default();
            spec.pod_failure_policy = None;
            spec.success_policy = None;
            spec.selector = None;
        }
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

impl Kept for Pod {
    fn slim(&mut self) {
        self.spec = self.spec.take().map(|s| PodSpec { node_name: s.node_name, ..PodSpec::default() });
        self.metadata.finalizers = None;
        self.status = self.status.take().map(|s| PodStatus {
            phase: s.phase,
            reason: s.reason,
            message: s.message,
            conditions: s.conditions,
            start_time: s.start_time,
            pod_ip: s.pod_ip,
            // A sidecar's end means nothing; it may wait for an image or a Secret, as an init container may.
            container_statuses: worker_and_waiting(s.container_statuses),
            init_container_statuses: s.init_container_statuses.map(|all| all.into_iter().map(slim).collect()),
            ..PodStatus::default()
        });
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

fn worker_and_waiting(statuses: Option<Vec<ContainerStatus>>) -> Option<Vec<ContainerStatus>> {
    let waits = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.waiting.is_some());
    Some(statuses?.into_iter().filter(|c| c.name == CONTAINER || waits(c)).map(slim).collect())
}

fn slim(status: ContainerStatus) -> ContainerStatus {
    ContainerStatus {
        name: status.name,
        image: status.image,
        state: status.state,
        restart_count: status.restart_count,
        ..ContainerStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nothing_that_is_read_is_lost() {
        let run: ContextExtensionRun = serde_json::from_value(json!({
            "apiVersion": "longstrap.io/v1alpha1", "kind": "ContextExtensionRun",
            "metadata": {
                "name": "llama", "namespace": "ml", "uid": "u", "managedFields": [{"manager": "kubectl"}],
                "annotations": {LAST_APPLIED: "{}", "longstrap.io/restart-at": "now"},
            },
            "spec": {
                "storage": {"uri": "s3://b/llama"}, "model": {"uri": "s3://b/model"},
                "data": [{"name": "long", "synthesisJobRef": {"name": "docs"}, "weight": 8}],
                "stages": [{"name": "a", "contextLength": "256Ki", "steps": 2}],
                "training": {"learningRate": "2e-5"},
                "podTemplate": {"spec": {"aFieldOfTheFuture": {"deep": [1, null]}}},
            },
            "status": {"phase": "Running", "step": "train-0", "attempt": 3},
        }))
        .unwrap();
        let run = slimmed(run);
        assert_eq!(run.annotations().len(), 1);
        let terms = run.terms();
        assert_eq!(terms[0], Term::Data(("ml".into(), "docs".into())));
        let packed = Packed::new(&run);
        assert_eq!(packed.open(), run);
        assert_eq!(
            (packed.phase, packed.step.as_deref(), packed.attempt, packed.uid.as_str()),
            (Some(Phase::Running), Some("train-0"), Some(3), "u")
        );
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {LABEL_OWNER: "u"}},
            "spec": {"containers": [{"name": "worker"}], "nodeName": "n1"},
            "status": {"phase": "Failed", "podIP": "10.0.0.1", "hostIP": "10.0.0.2", "containerStatuses": [
                {"name": "sidecar", "image": "s", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 3}}},
                {"name": "other", "image": "o", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "ImagePullBackOff"}}},
                {"name": "worker", "image": "w", "imageID": "sha256:1", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 13, "message": "{}"}}},
            ]},
        }))
        .unwrap();
        let pod: Value = serde_json::to_value(slimmed(pod)).unwrap();
        assert_eq!(pod["spec"], json!({"containers": [], "nodeName": "n1"}));
        let kept = pod["status"]["containerStatuses"].as_array().unwrap();
        let names: Vec<_> = kept.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(
            (names, &kept[1]["state"]["terminated"]["exitCode"]),
            (vec!["other", "worker"], &json!(13))
        );
        assert_eq!(pod["status"]["hostIP"], Value::Null);
    }
}
