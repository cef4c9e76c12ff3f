//! What only an executor can find out, and the plan has to heed: refusals by the API server, storage
//! in use by another object.
//!
//! Invariant: an obstacle is acted upon when it is met and remembered in the status alone: one that
//! is tried again by itself waits for its time, whether or not it is still there. A refused edit of
//! podTemplate stops nothing that runs: it holds from the next attempt on.

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::{ConditionType, Reason, reason::Effect};

use super::draft::{Cause, Draft, after};
use super::{World, observe::Observed, results::back_off};

/// Something in the way of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Decides what follows, by its effect: a block, or waiting for pods.
    pub reason: Reason,
    /// In words: what is refused by whom.
    pub message: String,
}

/// By which Kueue takes a Job to another cluster.
const MULTIKUEUE: &str = "kueue.x-k8s.io/multikueue";
/// Longest wait in minutes between two tries.
const MOST: i64 = 15;

/// Blocks the run when something is in its way.
pub(super) fn heed(draft: &mut Draft<'_>) {
    if draft.is_terminal() || draft.block.is_some() {
        return;
    }
    let exists = draft.observed().exists;
    if let Some(cause) = refused_template(draft).filter(|_| !exists) {
        return before_its_job(draft, cause, None);
    }
    if draft.recovery().next_attempt_time.is_some() {
        return;
    }
    let own = draft.observed().job.filter(|job| taken_away(job)).map(|_| {
        Cause::new(
            Reason::MultiKueueUnsupported,
            "MultiKueue takes the Job to another cluster; use a local queue",
        )
    });
    let Some(cause) = own.or_else(|| first(draft.world, blocks_at_once)) else { return };
    let retry = (cause.reason.effect() == Effect::BlockedRetried).then(|| {
        let delay = back_off(draft.recovery().outages, MOST);
        draft.recovery().outages += 1;
        delay
    });
    if exists {
        return draft.block(cause, retry);
    }
    before_its_job(draft, cause, retry);
}

/// Blocks the run before the attempt has a Job: its number stays.
fn before_its_job(draft: &mut Draft<'_>, cause: Cause, retry: Option<SignedDuration>) {
    draft.recovery().next_attempt_time = retry.map(|d| Time(after(draft.now(), d)));
    draft.warn(&cause);
    draft.block = Some(cause);
}

/// What the API server has against the Jobs of the present spec. It is asked once for each generation:
/// its answer stays in the condition UpToDate while a Job of an earlier one is at work.
pub(super) fn refused_template(draft: &Draft<'_>) -> Option<Cause> {
    let reason = Reason::InvalidPodTemplate;
    first(draft.world, |r| r == reason).or_else(|| {
        let told = draft.status.conditions.iter().find(|c| {
            c.type_ == ConditionType::UpToDate.as_str()
                && c.reason == reason.as_str()
                && c.observed_generation == draft.object().metadata().generation
        })?;
        Some(Cause::new(reason, told.message.clone()))
    })
}

/// Why it is not known yet whether the present spec can be carried out.
pub(super) fn unanswered(world: &World) -> Option<Cause> {
    first(world, |reason| reason == Reason::DryRunUnanswered)
}

/// What pods wait for, or why they do not exist.
pub(super) fn pods_wait_for(world: &World, observed: &Observed<'_>) -> Option<Cause> {
    let waits = observed.pods.iter().find_map(|p| p.waiting.clone());
    let told = |r: Reason| r == Reason::WaitingForPods || r.effect() == Effect::WaitsForPods;
    waits.or_else(|| first(world, told))
}

fn blocks_at_once(reason: Reason) -> bool {
    let blocks = matches!(reason.effect(), Effect::BlockedUntilEdit | Effect::BlockedRetried);
    blocks && reason != Reason::InvalidPodTemplate
}

fn first(world: &World, which: impl Fn(Reason) -> bool) -> Option<Cause> {
    let obstacle = world.obstacles.iter().find(|o| which(o.reason))?;
    Some(Cause::new(obstacle.reason, obstacle.message.clone()))
}

fn taken_away(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.managed_by.as_deref()) == Some(MULTIKUEUE)
}
