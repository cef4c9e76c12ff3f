//! The Jobs, pods and Events of an object, and what a person wants to know of a pod.
//!
//! Invariant: only the container `worker` counts; children are found by the owner's UID, so that
//! those of an earlier object of the same name are never shown.

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStateTerminated, Event, Pod},
};
use kube::ResourceExt;
use kube::api::ListParams;
use longstrap_crds::{
    Step, TerminationMessage,
    names::{CONTAINER, LABEL_ATTEMPT, LABEL_OWNER, LABEL_STEP},
};

use super::access::Cluster;
use super::error::{ClusterError, Request};
use super::target::Found;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What belongs to an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Children {
    /// Oldest first.
    pub(crate) jobs: Vec<Job>,
    /// By attempt, step, index and age.
    pub(crate) pods: Vec<PodView>,
    /// Newest first.
    pub(crate) events: Vec<EventView>,
}

/// A pod, as a person sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodView {
    pub(crate) name: String,
    /// `None`: a step that this version does not know.
    pub(crate) step: Option<Step>,
    pub(crate) attempt: u32,
    pub(crate) index: u32,
    pub(crate) phase: String,
    pub(crate) node: Option<String>,
    pub(crate) created: Option<Timestamp>,
    /// The worker has been started at least once: there may be a log.
    pub(crate) started: bool,
    /// What it waits for: `ImagePullBackOff`, the scheduler's message.
    pub(crate) waiting: Option<String>,
    /// How the worker ended, the last time.
    pub(crate) end: Option<End>,
}

/// The end of a pod's worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) code: i32,
    /// Of the container runtime: `Error`, `OOMKilled`.
    pub(crate) reason: Option<String>,
    pub(crate) at: Option<Timestamp>,
    pub(crate) message: TerminationMessage,
}

/// An Event of the object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EventView {
    pub(crate) warning: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: Option<Timestamp>,
}

/// Everything that belongs to the object.
pub(crate) async fn load(cluster: &Cluster, found: &Found) -> Result<Children, ClusterError> {
    let request = |resource| Request { verb: "list", resource, name: "" };
    let uid = found.object.uid();
    let owned = ListParams::default().labels(&selector(uid));
    let mut jobs = cluster.ask(request("jobs.batch"), cluster.api::<Job>().list(&owned)).await?.items;
    jobs.sort_by_key(|job| job.creation_timestamp().map(|t| t.0));
    Ok(Children { jobs, pods: pods_of(cluster, uid).await?, events: events(cluster, found).await? })
}

/// Selects the children of the object with this UID.
pub(crate) fn selector(uid: &str) -> String {
    format!("{LABEL_OWNER}={uid}")
}

/// The pods of the object with this UID, by attempt, step, index and age.
pub(crate) async fn pods_of(cluster: &Cluster, uid: &str) -> Result<Vec<PodView>, ClusterError> {
    let request = Request { verb: "list", resource: "pods", name: "" };
    let owned = ListParams::default().labels(&selector(uid));
    let list = cluster.ask(request, cluster.api::<Pod>().list(&owned)).await?;
    let mut pods: Vec<_> = list.items.iter().map(PodView::new).collect();
    sort(&mut pods);
    Ok(pods)
}

/// In the order of time, then by index.
pub(crate) fn sort(pods: &mut [PodView]) {
    pods.sort_by_key(PodView::order);
}

/// The object's Events, newest first.
pub(crate) async fn events(cluster: &Cluster, found: &Found) -> Result<Vec<EventView>, ClusterError> {
    let request = Request { verb: "list", resource: "events", name: "" };
    let about = ListParams::default().fields(&format!("involvedObject.uid={}", found.object.uid()));
    let list = cluster.ask(request, cluster.api::<Event>().list(&about)).await?;
    let mut events: Vec<_> = list.items.into_iter().map(EventView::new).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    Ok(events)
}

impl PodView {
    pub(crate) fn new(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let worker = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER).cloned();
        let state = worker.as_ref().and_then(|c| c.state.clone()).unwrap_or_default();
        let before = worker.and_then(|c| c.last_state).unwrap_or_default();
        let label = |key: &str| pod.labels().get(key).map(String::as_str).unwrap_or_default();
        let unscheduled = || {
            let conditions = status.conditions.iter().flatten();
            conditions
                .filter(|c| c.type_ == "PodScheduled" && c.status == "False")
                .find_map(|c| c.message.clone().or_else(|| c.reason.clone()))
        };
        let not_started = || {
            let waiting = state.waiting.as_ref()?;
            let reason = waiting.reason.clone()?;
            Some(waiting.message.as_ref().map_or(reason.clone(), |message| format!("{reason}: {message}")))
        };
        Self {
            name: pod.name_any(),
            step: label(LABEL_STEP).parse().ok(),
            attempt: label(LABEL_ATTEMPT).parse().unwrap_or(0),
            index: pod.annotations().get(INDEX).and_then(|i| i.parse().ok()).unwrap_or(0),
            phase: status.phase.clone().unwrap_or_else(|| "Pending".to_owned()),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            created: pod.creation_timestamp().map(|t| t.0),
            started: state.running.is_some() || state.terminated.is_some() || before.terminated.is_some(),
            waiting: not_started().or_else(unscheduled),
            end: state.terminated.or(before.terminated).map(End::new),
        }
    }

    /// In the order of time: a step's attempts never go back, nor do an attempt's steps.
    fn order(&self) -> (u32, Option<Step>, u32, Option<Timestamp>) {
        (self.attempt, self.step, self.index, self.created)
    }

    /// How it ended in words; `None` when its worker has not.
    pub(crate) fn ended(&self) -> Option<String> {
        let end = self.end.as_ref()?;
        let oom = end.reason.as_deref().filter(|reason| !matches!(*reason, "Error" | "Completed"));
        let mut words = format!("exit code {}", end.code);
        if let Some(reason) = oom {
            words += &format!(" ({reason})");
        }
        if let Some(reason) = end.message.reason {
            words += &format!(", {reason}");
        }
        match end.message.message.trim() {
            "" => Some(words),
            message => Some(format!("{words}: {message}")),
        }
    }
}

impl End {
    fn new(ended: ContainerStateTerminated) -> Self {
        Self {
            code: ended.exit_code,
            reason: ended.reason,
            at: ended.finished_at.map(|t| t.0),
            message: TerminationMessage::parse(ended.message.as_deref().unwrap_or_default()),
        }
    }
}

impl EventView {
    fn new(event: Event) -> Self {
        let created = event.metadata.creation_timestamp.map(|t| t.0);
        Self {
            warning: event.type_.as_deref() == Some("Warning"),
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
            at: event.last_timestamp.map(|t| t.0).or(created),
        }
    }
}
