//! Phase and conditions: what is, in the words of the documentation's table.
//!
//! Invariant: the first row that matches is the phase; `Ready` is never False in a phase that goes
//! on by itself, nor is Reconciling ever there with Stalled; a condition keeps its transition time while
//! its status stays.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use longstrap_crds::{ConditionType as Type, Phase, Reason, Step, names};

use super::draft::{Cause, Draft};
use super::observe::{self, Observed};
use super::{children, inputs, obstacles};

/// Longest message of a condition and of the status.
const MAX_MESSAGE: usize = 4096;

/// Writes phase, message and conditions into the draft.
pub(super) fn write(draft: &mut Draft<'_>) {
    let observed = draft.observed();
    let phase = phase(draft, &observed);
    let mut table =
        Table { draft_now: draft.now(), generation: draft.object().metadata().generation, rows: Vec::new() };
    let message = main_rows(&mut table, draft, phase, &observed);
    let unanswered = obstacles::unanswered(draft.world).filter(|_| draft.block.is_none());
    if let Some(cause) = unanswered.filter(|_| !phase.is_terminal()) {
        table.row(Type::Reconciling, true, cause);
    }
    data_row(&mut table, draft);
    let waits = matches!(phase, Phase::Queued | Phase::Pending) && draft.awaited.is_none();
    let running = observed.pods.iter().any(|p| p.running);
    let mut message = message;
    if waits && !running {
        let cause = queued_because(draft, &observed);
        message = Some(cause.message.clone());
        table.row(Type::Queued, true, cause);
    }
    pods_row(&mut table, draft, phase, &observed);
    work_rows(&mut table, draft, phase, &observed);
    let before = std::mem::take(&mut draft.status.conditions);
    draft.status.conditions = table.finish(&before);
    draft.status.phase = Some(phase);
    draft.status.message = message.map(|m| cut(&m)).filter(|m| !m.is_empty());
    draft.status.observed_generation = draft.object().metadata().generation;
}

fn phase(draft: &Draft<'_>, observed: &Observed<'_>) -> Phase {
    if draft.failure.is_some() {
        Phase::Failed
    } else if draft.complete {
        Phase::Complete
    } else if draft.block.is_some() {
        Phase::Blocked
    } else if draft.object().common().suspend && nothing_runs(draft) {
        Phase::Suspended
    } else if draft.awaited.is_some() || draft.step == Step::Prepare {
        Phase::Pending
    } else if observed.pods.iter().any(|p| p.running) {
        Phase::Running
    } else {
        Phase::Queued
    }
}

/// No Job of the run is at work, and no pod is left of those that were.
fn nothing_runs(draft: &Draft<'_>) -> bool {
    draft.world.jobs.iter().all(|job| observe::succeeded(job) || observe::failed(job))
        && draft.world.pods.iter().all(observe::has_ended)
}

/// The rows that every phase is told by; the message of the status.
fn main_rows(table: &mut Table, draft: &Draft<'_>, phase: Phase, observed: &Observed<'_>) -> Option<String> {
    let stalled = |table: &mut Table, cause: &Cause| {
        table.row(Type::Ready, false, cause.clone());
        table.row(Type::Stalled, true, cause.clone());
        Some(cause.message.clone())
    };
    match (phase, &draft.failure, &draft.block) {
        (Phase::Failed, Some(cause), _) => {
            table.row(Type::Failed, true, cause.clone());
            stalled(table, cause)
        }
        (Phase::Blocked, _, Some(cause)) => stalled(table, cause),
        (Phase::Complete, ..) => {
            let cause = Cause::new(Reason::Completed, "the result is published");
            table.row(Type::Ready, true, cause.clone());
            table.row(Type::Complete, true, cause);
            None
        }
        (Phase::Suspended, ..) => {
            let cause = Cause::new(Reason::SuspendRequested, "spec.suspend is true");
            table.row(Type::Suspended, true, cause.clone());
            Some(cause.message)
        }
        (Phase::Running, ..) => {
            let running = observed.pods.iter().filter(|p| p.running).count();
            let wanted = observed.wanted(children::pods_wanted(draft, draft.step));
            let message = format!("{}: {running} of {wanted} pods run", draft.step);
            table.row(Type::Running, true, Cause::new(Reason::PodsRunning, message));
            None
        }
        _ => draft.awaited.as_ref().map(|cause| cause.message.clone()),
    }
}

