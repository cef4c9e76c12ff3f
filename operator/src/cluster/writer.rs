//! The only way to the API server: reads with a time-out, writes through the fence.
//!
//! Invariant: a write is asked for permission here, and its bytes again at the socket ([`fence`]); a
//! reconcile, with the write that it waits for, is given up when its term of leading ends. So a replica
//! that does not lead any more has at most those writes on their way that it had sent before.
//!
//! [`fence`]: super::fence

use std::{fmt::Debug, future::Future};

use axum::http::Request as HttpRequest;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::Request,
};
use longstrap_crds::{ContextExtensionRun, Object, SynthesisJob};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    fence::{Fence, NotLeader, Term},
    metrics::Metrics,
    options::REQUEST,
    watch::Scoped,
};
use crate::plan::{ObjectStatus, PodRef};

/// Who wrote what, in `managedFields`.
pub(super) const MANAGER: &str = "longstrap-operator";

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The fence is down.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// No answer: whether it arrived is not known.
    #[error("{what}: no answer within {}s", REQUEST.as_secs())]
    TimedOut { what: String },
    /// The server's answer, or none for another reason.
    #[error("{what}: {}", words(.source))]
    Kube { what: String, source: Box<kube::Error> },
}

impl RequestError {
    /// The server's own words about a refusal.
    pub(super) fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    fn is(&self, code: u16) -> bool {
        self.status().is_some_and(|s| s.code == code)
    }

    /// What was to be deleted or changed is not there any more, or not the same.
    pub(super) fn is_gone(&self) -> bool {
        self.is(404) || self.is(409)
    }

    /// It exists, or it was changed by somebody else.
    pub(super) fn is_conflict(&self) -> bool {
        self.is(409)
    }
}

/// An error in the server's own words, where there are some.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => error.to_string(),
    }
}

/// A request with a time-out.
async fn answer<T>(what: String, request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match timeout(REQUEST, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(RequestError::Kube { what, source: Box::new(source) }),
        Err(_) => Err(RequestError::TimedOut { what }),
    }
}

/// Reads and writes.
#[derive(Clone)]
pub(super) struct Writer {
    /// For what changes nothing.
    pub(super) client: Client,
    /// For what does: it sends only while the fence stands.
    fenced: Client,
    fence: Fence,
    metrics: Metrics,
}

fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// A POST of a manifest; unknown and doubled fields are errors.
pub(super) fn strict_post<K: Resource<DynamicType = ()>>(
    namespace: &str,
    params: &PostParams,
    manifest: &impl Serialize,
) -> kube::Result<HttpRequest<Vec<u8>>> {
    let body = serde_json::to_vec(manifest).map_err(kube::Error::SerdeError)?;
    let request = Request::new(K::url_path(&(), Some(namespace))).create(params, body);
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    let uri = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = uri.parse().map_err(|e| kube::Error::Service(Box::new(e)))?;
    Ok(request)
}

impl Writer {
    pub(super) fn new(client: Client, fenced: Client, fence: Fence, metrics: Metrics) -> Self {
        Self { client, fenced, fence, metrics }
    }

    /// The term in which this replica may write now.
    pub(super) fn term(&self) -> Option<Term> {
        self.fence.check().ok()
    }

    /// Ends when the term is over.
    pub(super) async fn fallen(&self, term: Term) {
        self.fence.fallen(term).await;
    }

    /// To read from.
    pub(super) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        Api<K>: Scoped,
    {
        Api::scoped(self.client.clone(), Some(namespace))
    }

    fn fenced<K>(&self, namespace: &str) -> Api<K>
    where
        Api<K>: Scoped,
    {
        Api::scoped(self.fenced.clone(), Some(namespace))
    }

    /// A read.
    pub(super) async fn read<T>(
        &self,
        kind: &str,
        what: String,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        let answer = answer(what, request).await;
        self.metrics.read(kind, answer.is_ok());
        answer
    }

