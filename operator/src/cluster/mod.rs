//! The process that runs in a cluster: watches, queue, election, HTTP; who starts and stops them.
//!
//! Invariant: only the leader writes, and whatever fails (a watch, an object, a reconcile that
//! panics) fails alone.

mod apply;
mod events;
mod http;
mod lease;
mod metrics;
mod observe;
mod options;
mod queue;
mod reconcile;
mod refusals;
mod storage_in_use;
mod store;
mod watch;
mod writer;

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Namespace, Pod},
};
use kube::{Api, Client, ResourceExt};
use longstrap_crds::{
    ContextExtensionRun, Phase, SynthesisJob,
    names::{APP, LABEL_APP},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

pub use options::Options;

use lease::{Election, Fence};
use metrics::Metrics;
use options::{DRAIN, RECONCILE};
use queue::{Outcome, Queue};
use reconcile::Reconciler;
use store::{Kept, Key, Kind, Store, Stores};
use watch::{Health, Scoped, Watch};
use writer::{RequestError, Writer};

/// Why the process cannot start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The configuration of the client.
    #[error("the API server cannot be reached: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The cluster's identity.
    #[error("the UID of the namespace kube-system cannot be read ({0}); give --cluster instead")]
    Cluster(String),
    /// The address to listen on.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
    /// A task that runs for ever has ended.
    #[error("a task of the process has ended: {0}")]
    Task(String),
}

/// What the tasks share.
pub(crate) struct Shared {
    reconciler: Reconciler,
    queue: Queue,
    watches: Vec<Arc<Health>>,
}

impl Shared {
    /// The first lists of all that a plan for the object is made from have come. Others may be
    /// missing: a kind that is forbidden stops no other.
    fn knows_about(&self, key: &Key) -> bool {
        let wanted: &[&str] = match key.kind {
            Kind::SynthesisJob => &["synthesisjobs", "jobs", "pods"],
            Kind::ContextExtensionRun => &["contextextensionruns", "synthesisjobs", "jobs", "pods"],
        };
        self.watches
            .iter()
            .filter(|w| w.scope.as_ref().is_none_or(|s| *s == key.namespace))
            .filter(|w| wanted.contains(&w.plural.as_str()))
            .all(|w| w.synced())
    }

    /// Objects by kind and phase.
    fn phases(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let stores = &self.reconciler.stores;
        let word = |phase: Option<Phase>| phase.map_or("New", Phase::as_str);
        let jobs = stores
            .synthesis
            .all(None)
            .into_iter()
            .map(|o| ("SynthesisJob", word(o.status.as_ref().and_then(|s| s.common.phase))));
        let runs = stores
            .runs
            .all(None)
            .into_iter()
            .map(|o| ("ContextExtensionRun", word(o.status.as_ref().and_then(|s| s.common.phase))));
        let mut counts = BTreeMap::new();
        jobs.chain(runs).for_each(|key| *counts.entry(key).or_default() += 1);
        counts
    }
}

/// Runs until `stop`.
///
/// # Errors
/// [`ProcessError`]: the process is to be started again.
pub async fn run(
    options: Options,
    mut config: kube::Config,
    stop: CancellationToken,
) -> Result<(), ProcessError> {
    // An answer that hides 15 retries comes too late: the queue and the watches retry themselves.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    let connect =
        |config: kube::Config| Client::try_from(config).map_err(|e| ProcessError::Client(Box::new(e)));
    // The Lease has connections of its own: it must not wait behind a thousand writes.
    let (client, lease_client) = (connect(config.clone())?, connect(config)?);
    let cluster = match &options.cluster {
        Some(cluster) => cluster.clone(),
        None => cluster_identity(&client).await?,
    };
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .map_err(|e| ProcessError::Listen(options.listen, e))?;

    let fence = Fence::default();
    let metrics = Metrics::default();
    let stores = Arc::new(Stores::default());
    let reconciler = Reconciler {
        stores: stores.clone(),
        writer: Writer::new(client.clone(), fence.clone(), metrics.clone()),
        config: options.config(cluster),
        metrics,
        made: Default::default(),
    };
    let mut tasks = JoinSet::new();
    let mut watches = Watches { client, health: Vec::new(), starts: Vec::new() };
    for scope in options.scopes() {
        let all = |_: &()| None;
        let ours = |_: &()| Some(format!("{LABEL_APP}={APP}"));
        watches.add::<SynthesisJob>(
            &scope,
            all(&()),
            |s| &s.synthesis,
            |shared, job| {
                let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
                observe::waiting_for(&shared.reconciler.stores, &namespace, &name)
                    .into_iter()
                    .for_each(|key| shared.queue.add(key));
                shared.queue.add(Key { kind: Kind::SynthesisJob, namespace, name });
            },
        );
        watches.add::<ContextExtensionRun>(
            &scope,
            all(&()),
            |s| &s.runs,
            |shared, run| {
                let (namespace, name) = (run.namespace().unwrap_or_default(), run.name_any());
                shared.queue.add(Key { kind: Kind::ContextExtensionRun, namespace, name });
            },
        );
        watches.add::<Job>(&scope, ours(&()), |s| &s.jobs, child_changed);
        watches.add::<Pod>(&scope, ours(&()), |s| &s.pods, child_changed);
    }
    let shared = Arc::new(Shared { reconciler, queue: Queue::default(), watches: watches.health });
    for start in watches.starts {
        start(&mut tasks, shared.clone());
    }
    let drain = CancellationToken::new();
    let mut workers = JoinSet::new();
    for _ in 0..options.workers {
        workers.spawn(work(shared.clone(), drain.clone()));
    }
    let election =
        Election::new(lease_client, &options.lease_namespace, &options.lease_name, &options.identity, fence);
    let resign = CancellationToken::new();
    let on_elected = shared.clone();
    let election = tokio::spawn(election.run(resign.clone(), move || {
        on_elected.reconciler.stores.keys().into_iter().for_each(|key| on_elected.queue.add(key));
    }));
    let app = http::router(shared);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP server has ended");
        }
    });
    tracing::info!("started");

    let ended = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.join_next() => Some(ended),
    };
    // No new reconciles; those in flight get a moment; then the next leader may begin.
    drain.cancel();
    let _ = timeout(DRAIN, async { while workers.join_next().await.is_some() {} }).await;
    workers.abort_all();
    resign.cancel();
    let _ = election.await;
    match ended {
        None => Ok(()),
        Some(end) => {
            Err(ProcessError::Task(end.and_then(Result::err).map_or("early".into(), |e| e.to_string())))
        }
    }
}

