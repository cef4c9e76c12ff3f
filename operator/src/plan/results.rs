//! What follows from a verdict: the next step, the next attempt, a wait, or the end.
//!
//! Invariant: a step is complete only when what it hands on is known; a result lost with its pod is
//! asked for again (the step then ends at once, from storage).

use jiff::SignedDuration;
use longstrap_crds::{
    ExitCode, Reason, Step, names::ANNOTATION_STAGES_END, reason::Effect, status::PublishedModel,
};

use super::draft::{Cause, Draft, after};
use super::failures::Verdict;
use super::observe::Observed;
use super::steps;

/// Applies a verdict about the current Job.
pub(super) fn conclude(draft: &mut Draft<'_>, observed: &Observed<'_>, verdict: Verdict) {
    match verdict {
        Verdict::GoesOn => {}
        Verdict::StepComplete => {
            take_results(draft, observed);
            match missing_result(draft) {
                None => {
                    let next = steps::next(draft.object(), draft.step, trained(observed));
                    draft.next_step(next);
                }
                Some(what) => result_lost(draft, what),
            }
        }
        Verdict::StartOver(cause) => {
            draft.event(true, cause.reason, format!("starting over: {}", cause.message));
            draft.next_attempt(SignedDuration::ZERO);
        }
        Verdict::Outage(cause) => {
            let delay = back_off(draft.recovery().outages, 30);
            draft.recovery().outages += 1;
            draft.warn(&cause);
            draft.next_attempt(delay);
            let time = after(draft.now(), delay);
            draft.waiting =
                Some(Cause::new(cause.reason, format!("{}; next attempt at {time}", cause.message)));
        }
        Verdict::Blocked(cause) if cause.reason.effect() == Effect::BlockedRetried => {
            let delay = back_off(draft.recovery().outages, 15);
            draft.recovery().outages += 1;
            draft.block(cause, Some(delay));
        }
        Verdict::Blocked(cause) => draft.block(cause, None),
        Verdict::Failed(cause) => draft.fail(cause),
    }
}

/// 1·2ⁿ minutes, at most `most`.
pub(super) fn back_off(n: u32, most: i64) -> SignedDuration {
    SignedDuration::from_mins((1_i64 << n.min(10)).min(most))
}

/// Takes up what the succeeded pods hand on.
fn take_results(draft: &mut Draft<'_>, observed: &Observed<'_>) {
    let ends = observed.pods.iter().filter_map(|p| p.end.as_ref());
    for end in ends.filter(|e| e.code == ExitCode::Committed) {
        let message = &end.message;
        match draft.step {
            Step::Finalize => draft.dataset = message.dataset.clone().or(draft.dataset.take()),
            Step::Export => {
                draft.model = message.model.clone().map(|uri| PublishedModel { uri }).or(draft.model.take());
            }
            Step::Prepare => {
                let recovery = draft.recovery();
                let told = message.checkpoint_bytes.map(|bytes| bytes.min(i64::MAX.unsigned_abs()));
                recovery.checkpoint_bytes = told.or(recovery.checkpoint_bytes);
                for read in &message.data {
                    let known = draft.data.iter_mut().find(|d| d.name == read.name && d.digest.is_none());
                    if let Some(known) = known {
                        known.digest.clone_from(&read.digest);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The first stage that the finished Job did not train, as it was told when it was made.
fn trained(observed: &Observed<'_>) -> Option<u32> {
    observed.job?.metadata.annotations.as_ref()?.get(ANNOTATION_STAGES_END)?.parse().ok()
}

/// What the step should have handed on and did not.
fn missing_result(draft: &Draft<'_>) -> Option<&'static str> {
    match draft.step {
        Step::Finalize if draft.dataset.is_none() => Some("the dataset's address and digest"),
        Step::Export if draft.model.is_none() => Some("the model's address"),
        _ => None,
    }
}

/// Runs the step again, within `backoffLimit`: a worker that never tells would go on for ever.
fn result_lost(draft: &mut Draft<'_>, what: &str) {
    let limit = draft.object().common().backoff_limit;
    draft.recovery().failures += 1;
    let message = format!("{} succeeded, but {what} was lost with its pod", draft.step);
    if draft.recovery().failures > limit {
        draft.fail(Cause::new(Reason::BackoffLimitExceeded, message));
    } else {
        draft.event(true, Reason::PodFailed, format!("{message}; it runs again"));
        draft.next_attempt(SignedDuration::ZERO);
    }
}
