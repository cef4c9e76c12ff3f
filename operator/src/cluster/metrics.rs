//! Numbers about the operator in Prometheus' text format.
//!
//! Invariant: labels are bounded: kinds, verbs, phases, results; names of objects only on numbers of
//! runs whose pods answer, and those are kept elsewhere and go with them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Upper bounds in seconds of the buckets of durations.
const BUCKETS: [f64; 8] = [0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0];

#[derive(Default)]
struct Numbers {
    /// By name and labels.
    counters: BTreeMap<(&'static str, String), u64>,
    /// Counts by bucket, sum of seconds, count.
    reconcile: ([u64; BUCKETS.len()], f64, u64),
}

/// Counters, shared.
#[derive(Clone, Default)]
pub(super) struct Metrics(Arc<Mutex<Numbers>>);

impl Metrics {
    fn add(&self, name: &'static str, labels: String) {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *numbers.counters.entry((name, labels)).or_default() += 1;
    }

    /// A request that writes.
    pub(super) fn write(&self, verb: &str, kind: &str, good: bool) {
        let result = result(good);
        self.add("longstrap_writes_total", format!(r#"verb="{verb}",kind="{kind}",result="{result}""#));
    }

    /// A request that reads, besides watches.
    pub(super) fn read(&self, kind: &str, good: bool) {
        self.add("longstrap_reads_total", format!(r#"kind="{kind}",result="{}""#, result(good)));
    }

    /// A renewal of the lease.
    pub(super) fn renewal(&self, good: bool) {
        self.add("longstrap_lease_renewals_total", format!(r#"result="{}""#, result(good)));
    }

    /// A question to a pod about its progress.
    pub(super) fn poll(&self, good: bool) {
        self.add("longstrap_polls_total", format!(r#"result="{}""#, result(good)));
    }

    /// An event with a reason of ours.
    pub(super) fn event(&self, reason: &str) {
        self.add("longstrap_events_total", format!(r#"reason="{reason}""#));
    }

    /// A reconcile.
    pub(super) fn reconcile(&self, result: &str, took: Duration) {
        self.add("longstrap_reconciles_total", format!(r#"result="{result}""#));
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (buckets, sum, count) = &mut numbers.reconcile;
        for (bound, bucket) in BUCKETS.iter().zip(buckets) {
            *bucket += u64::from(took.as_secs_f64() <= *bound);
        }
        *sum += took.as_secs_f64();
        *count += 1;
    }

    /// All counters.
    pub(super) fn render(&self) -> String {
        let numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let mut last = "";
        for ((name, labels), value) in &numbers.counters {
            if *name != last {
                let _ = writeln!(text, "# TYPE {name} counter");
                last = name;
            }
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
        let (buckets, sum, count) = &numbers.reconcile;
        let name = "longstrap_reconcile_seconds";
        let _ = writeln!(text, "# TYPE {name} histogram");
        for (bound, bucket) in BUCKETS.iter().zip(buckets) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {bucket}");
        }
        let _ =
            writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
        text
    }
}

fn result(good: bool) -> &'static str {
    if good { "ok" } else { "error" }
}

/// Memory of this process in bytes, as the kernel counts it; `None` where it does not.
pub(super) fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// One gauge with its values by labels.
pub(super) fn gauge(text: &mut String, name: &str, values: impl IntoIterator<Item = (String, f64)>) {
    series(text, name, "gauge", values);
}

/// One metric with its values by labels.
pub(super) fn series(
    text: &mut String,
    name: &str,
    type_: &str,
    values: impl IntoIterator<Item = (String, f64)>,
) {
    let _ = writeln!(text, "# TYPE {name} {type_}");
    for (labels, value) in values {
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_prometheus() {
        let metrics = Metrics::default();
        metrics.write("create", "Job", true);
        metrics.write("create", "Job", true);
        metrics.reconcile("ok", Duration::from_millis(50));
        let mut text = metrics.render();
        gauge(&mut text, "longstrap_leader", [(String::new(), 1.0)]);
        for line in [
            "# TYPE longstrap_writes_total counter",
            r#"longstrap_writes_total{verb="create",kind="Job",result="ok"} 2"#,
            r#"longstrap_reconcile_seconds_bucket{le="0.02"} 0"#,
            r#"longstrap_reconcile_seconds_bucket{le="0.1"} 1"#,
            r#"longstrap_reconcile_seconds_bucket{le="+Inf"} 1"#,
            "longstrap_leader 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
