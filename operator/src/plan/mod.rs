//! What should be, from what is: spec + observed children + time → children, status, events.
//!
//! Invariant: pure and idempotent: planning again in the world that a plan made changes nothing, and
//! an executor may stop anywhere between two of its writes. An executor writes `status` FIRST (the
//! attempt's number must be stored before its Job exists), then deletes, then creates.

mod budget;
mod children;
mod cleanup;
mod conditions;
mod data;
mod deadlines;
mod draft;
mod durable;
mod failures;
mod inputs;
mod lost_nodes;
mod merge;
mod nodes;
mod observe;
mod obstacles;
mod pod;
mod requests;
mod resources;
mod results;
mod stages;
mod steps;
mod usage;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
};
use longstrap_crds::{
    CommonStatus, ContextExtensionRunStatus, Object, Reason, SynthesisJob, SynthesisJobStatus,
    common::MANAGED_BY, task::Ports,
};

use serde_json::Value;

use draft::Draft;
use observe::Observed;

pub use children::manifests;
pub use obstacles::Obstacle;

/// All that a plan is made from.
#[derive(Clone, Debug)]
pub struct World {
    /// The object, with the status that was written last.
    pub object: Object,
    /// Jobs that the object owns, whatever their step and attempt, with the conditions that the Job
    /// controller sets (`SuccessCriteriaMet` and `FailureTarget` are acted upon).
    pub jobs: Vec<Job>,
    /// Pods of those Jobs, finished ones too. Read: the label `batch.kubernetes.io/job-name`, the
    /// annotation or label `batch.kubernetes.io/job-completion-index`, the Job controller's failure
    /// counts, phase, conditions, and the state of the container `worker`.
    pub pods: Vec<Pod>,
    /// SynthesisJobs of the namespace by name; one that is absent does not exist.
    pub synthesis: BTreeMap<String, SynthesisJob>,
    /// What the executor found in the run's way.
    pub obstacles: Vec<Obstacle>,
    /// The clock.
    pub now: Timestamp,
    /// How this executor runs pods.
    pub config: OperatorConfig,
}

/// How an executor runs pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Identity of the cluster (UID of the namespace kube-system), or of a local output folder.
    pub cluster: String,
    /// Image of pods when the object names none.
    pub image: String,
    /// Seconds that a pod waits for storage or an endpoint that is away.
    pub outage_timeout_seconds: u64,
    /// Where the pod of index 0 is found; `None`: by the DNS name that its Service gives it.
    pub rendezvous_host: Option<String>,
    /// Ports that pods listen on.
    pub ports: Ports,
    /// Pods are processes of one machine and share its memory and files; else they keep files only on
    /// volumes, and a `file:` storage must be one of them.
    pub one_machine: bool,
    /// Compute threads of a process when podTemplate requests no CPU for the container worker.
    pub threads_per_rank: u32,
}

/// What an executor has to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The status to write; equal to the present one when nothing changed.
    pub status: ObjectStatus,
    /// Children to delete: Jobs in the foreground, so that their pods are gone first.
    pub delete: Vec<ChildRef>,
    /// Pods to give up, because their node is lost: set them to Failed, then delete them at once.
    pub lost: Vec<PodRef>,
    /// Children to create, in this order. One that exists and is ours is left as it is; one that is
    /// not ours is `NameConflict`.
    pub create: Vec<Child>,
    /// Events to record.
    pub events: Vec<Event>,
    /// When to plan again although nothing changed.
    pub requeue: Option<Timestamp>,
    /// The object's time to live is over: delete the object itself.
    pub delete_object: bool,
}

/// The status of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectStatus {
    /// Of a SynthesisJob.
    SynthesisJob(Box<SynthesisJobStatus>),
    /// Of a ContextExtensionRun.
    ContextExtensionRun(Box<ContextExtensionRunStatus>),
}

impl ObjectStatus {
    /// The fields that both kinds have.
    pub fn common(&self) -> &CommonStatus {
        match self {
            Self::SynthesisJob(status) => &status.common,
            Self::ContextExtensionRun(status) => &status.common,
        }
    }

    /// The fields that both kinds have, to write.
    pub fn common_mut(&mut self) -> &mut CommonStatus {
        match self {
            Self::SynthesisJob(status) => &mut status.common,
            Self::ContextExtensionRun(status) => &mut status.common,
        }
    }
}

/// A child to create.
#[derive(Clone, Debug, PartialEq)]
pub enum Child {
    /// Immutable, with the task file under [`longstrap_crds::names::TASK_KEY`].
    ConfigMap(Box<ConfigMap>),
    /// Headless; gives the Job's pods DNS names.
    Service(Box<Service>),
    /// The pods of one attempt at one step.
    Job(Box<NewJob>),
}

/// A Job to create.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    /// For an executor that runs the pods itself.
    pub job: Job,
    /// For an API server: the fields of podTemplate that the types of this version do not know are here only.
    pub manifest: Value,
}

/// A child to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildRef {
    /// `Job` (its ConfigMap and Service have the same name and go with it).
    pub kind: &'static str,
    /// Name.
    pub name: String,
    /// UID, as the precondition of the delete.
    pub uid: Option<String>,
}

/// A pod to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Name.
    pub name: String,
    /// UID, as a precondition.
    pub uid: Option<String>,
    /// Version that was judged, as a precondition.
    pub resource_version: Option<String>,
}

/// An event about the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Something that a person should look at.
    pub warning: bool,
    /// Why.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

/// Plans. Never fails: what cannot be planned is a `Blocked` phase with its reason.
pub fn plan(world: &World) -> Plan {
    let object = &world.object;
    let mut draft = Draft::new(world);
    if object.common().managed_by != MANAGED_BY {
        return draft.untouched();
    }
    if object.metadata().deletion_timestamp.is_some() {
        // It may wait for its Jobs, and these for pods that nobody ends.
        lost_nodes::give_up(&mut draft);
        return draft.untouched();
    }
    if !draft.is_terminal() {
        draft.keep_accounts();
        requests::take_up(&mut draft);
        let observed = Observed::new(world, &draft.child_name());
        if let Some(job) = &observed.job {
            let verdict = failures::judge(&mut draft, job, &observed);
            results::conclude(&mut draft, &observed, verdict);
        }
        requests::suspend(&mut draft);
        deadlines::enforce(&mut draft);
        data::pin(&mut draft);
        requests::refuse_kueue_keys(&mut draft);
        obstacles::heed(&mut draft);
        children::create(&mut draft);
    }
    lost_nodes::give_up(&mut draft);
    cleanup::children(&mut draft);
    cleanup::object(&mut draft);
    stages::write(&mut draft);
    conditions::write(&mut draft);
    draft.finish()
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
