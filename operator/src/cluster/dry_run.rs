//! Would the API server take the Jobs of a run, typos in podTemplate included? Asked before anything
//! is created, once for each generation.
//!
//! Invariant: only an answer of the server blocks a run; Jobs that differ in nothing but whose they
//! are get one question in a while, so a thousand objects of one template cost no thousand questions.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::Request;
use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use kube::api::PostParams;
use longstrap_crds::{Object, Reason, names};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{
    refusals,
    writer::{MANAGER, RequestError, Writer, post_request},
};
use crate::plan::{self, Obstacle, World};

/// So long an acceptance holds for equal Jobs: policies and admission may change.
const HOLDS: Duration = Duration::from_secs(300);
/// Acceptances that are remembered at most.
const MOST: usize = 4096;

/// What the server has accepted lately.
#[derive(Default)]
pub(super) struct DryRuns(Mutex<HashMap<[u8; 32], Instant>>);

impl DryRuns {
    /// The obstacle when the server refuses one of the run's Jobs as they are.
    pub(super) async fn obstacle(
        &self,
        writer: &Writer,
        world: &World,
    ) -> Result<Option<Obstacle>, RequestError> {
        let status = world.object.status();
        if status.observed_generation == world.object.metadata().generation && status.phase.is_some() {
            return Ok(None);
        }
        let manifests = plan::manifests(world);
        let ask = manifests.into_iter().map(|(step, manifest)| async move {
            let kind = kind_of(&world.object, &manifest);
            if self.knows(&kind) {
                return Ok(None);
            }
            let Err(error) = dry_run(writer, world.object.namespace(), manifest).await else {
                self.learn(kind);
                return Ok(None);
            };
            match error.status().and_then(refusals::of_job) {
                Some(Obstacle { reason: Reason::InvalidPodTemplate, message }) => Ok(Some(Obstacle {
                    reason: Reason::InvalidPodTemplate,
                    message: format!("the API server refuses the Job of {step}: {message}"),
                })),
                // Quotas and admission may say something else when the time has come.
                Some(_) => Ok(None),
                None => Err(error),
            }
        });
        let answers: Result<Vec<_>, _> = join_all(ask).await.into_iter().collect();
        Ok(answers?.into_iter().flatten().next())
    }

    fn knows(&self, kind: &[u8; 32]) -> bool {
        let accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.get(kind).is_some_and(|at| at.elapsed() < HOLDS)
    }

    fn learn(&self, kind: [u8; 32]) {
        let mut accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.len() >= MOST {
            accepted.clear();
        }
        accepted.insert(kind, Instant::now());
    }
}

/// What a Job is apart from whose it is.
fn kind_of(object: &Object, manifest: &Value) -> [u8; 32] {
    let mut manifest = manifest.clone();
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if let Some(metadata) = manifest["metadata"].as_object_mut() {
        metadata.remove("ownerReferences");
        metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
            .map(|a| a.remove(names::ANNOTATION_INPUTS));
    }
    let mut text = manifest.to_string();
    for own in [name, object.uid().to_owned(), format!("\"{}/{}\"", object.namespace(), object.name())] {
        if !own.is_empty() {
            text = text.replace(&own, "~");
        }
    }
    Sha256::digest(format!("{} {text}", object.namespace())).into()
}

async fn dry_run(writer: &Writer, namespace: &str, mut manifest: Value) -> Result<(), RequestError> {
    if let Some(metadata) = manifest["metadata"].as_object_mut() {
        // A Job of that name may exist.
        metadata.remove("name");
        metadata.insert("generateName".to_owned(), json!("r-"));
    }
    let params = PostParams { dry_run: true, field_manager: Some(MANAGER.to_owned()) };
    let request = async {
        let request: Request<Vec<u8>> = strict(post_request::<Job>(namespace, &params, &manifest)?)?;
        // Nothing is written: any client may ask.
        writer.client.request::<Value>(request).await
    };
    writer.read("Job", "dry run of a Job".to_owned(), request).await.map(|_| ())
}

/// Unknown and doubled fields are errors.
fn strict(mut request: Request<Vec<u8>>) -> kube::Result<Request<Vec<u8>>> {
    let uri = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = uri.parse().map_err(|e| kube::Error::Service(Box::new(e)))?;
    Ok(request)
}
