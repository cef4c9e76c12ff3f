//! Refusals, in our words: of Jobs by the API server at a dry run and at their creation, of pods by the
//! Job controller's Events (a refused pod does not exist), of volumes by the kubelet's.
//!
//! Invariant: decisions are pure; when to look is computed from how long pods have been missing, never a
//! constant interval.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::core::Status;
use longstrap_crds::{CommonStatus, ConditionType, Reason};

use crate::plan::Obstacle;

/// Time that the Job controller gets to create pods, and a kubelet to start them.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What a refused create of a Job means; `None`: try again.
pub(super) fn of_job(status: &Status) -> Option<Obstacle> {
    let reason = match status.code {
        400 | 422 => Reason::InvalidPodTemplate,
        403 => of_pod(&status.message),
        _ => return None,
    };
    Some(Obstacle { reason, message: status.message.clone() })
}

fn of_pod(message: &str) -> Reason {
    if message.contains("exceeded quota") { Reason::QuotaExceeded } else { Reason::PodRejected }
}

/// Whether something should have happened by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It has, or need not.
    No,
    /// It should soon; too early to ask, look again then.
    Since(Timestamp),
    /// It has not, for long enough to ask why; look again then.
    Ask(Timestamp),
}

impl Missing {
    /// Asked 10 s after `since`, then each time as late again: 20, 40, 80 s …
    fn new(since: Timestamp, now: Timestamp) -> Self {
        let mut wait = PATIENCE;
        let mut due = since.checked_add(wait).unwrap_or(Timestamp::MAX);
        let first = due;
        while due <= now && due < Timestamp::MAX {
            wait = wait.saturating_mul(2);
            due = since.checked_add(wait).unwrap_or(Timestamp::MAX);
        }
        if now < first { Self::Since(first) } else { Self::Ask(due) }
    }
}

/// Whether pods of a Job are missing; not when it is over or queued.
pub(super) fn missing(job: &Job, pods: &[Pod], now: Timestamp) -> Missing {
    let (Some(spec), Some(status)) = (&job.spec, &job.status) else { return Missing::No };
    let over = status.conditions.iter().flatten().any(|c| c.status == "True");
    let start = status.start_time.as_ref().map(|t| t.0);
    let (Some(start), false) = (start, over || spec.suspend.unwrap_or(false)) else { return Missing::No };
    // An index whose pods have all failed needs another one.
    let there: BTreeSet<&str> = pods.iter().filter(|p| !has_failed(p)).filter_map(index).collect();
    let wanted = usize::try_from(spec.completions.unwrap_or(1)).unwrap_or(0);
    if there.len() >= wanted {
        return Missing::No;
    }
    let gone = pods.iter().filter(|p| index(p).is_some_and(|index| !there.contains(index)));
    Missing::new(gone.filter_map(finished).fold(start, Timestamp::max), now)
}

/// The pod that has waited longest for its volumes or its image on a node, and whether to ask why: the
/// pod itself does not tell that a Secret is missing.
pub(super) fn held_up(pods: &[Pod], now: Timestamp) -> Option<(&Pod, Missing)> {
    let since = |pod: &Pod| {
        let status = pod.status.as_ref().filter(|s| s.phase.as_deref() == Some("Pending"))?;
        let mut waiting = status.container_statuses.iter().flatten();
        let waits = waiting.any(|c| {
            let reason = c.state.as_ref().and_then(|s| s.waiting.as_ref()?.reason.as_deref());
            matches!(reason, Some("ContainerCreating" | "PodInitializing"))
        });
        status.start_time.as_ref().filter(|_| waits).map(|t| t.0)
    };
    let (since, pod) = pods
        .iter()
        .filter_map(|p| Some((since(p)?, p)))
        .min_by_key(|(t, p)| (*t, p.metadata.name.clone()))?;
    Some((pod, Missing::new(since, now)))
}

fn index(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(INDEX).map(String::as_str)
}

fn has_failed(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed")
}

