//! The plan in the making: the status as it will be, and what has been decided so far.
//!
//! Invariant: policies change the run's course only through the methods here, so an attempt ends in
//! one way (its number moves on, its time is added up, its counts are cleared) whoever ends it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::{
    CommonStatus, ConditionType, ContextExtensionRunStatus, DatasetRef, Object, Phase, Reason, Step,
    names::child_name,
    status::{CheckpointStatus, PinnedDataStatus, PublishedModel, RecoveryStatus, StageStatus},
};

use super::{
    Child, ChildRef, Event, ObjectStatus, Plan, PodRef, World, budget,
    observe::{Observed, PodView},
    steps,
    usage::{self, Part},
};

/// A cause in words for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) reason: Reason,
    pub(super) message: String,
    /// The pod that said so, for the Event: it tells the attempt when the pod is gone.
    pub(super) pod: Option<String>,
}

impl Cause {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), pod: None }
    }
}

/// The plan in the making.
pub(super) struct Draft<'a> {
    pub(super) world: &'a World,
    pub(super) status: CommonStatus,
    pub(super) dataset: Option<DatasetRef>,
    pub(super) data: Vec<PinnedDataStatus>,
    pub(super) gang_generation: Option<u64>,
    pub(super) checkpoint: Option<CheckpointStatus>,
    pub(super) stages: Vec<StageStatus>,
    pub(super) model: Option<PublishedModel>,
    pub(super) step: Step,
    pub(super) attempt: u32,
    /// Why the run is blocked.
    pub(super) block: Option<Cause>,
    /// Why the run has failed.
    pub(super) failure: Option<Cause>,
    pub(super) complete: bool,
    /// What the next attempt waits for, while `recovery.nextAttemptTime` is to come.
    pub(super) waiting: Option<Cause>,
    /// What data is awaited; `None` when all of it is pinned.
    pub(super) awaited: Option<Cause>,
    pub(super) create: Vec<Child>,
    pub(super) delete: Vec<ChildRef>,
    pub(super) lost: Vec<PodRef>,
    pub(super) events: Vec<Event>,
    pub(super) delete_object: bool,
    requeue: Option<Timestamp>,
}

impl<'a> Draft<'a> {
    /// The draft that changes nothing.
    pub(super) fn new(world: &'a World) -> Self {
        let status = world.object.status();
        let (mut dataset, mut of_run) = (None, ContextExtensionRunStatus::default());
        match &world.object {
            Object::SynthesisJob(o) => dataset = o.status.as_ref().and_then(|s| s.dataset.clone()),
            Object::ContextExtensionRun(o) => of_run = o.status.clone().unwrap_or_default(),
        }
        let first = steps::first();
        let step = status.step.as_deref().and_then(|s| s.parse().ok()).unwrap_or(first);
        let condition = |type_: ConditionType| {
            status.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == "True")
        };
        let at = |phase: Phase| status.phase == Some(phase);
        // A reason that is not known is a newer operator's: what it decided stands all the same.
        let decided = |type_: ConditionType, other: Reason, words: &str| {
            condition(type_).map_or_else(
                || Cause::new(other, words),
                |c| Cause::new(c.reason.parse().unwrap_or(other), c.message.clone()),
            )
        };
        Self {
            step,
            attempt: status.attempt.unwrap_or(1).max(1),
            block: at(Phase::Blocked)
                .then(|| decided(ConditionType::Stalled, Reason::InvalidData, "the run is blocked")),
            failure: at(Phase::Failed)
                .then(|| decided(ConditionType::Failed, Reason::BackoffLimitExceeded, "the run has failed")),
            complete: at(Phase::Complete),
            waiting: condition(ConditionType::Queued)
                .filter(|_| status.recovery.next_attempt_time.is_some())
                .and_then(|c| Some(Cause::new(c.reason.parse().ok()?, c.message.clone()))),
            awaited: None,
            world,
            dataset,
            data: of_run.data,
            gang_generation: of_run.gang_generation,
            checkpoint: of_run.checkpoint,
            stages: of_run.stages,
            model: of_run.model,
            status,
            create: Vec::new(),
            delete: Vec::new(),
            lost: Vec::new(),
            events: Vec::new(),
            delete_object: false,
            requeue: None,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.world.now
    }

