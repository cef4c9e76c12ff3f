//! The process that runs in a cluster: watches, queue, election, HTTP; who starts and stops them.
//!
//! Invariant: only the leader writes, and whatever fails (a watch, an object, a reconcile that
//! panics) fails alone.

mod apply;
mod dry_run;
mod events;
mod fence;
mod health;
mod http;
mod journal;
mod kept;
mod lease;
mod made;
mod metrics;
mod observe;
mod options;
mod place;
mod progress;
mod queue;
mod reconcile;
mod refusals;
mod report;
mod storage_in_use;
mod store;
mod watch;
mod watched;
mod writer;

use std::{collections::BTreeMap, net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config, ResourceExt};
use longstrap_crds::{Object, Phase};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, error::Elapsed, timeout},
};
use tokio_util::sync::CancellationToken;

pub use options::Options;

use events::Recorder;
use fence::Fence;
use health::Health;
use lease::Election;
use metrics::Metrics;
use options::{DRAIN, RECONCILE, REQUEST};
use queue::{Outcome, Queue};
use reconcile::{Reconciled, Reconciler};
use store::{Key, Kind, Stores};
use watched::watches;
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
    Listen(SocketAddr, #[source] std::io::Error),
    /// The thread of the election.
    #[error("no thread for the election: {0}")]
    Thread(#[source] std::io::Error),
    /// A task that runs for ever has ended.
    #[error("a task of the process has ended: {0}")]
    Task(String),
}

/// What the tasks share.
pub(crate) struct Shared {
    reconciler: Reconciler,
    queue: Queue,
    watches: Vec<Arc<Health>>,
    metrics: Metrics,
    started: Timestamp,
}

impl Shared {
    /// The first lists of all that a plan for the object is made from have come; what it does without
    /// has come too, or fails: a kind that is forbidden stops no other.
    fn knows_about(&self, key: &Key) -> bool {
        let takes_data = || match self.reconciler.stores.object(key) {
            Some(Object::ContextExtensionRun(run)) => {
                // What is pinned is not looked up again.
                let status = run.status.as_ref();
                let pinned = |name: &str| status.is_some_and(|s| s.data.iter().any(|d| d.name == name));
                run.spec.data.iter().any(|d| d.synthesis_job_ref.is_some() && !pinned(&d.name))
            }
            _ => false,
        };
        let needs = |plural: &str| match plural {
            "synthesisjobs" => key.kind == Kind::SynthesisJob || takes_data(),
            "contextextensionruns" => key.kind == Kind::ContextExtensionRun,
            _ => true,
        };
        self.watches
            .iter()
            .filter(|w| w.scope.as_ref().is_none_or(|s| *s == key.namespace))
            .all(|w| w.synced() || (!needs(&w.plural) && w.error().is_some()))
    }

    /// Queues every object.
    fn queue_all(&self) {
        self.reconciler.stores.keys().into_iter().for_each(|key| self.queue.add(key));
    }

    /// This replica leads from now on: what it knows of an earlier term may be long gone.
    fn begin(&self) {
        self.reconciler.made.clear();
        self.reconciler.journal.clear();
        self.queue_all();
    }

    /// Objects by kind and phase.
    fn phases(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let stores = &self.reconciler.stores;
        let word = |phase: Option<Phase>| phase.map_or("New", Phase::as_str);
        let jobs = stores.synthesis.all().into_iter().map(|(_, o)| ("SynthesisJob", word(o.phase)));
        let runs = stores.runs.all().into_iter().map(|(_, o)| ("ContextExtensionRun", word(o.phase)));
        let mut counts = BTreeMap::new();
        jobs.chain(runs).for_each(|key| *counts.entry(key).or_default() += 1);
        counts
    }
}

/// Runs until `stop`.
///
/// # Errors
/// [`ProcessError`]: the process is to be started again.
pub async fn run(options: Options, config: Config, stop: CancellationToken) -> Result<(), ProcessError> {
    let listener =
        TcpListener::bind(options.listen).await.map_err(|e| ProcessError::Listen(options.listen, e))?;
    serve(options, config, listener, stop).await
}

async fn serve(
    options: Options,
    mut config: Config,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), ProcessError> {
    // An answer that hides 15 retries comes too late: the queue and the watches retry themselves.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    let failed = |e: kube::Error| ProcessError::Client(Box::new(e));
    let client = Client::try_from(config.clone()).map_err(failed)?;
    let fence = Fence::default();
    let fenced = fence::client(&config, fence.clone()).map_err(failed)?;
    let cluster = match &options.cluster {
        Some(cluster) => cluster.clone(),
        None => tokio::select! {
            () = stop.cancelled() => return Ok(()),
            identity = cluster_identity(&client) => identity?,
        },
    };

    let metrics = Metrics::default();
    let writer = Writer::new(client.clone(), fenced, fence.clone(), metrics.clone());
    let (events, recorded) = Recorder::new(metrics.clone());
    let reconciler = Reconciler {
        stores: Arc::new(Stores::default()),
        writer: writer.clone(),
        config: options.config(cluster),
        events,
        dry_runs: Default::default(),
        live: Default::default(),
        journal: Default::default(),
        made: Default::default(),
    };
    let mut tasks = JoinSet::new();
    let watches = watches(client, &options.scopes());
    let shared = Arc::new(Shared {
        reconciler,
        queue: Queue::default(),
        watches: watches.health,
        metrics: metrics.clone(),
        started: Timestamp::now(),
    });
    for start in watches.starts {
        start(&mut tasks, shared.clone());
    }
    tasks.spawn(events::write(recorded, writer));
    tasks.spawn(progress::poll(shared.clone()));
    let drain = CancellationToken::new();
    let mut workers = JoinSet::new();
    for _ in 0..options.workers {
        workers.spawn(work(shared.clone(), drain.clone()));
    }
    let resign = CancellationToken::new();
    let elected = shared.clone();
    let mut resigned = elect(options, config, (fence, metrics), resign.clone(), move || elected.begin())?;
    let app = http::router(shared);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP server has ended");
        }
    });
    tracing::info!("started");

    let ended = tokio::select! {
        () = stop.cancelled() => None,
        ended = tasks.join_next() => Some(ended.and_then(Result::err).map_or("early".into(), |e| e.to_string())),
        _ = &mut resigned => Some("the election".to_owned()),
    };
    // No new reconciles; those in flight get a moment; then the next leader may begin.
    drain.cancel();
    let _ = timeout(DRAIN, async { while workers.join_next().await.is_some() {} }).await;
    workers.shutdown().await;
    resign.cancel();
    if !resigned.is_terminated() {
        let _ = resigned.await;
    }
    ended.map_or(Ok(()), |end| Err(ProcessError::Task(end)))
}