fn data_row(table: &mut Table, draft: &Draft<'_>) {
    match &draft.awaited {
        Some(cause) => table.row(Type::DataReady, false, cause.clone()),
        None if !draft.data.is_empty() => {
            table.row(Type::DataReady, true, Cause::new(Reason::DataAvailable, "all data is pinned"));
        }
        None => {}
    }
}

/// Why no pod of the current attempt runs.
fn queued_because(draft: &Draft<'_>, observed: &Observed<'_>) -> Cause {
    let next = draft.status.recovery.next_attempt_time.as_ref();
    match (next, observed.job) {
        (Some(time), _) => draft
            .waiting
            .clone()
            .unwrap_or_else(|| Cause::new(Reason::BackingOff, format!("next attempt at {}", time.0))),
        (None, Some(job)) if job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false) => {
            Cause::new(Reason::KueueSuspended, format!("the Job of {} waits in its queue", draft.step))
        }
        _ => obstacles::pods_wait_for(draft.world, observed).unwrap_or_else(|| {
            Cause::new(Reason::WaitingForPods, format!("the pods of {} start", draft.step))
        }),
    }
}

fn pods_row(table: &mut Table, draft: &Draft<'_>, phase: Phase, observed: &Observed<'_>) {
    let at_work = matches!(phase, Phase::Pending | Phase::Queued | Phase::Running);
    if !at_work || observed.job.is_none() {
        return;
    }
    let wanted = observed.wanted(children::pods_wanted(draft, draft.step));
    let placed = observed.placed();
    if placed >= wanted {
        table.row(Type::PodsScheduled, true, Cause::new(Reason::PodsHaveNodes, "all pods have a node"));
    } else {
        let cause = obstacles::pods_wait_for(draft.world, observed);
        let short = format!("{placed} of {wanted} pods have a node");
        table.row(
            Type::PodsScheduled,
            false,
            cause.unwrap_or_else(|| Cause::new(Reason::WaitingForPods, short)),
        );
    }
}

fn work_rows(table: &mut Table, draft: &Draft<'_>, phase: Phase, observed: &Observed<'_>) {
    let had = draft.status.conditions.iter().any(|c| c.type_ == Type::CheckpointAvailable.as_str());
    if draft.status.recovery.last_committed > 0 || had {
        table.row(
            Type::CheckpointAvailable,
            true,
            Cause::new(Reason::Committed, "a next attempt goes on from storage"),
        );
    }
    if phase.is_terminal() {
        return;
    }
    if let Some(refused) = obstacles::refused_template(draft).filter(|_| observed.exists) {
        return table.row(Type::UpToDate, false, refused);
    }
    let hash = observed.job.and_then(|j| j.metadata.annotations.as_ref()?.get(names::ANNOTATION_INPUTS));
    let Some(hash) = hash else { return };
    if *hash == inputs::hash(draft.object()) {
        table.row(
            Type::UpToDate,
            true,
            Cause::new(Reason::SpecApplied, "the running Job has the present spec"),
        );
    } else {
        let message = "the spec was edited; the next attempt takes it up, or now: longstrap restart";
        table.row(Type::UpToDate, false, Cause::new(Reason::SpecEdited, message));
    }
}

/// Conditions in the making.
struct Table {
    draft_now: jiff::Timestamp,
    generation: Option<i64>,
    rows: Vec<(Type, bool, Cause)>,
}

impl Table {
    fn row(&mut self, type_: Type, status: bool, cause: Cause) {
        self.rows.push((type_, status, cause));
    }

    fn finish(self, before: &[Condition]) -> Vec<Condition> {
        let one = |type_: Type| {
            let (_, status, cause) = self.rows.iter().find(|(t, ..)| *t == type_)?;
            let status = if *status { "True" } else { "False" };
            let since = before.iter().find(|c| c.type_ == type_.as_str() && c.status == status);
            Some(Condition {
                type_: type_.as_str().to_owned(),
                status: status.to_owned(),
                reason: cause.reason.to_string(),
                message: cut(&cause.message),
                observed_generation: self.generation,
                last_transition_time: since.map_or(Time(self.draft_now), |c| c.last_transition_time.clone()),
            })
        };
        Type::ALL.into_iter().filter_map(one).collect()
    }
}

fn cut(message: &str) -> String {
    let end =
        message.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= MAX_MESSAGE).last();
    message[..end.unwrap_or(0)].to_owned()
}
