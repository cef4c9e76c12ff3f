//! Would the API server take the Jobs of a run, typos in podTemplate included? Asked before a Job is
//! created, about it and those of the steps to come.
//!
//! Invariant: only an answer of the server blocks a run; Jobs that differ in nothing but whose they
//! are get one question in a while, and one at a time, so a thousand objects of one template cost no
//! thousand questions.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PostParams;
use longstrap_crds::{Object, Reason, names};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    refusals,
    writer::{MANAGER, RequestError, Writer, strict_post},
};
use crate::plan::{self, Obstacle, World};

/// So long an acceptance holds for equal Jobs: policies and admission may change.
const HOLDS: Duration = Duration::from_secs(300);
/// Acceptances that are remembered at most.
const MOST: usize = 4096;

/// What a Job is apart from whose it is.
type Kind = [u8; 32];

/// What the server says of a Job.
#[derive(Clone, Debug)]
enum Answer {
    Accepted,
    /// In its words.
    Refused(String),
    /// It says nothing of use, and why.
    None(String),
}

#[derive(Default)]
struct State {
    /// What the server has accepted lately.
    accepted: HashMap<Kind, Instant>,
    /// Questions on their way.
    asked: HashMap<Kind, Shared<BoxFuture<'static, Answer>>>,
}

/// What the server is asked, and has answered.
#[derive(Default)]
pub(super) struct DryRuns(Mutex<State>);

impl DryRuns {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The obstacle when the server refuses one of the run's Jobs as they are; an error says why it is
    /// not known.
    pub(super) async fn obstacle(&self, writer: &Writer, world: &World) -> Result<Option<Obstacle>, String> {
        let ask = plan::manifests(world).into_iter().map(|(step, manifest)| async move {
            match self.answer(writer, &world.object, manifest).await {
                Answer::Accepted => Ok(None),
                Answer::Refused(message) => Ok(Some(Obstacle {
                    reason: Reason::InvalidPodTemplate,
                    message: format!("the API server refuses the Job of {step}: {message}"),
                })),
                Answer::None(why) => Err(why),
            }
        });
        let answers: Result<Vec<_>, _> = join_all(ask).await.into_iter().collect();
        Ok(answers?.into_iter().flatten().next())
    }

    async fn answer(&self, writer: &Writer, object: &Object, manifest: Value) -> Answer {
        let kind = kind_of(object, &manifest);
        let question = {
            let mut state = self.state();
            if state.accepted.get(&kind).is_some_and(|at| at.elapsed() < HOLDS) {
                return Answer::Accepted;
            }
            let ask = || dry_run(writer.clone(), object.namespace().to_owned(), manifest).boxed().shared();
            state.asked.entry(kind).or_insert_with(ask).clone()
        };
        let answer = question.clone().await;
        let mut state = self.state();
        if state.asked.get(&kind).is_some_and(|asked| asked.ptr_eq(&question)) {
            state.asked.remove(&kind);
        }
        if matches!(answer, Answer::Accepted) {
            if state.accepted.len() >= MOST {
                state.accepted.clear();
            }
            state.accepted.insert(kind, Instant::now());
        }
        answer
    }
}

fn kind_of(object: &Object, manifest: &Value) -> Kind {
    let mut manifest = manifest.clone();
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let drop = |map: &mut Value, key: &str| map.as_object_mut().map(|map| map.remove(key));
    drop(&mut manifest["metadata"], "ownerReferences");
    drop(&mut manifest["metadata"]["annotations"], names::ANNOTATION_INPUTS);
    drop(&mut manifest["metadata"]["labels"], names::LABEL_ATTEMPT);
    drop(&mut manifest["spec"]["template"]["metadata"]["labels"], names::LABEL_ATTEMPT);
    let mut text = manifest.to_string();
    for own in [name, object.uid().to_owned(), format!("\"{}/{}\"", object.namespace(), object.name())] {
        if !own.is_empty() {
            text = text.replace(&own, "~");
        }
    }
    Sha256::digest(format!("{} {text}", object.namespace())).into()
}

async fn dry_run(writer: Writer, namespace: String, mut manifest: Value) -> Answer {
    if let Some(metadata) = manifest["metadata"].as_object_mut() {
        // A Job of that name may exist.
        metadata.remove("name");
        metadata.insert("generateName".to_owned(), json!("r-"));
    }
    let params = PostParams { dry_run: true, field_manager: Some(MANAGER.to_owned()) };
    let request = async {
        // Nothing is written: any client may ask.
        writer.client.request::<Value>(strict_post::<Job>(&namespace, &params, &manifest)?).await
    };
    let answer: Result<Value, RequestError> =
        writer.read("Job", "dry run of a Job".to_owned(), request).await;
    let Err(error) = answer else { return Answer::Accepted };
    match error.status().and_then(refusals::of_job) {
        Some(Obstacle { reason: Reason::InvalidPodTemplate, message }) => Answer::Refused(message),
        // Quotas and admission may say something else when the time has come; the fields are good.
        Some(_) => Answer::Accepted,
        None => Answer::None(error.to_string()),
    }
}