    pub(super) fn object(&self) -> &'a Object {
        &self.world.object
    }

    pub(super) fn recovery(&mut self) -> &mut RecoveryStatus {
        &mut self.status.recovery
    }

    /// Name of the current attempt's Job, Service and ConfigMap.
    pub(super) fn child_name(&self) -> String {
        child_name(self.object().name(), self.object().uid(), self.step, self.attempt)
    }

    /// The current attempt's Job and pods.
    pub(super) fn observed(&self) -> Observed<'a> {
        Observed::new(self.world, &self.child_name())
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.complete || self.failure.is_some()
    }

    pub(super) fn event(&mut self, warning: bool, reason: Reason, message: impl Into<String>) {
        self.events.push(Event { warning, reason, message: message.into() });
    }

    /// An event about something that a person should look at.
    pub(super) fn warn(&mut self, cause: &Cause) {
        let message = match &cause.pod {
            Some(pod) => format!("pod {pod}: {}", cause.message),
            None => cause.message.clone(),
        };
        self.event(true, cause.reason, message);
    }

    /// Plans again at `time` at the latest.
    pub(super) fn wake_at(&mut self, time: Timestamp) {
        if time > self.now() {
            self.requeue = Some(self.requeue.map_or(time, |t| t.min(time)));
        }
    }

    /// The current attempt is over; the next one may start after `delay`.
    pub(super) fn next_attempt(&mut self, delay: SignedDuration) {
        self.add_pod_time();
        self.attempt = self.attempt.saturating_add(1);
        let next = (!delay.is_zero()).then(|| Time(after(self.now(), delay)));
        let recovery = self.recovery();
        recovery.counted_pods.clear();
        recovery.next_attempt_time = next;
        self.waiting = None;
    }

    /// The current step is over; the next one starts with the same attempt.
    pub(super) fn next_step(&mut self, next: Option<Step>) {
        self.add_pod_time();
        self.event(false, Reason::StepComplete, format!("{} is complete", self.step));
        // Training Jobs go on counting the same optimizer steps.
        let same_count = matches!((self.step, next), (Step::Train(_), Some(Step::Train(_))));
        let recovery = self.recovery();
        (recovery.failures, recovery.outages) = (0, 0);
        if !same_count {
            recovery.last_committed = 0;
        }
        recovery.counted_pods.clear();
        recovery.node_failures.clear();
        recovery.next_attempt_time = None;
        self.waiting = None;
        match next {
            Some(step) => self.step = step,
            None => {
                self.complete = true;
                self.status.completion_time = Some(Time(self.now()));
                self.event(false, Reason::Completed, "the result is published");
            }
        }
    }

    /// A human is needed; `retry` tries again by itself.
    pub(super) fn block(&mut self, cause: Cause, retry: Option<SignedDuration>) {
        self.next_attempt(retry.unwrap_or(SignedDuration::ZERO));
        self.warn(&cause);
        self.block = Some(cause);
    }

    /// The run has failed for good.
    pub(super) fn fail(&mut self, cause: Cause) {
        self.add_pod_time();
        self.recovery().next_attempt_time = None;
        self.waiting = None;
        self.status.completion_time = Some(Time(self.now()));
        self.warn(&cause);
        self.failure = Some(cause);
    }

    /// Adds up the current attempt as far as its pods have ended, or may be gone in the next plan.
    pub(super) fn keep_accounts(&mut self) {
        let pods = self.observed().pods;
        let until = pods.iter().filter_map(PodView::may_go_after).max().map(|t| t.min(self.now()));
        let counted = self.recovery().counted_until.as_ref().map(|t| t.0);
        if let Some(until) = until.filter(|t| counted.is_none_or(|counted| counted < *t)) {
            self.add_up(until, false);
            self.recovery().counted_until = Some(Time(until));
        }
    }

    /// Adds up what is left of the current attempt; called once, when it ends.
    fn add_pod_time(&mut self) {
        self.add_up(self.now(), true);
        self.recovery().counted_until = None;
    }

    fn add_up(&mut self, until: Timestamp, last: bool) {
        let observed = self.observed();
        let since = self.recovery().counted_until.as_ref().map(|t| t.0);
        let ranks = match self.step {
            Step::Train(_) => steps::shape(self.object(), self.step).ranks_per_node,
            _ => 0,
        };
        let saved = self.checkpoint.as_ref().map(|c| c.time.0);
        let cost = usage::of(&observed, ranks, saved, Part { since, until, last });
        usage::add(&mut self.status.usage, &cost);
        self.recovery().pod_seconds += observed.pod_seconds(since.unwrap_or(Timestamp::MIN), until);
    }

    /// The status stays as it is.
    pub(super) fn untouched(self) -> Plan {
        self.into_plan()
    }

    /// The finished plan.
    pub(super) fn finish(mut self) -> Plan {
        self.status.step = Some(self.step.to_string());
        self.status.attempt = Some(self.attempt);
        if let Some(time) = self.status.recovery.next_attempt_time.as_ref().map(|t| t.0) {
            self.wake_at(time);
        }
        let mut plan = self.into_plan();
        budget::fit(&mut plan.status);
        plan
    }

    fn into_plan(self) -> Plan {
        let status = match &self.world.object {
            Object::SynthesisJob(o) => {
                let mut status = o.status.clone().unwrap_or_default();
                (status.common, status.dataset) = (self.status, self.dataset);
                ObjectStatus::SynthesisJob(Box::new(status))
            }
            Object::ContextExtensionRun(o) => {
                let mut status = o.status.clone().unwrap_or_default();
                (status.common, status.data) = (self.status, self.data);
                (status.gang_generation, status.model) = (self.gang_generation, self.model);
                (status.checkpoint, status.stages) = (self.checkpoint, self.stages);
                ObjectStatus::ContextExtensionRun(Box::new(status))
            }
        };
        Plan {
            status,
            delete: self.delete,
            lost: self.lost,
            create: self.create,
            events: self.events,
            requeue: self.requeue,
            delete_object: self.delete_object,
        }
    }
}

/// `time + delay`, the end of time at the latest.
pub(super) fn after(time: Timestamp, delay: SignedDuration) -> Timestamp {
    time.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// A number of seconds of the spec as a duration.
pub(super) fn seconds(n: u64) -> SignedDuration {
    SignedDuration::from_secs(i64::try_from(n).unwrap_or(i64::MAX))
}
