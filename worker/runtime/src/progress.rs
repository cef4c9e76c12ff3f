//! Progress of this process: a report in memory, answered at once. Telemetry only.
//!
//! Rates and the time left are computed here and nowhere else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use longstrap_proto::v1alpha1::ProgressReport;
use tokio::sync::watch;

/// Rates are taken over this long.
const WINDOW: Duration = Duration::from_secs(60);
/// Points of the rate's window are at least this far apart.
const RESOLUTION: Duration = Duration::from_millis(200);
/// `remaining_seconds` when it is not known.
const UNKNOWN: f64 = -1.0;

/// Handle on the report; clones share it.
#[derive(Clone)]
pub struct Progress {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

struct State {
    report: ProgressReport,
    /// (when, `done` then), oldest first.
    points: VecDeque<(Instant, f64)>,
}

impl Progress {
    /// An empty report of `step` of the run.
    pub fn new(run_uid: impl Into<String>, step: impl Into<String>) -> Self {
        let report = ProgressReport {
            run_uid: run_uid.into(),
            step: step.into(),
            remaining_seconds: UNKNOWN,
            ..ProgressReport::default()
        };
        let state = State { report, points: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(0) }
    }

    /// Changes any field.
    pub fn update(&self, change: impl FnOnce(&mut ProgressReport)) {
        change(&mut self.lock().report);
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What runs now, in words: "forward, layer 12 of 30".
    pub fn activity(&self, text: impl Into<String>) {
        let text = text.into();
        self.update(|report| report.activity = text);
    }

    /// Work done and to do (0: not known yet), in `unit`. Another unit, another total or less
    /// done starts the rate anew. In `tokens` it is also the rate of tokens.
    pub fn work(&self, done: f64, total: f64, unit: &str) {
        self.work_at(Instant::now(), done, total, unit);
    }

    fn work_at(&self, now: Instant, done: f64, total: f64, unit: &str) {
        {
            let State { report, points } = &mut *self.lock();
            if report.unit != unit || report.total != total || done < report.done {
                points.clear();
                unit.clone_into(&mut report.unit);
            }
            report.done = done;
            report.total = total;
            while points.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) && points.len() > 1 {
                points.pop_front();
            }
            if points.back().is_none_or(|(at, _)| now.duration_since(*at) >= RESOLUTION) {
                points.push_back((now, done));
            }
            let rate = points.front().and_then(|(at, before)| {
                let seconds = now.duration_since(*at).as_secs_f64();
                (seconds > 0.0 && done > *before).then(|| (done - before) / seconds)
            });
            report.remaining_seconds = match rate {
                _ if total <= 0.0 => UNKNOWN,
                _ if done >= total => 0.0,
                Some(rate) => (total - done) / rate,
                None => UNKNOWN,
            };
            if unit == "tokens" {
                report.tokens_per_second = rate.unwrap_or_default();
            }
        }
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What the process waits for (endpoint, storage), or that it waits no more.
    pub fn waiting(&self, why: Option<String>) {
        self.update(|report| report.waiting = why.unwrap_or_default());
    }

    /// The report as it is now.
    pub fn report(&self) -> ProgressReport {
        self.lock().report.clone()
    }

    /// Wakes after each change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left() {
        let progress = Progress::new("uid", "generate");
        let start = Instant::now();
        let at = |seconds: u64, done: f64, total: f64, unit: &str| {
            progress.work_at(start + Duration::from_secs(seconds), done, total, unit);
            let report = progress.report();
            (report.tokens_per_second, report.remaining_seconds)
        };
        // (seconds, done, total, unit) → (tokens per second, seconds left)
        for (seconds, done, total, unit, expected) in [
            (0, 0.0, 1000.0, "tokens", (0.0, UNKNOWN)),
            (10, 100.0, 1000.0, "tokens", (10.0, 90.0)),
            (20, 300.0, 1000.0, "tokens", (15.0, 700.0 / 15.0)),
            // Only the last minute counts.
            (75, 900.0, 1000.0, "tokens", (600.0 / 55.0, 100.0 / (600.0 / 55.0))),
            (76, 1000.0, 1000.0, "tokens", (700.0 / 56.0, 0.0)),
            // A new piece of work has no rate yet.
            (77, 0.0, 500.0, "tokens", (0.0, UNKNOWN)),
            (79, 100.0, 500.0, "tokens", (50.0, 8.0)),
            (80, 1.0, 0.0, "layers", (50.0, UNKNOWN)),
        ] {
            assert_eq!(at(seconds, done, total, unit), expected, "second {seconds}");
        }
    }
}
