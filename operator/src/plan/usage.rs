//! What an attempt has cost, added up when it ends.
//!
//! Invariant: told by Jobs, pods and termination messages; each attempt is added once.

use jiff::Timestamp;
use longstrap_crds::{ExitCode, status::UsageStatus};

use super::observe::{Observed, PodView, span};

/// Cost of the pods that are seen. `ranks`: processes of a pod that hold an accelerator each;
/// `saved`: when the newest checkpoint was committed.
pub(super) fn of(
    observed: &Observed<'_>,
    ranks: u32,
    saved: Option<Timestamp>,
    now: Timestamp,
) -> UsageStatus {
    let seconds = |p: &PodView, from: Option<Timestamp>| match p.started {
        Some(start) => span(from.map_or(start, |t| t.max(start)), p.finished.unwrap_or(now)),
        None => 0,
    };
    // A pod that was told to stop has saved its state; one that still runs is about to.
    let in_vain = |p: &PodView| {
        p.end.as_ref().is_some_and(|e| !matches!(e.code, ExitCode::Committed | ExitCode::Stopped))
    };
    let pods = || observed.pods.iter();
    let created = observed.job.and_then(|job| job.metadata.creation_timestamp.as_ref()).map(|t| t.0);
    UsageStatus {
        accelerator_seconds: pods().map(|p| seconds(p, None)).sum::<u64>().saturating_mul(u64::from(ranks)),
        lost_accelerator_seconds: pods()
            .filter(|p| in_vain(p))
            .map(|p| seconds(p, saved))
            .sum::<u64>()
            .saturating_mul(u64::from(ranks)),
        queued_seconds: created.map_or(0, |t| span(t, pods().filter_map(|p| p.started).min().unwrap_or(now))),
    }
}

/// Adds `more` to `usage`.
pub(super) fn add(usage: &mut UsageStatus, more: &UsageStatus) {
    for (total, part) in [
        (&mut usage.accelerator_seconds, more.accelerator_seconds),
        (&mut usage.lost_accelerator_seconds, more.lost_accelerator_seconds),
        (&mut usage.queued_seconds, more.queued_seconds),
    ] {
        *total = total.saturating_add(part);
    }
}
