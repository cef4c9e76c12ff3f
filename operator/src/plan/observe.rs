//! What a Job and its pods say, read once: ends, exit codes, messages, what a pod waits for.
//!
//! Invariant: only the end of the container `worker` counts (a sidecar's means nothing, nor that it runs
//! on), and nothing here decides anything.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStatus, Pod, PodCondition},
};
use longstrap_crds::{ExitCode, Reason, TerminationMessage, names::CONTAINER};

use super::{World, draft::Cause, lost_nodes};

const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The Job of one attempt and its pods.
pub(super) struct Observed<'a> {
    /// The Job, unless it is absent or being deleted.
    pub(super) job: Option<&'a Job>,
    /// A Job of that name exists, be it on its way out.
    pub(super) exists: bool,
    /// Its pods, the oldest end first.
    pub(super) pods: Vec<PodView>,
}

impl<'a> Observed<'a> {
    pub(super) fn new(world: &'a World, name: &str) -> Self {
        let job = world.jobs.iter().find(|j| j.metadata.name.as_deref() == Some(name));
        let mut pods: Vec<_> =
            world.pods.iter().filter(|p| belongs(p, name)).map(|p| PodView::new(p, world.now)).collect();
        pods.sort_by(|a, b| (a.finished, &a.uid).cmp(&(b.finished, &b.uid)));
        Self { job: job.filter(|j| j.metadata.deletion_timestamp.is_none()), exists: job.is_some(), pods }
    }

    /// Seconds of a time in which at least one pod had started and not ended.
    pub(super) fn pod_seconds(&self, since: Timestamp, until: Timestamp) -> u64 {
        let mut spans: Vec<_> = self.pods.iter().filter_map(|p| p.within(since, until)).collect();
        spans.sort();
        let (mut total, mut seen) = (0, since);
        for (start, end) in spans {
            total += span(start.max(seen), end);
            seen = seen.max(end);
        }
        total
    }

    /// Pods that have a node or have done their work.
    pub(super) fn placed(&self) -> usize {
        self.pods.iter().filter(|p| if p.end.is_some() { p.succeeded() } else { p.scheduled }).count()
    }

    /// All indexes have succeeded, or one where that is enough: the Job controller says so when the pods
    /// have ended, too.
    pub(super) fn work_is_done(&self, one_is_enough: bool, planned: u32) -> bool {
        let done: BTreeSet<u32> = self.pods.iter().filter(|p| p.succeeded()).map(|p| p.index).collect();
        done.len() >= if one_is_enough { 1 } else { self.wanted(planned) }
    }

    /// Pods that the Job asks for; `planned` when there is none.
    pub(super) fn wanted(&self, planned: u32) -> usize {
        let completions = self.job.and_then(|job| job.spec.as_ref()?.completions);
        completions.and_then(|n| usize::try_from(n).ok()).unwrap_or(planned as usize)
    }
}

/// Whole seconds from `start` to `end`; zero when clocks disagree.
pub(super) fn span(start: Timestamp, end: Timestamp) -> u64 {
    u64::try_from(end.duration_since(start).as_secs()).unwrap_or(0)
}

fn belongs(pod: &Pod, job: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|l| l.get(JOB_NAME)).is_some_and(|name| name == job)
}

/// Whether the Job has a condition.
pub(super) fn has(job: &Job, types: &[&str]) -> bool {
    condition_time(job, types).is_some()
}

/// When the first of these conditions came up.
pub(super) fn condition_time(job: &Job, types: &[&str]) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .filter(|c| c.status == "True" && types.contains(&c.type_.as_str()))
        .map(|c| c.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
        .min()
}

/// The Job's end is decided, though pods may still terminate.
pub(super) fn succeeded(job: &Job) -> bool {
    has(job, &["Complete", "SuccessCriteriaMet"])
}

/// As [`succeeded`], for failure.
pub(super) fn failed(job: &Job) -> bool {
    has(job, &["Failed", "FailureTarget"])
}

/// All of the pod's containers have ended, or its node is given up.
pub(super) fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// How a pod ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct End {
    pub(super) code: ExitCode,
    pub(super) raw: i32,
    pub(super) message: TerminationMessage,
}

/// What matters about a pod.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodView {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: Option<String>,
    pub(super) index: u32,
    pub(super) running: bool,
    /// It has ended, and not its worker alone: another container may run on.
    pub(super) ended: bool,
    /// Since when its node counts as lost.
    pub(super) lost_since: Option<Timestamp>,
    /// How the worker ended; `None` while it has not.
    pub(super) end: Option<End>,
    pub(super) created: Option<Timestamp>,
    pub(super) started: Option<Timestamp>,
    pub(super) finished: Option<Timestamp>,
    /// The Job controller's failures of the index before this pod.
    pub(super) earlier_failures: u32,
    /// Deleted or disrupted by somebody else: its end is nobody's failure.
    pub(super) disrupted: bool,
    /// Given up with its node.
    given_up: bool,
    /// When its node counts as lost unless it has ended before.
    lost_at: Option<Timestamp>,
    /// When somebody asked it to stop.
    deleted: Option<Timestamp>,
    /// It has a node.
    pub(super) scheduled: bool,
    /// What it waits for.
    pub(super) waiting: Option<Cause>,
}