async fn cluster_identity(client: &Client) -> Result<String, ProcessError> {
    let api = Api::<Namespace>::all(client.clone());
    let namespace = writer::read("get Namespace kube-system".to_owned(), api.get("kube-system")).await;
    let namespace = namespace.map_err(|e| ProcessError::Cluster(e.to_string()))?;
    namespace.uid().ok_or_else(|| ProcessError::Cluster("it has none".to_owned()))
}

type Start = Box<dyn FnOnce(&mut JoinSet<()>, Arc<Shared>) + Send>;

/// Watches that are about to start.
struct Watches {
    client: Client,
    health: Vec<Arc<Health>>,
    starts: Vec<Start>,
}

impl Watches {
    fn add<K>(
        &mut self,
        scope: &Option<String>,
        selector: Option<String>,
        store: fn(&Stores) -> &Store<K>,
        changed: fn(&Shared, &K),
    ) where
        K: Kept + std::fmt::Debug + serde::de::DeserializeOwned,
        Api<K>: Scoped,
    {
        let watch = Watch::<K>::new(self.client.clone(), scope.clone(), selector);
        self.health.push(watch.health());
        self.starts.push(Box::new(move |tasks, shared| {
            tasks.spawn(async move {
                let stores = shared.reconciler.stores.clone();
                watch.run(store(&stores), |object| changed(&shared, object)).await;
            });
        }));
    }
}

/// Queues the owner of a Job or a pod.
fn child_changed<K: Kept>(shared: &Shared, child: &K) {
    if let Some(key) = child.owner().and_then(|uid| shared.reconciler.stores.key_of(&uid)) {
        shared.queue.add(key);
    }
}

/// Takes objects from the queue until `drain`.
async fn work(shared: Arc<Shared>, drain: CancellationToken) {
    loop {
        let key = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            key = shared.queue.next() => key,
        };
        let outcome = attempt(&shared, &key).await;
        shared.queue.done(&key, outcome);
    }
}

/// One reconcile, whatever happens in it.
async fn attempt(shared: &Shared, key: &Key) -> Outcome {
    if !shared.reconciler.writer.leads() {
        // All objects are queued when this replica is elected.
        return Outcome::Idle;
    }
    if !shared.knows_about(key) {
        return Outcome::Again(Instant::now() + Duration::from_millis(200));
    }
    let start = Instant::now();
    let reconcile = AssertUnwindSafe(shared.reconciler.reconcile(key)).catch_unwind();
    let (result, outcome) = match timeout(RECONCILE, reconcile).await {
        Ok(Ok(Ok(outcome))) => ("ok", outcome),
        Ok(Ok(Err(RequestError::NotLeader(_)))) => ("not-leader", Outcome::Idle),
        Ok(Ok(Err(error))) => {
            tracing::warn!(object = %key, %error, "reconciling failed");
            ("error", Outcome::Failed)
        }
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            tracing::error!(object = %key, panic = text.unwrap_or_default(), "reconciling panicked");
            ("panic", Outcome::Failed)
        }
        Err(_) => {
            tracing::warn!(object = %key, "reconciling took too long");
            ("timeout", Outcome::Failed)
        }
    };
    shared.reconciler.metrics.reconcile(result, start.elapsed());
    outcome
}
