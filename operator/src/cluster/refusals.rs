//! Refusals by the API server, in our words: of Jobs by a dry run and at their creation, of pods by
//! the Job controller's Events (a refused pod does not exist).
//!
//! Invariant: decisions are pure; when to look is computed from the Job's age, never a constant interval.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use kube::core::Status;
use longstrap_crds::Reason;

use crate::plan::Obstacle;

/// Time that the Job controller gets to create pods.
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

/// Whether pods of a Job are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// All are there, or the Job is over or queued.
    No,
    /// Some are; too early to ask, look again then.
    Since(Timestamp),
    /// Some are, for long enough to ask why; look again then.
    Ask(Timestamp),
}

/// Judges a Job that is not over.
pub(super) fn missing(job: &Job, pods: &[Pod], now: Timestamp) -> Missing {
    let (Some(spec), Some(status)) = (&job.spec, &job.status) else { return Missing::No };
    let over = status.conditions.iter().flatten().any(|c| c.status == "True");
    let start = status.start_time.as_ref().map(|t| t.0);
    let (Some(start), false) = (start, over || spec.suspend.unwrap_or(false)) else { return Missing::No };
    let mut indexes: Vec<&str> =
        pods.iter().filter_map(|p| p.metadata.annotations.as_ref()?.get(INDEX).map(String::as_str)).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let wanted = usize::try_from(spec.completions.unwrap_or(1)).unwrap_or(0);
    if indexes.len() >= wanted {
        return Missing::No;
    }
    // 10 s after the start, then each time as late again: 20, 40, 80 s …
    let mut wait = PATIENCE;
    let mut due = start.checked_add(wait).unwrap_or(Timestamp::MAX);
    let first = due;
    while due <= now && due < Timestamp::MAX {
        wait = wait.saturating_mul(2);
        due = start.checked_add(wait).unwrap_or(Timestamp::MAX);
    }
    if now < first { Missing::Since(first) } else { Missing::Ask(due) }
}

/// The newest refusal among a Job's Events.
pub(super) fn of_events(events: &[Event]) -> Option<Obstacle> {
    let time =
        |e: &Event| e.last_timestamp.as_ref().map(|t| t.0).or_else(|| e.event_time.as_ref().map(|t| t.0));
    let newest = events
        .iter()
        .filter(|e| e.reason.as_deref() == Some("FailedCreate"))
        .max_by_key(|e| (time(e), e.metadata.name.clone()))?;
    let message = newest.message.clone().unwrap_or_default();
    Some(Obstacle { reason: of_pod(&message), message })
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
        let open = job(false, json!([]));
        let ended = json!([{"type": "FailureTarget", "status": "True"}]);
        for (job, pods, now, seen) in [
            (&open, vec![], 0, Missing::Since(at(10))),
            (&open, vec![pod("0")], 10, Missing::Ask(at(20))),
            (&open, vec![pod("0"), pod("0")], 20, Missing::Ask(at(40))),
            (&open, vec![pod("0")], 100, Missing::Ask(at(160))),
            (&open, vec![pod("0"), pod("1")], 100, Missing::No),
            (&job(true, json!([])), vec![], 100, Missing::No),
            (&job(false, ended), vec![], 100, Missing::No),
        ] {
            assert_eq!(missing(job, &pods, at(now)), seen);
        }
    }
}
