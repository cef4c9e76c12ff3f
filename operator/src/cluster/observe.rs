//! Phase 1: all reads. What the watches know, and the few questions that they do not answer.
//!
//! Invariant: nothing is written; a question is asked only when the answer can change the plan.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use longstrap_crds::{Object, common::MANAGED_BY, names::child_name};

use super::{
    dry_run::DryRuns,
    refusals::{self, Missing},
    storage_in_use,
    store::{Key, Stores},
    writer::{RequestError, Writer},
};
use crate::plan::{Obstacle, OperatorConfig, World};

/// The world around an object.
pub(super) struct Observation {
    pub(super) world: World,
    /// When a question is to be asked again, whatever the plan says.
    pub(super) look_again: Option<Timestamp>,
}

/// Reads what a plan is made from; `None`: the object is gone.
pub(super) async fn observe(
    stores: &Arc<Stores>,
    writer: &Writer,
    dry_runs: &DryRuns,
    config: &OperatorConfig,
    key: &Key,
) -> Result<Option<Observation>, RequestError> {
    let Some(object) = stores.object(key) else { return Ok(None) };
    let uid = object.uid().to_owned();
    let ours = |owner: &Option<Vec<_>>| owned_by(owner.as_deref(), &uid);
    let mut world = World {
        jobs: stores
            .jobs
            .of(&uid)
            .iter()
            .map(|job| job.open())
            .filter(|job| ours(&job.metadata.owner_references))
            .collect(),
        pods: stores.pods.of(&uid).iter().map(|pod| pod.open()).collect(),
        synthesis: synthesis(stores, &object),
        obstacles: Vec::new(),
        // Stored times have whole seconds.
        now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH),
        config: config.clone(),
        object,
    };
    let mut look_again = None;
    if is_at_work(&world.object) {
        world.obstacles.extend(storage_in_use::around(stores, &world.object));
        world.obstacles.extend(dry_runs.obstacle(writer, &world).await?);
        let (refused, again) = refused_pods(writer, &world).await?;
        world.obstacles.extend(refused);
        look_again = again;
    }
    Ok(Some(Observation { world, look_again }))
}

/// The controller among the owners is the object with this UID.
pub(super) fn owned_by(
    owners: Option<&[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference]>,
    uid: &str,
) -> bool {
    owners.into_iter().flatten().any(|o| o.controller == Some(true) && o.uid == uid)
}

fn is_at_work(object: &Object) -> bool {
    object.common().managed_by == MANAGED_BY
        && object.metadata().deletion_timestamp.is_none()
        && !object.phase().is_some_and(|p| p.is_terminal())
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

/// Why pods of the current Job do not exist.
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
        return Ok((None, None));
    };
    let of_job = |p: &&k8s_openapi::api::core::v1::Pod| {
        owned_by(p.metadata.owner_references.as_deref(), job.metadata.uid.as_deref().unwrap_or_default())
    };
    let pods: Vec<_> = world.pods.iter().filter(of_job).cloned().collect();
    let again = match refusals::missing(job, &pods, world.now) {
        Missing::No => return Ok((None, None)),
        Missing::Since(time) => return Ok((None, Some(time))),
        Missing::Ask(time) => time,
    };
    let selector = format!("involvedObject.uid={}", job.metadata.uid.as_deref().unwrap_or_default());
    let api = writer.api::<Event>(world.object.namespace());
    let params = ListParams::default().fields(&selector);
    let events = writer.read("Event", "list Events of a Job".to_owned(), api.list(&params)).await?;
    Ok((refusals::of_events(&events.items), Some(again)))
}
