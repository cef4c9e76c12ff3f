//! From what pods report to what is shown: `status.progress` and the numbers of `/metrics`.
//!
//! Invariant: pure; a report is a stranger's word: what does not fit the schema is cut or left out.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::{
    CommonStatus, Phase, Step,
    status::{Dropped, ProgressStatus},
};
use longstrap_proto::v1alpha1::ProgressReport;

/// Reasons of dropped samples that are listed.
const MAX_DROPPED: usize = 32;

/// What a run's pods said last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    /// For the status.
    pub(super) progress: ProgressStatus,
    /// For `/metrics`: name without prefix, and value.
    pub(super) numbers: Vec<(&'static str, f64)>,
}

impl Told {
    /// Of all pods of a step that answered; `None`: none did. Workers of `generate` each tell of the
    /// whole step: the furthest knows most.
    pub(super) fn new(step: Step, reports: &[ProgressReport], now: Timestamp) -> Option<Self> {
        let furthest = reports.iter().max_by(|a, b| a.done.total_cmp(&b.done))?;
        let known = |x: f64| Some(x).filter(|x| x.is_finite() && *x >= 0.0);
        let ratio = known(furthest.done / furthest.total).filter(|_| furthest.total > 0.0);
        let rate = reports.iter().filter_map(|r| known(r.tokens_per_second)).fold(0.0, f64::max);
        let remaining = known(furthest.remaining_seconds).filter(|_| ratio.is_some());
        let (samples, optimizer_step) = match step {
            Step::Generate => (Some(furthest.count), None),
            Step::Train(_) => (None, Some(furthest.count).filter(|_| furthest.of > 0)),
            _ => (None, None),
        };
        let of = samples.or(optimizer_step).map(|_| furthest.of);
        let loss = known(furthest.loss).filter(|loss| *loss > 0.0);
        let dropped: u64 = furthest.dropped.iter().fold(0, |sum, d| sum.saturating_add(d.count));
        let waiting = reports.iter().any(|r| !r.waiting.is_empty());
        let progress = ProgressStatus {
            step: step.to_string(),
            stage: Some(cut(&furthest.stage, 63)).filter(|s| !s.is_empty()),
            percent: ratio.map(|r| whole(r.min(1.0) * 100.0) as u32),
            samples: samples.map(count),
            optimizer_step: optimizer_step.map(count),
            of: of.map(count),
            loss: loss.map(|loss| format!("{loss:.3}")).filter(|text| text.len() <= 32),
            tokens_per_second: Some(whole(rate)).filter(|rate| *rate > 0),
            remaining: remaining.map(duration),
            dropped: dropped_by_reason(furthest),
            time: Some(Time(now)),
        };
        let count = |n: u64| n as f64;
        let numbers = [
            ("progress_ratio", ratio.map(|r| r.min(1.0))),
            ("tokens_per_second", Some(rate).filter(|rate| *rate > 0.0)),
            ("remaining_seconds", remaining),
            ("samples", samples.map(count)),
            ("dropped_samples", samples.map(|_| count(dropped))),
            ("optimizer_step", optimizer_step.map(count)),
            ("loss", loss),
            ("gang_generation", optimizer_step.map(|_| count(furthest.gang_generation))),
            ("waiting", Some(f64::from(u8::from(waiting)))),
            ("progress_time_seconds", Some(now.as_second() as f64)),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Some(Self { progress, numbers })
    }
}

/// Puts into a planned status what was told last. Progress is of the running step: it goes with the
/// step, and rates go with the pods.
pub(super) fn show(status: &mut CommonStatus, told: Option<&ProgressStatus>) {
    let of_step = |p: &&ProgressStatus| Some(p.step.as_str()) == status.step.as_deref();
    let before = status.progress.as_ref().filter(of_step);
    let told = told.filter(of_step);
    let same =
        |a: &ProgressStatus, b: &ProgressStatus| *a == ProgressStatus { time: a.time.clone(), ..b.clone() };
    let mut shown = match (before, told) {
        // A report that says nothing new is no reason to write.
        (Some(before), Some(told)) if same(before, told) => Some(before.clone()),
        (before, told) => told.or(before).cloned(),
    };
    if told.is_none()
        && status.phase != Some(Phase::Running)
        && let Some(shown) = &mut shown
    {
        (shown.tokens_per_second, shown.remaining) = (None, None);
    }
    status.progress = shown.filter(|_| status.phase != Some(Phase::Complete));
}

fn dropped_by_reason(report: &ProgressReport) -> Vec<Dropped> {
    let mut all: Vec<Dropped> = Vec::new();
    for d in &report.dropped {
        let reason = cut(&d.reason, 63);
        if let Some(known) = all.iter_mut().find(|known| known.reason == reason) {
            known.count = count(known.count.saturating_add(d.count));
        } else if all.len() < MAX_DROPPED {
            all.push(Dropped { reason, count: count(d.count) });
        }
    }
    all
}

/// As the schema takes it.
fn count(n: u64) -> u64 {
    n.min(i64::MAX.unsigned_abs())
}

fn whole(x: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite and not negative; saturates"
    )]
    let whole = x as u64;
    count(whole)
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

