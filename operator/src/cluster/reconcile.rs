//! One object: observe → plan → status, children → events; when to look again.
//!
//! Invariant: nothing is written from an outdated view: either the status write (with the version
//! that was planned from) or a read of that version precedes every other write.

use std::sync::Arc;

use longstrap_crds::{ContextExtensionRun, Object, Reason, SynthesisJob, reason::Effect};

use super::{
    apply::{self, Applied},
    dry_run::DryRuns,
    events::Recorder,
    journal::Journal,
    made::Made,
    observe::{Observation, at, is_ours, observe},
    progress::Live,
    queue::Outcome,
    report,
    store::{Key, Stores},
    writer::{RequestError, Writer},
};
use crate::plan::{Child, ObjectStatus, Obstacle, OperatorConfig, Plan, World, plan};

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
    pub(super) made: Made,
}

/// How far a reconcile came.
#[derive(Debug)]
pub(super) struct Reconciled {
    pub(super) outcome: Outcome,
    /// Why a question got no answer.
    pub(super) unanswered: Option<String>,
}

/// The view was outdated: the watch brings a newer one, if it is not behind for long.
const OUTDATED: Outcome = Outcome::Failed { by: None };

impl Reconciler {
    /// Reconciles one object.
    pub(super) async fn reconcile(&self, key: &Key) -> Result<Reconciled, RequestError> {
        let seen = observe(&self.stores, &self.writer, &self.made, &self.config, key).await;
        let Some(mut seen) = seen else {
            self.made.forget(key);
            self.journal.forget(key);
            return Ok(Reconciled { outcome: Outcome::Idle, unanswered: None });
        };
        let plan = self.plan_and_ask(key, &mut seen).await;
        let outcome = self.carry_out(key, &mut seen, plan).await?;
        let unanswered = seen.unanswered;
        let outcome = if unanswered.is_some() { outcome.failed() } else { outcome };
        Ok(Reconciled { outcome, unanswered })
    }

    /// A plan; when it creates a Job, or a Job is at work and the spec was edited since, one that heeds
    /// what the server says of the Jobs to come. Without an answer nothing is created, and all else is
    /// done.
    async fn plan_and_ask(&self, key: &Key, seen: &mut Observation) -> Plan {
        let mut plan = self.plan(key, &seen.world);
        if !plan.create.iter().any(|child| matches!(child, Child::Job(_))) && !is_edited(&plan) {
            return plan;
        }
        let object = with_status(&seen.world.object, &plan.status);
        match self.dry_runs.obstacle(&self.writer, &World { object, ..seen.world.clone() }).await {
            Ok(None) => {}
            Ok(Some(obstacle)) => {
                seen.world.obstacles.push(obstacle);
                plan = self.plan(key, &seen.world);
            }
            Err(why) => {
                seen.world
                    .obstacles
                    .push(Obstacle { reason: Reason::DryRunUnanswered, message: why.clone() });
                plan = self.plan(key, &seen.world);
                plan.create.clear();
                seen.unanswered = Some(why);
            }
        }
        plan
    }

    async fn carry_out(
        &self,
        key: &Key,
        seen: &mut Observation,
        plan: Plan,
    ) -> Result<Outcome, RequestError> {
        let Some(object) = self.status_then_fresh(&seen.world.object, &plan).await? else {
            return Ok(OUTDATED);
        };
        self.events.planned(&object, &plan.events);
        seen.world.object = object;
        let mut applied = Applied::default();
        let done =
            apply::children(&self.writer, &seen.world.object, &plan, seen.world.now, &mut applied).await;
        self.events.done(&seen.world.object, &plan.events, &applied.jobs);
        if let Some(job) = applied.created {
            // Nobody tells of a Job that is deleted before the watch has brought it.
            let unseen = self.made.add(key, job);
            seen.look_again = seen.look_again.into_iter().chain([unseen]).min();
        }
        done?;
        let by = |plan: &Plan| plan.requeue.map(at).into_iter().chain(seen.look_again).min();
        if let Some(obstacle) = applied.obstacle {
            let waits = obstacle.reason.effect() == Effect::WaitsForPods;
            seen.world.obstacles = vec![obstacle];
            let second = self.plan(key, &seen.world);
            let Some(object) = self.status_then_fresh(&seen.world.object, &second).await? else {
                return Ok(OUTDATED);
            };
            self.events.planned(&object, &second.events);
            return Ok(match waits {
                // A quota is not watched.
                true => Outcome::Waits { by: by(&second) },
                false => by(&second).map_or(Outcome::Idle, Outcome::Again),
            });
        }
        if applied.again {
            return Ok(Outcome::Waits { by: by(&plan) });
        }
        if plan.delete_object {
            return self.delete(&seen.world.object).await;
        }
        Ok(by(&plan).map_or(Outcome::Idle, Outcome::Again))
    }

    fn plan(&self, key: &Key, world: &World) -> Plan {
        let mut plan = plan(world);
        if is_ours(&world.object) {
            let told = self.live.of(key, world.object.uid());
            report::show(plan.status.common_mut(), told.as_ref());
        }
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

    /// Its time to live is over, as far as this version of it says.
    async fn delete(&self, object: &Object) -> Result<Outcome, RequestError> {
        let (namespace, name) = (object.namespace(), object.name());
        let this = (object.metadata().uid.clone(), object.metadata().resource_version.clone());
        let result = match object {
            Object::SynthesisJob(_) => self.writer.delete::<SynthesisJob>(namespace, name, this, false).await,
            Object::ContextExtensionRun(_) => {
                self.writer.delete::<ContextExtensionRun>(namespace, name, this, false).await
            }
        };
        match result {
            Err(error) if error.is_conflict() => Ok(OUTDATED),
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(Outcome::Idle),
        }
    }
}

/// The Job at work is of an earlier spec.
fn is_edited(plan: &Plan) -> bool {
    let conditions = &plan.status.common().conditions;
    conditions.iter().any(|c| c.reason == Reason::SpecEdited.as_str())
}

fn status_of(object: &Object) -> ObjectStatus {
    match object {
        Object::SynthesisJob(o) => ObjectStatus::SynthesisJob(Box::new(o.status.clone().unwrap_or_default())),
        Object::ContextExtensionRun(o) => {
            ObjectStatus::ContextExtensionRun(Box::new(o.status.clone().unwrap_or_default()))
        }
    }
}

/// The object with another status.
fn with_status(object: &Object, status: &ObjectStatus) -> Object {
    let mut object = object.clone();
    match (&mut object, status) {
        (Object::SynthesisJob(o), ObjectStatus::SynthesisJob(s)) => o.status = Some((**s).clone()),
        (Object::ContextExtensionRun(o), ObjectStatus::ContextExtensionRun(s)) => {
            o.status = Some((**s).clone())
        }
        // The planner makes the status of the object's own kind.
        _ => {}
    }
    object
}