impl PodView {
    fn new(pod: &Pod, now: Timestamp) -> Self {
        let lost_since = lost_nodes::given_up_at(pod).filter(|due| *due <= now);
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.as_deref().unwrap_or("Pending");
        let conditions = status.conditions.unwrap_or_default();
        let condition = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
        let worker = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER).cloned();
        let state = worker.as_ref().and_then(|c| c.state.clone()).unwrap_or_default();
        let ended = has_ended(pod);
        let over = ended || state.terminated.is_some();
        let note = |key: &str| {
            let annotations = pod.metadata.annotations.as_ref().and_then(|a| a.get(key));
            annotations.or_else(|| pod.metadata.labels.as_ref().and_then(|l| l.get(key)))?.parse::<u32>().ok()
        };
        let time = |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0;
        let terminated = state.terminated.as_ref();
        Self {
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            index: note(INDEX).unwrap_or(0),
            running: phase == "Running" && !over && lost_since.is_none(),
            ended,
            lost_since,
            // Without a container status (an evicted pod) the end has no code: a crash.
            end: over.then(|| {
                let raw = terminated.map_or(i32::from(phase == "Failed"), |t| t.exit_code);
                let message = terminated.and_then(|t| t.message.as_deref()).unwrap_or_default();
                End { code: ExitCode::from_code(raw), raw, message: TerminationMessage::parse(message) }
            }),
            created: pod.metadata.creation_timestamp.as_ref().map(time),
            started: status.start_time.as_ref().map(time),
            finished: over.then(|| {
                terminated
                    .and_then(|t| t.finished_at.as_ref().map(time))
                    .or_else(|| condition("Ready").and_then(|c| c.last_transition_time.as_ref().map(time)))
                    .or_else(|| status.start_time.as_ref().map(time))
                    .unwrap_or(Timestamp::MIN)
            }),
            earlier_failures: note(FAILURES).unwrap_or(0).saturating_add(note(IGNORED).unwrap_or(0)),
            given_up: lost_nodes::is_given_up(pod),
            lost_at: lost_nodes::due(pod),
            deleted: pod.metadata.deletion_timestamp.as_ref().map(|t| {
                let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                t.0.checked_sub(SignedDuration::from_secs(grace)).unwrap_or(t.0)
            }),
            disrupted: pod.metadata.deletion_timestamp.is_some()
                || condition("DisruptionTarget").is_some_and(|c| c.status == "True"),
            scheduled: phase != "Pending" || condition("PodScheduled").is_some_and(|c| c.status == "True"),
            waiting: if over {
                None
            } else if lost_since.is_some() {
                Some(Cause::new(Reason::NodeLost, "the pod's node does not answer"))
            } else {
                let init = status.init_container_statuses.iter().flatten();
                let all = init.chain(status.container_statuses.iter().flatten());
                waits_for(condition("PodScheduled"), all)
            },
        }
    }

    /// The part of its life that falls into a time.
    pub(super) fn within(&self, since: Timestamp, until: Timestamp) -> Option<(Timestamp, Timestamp)> {
        Some((self.started?.max(since), self.finished.unwrap_or(until).min(until)))
    }

    /// It has ended when its node had counted as lost already.
    pub(super) fn outlived_its_node(&self) -> bool {
        let late = |end: Timestamp| self.lost_at.is_some_and(|lost| lost < end);
        self.given_up || self.finished.is_some_and(late)
    }

    /// Its end, or the last moment that is certain of one that may be gone at any time.
    pub(super) fn may_go_after(&self) -> Option<Timestamp> {
        self.finished.or(self.lost_since).or(self.deleted)
    }

    pub(super) fn succeeded(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.raw == 0)
    }
}

/// A pod runs when all of its containers do, init containers first.
fn waits_for<'a>(
    scheduled: Option<&PodCondition>,
    mut containers: impl Iterator<Item = &'a ContainerStatus>,
) -> Option<Cause> {
    if let Some(c) = scheduled.filter(|c| c.status == "False") {
        return Some(Cause::new(Reason::Unschedulable, c.message.clone().unwrap_or_default()));
    }
    containers.find_map(container_waits_for)
}

fn container_waits_for(container: &ContainerStatus) -> Option<Cause> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let message = waiting.message.clone().unwrap_or_default();
    match waiting.reason.as_deref().unwrap_or_default() {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            let image = container.image.clone();
            Some(Cause::new(Reason::ImagePull, if message.is_empty() { image } else { message }))
        }
        "CreateContainerConfigError" if message.contains("secret") => {
            Some(Cause::new(Reason::SecretNotFound, message))
        }
        _ => None,
    }
}
