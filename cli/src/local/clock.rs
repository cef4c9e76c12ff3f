//! The executor's clock: the planner's time, and how long to sleep until a moment of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A clock that may run faster than the wall's, so that tests see hours of back-off in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Timestamp,
    started: Instant,
    speed: f64,
}

impl Clock {
    /// A clock that shows `origin` now and runs `speed` times as fast as the wall's.
    pub(crate) fn new(origin: Timestamp, speed: f64) -> Self {
        Self { origin, started: Instant::now(), speed }
    }

    /// The time.
    pub(crate) fn now(&self) -> Timestamp {
        let passed = self.started.elapsed().mul_f64(self.speed);
        let passed = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
        self.origin.checked_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// The wall's instant at which this clock shows `time`; now for what lies in the past.
    pub(crate) fn instant(&self, time: Timestamp) -> Instant {
        let ahead = time.duration_since(self.origin).as_secs_f64().max(0.0) / self.speed;
        self.started
            + Duration::try_from_secs_f64(ahead).unwrap_or(Duration::MAX).min(Duration::from_secs(1 << 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_sleeps_less() {
        let origin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::new(origin, 20.0);
        let target = origin + SignedDuration::from_secs(40);
        assert_eq!(clock.instant(target) - clock.started, Duration::from_secs(2));
        assert_eq!(clock.instant(origin - SignedDuration::from_secs(9)), clock.started);
        let (before, wall) = (clock.now(), Instant::now());
        std::thread::sleep(Duration::from_millis(2));
        let passed = clock.now().duration_since(before).as_secs_f64();
        assert!(passed >= 0.04 && passed <= wall.elapsed().as_secs_f64() * 20.0 + 0.1, "{passed}");
    }
}
