//! Who counts failures: the operator, by pods, from exit codes and termination messages.
//!
//! Invariant: a pod is counted once; work committed since the last failure clears the count; a pod
//! that somebody deleted or disrupted is nobody's failure.

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use longstrap_crds::{
    ExitCode, Reason, Step, TerminationMessage, names::ANNOTATION_BACKOFF_LIMIT, reason::Effect,
    status::CheckpointStatus,
};

use super::draft::{Cause, Draft, after, seconds};
use super::observe::{self, End, Observed, PodView};
use super::{nodes, steps};

/// Most pods of one attempt that the status remembers.
const MAX_COUNTED: usize = 64;

/// What the end of pods means for the attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// The Job goes on, or has not begun.
    GoesOn,
    /// The step's manifest is committed.
    StepComplete,
    /// Start over as the next attempt, without delay.
    StartOver(Cause),
    /// Something outside is away.
    Outage(Cause),
    /// A human is needed.
    Blocked(Cause),
    /// Never goes on.
    Failed(Cause),
}

/// Judges the current Job, counting failed pods on the way.
pub(super) fn judge(draft: &mut Draft<'_>, job: &Job, observed: &Observed<'_>) -> Verdict {
    let last = count(draft, observed);
    // A container besides the worker may run on for ever: then nobody says so of the Job.
    let shape = steps::shape(draft.object(), draft.step);
    if observe::succeeded(job) || observed.work_is_done(shape.first_success_ends, shape.pods) {
        return Verdict::StepComplete;
    }
    let ends = || observed.pods.iter().filter_map(|p| Some((p, p.end.as_ref()?)));
    let with = |code: ExitCode| ends().find(|(p, e)| e.code == code && !p.disrupted);
    if let Some((pod, end)) = with(ExitCode::Invalid) {
        let reason = end.message.reason;
        let blocks = |r: &Reason| matches!(r.effect(), Effect::BlockedUntilEdit | Effect::BlockedRetried);
        // A worker that names no known reason is a newer one: its words still tell.
        let reason = reason.filter(blocks).unwrap_or(Reason::InvalidData);
        return Verdict::Blocked(cause(reason, pod, end));
    }
    if let Some((pod, end)) = with(ExitCode::Exhausted) {
        // It counted to the limit that it was told: a higher one of today gives it another attempt.
        let limit = draft.object().common().backoff_limit;
        if told_limit(job).is_some_and(|told| told < limit) {
            let message = format!("{}; backoffLimit is {limit} now", words(pod, end));
            return Verdict::StartOver(Cause::new(Reason::PodFailed, message));
        }
        return Verdict::Failed(cause(Reason::BackoffLimitExceeded, pod, end));
    }
    let failed = observe::failed(job) && with(ExitCode::Outage).is_none();
    if failed {
        count_job(draft);
    }
    let limit = draft.object().common().backoff_limit;
    if draft.recovery().failures > limit {
        let message = format!(
            "{} failures without progress (backoffLimit is {limit}); the last: {}",
            draft.recovery().failures,
            last.unwrap_or_else(|| "its pod is gone".to_owned()),
        );
        return Verdict::Failed(Cause::new(Reason::BackoffLimitExceeded, message));
    }
    if let Some((pod, end)) = with(ExitCode::Outage) {
        let reason = end.message.reason.filter(|r| r.effect() == Effect::Outage);
        return Verdict::Outage(cause(reason.unwrap_or(Reason::StorageUnavailable), pod, end));
    }
    if failed {
        return Verdict::StartOver(Cause::new(Reason::PodFailed, "the Job has ended without its step"));
    }
    if draft.recovery().counted_pods.len() >= MAX_COUNTED {
        return Verdict::StartOver(Cause::new(Reason::PodFailed, "many pods failed in this attempt"));
    }
    let patience = seconds(draft.object().common().recovery.wait_for_replacement_seconds);
    let cause = slow_replacement(observed, patience).or_else(|| runs_on(draft, observed, patience));
    cause.map_or(Verdict::GoesOn, Verdict::StartOver)
}

/// The limit that the Job's pods know.
fn told_limit(job: &Job) -> Option<u32> {
    job.metadata.annotations.as_ref()?.get(ANNOTATION_BACKOFF_LIMIT)?.parse().ok()
}

