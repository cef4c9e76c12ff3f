//! Phase 3: deletes what the plan deletes, creates what it creates.
//!
//! Invariant: an object of somebody else is never touched: deletes name the UID, what exists is ours
//! only when its controller is our object, and nothing that exists is changed.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
};
use kube::{Api, Resource};
use longstrap_crds::{Object, Reason};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    observe::owned_by,
    refusals,
    watch::Scoped,
    writer::{RequestError, Writer},
};
use crate::plan::{Child, ChildRef, Obstacle, Plan, PodRef};

/// What really happened.
#[derive(Default)]
pub(super) struct Applied {
    /// Jobs that this call created and deleted, by name.
    pub(super) jobs: BTreeSet<String>,
    /// The Job that this call created: the watch will bring it, later.
    pub(super) created: Option<Job>,
    /// Why not everything could be created.
    pub(super) obstacle: Option<Obstacle>,
    /// Something that is on its way out has the place of a child: try again.
    pub(super) again: bool,
}

/// Applies a plan's children; what has happened is told in `applied` even when the rest fails.
pub(super) async fn children(
    writer: &Writer,
    object: &Object,
    plan: &Plan,
    now: Timestamp,
    applied: &mut Applied,
) -> Result<(), RequestError> {
    let namespace = object.namespace();
    // One that may not be given up holds up nothing else.
    let mut refused = None;
    for pod in &plan.lost {
        if let Err(error) = give_up(writer, namespace, pod, now).await {
            refused.get_or_insert(error);
        }
    }
    for child in &plan.delete {
        delete(writer, object, child, applied).await?;
    }
    // What a Job's pods mount and are found by: at once, and before the Job.
    let (jobs, others): (Vec<&Child>, Vec<&Child>) =
        plan.create.iter().partition(|child| matches!(child, Child::Job(_)));
    for children in [others, jobs] {
        let made = children.into_iter().map(|child| create_child(writer, object, child));
        for (made, job) in try_join_all(made).await? {
            applied.jobs.extend(job.as_ref().and_then(|j| j.metadata.name.clone()));
            applied.created = job.or(applied.created.take());
            match made {
                Made::ThereNow => {}
                Made::Leaving => applied.again = true,
                Made::Refused(obstacle) => applied.obstacle = Some(obstacle),
            }
        }
        if applied.again || applied.obstacle.is_some() {
            break;
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Sets a pod of a lost node to Failed, then deletes it at once.
async fn give_up(writer: &Writer, namespace: &str, pod: &PodRef, now: Timestamp) -> Result<(), RequestError> {
    if !gone(writer.give_up(namespace, pod, now).await)? {
        gone(writer.delete::<Pod>(namespace, &pod.name, (pod.uid.clone(), None), true).await)?;
    }
    Ok(())
}

async fn create_child(
    writer: &Writer,
    object: &Object,
    child: &Child,
) -> Result<(Made, Option<Job>), RequestError> {
    Ok(match child {
        Child::ConfigMap(map) => {
            let same = |old: &ConfigMap| old.data == map.data;
            (create(writer, object, &map.metadata.name, map, same).await?.0, None)
        }
        Child::Service(service) => {
            (create::<Service>(writer, object, &service.metadata.name, service, |_| true).await?.0, None)
        }
        Child::Job(new) => create(writer, object, &new.job.metadata.name, &new.manifest, |_| true).await?,
    })
}

/// Whether what was to be changed was gone, or another one, already.
fn gone(result: Result<(), RequestError>) -> Result<bool, RequestError> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.is_gone() => Ok(true),
        Err(error) => Err(error),
    }
}

/// A Job in the foreground, with the ConfigMap and the Service of its name: they go first, because
/// once the Job is gone, nobody would know of them.
async fn delete(
    writer: &Writer,
    object: &Object,
    child: &ChildRef,
    applied: &mut Applied,
) -> Result<(), RequestError> {
    delete_ours::<Service>(writer, object, &child.name).await?;
    delete_ours::<ConfigMap>(writer, object, &child.name).await?;
    let namespace = object.namespace();
    if !gone(writer.delete::<Job>(namespace, &child.name, (child.uid.clone(), None), false).await)? {
        applied.jobs.insert(child.name.clone());
    }
    Ok(())
}

async fn delete_ours<K>(writer: &Writer, object: &Object, name: &str) -> Result<(), RequestError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    Api<K>: Scoped,
{
    let api = writer.api::<K>(object.namespace());
    let found = writer.read(&K::kind(&()), format!("get {} {name}", K::kind(&())), api.get_opt(name)).await?;
    let ours = found.filter(|o| owned_by(o.meta().owner_references.as_deref(), object.uid()));
    if let Some(ours) = ours.filter(|o| o.meta().deletion_timestamp.is_none()) {
        gone(writer.delete::<K>(object.namespace(), name, (ours.meta().uid.clone(), None), false).await)?;
    }
    Ok(())
}

/// What came of a create.
#[derive(Debug)]
enum Made {
    /// Created, or it was there and is ours.
    ThereNow,
    /// Ours, but being deleted.
    Leaving,
    Refused(Obstacle),
}

async fn create<K>(
    writer: &Writer,
    object: &Object,
    name: &Option<String>,
    manifest: &impl Serialize,
    same: impl Fn(&K) -> bool,
) -> Result<(Made, Option<K>), RequestError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug,
    Api<K>: Scoped,
{
    let name = name.as_deref().unwrap_or_default();
    let error = match writer.create(object.namespace(), name, manifest).await {
        Ok(created) => return Ok((Made::ThereNow, Some(created))),
        Err(error) => error,
    };
    if !error.is_conflict() {
        return match error.status().and_then(refusals::of_job) {
            Some(obstacle) => Ok((Made::Refused(obstacle), None)),
            None => Err(error),
        };
    }
    let api = writer.api::<K>(object.namespace());
    let found = writer.read(&K::kind(&()), format!("get {} {name}", K::kind(&())), api.get_opt(name)).await?;
    let Some(found) = found else { return Ok((Made::Leaving, None)) };
    if !owned_by(found.meta().owner_references.as_deref(), object.uid()) {
        let obstacle = Obstacle {
            reason: Reason::NameConflict,
            message: format!(
                "{} {name} exists and does not belong to this object; delete it, or give this object another name",
                K::kind(&())
            ),
        };
        return Ok((Made::Refused(obstacle), None));
    }
    if found.meta().deletion_timestamp.is_some() {
        return Ok((Made::Leaving, None));
    }
    if same(&found) {
        return Ok((Made::ThereNow, None));
    }
    // What a Job's pods mount stays as it is; without a Job it was left by a try before the spec was edited.
    let jobs = writer.api::<Job>(object.namespace());
    if writer.read("Job", format!("get Job {name}"), jobs.get_metadata_opt(name)).await?.is_some() {
        return Ok((Made::ThereNow, None));
    }
    gone(writer.delete::<K>(object.namespace(), name, (found.meta().uid.clone(), None), false).await)?;
    Ok((Made::Leaving, None))
}