fn finished(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let ends = status.container_statuses.iter().flatten();
    let ends = ends.filter_map(|c| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    // A pod that was given up or evicted has no container that ended.
    let changes = status.conditions.iter().flatten().filter_map(|c| Some(c.last_transition_time.as_ref()?.0));
    ends.max().or_else(|| changes.max())
}

/// The newest refusal among a Job's Events, unless pods were made since.
pub(super) fn of_events(events: &[Event], pods: &[Pod]) -> Option<Obstacle> {
    let newest_pod = pods.iter().filter_map(|p| Some(p.metadata.creation_timestamp.as_ref()?.0)).max();
    let newest = newest(events.iter().filter(|e| time(e) >= newest_pod), "FailedCreate")?;
    let message = newest.message.clone().unwrap_or_default();
    Some(Obstacle { reason: of_pod(&message), message })
}

/// What a pod's volumes wait for, a Secret above all, as the newest of its Events tells it: a later one
/// means that they wait no more.
pub(super) fn of_volumes(events: &[Event]) -> Option<Obstacle> {
    let failed = newest(events.iter(), "FailedMount")?;
    let message = failed.message.clone().filter(|_| events.iter().all(|e| time(e) <= time(failed)))?;
    let secret = message.contains("secret \"") && message.contains("not found");
    let reason = if secret { Reason::SecretNotFound } else { Reason::WaitingForPods };
    Some(Obstacle { reason, message })
}

fn newest<'a>(events: impl Iterator<Item = &'a Event>, reason: &str) -> Option<&'a Event> {
    events.filter(|e| e.reason.as_deref() == Some(reason)).max_by_key(|e| (time(e), e.metadata.name.clone()))
}

fn time(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|t| t.0);
    last.or_else(|| event.event_time.as_ref().map(|t| t.0))
}

