//! Asks the pods of live runs how far they are.
//!
//! Invariant: telemetry only: what is lost or late here changes what is shown, never what is done.
//! Within its budget whatever the number of runs, each run at most once a period, only while leading.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::join_all, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use longstrap_crds::{
    Phase, Step,
    names::{LABEL_ATTEMPT, LABEL_STEP},
    status::ProgressStatus,
};
use longstrap_proto::v1alpha1::{ProgressReport, ProgressRequest, progress_client::ProgressClient};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Endpoint;

use super::{
    Shared,
    kept::{Kept, Packed},
    metrics::{Metrics, gauge},
    report::Told,
    store::{Key, Kind, Stores},
};

/// Between two questions to a run.
const PERIOD: Duration = Duration::from_secs(10);
/// For an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two questions to whomever: 50 a second.
const SPACING: Duration = Duration::from_millis(20);
/// Runs that are asked at once: with [`ANSWER`], what the budget lets through.
const AT_ONCE: usize = 50;
/// Largest report.
const MAX_BYTES: usize = 64 * 1024;
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What was told of each live run.
#[derive(Default)]
pub(super) struct Live(Mutex<HashMap<Key, (String, Told)>>);

impl Live {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (String, Told)>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the object with this UID.
    pub(super) fn of(&self, key: &Key, uid: &str) -> Option<ProgressStatus> {
        self.lock().get(key).filter(|(of, _)| of == uid).map(|(_, told)| told.progress.clone())
    }

    /// The numbers of runs that still live.
    pub(super) fn render(&self, stores: &Stores) -> String {
        let mut by_name: HashMap<&'static str, Vec<(String, f64)>> = HashMap::new();
        for (key, (uid, told)) in &*self.lock() {
            if stores.key_of(uid).as_ref() != Some(key) {
                continue;
            }
            let (namespace, name, step) = (&key.namespace, &key.name, &told.progress.step);
            let labels =
                format!(r#"namespace="{namespace}",name="{name}",kind="{:?}",step="{step}""#, key.kind);
            for (number, value) in &told.numbers {
                by_name.entry(number).or_default().push((labels.clone(), *value));
            }
        }
        let mut names: Vec<_> = by_name.into_iter().collect();
        names.sort_by_key(|(name, _)| *name);
        let mut text = String::new();
        for (name, mut values) in names {
            values.sort_by(|a, b| a.0.cmp(&b.0));
            gauge(&mut text, &format!("longstrap_run_{name}"), values);
        }
        text
    }
}

/// A run and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    key: Key,
    uid: String,
    step: Step,
    pods: Vec<IpAddr>,
}

/// Asks, for ever.
pub(super) async fn poll(shared: Arc<Shared>) {
    let budget = Budget::default();
    loop {
        let next = Instant::now() + PERIOD;
        match shared.reconciler.writer.term() {
            None => shared.reconciler.live.lock().clear(),
            Some(term) => tokio::select! {
                () = shared.reconciler.writer.fallen(term) => {}
                () = round(&shared, &budget) => {}
            },
        }
        sleep_until(next).await;
    }
}

/// Asks all live runs once.
pub(super) async fn round(shared: &Shared, budget: &Budget) {
    let reconciler = &shared.reconciler;
    let targets = targets(&reconciler.stores);
    let keys: HashSet<_> = targets.iter().map(|target| target.key.clone()).collect();
    reconciler.live.lock().retain(|key, _| keys.contains(key));
    let port = reconciler.config.ports.progress;
    stream::iter(targets).for_each_concurrent(AT_ONCE, |target| ask_run(shared, budget, port, target)).await;
}

async fn ask_run(shared: &Shared, budget: &Budget, port: u16, target: Target) {
    let reconciler = &shared.reconciler;
    let answers = target.pods.iter().map(|address| async {
        budget.turn().await;
        ask(SocketAddr::new(*address, port), &shared.metrics, &target).await
    });
    let reports: Vec<ProgressReport> = join_all(answers).await.into_iter().flatten().collect();
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
    match Told::new(target.step, &reports, now) {
        Some(told) => {
            reconciler.live.lock().insert(target.key.clone(), (target.uid, told));
            // Whether that is worth a write is seen there.
            shared.queue.add(target.key);
        }
        None => {
            reconciler.live.lock().remove(&target.key);
        }
    }
}

async fn ask(address: SocketAddr, metrics: &Metrics, target: &Target) -> Option<ProgressReport> {
    let request = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
        let channel = endpoint.connect().await.map_err(|e| e.to_string())?;
        let mut client = ProgressClient::new(channel).max_decoding_message_size(MAX_BYTES);
        let report = client.get(ProgressRequest {}).await.map_err(|e| e.to_string())?.into_inner();
        match report.run_uid == target.uid && report.step == target.step.to_string() {
            true => Ok(report),
            // The address belongs to another pod by now.
            false => Err("it works on something else".to_owned()),
        }
    };
    let answer = timeout(ANSWER, request).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    metrics.poll(answer.is_ok());
    answer.inspect_err(|error| tracing::debug!(object = %target.key, %address, error, "no progress")).ok()
}

/// Spaces the questions evenly.
#[derive(Default)]
pub(super) struct Budget(Mutex<Option<Instant>>);

impl Budget {
    pub(super) async fn turn(&self) {
        let at = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + SPACING);
            at
        };
        sleep_until(at).await;
    }
}

/// All runs whose pods may have something to tell.
fn targets(stores: &Stores) -> Vec<Target> {
    let jobs = stores.synthesis.all();
    let jobs =
        jobs.iter().filter_map(|(name, o)| target(stores, Key::new(Kind::SynthesisJob, name.clone()), o));
    let runs = stores.runs.all();
    let runs = runs
        .iter()
        .filter_map(|(name, o)| target(stores, Key::new(Kind::ContextExtensionRun, name.clone()), o));
    jobs.chain(runs).collect()
}

fn target<K: Kept>(stores: &Stores, key: Key, object: &Packed<K>) -> Option<Target> {
    if !object.ours || !matches!(object.phase, Some(Phase::Running | Phase::Pending)) {
        return None;
    }
    let step: Step = object.step.as_deref()?.parse().ok()?;
    let attempt = object.attempt?.to_string();
    let uid = object.uid.clone();
    let asked = |pod: &Pod| {
        let label = |key: &str| pod.labels().get(key).map(String::as_str);
        let running = pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"));
        let first = pod.annotations().get(INDEX).is_some_and(|index| index == "0");
        running
            && pod.metadata.deletion_timestamp.is_none()
            && label(LABEL_STEP) == object.step.as_deref()
            && label(LABEL_ATTEMPT) == Some(&attempt)
            && (first || step == Step::Generate)
    };
    let address = |pod: &Pod| pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok();
    let pods = stores.pods.of(&uid);
    let pods: Vec<IpAddr> =
        pods.iter().map(|pod| pod.open()).filter(asked).filter_map(|pod| address(&pod)).collect();
    (!pods.is_empty()).then_some(Target { key, uid, step, pods })
}
