//! What is deleted, and when: Jobs of ended attempts, finished Jobs after a while, the object itself.
//!
//! Invariant: the Job of the current attempt is never deleted before it is finished, unless the run
//! has failed; a Job that is being deleted is left alone.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use longstrap_crds::Reason;

use super::ChildRef;
use super::children::FAIL_JOB;
use super::draft::{Draft, after, seconds};
use super::observe::{Observed, PodView, condition_time};

/// Time that the Job controller gets to end a Job.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
const ENDED: [&str; 4] = ["Complete", "Failed", "SuccessCriteriaMet", "FailureTarget"];

/// Jobs.
pub(super) fn children(draft: &mut Draft<'_>) {
    let keep = seconds(draft.object().common().clean_children_after_seconds);
    let current = draft.child_name();
    for job in draft.world.jobs.iter().filter(|j| j.metadata.deletion_timestamp.is_none()) {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        match condition_time(job, &ENDED) {
            Some(end) => {
                let due = after(end.max(created(job)), keep);
                if due <= draft.now() {
                    delete(draft, job);
                } else {
                    draft.wake_at(due);
                }
            }
            None if name != current || draft.is_terminal() => match about_to_end(draft, name) {
                Some(until) if until > draft.now() => draft.wake_at(until),
                _ => delete(draft, job),
            },
            None => {}
        }
    }
}

/// A worker has ended with a code on which the Job controller ends the Job and stops its pods: it is left
/// that long, so that what the worker has logged stays as long as that of any finished Job. No longer: of
/// a pod in which another container runs on, the Job controller never learns that its work is over.
fn about_to_end(draft: &Draft<'_>, job: &str) -> Option<Timestamp> {
    let ends = |p: &PodView| p.succeeded() || p.end.as_ref().is_some_and(|e| FAIL_JOB.contains(&e.raw));
    let pods = Observed::new(draft.world, job).pods;
    let ended = pods.iter().filter(|p| ends(p)).filter_map(|p| p.finished).max()?;
    Some(after(ended, PATIENCE))
}

fn created(job: &Job) -> Timestamp {
    job.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |t| t.0)
}

fn delete(draft: &mut Draft<'_>, job: &Job) {
    let name = job.metadata.name.clone().unwrap_or_default();
    draft.event(false, Reason::JobDeleted, format!("Job {name} is deleted"));
    draft.delete.push(ChildRef { kind: "Job", name, uid: job.metadata.uid.clone() });
}

/// The object, when its time to live is over.
pub(super) fn object(draft: &mut Draft<'_>) {
    let common = draft.object().common();
    let ttl = match (draft.complete, draft.failure.is_some()) {
        (true, _) => common.ttl_seconds_after_success,
        (_, true) => common.ttl_seconds_after_failure,
        _ => None,
    };
    let end = draft.status.completion_time.as_ref().map(|t| t.0);
    if let (Some(ttl), Some(end)) = (ttl, end) {
        let due = after(end, seconds(ttl));
        draft.delete_object = due <= draft.now();
        draft.wake_at(due);
    }
}
