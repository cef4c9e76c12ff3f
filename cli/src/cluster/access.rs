//! The way to an API server: kubeconfig, context, namespace.
//!
//! Invariant: a request that gets no answer ends after [`PATIENCE`]; nothing here is reached by a
//! command that needs no cluster.

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use longstrap_crds::{ContextExtensionRun, SynthesisJob};

use super::error::{ClusterError, Request, explain};
use super::target::Kind;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of every command on a cluster.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Access {
    /// Namespace of the object; by default the context's
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig; by default its current one
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// Kubeconfig; by default $KUBECONFIG, then ~/.kube/config, then the pod's ServiceAccount
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A client and the namespace that it works in.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
    /// The namespace of every request.
    pub(crate) namespace: String,
    /// Address of the API server, for messages.
    server: String,
}

impl Cluster {
    /// Reads the configuration; asks nothing yet.
    pub(crate) async fn connect(access: &Access) -> Result<Self> {
        let config = config(access).await?;
        let server = config.cluster_url.to_string();
        let namespace = access.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config)
            .map_err(|error| ClusterError::Unconfigured { why: error.to_string() })?;
        Ok(Self { client, namespace, server })
    }

    /// A cluster that a test plays.
    #[cfg(test)]
    pub(crate) fn played(client: Client) -> Self {
        Self { client, namespace: "ml".to_owned(), server: "https://played".to_owned() }
    }

    /// Untyped access to one of our kinds: what a newer version knows is kept.
    pub(crate) fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(kind))
    }

    /// The same in all namespaces.
    pub(crate) fn everywhere(&self, kind: Kind) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(kind))
    }

    /// Typed access to a kind of Kubernetes.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What a storage's owner calls this cluster: the UID of the namespace kube-system, unless its
    /// operator was told another identity.
    pub(crate) async fn identity(&self) -> Result<String, ClusterError> {
        let request = Request { verb: "get", resource: "namespaces", name: "kube-system" };
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let namespace = self.ask(request, namespaces.get(request.name)).await?;
        Ok(namespace.metadata.uid.unwrap_or_default())
    }

    /// Waits for the answer to one request and puts its error into words.
    pub(crate) async fn ask<T>(
        &self,
        request: Request<'_>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ClusterError> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|error| self.explain(request, &error)),
            Err(_) => Err(ClusterError::Away {
                server: self.server.clone(),
                why: format!("no answer within {} s", PATIENCE.as_secs()),
            }),
        }
    }

    /// An error of the client in words.
    pub(crate) fn explain(&self, request: Request<'_>, error: &kube::Error) -> ClusterError {
        explain(request, &self.namespace, &self.server, error)
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::SynthesisJob => ApiResource::erase::<SynthesisJob>(&()),
        Kind::ContextExtensionRun => ApiResource::erase::<ContextExtensionRun>(&()),
    }
}

async fn config(access: &Access) -> Result<Config, ClusterError> {
    let unconfigured = |why: &dyn std::fmt::Display| ClusterError::Unconfigured { why: why.to_string() };
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    if access.kubeconfig.is_none() && access.context.is_none() {
        // Its source is the kubeconfig's error: what people mean, unless they are in a pod.
        return Config::infer().await.map_err(|error| match error.source() {
            Some(kubeconfig) => unconfigured(&kubeconfig),
            None => unconfigured(&error),
        });
    }
    let kubeconfig = match &access.kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    }
    .map_err(|error| unconfigured(&error))?;
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unconfigured(&error))
}
