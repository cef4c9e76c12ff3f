//! What only an executor can find out, and the plan has to heed: refusals by the API server, storage
//! in use by another object.
//!
//! Invariant: an obstacle is acted upon when it is met and remembered in the status alone: one that
//! is tried again by itself waits for its time, whether or not it is still there.

use k8s_openapi::api::batch::v1::Job;
use longstrap_crds::{Reason, reason::Effect};

use super::draft::{Cause, Draft, after};
use super::{World, results::back_off};

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
    let waits = draft.recovery().next_attempt_time.is_some();
    if draft.is_terminal() || draft.block.is_some() || waits {
        return;
    }
    let own = draft.observed().job.filter(|job| taken_away(job)).map(|_| {
        Cause::new(
            Reason::MultiKueueUnsupported,
            "MultiKueue takes the Job to another cluster; use a local queue",
        )
    });
    let Some(cause) = own.or_else(|| first(draft.world, is_block)) else { return };
    let retry = (cause.reason.effect() == Effect::BlockedRetried).then(|| {
        let delay = back_off(draft.recovery().outages, MOST);
        draft.recovery().outages += 1;
        delay
    });
    if draft.observed().exists {
        return draft.block(cause, retry);
    }
    // No Job was made of this attempt: its number stays.
    draft.recovery().next_attempt_time =
        retry.map(|d| k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(after(draft.now(), d)));
    draft.event(true, cause.reason, cause.message.clone());
    draft.block = Some(cause);
}

/// Why pods do not even exist.
pub(super) fn refused_pods(world: &World) -> Option<Cause> {
    first(world, |effect| effect == Effect::WaitsForPods)
}

fn is_block(effect: Effect) -> bool {
    matches!(effect, Effect::BlockedUntilEdit | Effect::BlockedRetried)
}

fn first(world: &World, which: impl Fn(Effect) -> bool) -> Option<Cause> {
    let obstacle = world.obstacles.iter().find(|o| which(o.reason.effect()))?;
    Some(Cause::new(obstacle.reason, obstacle.message.clone()))
}

fn taken_away(job: &Job) -> bool {
    job.spec.as_ref().and_then(|s| s.managed_by.as_deref()) == Some(MULTIKUEUE)
}
