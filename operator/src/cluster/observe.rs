//! Phase 1: all reads. What the watches know, and the few questions that they do not answer.
//!
//! Invariant: nothing is written; a question is asked only when the answer can change the plan.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Event, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::ListParams;
use longstrap_crds::{Object, common::MANAGED_BY, names::child_name};

use tokio::time::{Duration, Instant};

use super::{
    made::Made,
    refusals::{self, Missing},
    storage_in_use,
    store::{Key, Stores},
    writer::{RequestError, Writer},
};
use crate::plan::{Obstacle, OperatorConfig, World};

const JOB_NAME: &str = "batch.kubernetes.io/job-name";

/// The world around an object.
pub(super) struct Observation {
    pub(super) world: World,
    /// When to look again, whatever the plan says: a question is due, or a Job that was made is not
    /// believed in any longer.
    pub(super) look_again: Option<Instant>,
    /// Why a question got no answer: the plan is made without it, and the question asked again.
    pub(super) unanswered: Option<String>,
}

/// Reads what a plan is made from; `None`: the object is gone.
pub(super) async fn observe(
    stores: &Arc<Stores>,
    writer: &Writer,
    made: &Made,
    config: &OperatorConfig,
    key: &Key,
) -> Option<Observation> {
    let object = stores.object(key)?;
    let uid = object.uid().to_owned();
    let jobs = stores.jobs.of(&uid).into_iter().map(|job| job.open());
    let mut jobs: Vec<_> =
        jobs.filter(|job| owned_by(job.metadata.owner_references.as_deref(), &uid)).collect();
    let mut look_again = None;
    if let Some((until, job)) = made.unseen(key, &uid, &jobs) {
        jobs.push(job);
        look_again = Some(until);
    }
    let mut world = World {
        pods: pods(stores, &uid, &jobs),
        jobs,
        synthesis: synthesis(stores, &object),
        obstacles: Vec::new(),
        // Stored times have whole seconds.
        now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH),
        config: config.clone(),
        object,
    };
    let mut unanswered = None;
    if is_ours(&world.object) && !world.object.phase().is_some_and(|p| p.is_terminal()) {
        world.obstacles.extend(storage_in_use::around(stores, &world.object));
        match refused_pods(writer, &world).await {
            Ok((refused, again)) => {
                world.obstacles.extend(refused);
                look_again = [look_again, again.map(at)].into_iter().flatten().min();
            }
            Err(error) => unanswered = Some(error.to_string()),
        }
    }
    Some(Observation { world, look_again, unanswered })
}

/// The pods of an object. One whose Job is gone (deleted, or re-created by its name) loses its Job's
/// name: it may sit on a lost node, and a suspended run waits for its end, but it tells nothing about
/// the Job that there is.
fn pods(stores: &Stores, uid: &str, jobs: &[Job]) -> Vec<Pod> {
    let pods = stores.pods.of(uid).into_iter().map(|pod| pod.open());
    let known = |pod: &Pod| {
        let owners = pod.metadata.owner_references.as_deref();
        jobs.iter().filter_map(|job| job.metadata.uid.as_deref()).any(|uid| owned_by(owners, uid))
    };
    pods.map(|mut pod| {
        if !known(&pod) {
            pod.metadata.labels.as_mut().and_then(|labels| labels.remove(JOB_NAME));
        }
        pod
    })
    .collect()
}

/// The controller among the owners is the object with this UID.
pub(super) fn owned_by(owners: Option<&[OwnerReference]>, uid: &str) -> bool {
    owners.into_iter().flatten().any(|o| o.controller == Some(true) && o.uid == uid)
}

/// The object is there to be worked on, by this operator.
pub(super) fn is_ours(object: &Object) -> bool {
    object.common().managed_by == MANAGED_BY && object.metadata().deletion_timestamp.is_none()
}

fn synthesis(stores: &Stores, object: &Object) -> BTreeMap<String, longstrap_crds::SynthesisJob> {
    referenced(object)
        .filter_map(|name| {
            let found = stores.synthesis.get(&(object.namespace().to_owned(), name.to_owned()))?;
            Some((name.to_owned(), found.open()))
        })
        .collect()
}

/// Names of the SynthesisJobs whose data an object takes.
pub(super) fn referenced(object: &Object) -> impl Iterator<Item = &str> {
    let data = match object {
        Object::ContextExtensionRun(run) => run.spec.data.as_slice(),
        Object::SynthesisJob(_) => &[],
    };
    data.iter().filter_map(|d| d.synthesis_job_ref.as_ref().map(|r| r.name.as_str()))
}

/// Why the current Job, or pods of it, do not exist or do not start.
async fn refused_pods(
    writer: &Writer,
    world: &World,
) -> Result<(Option<Obstacle>, Option<Timestamp>), RequestError> {
    let status = world.object.status();
    let (Some(step), Some(attempt)) = (status.step.as_deref().and_then(|s| s.parse().ok()), status.attempt)
    else {
        return Ok((None, None));
    };
    let name = child_name(world.object.name(), world.object.uid(), step, attempt);
    let Some(job) = world.jobs.iter().find(|j| j.metadata.name.as_deref() == Some(&name)) else {
        return Ok((refusals::told(&status), None));
    };
    let of_job = |p: &&Pod| {
        owned_by(p.metadata.owner_references.as_deref(), job.metadata.uid.as_deref().unwrap_or_default())
    };
    let pods: Vec<_> = world.pods.iter().filter(of_job).cloned().collect();
    let namespace = world.object.namespace();
    match (refusals::missing(job, &pods, world.now), refusals::held_up(&pods, world.now)) {
        (Missing::Ask(again), _) => {
            let events = events(writer, namespace, &job.metadata).await?;
            Ok((refusals::of_events(&events, &pods), Some(again)))
        }
        (_, Some((pod, Missing::Ask(again)))) => {
            let events = events(writer, namespace, &pod.metadata).await?;
            Ok((refusals::of_volumes(&events), Some(again)))
        }
        (Missing::Since(time), _) | (_, Some((_, Missing::Since(time)))) => Ok((None, Some(time))),
        (Missing::No, _) => Ok((None, None)),
    }
}

/// Events about a child.
async fn events(writer: &Writer, namespace: &str, child: &ObjectMeta) -> Result<Vec<Event>, RequestError> {
    let selector = format!("involvedObject.uid={}", child.uid.as_deref().unwrap_or_default());
    let api = writer.api::<Event>(namespace);
    let params = ListParams::default().fields(&selector);
    let what = format!("list Events of {}", child.name.as_deref().unwrap_or_default());
    Ok(writer.read("Event", what, api.list(&params)).await?.items)
}

/// A time on the monotonic clock; one that is past is now.
pub(super) fn at(time: Timestamp) -> Instant {
    let wait = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    // The end of time is not a time that can be slept until.
    Instant::now() + wait.min(Duration::from_secs(7 * 24 * 3600))
}
