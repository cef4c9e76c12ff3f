//! One object: observe → plan → status, children → events; when to look again.
//!
//! Invariant: nothing is written from an outdated view: either the status write (with the version
//! that was planned from) or a read of that version precedes every other write.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use longstrap_crds::{ContextExtensionRun, Object, SynthesisJob, reason::Effect};
use tokio::time::{Duration, Instant};

use super::{
    apply::{self, Applied},
    dry_run::DryRuns,
    events::Recorder,
    journal::Journal,
    observe::observe,
    progress::Live,
    queue::Outcome,
    report,
    store::{Key, Stores},
    writer::{RequestError, Writer},
};
use crate::plan::{ObjectStatus, OperatorConfig, Plan, World, plan};

/// The watch brings what was missed; this is for when it already has.
const SOON: Duration = Duration::from_millis(300);

/// So long the watch may take to bring a Job that was created.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// What reconciling needs.
pub(super) struct Reconciler {
    pub(super) stores: Arc<Stores>,
    pub(super) writer: Writer,
    pub(super) config: OperatorConfig,
    pub(super) events: Recorder,
    pub(super) dry_runs: DryRuns,
    /// What pods told of their progress.
    pub(super) live: Live,
    pub(super) journal: Journal,
    /// Jobs that were just created, by their owner: without them they would be created again, in vain.
    pub(super) made: Mutex<HashMap<Key, (Instant, Job)>>,
}

impl Reconciler {
    /// Reconciles one object.
    pub(super) async fn reconcile(&self, key: &Key) -> Result<Outcome, RequestError> {
        let seen = observe(&self.stores, &self.writer, &self.dry_runs, &self.config, key).await?;
        let Some(mut seen) = seen else {
            self.made().remove(key);
            self.journal.forget(key);
            return Ok(Outcome::Idle);
        };
        let lag = self.add_made(key, &mut seen.world);
        let first = self.plan(key, &seen.world);
        let Some(object) = self.status_then_fresh(&seen.world.object, &first).await? else {
            return Ok(again(SOON));
        };
        seen.world.object = object;
        let applied = apply::children(&self.writer, &seen.world.object, &first, seen.world.now).await?;
        self.events.record(&seen.world.object, &first.events, &applied);
        if let Some(job) = applied.created {
            self.made().insert(key.clone(), (Instant::now() + WATCH_LAG, job));
        }
        let mut requeue = first.requeue;
        if let Some(obstacle) = applied.obstacle {
            let waits = obstacle.reason.effect() == Effect::WaitsForPods;
            seen.world.obstacles = vec![obstacle];
            let second = self.plan(key, &seen.world);
            if self.status_then_fresh(&seen.world.object, &second).await?.is_none() {
                return Ok(again(SOON));
            }
            self.events.record(&seen.world.object, &second.events, &Applied::default());
            if waits {
                // A quota is not watched: the object's back-off decides when to ask again.
                return Ok(Outcome::Failed);
            }
            requeue = second.requeue;
        } else if applied.again {
            return Ok(again(SOON));
        }
        if first.delete_object {
            self.delete(&seen.world.object).await?;
            return Ok(Outcome::Idle);
        }
        let next = [requeue, seen.look_again].into_iter().flatten().min();
        let next = next.map(at).into_iter().chain(lag).min();
        Ok(next.map_or(Outcome::Idle, Outcome::Again))
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Job)>> {
        // No code panics while it holds the lock.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a Job that the watch has not brought yet; until when it is believed in.
    fn add_made(&self, key: &Key, world: &mut World) -> Option<Instant> {
        let mut made = self.made();
        let (until, job) = made.get(key)?;
        let seen = world.jobs.iter().any(|j| j.metadata.uid == job.metadata.uid);
        if seen || *until <= Instant::now() {
            made.remove(key);
            return None;
        }
        world.jobs.push(job.clone());
        Some(*until)
    }

    fn plan(&self, key: &Key, world: &World) -> Plan {
        let mut plan = plan(world);
        let told = self.live.of(key, world.object.uid());
        report::show(plan.status.common_mut(), told.as_ref());
        self.journal.planned(key, &plan, world.now);
        plan
    }

    /// Phase 2: writes the status when it changed; else, before other writes, makes sure that the
    /// plan was made from the present object. `None`: it was not.
    async fn status_then_fresh(&self, object: &Object, plan: &Plan) -> Result<Option<Object>, RequestError> {
        if status_of(object) != plan.status {
            return match self.writer.status(object, &plan.status).await {
                Ok(written) => {
                    self.remember(&written);
                    Ok(Some(written))
                }
                Err(error) if error.is_gone() => Ok(None),
                Err(error) => Err(error),
            };
        }
        let writes = !(plan.create.is_empty() && plan.delete.is_empty() && plan.lost.is_empty());
        if writes && self.version(object).await? != object.metadata().resource_version {
            return Ok(None);
        }
        Ok(Some(object.clone()))
    }

    fn remember(&self, object: &Object) {
        match object {
            Object::SynthesisJob(o) => self.stores.synthesis.written((**o).clone()),
            Object::ContextExtensionRun(o) => self.stores.runs.written((**o).clone()),
        }
    }

    async fn version(&self, object: &Object) -> Result<Option<String>, RequestError> {
        let (namespace, name) = (object.namespace(), object.name());
        let what = format!("get {} {name}", object.kind());
        let metadata = match object {
            Object::SynthesisJob(_) => {
                let api = self.writer.api::<SynthesisJob>(namespace);
                self.writer.read(object.kind(), what, api.get_metadata_opt(name)).await?.map(|m| m.metadata)
            }
            Object::ContextExtensionRun(_) => {
                let api = self.writer.api::<ContextExtensionRun>(namespace);
                self.writer.read(object.kind(), what, api.get_metadata_opt(name)).await?.map(|m| m.metadata)
            }
        };
        Ok(metadata.filter(|m| m.uid.as_deref() == Some(object.uid())).and_then(|m| m.resource_version))
    }

    /// Its time to live is over.
    async fn delete(&self, object: &Object) -> Result<(), RequestError> {
        let (namespace, name) = (object.namespace(), object.name());
        let uid = object.metadata().uid.clone();
        let result = match object {
            Object::SynthesisJob(_) => self.writer.delete::<SynthesisJob>(namespace, name, uid, false).await,
            Object::ContextExtensionRun(_) => {
                self.writer.delete::<ContextExtensionRun>(namespace, name, uid, false).await
            }
        };
        match result {
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(()),
        }
    }
}

fn status_of(object: &Object) -> ObjectStatus {
    match object {
        Object::SynthesisJob(o) => ObjectStatus::SynthesisJob(Box::new(o.status.clone().unwrap_or_default())),
        Object::ContextExtensionRun(o) => {
            ObjectStatus::ContextExtensionRun(Box::new(o.status.clone().unwrap_or_default()))
        }
    }
}

fn again(after: Duration) -> Outcome {
    Outcome::Again(Instant::now() + after)
}

/// A planned time on the monotonic clock; one that is past is now.
fn at(time: Timestamp) -> Instant {
    let wait = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    // The end of time is not a time that can be slept until.
    Instant::now() + wait.min(Duration::from_secs(7 * 24 * 3600))
}
