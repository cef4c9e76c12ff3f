//! What a person asks for: an edit, a restart, suspension.
//!
//! Invariant: a request is acted upon once; what was taken up is in the status.

use jiff::SignedDuration;
use longstrap_crds::{
    Reason,
    names::{ANNOTATION_RESTART, KUEUE_PREFIX},
    reason::Effect,
};

use super::draft::{Cause, Draft};

/// Keys of Kueue that a Job may carry without changing behind the task file.
const KUEUE_KEYS: [&str; 3] =
    ["kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class", "kueue.x-k8s.io/max-exec-time-seconds"];

/// Edits and restarts; a block that is tried again by itself.
pub(super) fn take_up(draft: &mut Draft<'_>) {
    let metadata = draft.object().metadata();
    let edited =
        metadata.generation > draft.status.observed_generation && draft.status.observed_generation.is_some();
    let asked = metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ANNOTATION_RESTART))
        .map(|v| v.chars().take(64).collect());
    let restart = asked.is_some() && asked != draft.status.recovery.restarted_at;
    if restart {
        draft.recovery().restarted_at = asked;
        draft.recovery().node_failures.clear();
        draft.recovery().avoided_nodes.clear();
        draft.event(false, Reason::RestartRequested, "a restart was asked for");
        if draft.observed().job.is_some() {
            draft.next_attempt(SignedDuration::ZERO);
        }
    }
    if restart || (edited && draft.block.is_some()) {
        draft.block = None;
        draft.waiting = None;
        let recovery = draft.recovery();
        (recovery.failures, recovery.outages, recovery.next_attempt_time) = (0, 0, None);
    }
    let now = draft.now();
    if draft.recovery().next_attempt_time.as_ref().is_some_and(|t| t.0 <= now) {
        draft.recovery().next_attempt_time = None;
        draft.waiting = None;
        if draft.block.as_ref().is_some_and(|b| b.reason.effect() == Effect::BlockedRetried) {
            draft.block = None;
        }
    }
}

/// A key of Kueue on the object that would change its next Job behind the task file.
pub(super) fn refuse_kueue_keys(draft: &mut Draft<'_>) {
    let metadata = draft.object().metadata();
    let keys = metadata.labels.iter().chain(&metadata.annotations).flat_map(|m| m.keys());
    let refused = keys.into_iter().find(|k| k.starts_with(KUEUE_PREFIX) && !KUEUE_KEYS.contains(&k.as_str()));
    match refused {
        Some(key) if draft.block.is_none() && !draft.observed().exists => {
            let message = format!(
                "{key} is not supported on this object; topology keys belong to spec.podTemplate.metadata"
            );
            draft.event(true, Reason::KueueKeyNotSupported, message.clone());
            draft.block = Some(Cause::new(Reason::KueueKeyNotSupported, message));
        }
        None if draft.block.as_ref().is_some_and(|b| b.reason == Reason::KueueKeyNotSupported) => {
            draft.block = None;
        }
        _ => {}
    }
}

/// `spec.suspend`: the child goes, its pods save their state; resume is the next attempt.
pub(super) fn suspend(draft: &mut Draft<'_>) {
    if draft.object().common().suspend && !draft.is_terminal() && draft.observed().job.is_some() {
        draft.event(false, Reason::SuspendRequested, format!("{} is stopped by spec.suspend", draft.step));
        draft.next_attempt(SignedDuration::ZERO);
    }
}