/// Takes up what pods committed and counts those that failed, in the order of their ends; the last
/// failure in words.
fn count(draft: &mut Draft<'_>, observed: &Observed<'_>) -> Option<String> {
    let train = matches!(draft.step, Step::Train(_));
    let mut last = None;
    for (pod, end) in observed.pods.iter().filter_map(|p| Some((p, p.end.as_ref()?))) {
        if train {
            take_news(draft, &end.message);
        }
        let recovery = draft.recovery();
        // Whoever brought the work forward before it fell has not failed in vain.
        let progressed = end.message.committed > recovery.last_committed;
        if progressed {
            recovery.last_committed = end.message.committed;
            (recovery.failures, recovery.outages) = (0, 0);
            recovery.node_failures.clear();
        }
        if pod.disrupted || end.code != ExitCode::Failed {
            continue;
        }
        last = Some(words(pod, end));
        // The ranks of a gang fall together: one failure for each generation, and for each time that
        // the pods fell before there was one.
        let key = match (train, end.message.generation) {
            (true, 0) => format!("start-{}", pod.earlier_failures),
            (true, generation) => format!("generation-{generation}"),
            (false, _) => pod.uid.clone(),
        };
        if recovery.counted_pods.contains(&key) || recovery.counted_pods.len() >= MAX_COUNTED {
            continue;
        }
        recovery.counted_pods.push(key);
        if !progressed {
            recovery.failures = recovery.failures.saturating_add(1);
            // Of a gang, the first to fall is to blame.
            if let Some(node) = &pod.node {
                nodes::count(draft, node, &words(pod, end));
            }
        }
        draft.event(true, Reason::PodFailed, words(pod, end));
    }
    last
}

/// Takes up what a training pod tells besides its end.
fn take_news(draft: &mut Draft<'_>, message: &TerminationMessage) {
    if message.generation > draft.gang_generation.unwrap_or(0) {
        draft.gang_generation = Some(message.generation);
    }
    let newer = |c: &CheckpointStatus| draft.checkpoint.as_ref().is_none_or(|known| known.step < c.step);
    if let Some(checkpoint) = message.checkpoint.clone().filter(newer) {
        draft.checkpoint = Some(checkpoint);
    }
}

/// Counts a Job that failed and no pod says why: whoever does that again and again must not go on
/// for ever.
fn count_job(draft: &mut Draft<'_>) {
    let recovery = draft.recovery();
    if recovery.counted_pods.is_empty() {
        recovery.counted_pods.push("job".to_owned());
        recovery.failures = recovery.failures.saturating_add(1);
        draft.event(true, Reason::PodFailed, "the Job has failed and no pod says why");
    }
}

/// A pod whose replacement the Job controller holds back for longer than `patience`.
fn slow_replacement(observed: &Observed<'_>, patience: SignedDuration) -> Option<Cause> {
    let pod = observed.pods.iter().find(|pod| {
        let newest = observed.pods.iter().filter(|p| p.index == pod.index).all(|p| {
            p.end.is_some() && p.finished <= pod.finished && p.earlier_failures <= pod.earlier_failures
        });
        newest && has_failed(pod) && replacement_delay(pod.earlier_failures) > patience
    })?;
    let message = format!(
        "the Job controller would wait longer than {}s to replace pod {}",
        patience.as_secs(),
        pod.name
    );
    Some(Cause::new(Reason::PodFailed, message))
}

/// A pod whose worker has failed and that has not ended for `patience`: until it does, the Job controller
/// does not replace it.
fn runs_on(draft: &mut Draft<'_>, observed: &Observed<'_>, patience: SignedDuration) -> Option<Cause> {
    let held = observed.pods.iter().filter(|p| !p.ended && !p.disrupted && has_failed(p));
    let (since, pod) = held.filter_map(|p| Some((p.finished?, p))).min_by_key(|(since, _)| *since)?;
    let due = after(since, patience);
    if due > draft.now() {
        draft.wake_at(due);
        return None;
    }
    let message = format!(
        "the worker of pod {} has failed and another container of it runs on: make that one an init container with restartPolicy: Always",
        pod.name
    );
    Some(Cause::new(Reason::PodFailed, message))
}

fn has_failed(pod: &PodView) -> bool {
    pod.end.as_ref().is_some_and(|e| e.code != ExitCode::Committed)
}

/// The Job controller's back-off for an index: 10 s, doubled by every earlier failure, ignored ones
/// included, at most 10 minutes.
fn replacement_delay(earlier_failures: u32) -> SignedDuration {
    seconds(10_u64.saturating_mul(1 << earlier_failures.min(6)).min(600))
}

fn cause(reason: Reason, pod: &PodView, end: &End) -> Cause {
    let message = words(pod, end);
    let named = message.contains(&pod.name);
    Cause { pod: (!named).then(|| pod.name.clone()), ..Cause::new(reason, message) }
}

fn words(pod: &PodView, end: &End) -> String {
    let text = end.message.message.trim();
    match (end.code, text.is_empty()) {
        (ExitCode::Invalid | ExitCode::Outage | ExitCode::Exhausted, false) => text.to_owned(),
        (_, true) => format!("pod {} ended with code {}", pod.name, end.raw),
        (_, false) => format!("pod {} ended with code {}: {text}", pod.name, end.raw),
    }
}
