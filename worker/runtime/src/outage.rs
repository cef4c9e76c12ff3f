//! Waiting for something outside that is away: jittered back-off, told in the progress report,
//! and an end after `outageTimeoutSeconds`.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use longstrap_storage::Patience;
use tokio_util::sync::CancellationToken;

use crate::progress::Progress;

const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Patience of one process: what it waits for, how long, and who can end the wait.
#[derive(Clone)]
pub struct Outage {
    progress: Progress,
    stop: CancellationToken,
    timeout: Duration,
    /// Since when operations fail without one that worked.
    since: Arc<Mutex<Option<Instant>>>,
}

impl Outage {
    /// Waits up to `timeout`, or until `stop`.
    pub fn new(progress: Progress, stop: CancellationToken, timeout: Duration) -> Self {
        Self { progress, stop, timeout, since: Arc::default() }
    }

    /// Waits before the next try; false: give up.
    async fn pause(&self, message: &str, failures: u32) -> bool {
        let began = *self.lock().get_or_insert_with(Instant::now);
        if failures == 1 {
            tracing::warn!(%message, "waiting");
        }
        self.progress.waiting(Some(message.to_owned()));
        // Many pods shall not come back in one moment.
        let spread = (RandomState::new().hash_one(failures) % 1000) as f64 / 1000.0;
        let Some(pause) = next_pause(began.elapsed(), self.timeout, failures, spread) else { return false };
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    fn over(&self) {
        if self.lock().take().is_some() {
            tracing::info!("what was away has come back");
            self.progress.waiting(None);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The wait after the `failures`-th failure in a row, between half and all of what doubles with
/// each by `spread` (0 to 1); `None` when `timeout` is over.
fn next_pause(waited: Duration, timeout: Duration, failures: u32, spread: f64) -> Option<Duration> {
    let left = timeout.checked_sub(waited).filter(|left| !left.is_zero())?;
    let longest = LONGEST.min(SHORTEST.saturating_mul(1 << failures.min(10)));
    Some(longest.mul_f64(0.5 + 0.5 * spread).min(left))
}

impl Patience for Outage {
    fn failed<'a>(&'a self, error: &'a longstrap_storage::Error, failures: u32) -> BoxFuture<'a, bool> {
        Box::pin(async move { self.pause(&error.to_string(), failures).await })
    }

    fn recovered(&self) {
        self.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use longstrap_storage::{Error, Store};

    fn outage(seconds: u64) -> Outage {
        let progress = Progress::new("uid", "prepare");
        Outage::new(progress, CancellationToken::new(), Duration::from_secs(seconds))
    }

    #[test]
    fn waits_double_up_to_a_bound_and_end_with_the_time_out() {
        let timeout = Duration::from_secs(600);
        for (waited, failures, spread, expected) in [
            (0, 1, 0.0, Some(0.5)),
            (0, 1, 1.0, Some(1.0)),
            (3, 3, 1.0, Some(4.0)),
            (60, 30, 1.0, Some(15.0)),
            (60, u32::MAX, 0.0, Some(7.5)),
            (598, 30, 1.0, Some(2.0)),
            (600, 1, 1.0, None),
            (700, 1, 1.0, None),
        ] {
            let pause = next_pause(Duration::from_secs(waited), timeout, failures, spread);
            assert_eq!(pause.map(|p| p.as_secs_f64()), expected, "{waited} {failures} {spread}");
        }
    }

    async fn failure() -> Error {
        let store = Store::open("memory:///run", &BTreeMap::new()).unwrap();
        store.get("gone.json").await.unwrap_err()
    }

    #[tokio::test]
    async fn a_wait_is_told_and_ends_when_it_is_over() {
        let outage = outage(600);
        let error = failure().await;
        assert!(outage.failed(&error, 1).await, "it is tried again");
        let told = outage.progress.report().waiting;
        assert!(told.contains("memory:///run/gone.json"), "{told}");
        outage.recovered();
        assert_eq!(outage.progress.report().waiting, "");
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_time_or_when_told_to_stop() {
        let error = failure().await;
        assert!(!outage(0).failed(&error, 1).await);
        let stopped = outage(600);
        stopped.stop.cancel();
        // The tenth pause is 7.5 s at least: it is the stop that ends it.
        let asked = Instant::now();
        assert!(!stopped.failed(&error, 10).await);
        assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn time_counts_from_the_first_failure_until_something_works() {
        let outage = outage(600);
        let error = failure().await;
        let long_ago = Instant::now().checked_sub(Duration::from_secs(700));
        *outage.lock() = long_ago;
        assert!(!outage.failed(&error, 1).await, "another operation has waited for all of it");
        outage.recovered();
        assert!(outage.failed(&error, 1).await);
    }
}