/// The refusal of a Job that does not exist yet, as the status tells it: it stands until the Job is made.
pub(super) fn told(status: &CommonStatus) -> Option<Obstacle> {
    let queued = |c: &&Condition| c.type_ == ConditionType::Queued.as_str() && c.status == "True";
    let condition = status.conditions.iter().find(queued)?;
    let reason = condition.reason.parse().ok()?;
    matches!(reason, Reason::QuotaExceeded | Reason::PodRejected)
        .then(|| Obstacle { reason, message: condition.message.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_have_a_reason() {
        for (code, message, reason) in [
            (422, "spec.template: Invalid value", Some(Reason::InvalidPodTemplate)),
            (400, "strict decoding error: unknown field", Some(Reason::InvalidPodTemplate)),
            (403, "jobs.batch is forbidden: exceeded quota: q", Some(Reason::QuotaExceeded)),
            (403, "admission webhook denied the request", Some(Reason::PodRejected)),
            (500, "etcd is away", None),
            (429, "slow down", None),
        ] {
            let status = Status { code, message: message.into(), ..Status::success() };
            assert_eq!(of_job(&status).map(|o| o.reason), reason, "{message}");
        }
    }

    #[test]
    fn missing_pods_are_asked_about_ever_less_often() {
        let job = |suspend: bool, conditions: serde_json::Value| -> Job {
            serde_json::from_value(json!({
                "spec": {"completions": 2, "suspend": suspend, "template": {}},
                "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": conditions},
            }))
            .unwrap()
        };
        let pod = |index: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"annotations": {INDEX: index}}})).unwrap()
        };
        let at = |s: i64| {
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            start.checked_add(SignedDuration::from_secs(s)).unwrap()
        };
        let failed = |index: &str, second: i64| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"annotations": {INDEX: index}},
                "status": {"phase": "Failed", "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(second)}]},
            }))
            .unwrap()
        };
        let open = job(false, json!([]));
        let ended = json!([{"type": "FailureTarget", "status": "True"}]);
        for (job, pods, now, seen) in [
            (&open, vec![], 0, Missing::Since(at(10))),
            (&open, vec![pod("0")], 10, Missing::Ask(at(20))),
            (&open, vec![pod("0"), pod("0")], 20, Missing::Ask(at(40))),
            (&open, vec![pod("0")], 100, Missing::Ask(at(160))),
            (&open, vec![pod("0"), pod("1")], 100, Missing::No),
            // Hours after the start a pod fails: from then on.
            (&open, vec![pod("0"), failed("1", 9000)], 9009, Missing::Since(at(9010))),
            (&open, vec![pod("0"), failed("1", 50), failed("1", 9000)], 9015, Missing::Ask(at(9020))),
            (&open, vec![pod("0"), failed("1", 9000), pod("1")], 9015, Missing::No),
            (&job(true, json!([])), vec![], 100, Missing::No),
            (&job(false, ended), vec![], 100, Missing::No),
        ] {
            assert_eq!(missing(job, &pods, at(now)), seen);
        }
    }

    #[test]
    fn what_volumes_wait_for_is_told_by_the_kubelets_events_alone() {
        let pod = |name: &str, phase: &str, start: u32, waits: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "status": {"phase": phase, "startTime": format!("2026-01-01T00:00:{start:02}Z"),
                    "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": false,
                        "restartCount": 0, "state": {"waiting": {"reason": waits}}}]},
            }))
            .unwrap()
        };
        let second = |s: u32| -> Timestamp { format!("2026-01-01T00:00:{s:02}Z").parse().unwrap() };
        let pods = [
            pod("runs", "Running", 0, "ContainerCreating"),
            pod("pulls", "Pending", 1, "ImagePullBackOff"),
            pod("b", "Pending", 4, "ContainerCreating"),
            pod("a", "Pending", 4, "ContainerCreating"),
        ];
        for (now, seen) in [(13, Missing::Since(second(14))), (14, Missing::Ask(second(24)))] {
            let (pod, asked) = held_up(&pods, second(now)).unwrap();
            assert_eq!((pod.metadata.name.as_deref(), asked), (Some("a"), seen));
        }
        assert!(held_up(&pods[..2], second(50)).is_none());
        let event = |reason: &str, minute: u32, message: &str| -> Event {
            serde_json::from_value(json!({"reason": reason, "message": message, "metadata": {},
                "involvedObject": {}, "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z")}))
            .unwrap()
        };
        let missing = r#"MountVolume.SetUp failed for volume "credentials" : secret "s3" not found"#;
        let other = r#"MountVolume.SetUp failed for volume "prompts" : configmap "p" not found"#;
        let (secret, volume) = ((Reason::SecretNotFound, missing), (Reason::WaitingForPods, other));
        for (events, told) in [
            (vec![], None),
            (vec![event("FailedMount", 1, missing)], Some(secret)),
            (vec![event("FailedMount", 1, missing), event("FailedMount", 2, other)], Some(volume)),
            (vec![event("FailedMount", 2, missing), event("Scheduled", 1, "n1")], Some(secret)),
            (vec![event("FailedMount", 2, missing), event("Pulling", 3, "image")], None),
        ] {
            let seen = of_volumes(&events);
            assert_eq!(seen.as_ref().map(|o| (o.reason, o.message.as_str())), told, "{events:?}");
        }
    }

    #[test]
    fn a_refusal_older_than_the_newest_pod_is_over() {
        let event = |minute: u32| -> Event {
            serde_json::from_value(json!({"reason": "FailedCreate", "message": "exceeded quota: q",
                "metadata": {}, "involvedObject": {}, "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z")}))
            .unwrap()
        };
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"creationTimestamp": "2026-01-01T00:05:00Z"}}))
                .unwrap();
        for (pods, minute, refused) in [
            (vec![], 4, true),
            (vec![pod.clone()], 4, false),
            (vec![pod.clone()], 5, true),
            (vec![pod], 6, true),
        ] {
            let seen = of_events(&[event(minute)], &pods).map(|o| o.reason);
            assert_eq!(seen, refused.then_some(Reason::QuotaExceeded), "{minute}");
        }
    }
}