    async fn write<T>(
        &self,
        verb: &'static str,
        kind: &str,
        name: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, RequestError> {
        self.fence.check()?;
        let answer = answer(format!("{verb} {kind} {name}"), request).await;
        self.metrics.write(verb, kind, answer.is_ok());
        answer
    }

    /// Creates what a manifest says, field by field: a field that the server does not know is an error.
    pub(super) async fn create<K>(
        &self,
        namespace: &str,
        name: &str,
        manifest: &impl Serialize,
    ) -> Result<K, RequestError>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let request = async { self.fenced.request(strict_post::<K>(namespace, &post(), manifest)?).await };
        self.write("create", &K::kind(&()), name, request).await
    }

    /// Merges into an object.
    pub(super) async fn merge<K>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), RequestError>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
        Api<K>: Scoped,
    {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let (api, patch) = (self.fenced::<K>(namespace), Patch::Merge(patch));
        self.write("patch", &K::kind(&()), name, api.patch(name, &params, &patch)).await.map(|_| ())
    }

    /// In the foreground, so that what it owns is gone first; only the very object with this UID, and as
    /// it was in this version, where one is given.
    pub(super) async fn delete<K>(
        &self,
        namespace: &str,
        name: &str,
        (uid, version): (Option<String>, Option<String>),
        now: bool,
    ) -> Result<(), RequestError>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
        Api<K>: Scoped,
    {
        let params = DeleteParams {
            propagation_policy: Some(match now {
                true => PropagationPolicy::Background,
                false => PropagationPolicy::Foreground,
            }),
            grace_period_seconds: now.then_some(0),
            preconditions: Some(Preconditions { uid, resource_version: version }),
            ..DeleteParams::default()
        };
        let api = self.fenced::<K>(namespace);
        self.write("delete", &K::kind(&()), name, api.delete(name, &params)).await.map(|_| ())
    }

    /// Replaces the status; fails with a conflict when the object is not the one that was planned from.
    pub(super) async fn status(
        &self,
        object: &Object,
        status: &ObjectStatus,
    ) -> Result<Object, RequestError> {
        let (namespace, name, post) = (object.namespace(), object.name(), post());
        match (object, status) {
            (Object::SynthesisJob(o), ObjectStatus::SynthesisJob(s)) => {
                let new = SynthesisJob { status: Some((**s).clone()), ..(**o).clone() };
                let api = self.fenced::<SynthesisJob>(namespace);
                let request = api.replace_status(name, &post, &new);
                Ok(Object::SynthesisJob(Box::new(self.write("status", "SynthesisJob", name, request).await?)))
            }
            (Object::ContextExtensionRun(o), ObjectStatus::ContextExtensionRun(s)) => {
                let new = ContextExtensionRun { status: Some((**s).clone()), ..(**o).clone() };
                let api = self.fenced::<ContextExtensionRun>(namespace);
                let request = api.replace_status(name, &post, &new);
                let written = self.write("status", "ContextExtensionRun", name, request).await?;
                Ok(Object::ContextExtensionRun(Box::new(written)))
            }
            // The planner makes the status of the object's own kind.
            _ => Ok(object.clone()),
        }
    }

    /// Sets a pod of a lost node to Failed, as a disruption, unless it has changed meanwhile.
    pub(super) async fn give_up(
        &self,
        namespace: &str,
        pod: &PodRef,
        now: Timestamp,
    ) -> Result<(), RequestError> {
        let patch: Value = json!({
            "metadata": {"uid": pod.uid, "resourceVersion": pod.resource_version},
            "status": {
                "phase": "Failed",
                "conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "NodeLost",
                    "message": "the node does not answer; the pod is given up",
                    "lastTransitionTime": Time(now),
                }],
            },
        });
        let api = self.fenced::<Pod>(namespace);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Strategic(patch);
        let request = api.patch_status(&pod.name, &params, &patch);
        self.write("status", "Pod", &pod.name, request).await.map(|_| ())
    }
}