/// Takes part in the election on a thread of its own: a thousand objects that are read and planned
/// must not let the lease run out. Ends after `resign`.
fn elect(
    options: Options,
    config: Config,
    (fence, metrics): (Fence, Metrics),
    resign: CancellationToken,
    elected: impl Fn() + Send + 'static,
) -> Result<oneshot::Receiver<()>, ProcessError> {
    let (ended, has_ended) = oneshot::channel();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ProcessError::Thread)?;
    let run = async move {
        // Connections of its own, too: it must not wait behind a thousand writes.
        match Client::try_from(config) {
            Ok(client) => {
                let lease = (options.lease_namespace.as_str(), options.lease_name.as_str());
                Election::new(client, lease, &options.identity, fence, metrics).run(resign, elected).await;
            }
            Err(error) => tracing::error!(%error, "no election"),
        }
    };
    let thread = std::thread::Builder::new().name("election".to_owned());
    let thread = thread.spawn(move || {
        runtime.block_on(run);
        ended.send(()).ok();
    });
    thread.map(|_| has_ended).map_err(ProcessError::Thread)
}

async fn cluster_identity(client: &Client) -> Result<String, ProcessError> {
    let api = Api::<Namespace>::all(client.clone());
    let namespace = timeout(REQUEST, api.get("kube-system")).await;
    let namespace = namespace.map_err(|_| ProcessError::Cluster("no answer in time".to_owned()))?;
    let namespace = namespace.map_err(|e| ProcessError::Cluster(e.to_string()))?;
    namespace.uid().ok_or_else(|| ProcessError::Cluster("it has none".to_owned()))
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
    let writer = &shared.reconciler.writer;
    let Some(term) = writer.term() else {
        // All objects are queued when this replica is elected.
        return Outcome::Idle;
    };
    let start = Instant::now();
    let reconcile = contained(timeout(RECONCILE, async {
        match shared.knows_about(key) {
            true => shared.reconciler.reconcile(key).await,
            // All objects are queued when a first list has come, or failed.
            false => Ok(Reconciled { outcome: Outcome::Idle, unanswered: None }),
        }
    }));
    let ended = tokio::select! {
        biased;
        () = writer.fallen(term) => return Outcome::Idle,
        ended = reconcile => ended,
    };
    let (result, error, outcome) = conclude(ended);
    if let Some(error) = error {
        match result {
            "panic" => tracing::error!(object = %key, error, "reconciling panicked"),
            _ => tracing::warn!(object = %key, error, "reconciling failed"),
        }
        shared.reconciler.journal.failed(key, &error);
    }
    shared.metrics.reconcile(result, start.elapsed());
    outcome
}

const FAILED: Outcome = Outcome::Failed { by: None };

/// How a reconcile ended: in a word, the error, what follows.
fn conclude(
    ended: Result<Result<Result<Reconciled, RequestError>, Elapsed>, String>,
) -> (&'static str, Option<String>, Outcome) {
    match ended {
        Ok(Ok(Ok(Reconciled { outcome, unanswered: None }))) => ("ok", None, outcome),
        Ok(Ok(Ok(Reconciled { outcome, unanswered }))) => ("error", unanswered, outcome),
        Ok(Ok(Err(RequestError::NotLeader(_)))) => ("not-leader", None, Outcome::Idle),
        Ok(Ok(Err(error))) => ("error", Some(error.to_string()), FAILED),
        Ok(Err(_)) => ("timeout", Some(format!("not done within {RECONCILE:?}")), FAILED),
        Err(panic) => ("panic", Some(format!("a bug: {panic}")), FAILED),
    }
}

/// What a future ends with, or the text of its panic.
async fn contained<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests;
