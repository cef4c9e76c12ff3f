//! Who leads: an election by a Lease, and the fence that every write passes.
//!
//! Invariant: this replica writes only while the lease that it renewed last is valid by its own
//! monotonic clock, counted from BEFORE the renewal was sent. Another replica takes over only after
//! it has seen the lease unchanged for longer than that, by its own clock: clocks are never compared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// A lease that was not renewed for so long may be taken over.
const DURATION: Duration = Duration::from_secs(7);
/// A leader that has not renewed for so long stops writing; the difference to `DURATION` is longer
/// than a write can stay in flight unnoticed by clocks that run at slightly different rates.
const VALID: Duration = Duration::from_secs(5);
/// Between two renewals.
const RENEW: Duration = Duration::from_millis(1500);
/// Between two looks of a replica that does not lead.
const LOOK: Duration = Duration::from_millis(800);
/// For one request about the Lease.
const REQUEST: Duration = Duration::from_secs(2);

/// This replica does not lead (any more).
#[derive(Debug, thiserror::Error)]
#[error("this replica does not lead")]
pub(super) struct NotLeader;

/// Tells whether this replica may write, by the monotonic clock.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    origin: Instant,
    /// Milliseconds after `origin` until which this replica leads; 0: it does not.
    until: Arc<AtomicU64>,
}

impl Default for Fence {
    fn default() -> Self {
        Self { origin: Instant::now(), until: Arc::new(AtomicU64::new(0)) }
    }
}

impl Fence {
    /// Asked immediately before each write.
    ///
    /// # Errors
    /// [`NotLeader`] when the lease is not held or may have been taken over.
    pub(super) fn check(&self) -> Result<(), NotLeader> {
        if self.now() < self.until.load(Ordering::Acquire) { Ok(()) } else { Err(NotLeader) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hold(&self, from: Instant, valid: Duration) {
        let until = from.saturating_duration_since(self.origin) + valid;
        self.until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn drop_now(&self) {
        self.until.store(0, Ordering::Release);
    }
}

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
    /// Ours, as the server has it.
    held: Option<Lease>,
    seen: Option<Seen>,
}

impl Election {
    /// `client` must not retry by itself: an answer that comes late is worth nothing here.
    pub(super) fn new(client: Client, namespace: &str, name: &str, identity: &str, fence: Fence) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity: identity.to_owned(), fence, held: None, seen: None }
    }

    /// Runs; `elected` is called each time the lease was won.
    pub(super) async fn run(mut self, stop: CancellationToken, elected: impl Fn()) {
        loop {
            let led = self.fence.check().is_ok();
            let start = Instant::now();
            let result = timeout(REQUEST, self.round(start)).await;
            match result {
                Ok(Ok(true)) if !led => {
                    tracing::info!(identity = self.identity, "this replica leads");
                    elected();
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease could not be read or written");
                    self.held = None;
                }
                // Whether the write arrived is not known: read before the next one.
                Err(_) => {
                    tracing::warn!("the lease's request had no answer in time");
                    self.held = None;
                }
            }
            let pause = if self.held.is_some() { RENEW } else { LOOK };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.release().await;
    }

    /// Reads or renews; whether this replica leads.
    async fn round(&mut self, start: Instant) -> Result<bool, kube::Error> {
        let lease = match self.held.clone() {
            Some(lease) => lease,
            None => match self.api.get_opt(&self.name).await? {
                Some(lease) => lease,
                None => {
                    let new = Lease {
                        metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                        spec: Some(self.claim(None)),
                    };
                    let created = self.api.create(&PostParams::default(), &new).await?;
                    return Ok(self.won(created, start));
                }
            },
        };
        if !self.may_take(&lease, start) {
            self.fence.drop_now();
            return Ok(false);
        }
        let spec = self.claim(lease.spec.as_ref());
        let mine = Lease { spec: Some(spec), ..lease };
        match self.api.replace(&self.name, &PostParams::default(), &mine).await {
            Ok(lease) => Ok(self.won(lease, start)),
            // Somebody was faster, or edited it: look again.
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                self.held = None;
                Ok(self.fence.check().is_ok())
            }
            Err(error) => Err(error),
        }
    }

    fn won(&mut self, lease: Lease, start: Instant) -> bool {
        self.held = Some(lease);
        self.seen = None;
        self.fence.hold(start, VALID);
        true
    }

    /// Ours, given back, or unchanged for long enough by our own clock.
    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone();
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
        self.fence.drop_now();
        let Some(mut lease) = self.held.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = None;
            spec.acquire_time = None;
        }
        match timeout(REQUEST, self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => tracing::info!("the lease is given back"),
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back"),
            Err(_) => tracing::warn!("the lease could not be given back in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_fence_falls_by_the_local_clock_alone() {
        let fence = Fence::default();
        assert!(fence.check().is_err(), "not elected");
        fence.hold(Instant::now(), VALID);
        tokio::time::advance(VALID - Duration::from_millis(1)).await;
        assert!(fence.check().is_ok());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(fence.check().is_err(), "expired without anybody saying so");
        // A renewal counts from when it was sent.
        let sent = Instant::now();
        tokio::time::advance(VALID).await;
        fence.hold(sent, VALID);
        assert!(fence.check().is_err());
        fence.hold(Instant::now(), VALID);
        fence.drop_now();
        assert!(fence.check().is_err());
    }
}
