//! `activeDeadlineSeconds` and `startupDeadlineSeconds`.
//!
//! Invariant: time in a queue never counts; the operator alone enforces, so that an edit of a
//! deadline acts at once and no field of a Job changes.

use jiff::Timestamp;
use longstrap_crds::{ConditionType, Reason};

use super::draft::{Cause, Draft, after, seconds};
use super::observe::Observed;
use super::{obstacles, steps};

/// Fails the run when a deadline has passed, or plans to look again when it will.
pub(super) fn enforce(draft: &mut Draft<'_>) {
    if draft.is_terminal() {
        return;
    }
    active(draft);
    if !draft.is_terminal() {
        startup(draft);
    }
}

fn active(draft: &mut Draft<'_>) {
    let Some(limit) = draft.object().common().active_deadline_seconds else { return };
    let observed = draft.observed();
    let recovery = &draft.status.recovery;
    let counted = recovery.counted_until.as_ref().map_or(Timestamp::MIN, |t| t.0);
    let used = recovery.pod_seconds + observed.pod_seconds(counted, draft.now());
    if used >= limit {
        draft.fail(Cause::new(
            Reason::DeadlineExceeded,
            format!("pods ran for {used}s; activeDeadlineSeconds is {limit}"),
        ));
    } else if observed.pods.iter().any(|p| p.started.is_some() && p.finished.is_none()) {
        draft.wake_at(after(draft.now(), seconds(limit - used)));
    }
}

fn startup(draft: &mut Draft<'_>) {
    let Some(limit) = draft.object().common().startup_deadline_seconds else { return };
    let observed = draft.observed();
    let Some(since) = waits_since(draft, &observed) else { return };
    let deadline = after(since, seconds(limit));
    if draft.now() >= deadline {
        let cause = obstacles::pods_wait_for(draft.world, &observed);
        let why = cause.map(|c| format!(": {}", c.message)).unwrap_or_default();
        draft.fail(Cause::new(
            Reason::StartupDeadlineExceeded,
            format!("not all pods of {} ran within {limit}s{why}", draft.step),
        ));
    } else {
        draft.wake_at(deadline);
    }
}

/// Since when the Job has fewer running pods than it needs; `None` when it has them all, or is
/// still in a queue.
fn waits_since(draft: &Draft<'_>, observed: &Observed<'_>) -> Option<Timestamp> {
    let job = observed.job?;
    if job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false) {
        return None;
    }
    let wanted = observed.wanted(steps::shape(draft.object(), draft.step).pods);
    let there = observed.pods.iter().filter(|p| p.running || p.succeeded()).count();
    if there >= wanted {
        return None;
    }
    let started =
        job.status.as_ref().and_then(|s| s.start_time.as_ref()).or(job.metadata.creation_timestamp.as_ref());
    // A pod lost hours later gets its own time to be replaced: from its end or the loss of its node,
    // and from the moment in which it was missed, because an evicted pod leaves nothing behind.
    let ends = observed.pods.iter().filter(|p| !p.running);
    let lost = ends.filter_map(|p| p.finished.or(p.lost_since).or(p.created)).max();
    let missed = (observed.placed() < wanted).then(|| missed_since(draft)).flatten();
    started.map(|t| t.0).max(lost).max(missed)
}

/// Since when not all pods have a node, by what the status told before.
fn missed_since(draft: &Draft<'_>) -> Option<Timestamp> {
    let type_ = ConditionType::PodsScheduled.as_str();
    let told = draft.status.conditions.iter().find(|c| c.type_ == type_)?;
    Some(if told.status == "True" { draft.now() } else { told.last_transition_time.0 })
}
