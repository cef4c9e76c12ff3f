//! Waiting for something outside that is away: jittered back-off, told in the progress report,
//! and an end after `outageTimeoutSeconds`.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use longstrap_storage::Patience;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{StepError, StepResult};
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

    /// Repeats `operation` while it ends with [`StepError::Outage`].
    ///
    /// # Errors
    /// Its other errors at once; `Stopped` when told to stop; the outage after the time-out.
    pub async fn wait_out<T, E>(&self, operation: impl AsyncFn() -> Result<T, E>) -> StepResult<T>
    where
        E: Into<StepError>,
    {
        let mut failures = 0;
        loop {
            match operation().await.map_err(Into::into) {
                Err(StepError::Outage { reason, message }) => {
                    failures += 1;
                    if !self.pause(&message, failures).await {
                        return Err(match self.stop.is_cancelled() {
                            true => StepError::Stopped,
                            false => StepError::Outage { reason, message: self.overdue(&message) },
                        });
                    }
                }
                result => {
                    if failures > 0 {
                        self.over();
                    }
                    return result;
                }
            }
        }
    }

    fn overdue(&self, message: &str) -> String {
        format!("{message} (waited {} s for it)", self.timeout.as_secs())
    }

    /// Waits before the next try; false: give up.
    async fn pause(&self, message: &str, failures: u32) -> bool {
        let began = *self.lock().get_or_insert_with(Instant::now);
        if failures == 1 {
            tracing::warn!(%message, "waiting");
        }
        self.progress.waiting(Some(message.to_owned()));
        let left = self.timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return false;
        }
        let longest = LONGEST.min(SHORTEST.saturating_mul(1 << failures.min(10)));
        // Between half and all of it: many pods shall not come back in one moment.
        let spread = RandomState::new().hash_one(failures) % 1000;
        let pause = longest.mul_f64(0.5 + 0.0005 * spread as f64).min(left);
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
    use longstrap_crds::Reason;
    use std::cell::Cell;

    fn outage(seconds: u64) -> Outage {
        let progress = Progress::new("uid", "prepare");
        Outage::new(progress, CancellationToken::new(), Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_as_long_as_allowed_and_says_so() {
        for (timeout, back_after, expect_ok) in [(600, 5, true), (20, 1000, false)] {
            let outage = outage(timeout);
            let calls = Cell::new(0);
            let result = outage
                .wait_out(async || {
                    calls.set(calls.get() + 1);
                    if calls.get() > 1 {
                        assert_eq!(outage.progress.report().waiting, "gone");
                    }
                    match calls.get() > back_after {
                        true => Ok(7),
                        false => Err(StepError::outage(Reason::StorageUnavailable, "gone")),
                    }
                })
                .await;
            match expect_ok {
                true => {
                    assert_eq!((result.unwrap(), calls.get()), (7, 6));
                    assert_eq!(outage.progress.report().waiting, "");
                }
                false => {
                    let error = result.unwrap_err();
                    assert_eq!(error.exit_code().code(), 12);
                    assert!(error.to_string().contains("waited 20 s"), "{error}");
                    assert!(calls.get() < 30, "backs off");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait() {
        let outage = outage(600);
        outage.stop.cancel();
        let result: StepResult =
            outage.wait_out(async || Err(StepError::outage(Reason::StorageUnavailable, "gone"))).await;
        assert!(matches!(result, Err(StepError::Stopped)));
    }
}
