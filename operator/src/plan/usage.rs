//! What an attempt has cost, added up when its pods end: those that were lost or evicted are gone when
//! it ends itself.
//!
//! Invariant: told by Jobs, pods and termination messages; each second of a pod is added once.

use jiff::Timestamp;
use longstrap_crds::{ExitCode, status::UsageStatus};

use super::observe::{Observed, PodView, span};

/// A part of an attempt's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Until when the attempt is added up already; `None`: not at all.
    pub(super) since: Option<Timestamp>,
    pub(super) until: Timestamp,
    /// The attempt ends with it.
    pub(super) last: bool,
}

/// Cost of the pods that are seen. `ranks`: processes of a pod that hold an accelerator each;
/// `saved`: when the newest checkpoint was committed.
pub(super) fn of(observed: &Observed<'_>, ranks: u32, saved: Option<Timestamp>, part: Part) -> UsageStatus {
    let Part { since, until, last } = part;
    let from = since.unwrap_or(Timestamp::MIN);
    let seconds = |p: &PodView| p.within(from, until).map_or(0, |(start, end)| span(start, end));
    let unsaved = |p: &PodView| {
        let life = p.within(saved.unwrap_or(Timestamp::MIN), until);
        life.map_or(0, |(start, end)| span(start, end))
    };
    // A pod that was told to stop has saved its state; one that still runs is about to.
    let in_vain = |p: &PodView| match (&p.end, p.lost_since) {
        (Some(end), _) => {
            last && !p.outlived_its_node() && !matches!(end.code, ExitCode::Committed | ExitCode::Stopped)
        }
        (None, Some(lost)) => from < lost && lost <= until,
        (None, None) => false,
    };
    let pods = || observed.pods.iter();
    let created = observed.job.and_then(|job| job.metadata.creation_timestamp.as_ref()).map(|t| t.0);
    let queued = created.filter(|_| since.is_none());
    let ranks = u64::from(ranks);
    UsageStatus {
        accelerator_seconds: pods().map(seconds).sum::<u64>().saturating_mul(ranks),
        lost_accelerator_seconds: pods()
            .filter(|p| in_vain(p))
            .map(unsaved)
            .sum::<u64>()
            .saturating_mul(ranks),
        queued_seconds: queued
            .map_or(0, |t| span(t, pods().filter_map(|p| p.started).min().unwrap_or(until))),
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