/// The two largest units: `3h12m`.
fn duration(seconds: f64) -> String {
    let seconds = whole(seconds);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_proto::v1alpha1::Dropped as Wire;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn number(told: &Told, name: &str) -> Option<f64> {
        told.numbers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    #[test]
    fn the_furthest_worker_tells_of_the_step() {
        let report = |done, rate, waiting: &str| ProgressReport {
            done,
            total: 200.0,
            tokens_per_second: rate,
            remaining_seconds: 11_520.0,
            count: done as u64 / 2,
            of: 100,
            dropped: vec![Wire { reason: "TooShort".into(), count: 3 }],
            waiting: waiting.into(),
            ..ProgressReport::default()
        };
        let told =
            Told::new(Step::Generate, &[report(80.0, 9.0, ""), report(83.0, 7.0, "vllm")], now()).unwrap();
        let shown = serde_json::to_value(&told.progress).unwrap();
        assert_eq!(
            shown,
            serde_json::json!({
                "step": "generate", "percent": 41, "samples": 41, "of": 100, "tokensPerSecond": 9,
                "remaining": "3h12m", "dropped": [{"reason": "TooShort", "count": 3}],
                "time": "2027-01-15T08:00:00Z",
            })
        );
        for (name, value) in [
            ("progress_ratio", Some(0.415)),
            ("samples", Some(41.0)),
            ("dropped_samples", Some(3.0)),
            ("waiting", Some(1.0)),
            ("optimizer_step", None),
            ("loss", None),
        ] {
            assert_eq!(number(&told, name), value, "{name}");
        }
        assert_eq!(Told::new(Step::Generate, &[], now()), None);
    }

    #[test]
    fn nonsense_is_cut() {
        let report = ProgressReport {
            stage: "s".repeat(1000),
            done: f64::NAN,
            total: 1.0,
            tokens_per_second: f64::INFINITY,
            remaining_seconds: -1.0,
            count: u64::MAX,
            of: u64::MAX,
            loss: f64::MAX,
            dropped: (0..99).map(|i| Wire { reason: format!("{i}{}", "x".repeat(99)), count: 1 }).collect(),
            ..ProgressReport::default()
        };
        let told = Told::new(Step::Train(0), &[report], now()).unwrap().progress;
        assert_eq!(
            (told.percent, told.tokens_per_second, told.remaining, told.loss),
            (None, None, None, None)
        );
        assert_eq!((told.stage.unwrap().len(), told.dropped.len()), (63, MAX_DROPPED));
        assert!(told.dropped.iter().all(|d| d.reason.len() <= 63));
        assert_eq!(told.optimizer_step, Some(i64::MAX.unsigned_abs()));
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0.0, "0s"),
            (59.9, "59s"),
            (61.0, "1m1s"),
            (3599.0, "59m59s"),
            (11_520.0, "3h12m"),
            (90_000.0, "1d1h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn progress_goes_with_its_step_and_rates_with_the_pods() {
        let progress = |step: &str, percent, second| ProgressStatus {
            step: step.into(),
            percent: Some(percent),
            tokens_per_second: Some(9),
            time: Some(Time(Timestamp::from_second(second).unwrap())),
            ..ProgressStatus::default()
        };
        let (old, new) = (progress("generate", 10, 1), progress("generate", 20, 2));
        let still = ProgressStatus { tokens_per_second: None, ..old.clone() };
        for (what, phase, before, told, after) in [
            ("news", Phase::Running, Some(&old), Some(&new), Some(&new)),
            ("the first", Phase::Running, None, Some(&new), Some(&new)),
            ("nothing new", Phase::Running, Some(&old), Some(&progress("generate", 10, 9)), Some(&old)),
            ("no answer", Phase::Running, Some(&old), None, Some(&old)),
            ("no pods", Phase::Queued, Some(&old), None, Some(&still)),
            ("the step before", Phase::Running, Some(&progress("prepare", 99, 1)), None, None),
            ("late", Phase::Queued, None, Some(&progress("prepare", 99, 1)), None),
            ("over", Phase::Complete, Some(&old), None, None),
        ] {
            let mut status = CommonStatus {
                step: Some("generate".into()),
                phase: Some(phase),
                progress: before.cloned(),
                ..CommonStatus::default()
            };
            show(&mut status, told);
            assert_eq!(status.progress.as_ref(), after, "{what}");
        }
    }
}
