//! Pods of nodes that do not answer: they are deleted, and stay, and hold up their replacement.
//!
//! Invariant: decided from the pod alone: 60 s after its grace period a kubelet that lives would have
//! ended it. Commits are fenced, so a zombie does no harm.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use longstrap_crds::{Reason, common::LostNode};
use serde_json::{Value, json};

use super::PodRef;
use super::draft::{Draft, after};
use super::observe::has_ended;

const PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// Longest grace period in seconds that is waited for when the node is known to be away.
const MOST_GRACE: i64 = 120;
/// Taints of a node that does not answer.
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Has pods leave a node that does not answer after 30 s, unless the user's tolerations say how long they
/// stay; which do is asked as the API server asks before it adds its own 300 s.
pub(super) fn tolerate(spec: &mut Value) {
    let Some(spec) = spec.as_object_mut() else { return };
    let all = spec.entry("tolerations").or_insert(Value::Null);
    if all.is_null() {
        *all = json!([]);
    }
    // A list that is none is left to the API server to refuse.
    let Some(all) = all.as_array_mut() else { return };
    let any = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    for taint in TAINTS {
        let tolerates = |t: &Value| {
            (t["key"] == taint || any(&t["key"])) && (t["effect"] == "NoExecute" || any(&t["effect"]))
        };
        if !all.iter().any(tolerates) {
            all.push(
                json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}),
            );
        }
    }
}

/// When the pod's node counts as lost; `None`: the pod is not being deleted, or has ended.
pub(super) fn given_up_at(pod: &Pod) -> Option<Timestamp> {
    let due = due(pod)?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    matches!(phase, "Pending" | "Running").then_some(due)
}

/// When a kubelet that lives would have ended the pod; `None`: it is not being deleted.
///
/// deletionTimestamp is the request's time and the grace period, which of a pod that trains can be an
/// hour: the upload of a checkpoint on a node that lives. A node that is away uploads nothing, and its
/// gang stands still until the pod is replaced, so there no more than the shortest grace period counts.
pub(super) fn due(pod: &Pod) -> Option<Timestamp> {
    let end = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let waived = if node_is_away(pod) { grace.saturating_sub(MOST_GRACE).max(0) } else { 0 };
    Some(after(end, PATIENCE.saturating_sub(SignedDuration::from_secs(waived))))
}

/// The pod alone tells that its node does not answer: the node controller makes it not ready and gives no
/// reason, which a kubelet always does; or it was given up.
fn node_is_away(pod: &Pod) -> bool {
    let not_ready = |c: &PodCondition| {
        c.type_ == "Ready" && c.status == "False" && c.reason.as_deref().unwrap_or_default().is_empty()
    };
    is_given_up(pod) || pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(not_ready)
}

/// The pod was set to Failed with its node.
pub(super) fn is_given_up(pod: &Pod) -> bool {
    has_ended(pod)
        && pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| {
            c.type_ == "DisruptionTarget"
                && c.status == "True"
                && c.reason.as_deref() == Some(Reason::NodeLost.as_str())
        })
}

/// The pod was set to Failed, and not deleted: whoever gave it up has stopped in between.
fn half_given_up(pod: &Pod, now: Timestamp) -> bool {
    let is_due = due(pod).is_some_and(|due| due <= now);
    // Without a grace period it is deleted, and waits for the Job controller alone.
    is_due && pod.metadata.deletion_grace_period_seconds != Some(0) && is_given_up(pod)
}

/// Gives up the pods of lost nodes, those of deleted Jobs too.
pub(super) fn give_up(draft: &mut Draft<'_>) {
    let replace = draft.object().common().recovery.lost_node == LostNode::Replace;
    let world = draft.world;
    for (pod, due) in world.pods.iter().filter_map(|p| Some((p, given_up_at(p)?))) {
        if due > draft.now() {
            draft.wake_at(due);
        } else if replace {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("none");
            draft.event(
                true,
                Reason::NodeLost,
                format!("pod {name} is given up: its node {node} does not end it"),
            );
            draft.lost.push(reference(pod));
        }
    }
    let half = world.pods.iter().filter(|pod| half_given_up(pod, world.now));
    draft.lost.extend(half.map(reference));
}

fn reference(pod: &Pod) -> PodRef {
    PodRef {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
    }
}
