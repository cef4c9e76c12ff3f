//! Asks each running pod how far it is, over the same call that the operator uses.
//!
//! Telemetry only: whatever is lost or late here changes what is shown, never what is done.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use longstrap_proto::v1alpha1::progress_client::ProgressClient;
use longstrap_proto::v1alpha1::{ProgressReport, ProgressRequest};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// Time between two questions to a pod: the display moves four times a second.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// A pod that does not answer within this time is asked again later.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The newest report of one pod, refreshed until it is dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    latest: Arc<Mutex<Option<ProgressReport>>>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Watches the pod that will write its address (`host:port`) to `address_file`.
    pub(crate) fn new(address_file: PathBuf) -> Self {
        let latest = Arc::new(Mutex::new(None));
        let task = tokio::spawn(follow(address_file, Arc::clone(&latest)));
        Self { latest, task }
    }

    /// What the pod said last.
    pub(crate) fn latest(&self) -> Option<ProgressReport> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(address_file: PathBuf, latest: Arc<Mutex<Option<ProgressReport>>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut client: Option<ProgressClient<Channel>> = None;
    loop {
        ticks.tick().await;
        let Some(pod) = client.as_mut() else {
            client = connect(&address_file);
            continue;
        };
        if let Ok(answer) = pod.get(ProgressRequest {}).await {
            *latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.into_inner());
        }
    }
}

/// `None` until the pod has written a whole address.
fn connect(address_file: &Path) -> Option<ProgressClient<Channel>> {
    let address = std::fs::read_to_string(address_file).ok()?;
    let address: std::net::SocketAddr = address.trim().parse().ok()?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    Some(ProgressClient::new(endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect_lazy()))
}
