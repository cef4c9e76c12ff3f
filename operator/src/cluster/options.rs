//! Command line and environment of the operator.
//!
//! Invariant: every time-out is given once, here; nothing further in reads the environment.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use longstrap_crds::task::Ports;

use crate::plan::OperatorConfig;

/// Reconciles SynthesisJobs and ContextExtensionRuns.
#[derive(Clone, Debug, Parser)]
#[command(name = "longstrap-operator", version)]
pub struct Options {
    /// Namespaces to watch, separated by commas; none: all namespaces.
    #[arg(long, env = "LONGSTRAP_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Namespace of the Lease by which replicas elect their leader.
    #[arg(long, env = "LONGSTRAP_LEASE_NAMESPACE", default_value = "longstrap-system")]
    pub lease_namespace: String,
    /// Name of that Lease.
    #[arg(long, env = "LONGSTRAP_LEASE_NAME", default_value = "longstrap-operator")]
    pub lease_name: String,
    /// Name of this replica, unique among replicas: the name of its pod.
    #[arg(long, env = "LONGSTRAP_IDENTITY")]
    pub identity: String,
    /// Image of pods whose object names none, with its digest.
    #[arg(long, env = "LONGSTRAP_WORKER_IMAGE")]
    pub worker_image: String,
    /// Identity of the cluster in storage; by default the UID of the namespace kube-system.
    #[arg(long, env = "LONGSTRAP_CLUSTER")]
    pub cluster: Option<String>,
    /// Address of /healthz, /readyz, /metrics and /debug/state.
    #[arg(long, env = "LONGSTRAP_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Objects that are reconciled at once.
    #[arg(long, env = "LONGSTRAP_WORKERS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Seconds that a worker pod waits for storage or an endpoint that is away.
    #[arg(long, env = "LONGSTRAP_OUTAGE_TIMEOUT_SECONDS", default_value_t = 600)]
    pub outage_timeout_seconds: u64,
}

impl Options {
    /// How pods run.
    pub(super) fn config(&self, cluster: String) -> OperatorConfig {
        OperatorConfig {
            cluster,
            image: self.worker_image.clone(),
            outage_timeout_seconds: self.outage_timeout_seconds,
            rendezvous_host: None,
            ports: Ports::default(),
            one_machine: false,
            threads_per_rank: 1,
        }
    }

    /// The namespaces, each once; `None`: all of them.
    pub(super) fn scopes(&self) -> Vec<Option<String>> {
        let mut names: Vec<_> = self.namespaces.iter().filter(|n| !n.is_empty()).cloned().collect();
        names.sort();
        names.dedup();
        if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() }
    }
}

/// The longest wait for an answer to one request.
pub(super) const REQUEST: Duration = Duration::from_secs(15);
/// The longest reconcile of one object, all its requests included.
pub(super) const RECONCILE: Duration = Duration::from_secs(60);
/// A watch without a byte for so long is given up; the server sends bookmarks about every minute.
pub(super) const WATCH_SILENCE: Duration = Duration::from_secs(100);
/// The process calls itself dead when a watch has had no answer for so long.
pub(super) const WATCH_DEAD: Duration = Duration::from_secs(600);
/// The longest wait for reconciles in flight when the process ends.
pub(super) const DRAIN: Duration = Duration::from_millis(300);
