//! Who leads: an election by a Lease.
//!
//! Invariant: this replica's fence stands only while the lease that it renewed last is valid by its
//! own monotonic clock, counted from BEFORE the renewal was sent. Another replica takes over only
//! after it has KNOWN the lease unchanged for longer than that, by its own clock: clocks are never
//! compared. A renewal of a leader that slept fails by its resourceVersion.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{fence::Fence, metrics::Metrics, writer::words};

/// A lease that was not renewed for so long may be taken over. With [`LOOK`], what a takeover from a
/// killed leader takes at most: 7.25 s, and the time of two requests.
const DURATION: Duration = Duration::from_secs(6);
/// A leader that has not renewed for so long stops writing. The difference to `DURATION` is for
/// clocks that run at slightly different rates and for bytes that the network still holds.
const VALID: Duration = Duration::from_millis(4500);
/// Between two renewals: two may be lost.
const RENEW: Duration = Duration::from_millis(1250);
/// Between two looks of a replica that does not lead.
const LOOK: Duration = Duration::from_millis(1250);
/// After a renewal or a look that failed.
const RETRY: Duration = Duration::from_millis(250);
/// For one renewal or look.
const REQUEST: Duration = Duration::from_millis(1500);
/// For giving the lease back: a process that is to end waits for nobody.
const RELEASE: Duration = Duration::from_millis(600);

/// What a replica remembers of a lease that another one holds.
#[derive(Debug, PartialEq)]
struct Seen {
    resource_version: Option<String>,
    since: Instant,
}

/// Takes part in the election until `stop`, then gives the lease back.
pub(super) struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    fence: Fence,
    metrics: Metrics,
    /// Ours, as the server has it.
    held: Option<Lease>,
    seen: Option<Seen>,
}

impl Election {
    /// `client` must not retry by itself: an answer that comes late is worth nothing here.
    pub(super) fn new(
        client: Client,
        (namespace, name): (&str, &str),
        identity: &str,
        fence: Fence,
        metrics: Metrics,
    ) -> Self {
        let api = Api::namespaced(client, namespace);
        let (name, identity) = (name.to_owned(), identity.to_owned());
        Self { api, name, identity, fence, metrics, held: None, seen: None }
    }

    /// Runs; `elected` is called each time the lease was won.
    pub(super) async fn run(mut self, stop: CancellationToken, elected: impl Fn()) {
        loop {
            let led = self.fence.check().ok();
            let round = timeout(REQUEST, self.round());
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                result = round => result,
            };
            let error = match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(words(&error)),
                Err(_) => Some(format!("no answer within {REQUEST:?}")),
            };
            let leads = self.fence.check().ok();
            if led.is_some() || leads.is_some() {
                self.metrics.renewal(error.is_none());
            }
            match (led, leads) {
                // Another term counts as well: the fence may have fallen while the renewal was under way,
                // and what was being worked on then was put down.
                (before, Some(term)) if before != Some(term) => {
                    tracing::info!(identity = self.identity, "this replica leads");
                    elected();
                }
                (Some(_), None) => tracing::warn!(identity = self.identity, "this replica leads no more"),
                _ => {}
            }
            let pause = match &error {
                None => self.pause(),
                Some(error) => {
                    tracing::warn!(error, "the lease could not be read or written");
                    // Whether the write arrived is not known: read before the next one.
                    self.held = None;
                    RETRY
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
    }

    /// Until the next round. Who waits for a lease to run out looks exactly then.
    fn pause(&self) -> Duration {
        if self.held.is_some() {
            return RENEW;
        }
        match &self.seen {
            Some(seen) => (seen.since + DURATION).saturating_duration_since(Instant::now()).min(LOOK),
            None => RETRY,
        }
    }

    /// Reads or renews.
    async fn round(&mut self) -> kube::Result<()> {
        let lease = match self.held.clone() {
            Some(lease) => lease,
            None => match self.api.get_opt(&self.name).await? {
                Some(lease) => lease,
                None => {
                    let new = Lease {
                        metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                        spec: Some(self.claim(None)),
                    };
                    let sent = Instant::now();
                    let created = self.api.create(&PostParams::default(), &new).await?;
                    self.won(created, sent);
                    return Ok(());
                }
            },
        };
        if !self.may_take(&lease) {
            self.fence.drop_now();
            return Ok(());
        }
        let spec = self.claim(lease.spec.as_ref());
        let mine = Lease { spec: Some(spec), ..lease };
        let sent = Instant::now();
        match self.api.replace(&self.name, &PostParams::default(), &mine).await {
            Ok(lease) => self.won(lease, sent),
            // Somebody was faster, or edited it: look again.
            Err(kube::Error::Api(status)) if status.is_conflict() => (self.held, self.seen) = (None, None),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn won(&mut self, lease: Lease, sent: Instant) {
        (self.held, self.seen) = (Some(lease), None);
        self.fence.hold(sent, VALID);
    }

    /// Ours, given back, or known unchanged for long enough: since the first answer that had this
    /// version (which may have been renewed while that answer was under way, not later).
    fn may_take(&mut self, lease: &Lease) -> bool {
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let (now, version) = (Instant::now(), lease.metadata.resource_version.clone());
        match &self.seen {
            Some(seen) if seen.resource_version == version => now.duration_since(seen.since) >= DURATION,
            _ => {
                self.seen = Some(Seen { resource_version: version, since: now });
                false
            }
        }
    }

    fn claim(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.is_some_and(|s| s.holder_identity.as_deref() == Some(&self.identity));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.filter(|_| ours).map_or(Some(now.clone()), |s| s.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(
                before.and_then(|s| s.lease_transitions).unwrap_or(0).saturating_add(i32::from(!ours)),
            ),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease back, so that the next leader need not wait.
    async fn release(mut self) {
        if self.fence.check().is_err() {
            return;
        }
        self.fence.drop_now();
        match timeout(RELEASE, self.give_back()).await {
            Ok(Ok(())) => tracing::info!("the lease is given back"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back"),
            Err(_) => tracing::warn!("the lease could not be given back in time"),
        }
    }

    async fn give_back(&mut self) -> kube::Result<()> {
        let mut held = self.held.take();
        loop {
            // Unless the last renewal was cut short, what is held is the newest version.
            let known = held.is_some();
            let lease = match held.take() {
                Some(lease) => lease,
                None => self.api.get(&self.name).await?,
            };
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: None, renew_time: None, acquire_time: None, ..spec };
            let free = Lease { spec: Some(spec), ..lease };
            match self.api.replace(&self.name, &PostParams::default(), &free).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_conflict() && known => {}
                Err(error) => return Err(error),
            }
        }
    }
}
