//! The progress report as Prometheus text, beside the gRPC answer: a pod alone, without an
//! operator, can be watched by the same tools.
//!
//! Invariant: one series a name (labels only for drop reasons and the step in hand); what is not
//! known or does not apply is absent, never 0. Namespace and pod come from the scraper.

use std::fmt::Write as _;

use longstrap_crds::Step;
use longstrap_proto::v1alpha1::ProgressReport;

/// All numbers of a report, and the memory of this process.
pub(crate) fn render(report: &ProgressReport) -> String {
    let trains = matches!(report.step.parse(), Ok(Step::Train(_)));
    let mut text = String::new();
    let mut gauge = |name: &str, meaning: &str, value: Option<f64>| {
        family(&mut text, name, meaning, value.map(|value| (String::new(), value)));
    };
    let known = |value: f64, known: bool| known.then_some(value);
    let count = |value: u64, known: bool| known.then_some(value as f64);
    let (done, total) = (report.done, report.total);
    gauge("longstrap_pod_progress_ratio", "Finished part of the step.", known(done / total, total > 0.0));
    gauge(
        "longstrap_pod_tokens_per_second",
        "Over the last minute.",
        known(report.tokens_per_second, report.tokens_per_second > 0.0),
    );
    gauge(
        "longstrap_pod_remaining_seconds",
        "By the rate so far.",
        known(report.remaining_seconds, report.remaining_seconds >= 0.0),
    );
    let synthesises = !trains && report.of > 0;
    gauge("longstrap_pod_samples", "Kept samples.", count(report.count, synthesises));
    gauge("longstrap_pod_samples_wanted", "Samples to be made.", count(report.of, synthesises));
    let steps = trains && report.of > 0;
    gauge(
        "longstrap_pod_optimizer_step",
        "Finished optimizer steps of the stage.",
        count(report.count, steps),
    );
    gauge("longstrap_pod_optimizer_steps", "Optimizer steps of the stage.", count(report.of, steps));
    gauge("longstrap_pod_loss", "Of the last optimizer step.", known(report.loss, steps && report.count > 0));
    gauge(
        "longstrap_pod_gang_generation",
        "How often the gang was formed.",
        count(report.gang_generation, trains),
    );
    let waits = f64::from(u8::from(!report.waiting.is_empty()));
    gauge("longstrap_pod_waiting", "1: waits for an endpoint or the storage.", Some(waits));
    gauge("process_resident_memory_bytes", "Memory of the process.", resident_bytes());
    let info = format!("{{step=\"{}\",stage=\"{}\"}}", escaped(&report.step), escaped(&report.stage));
    family(&mut text, "longstrap_pod_info", "What runs.", [(info, 1.0)]);
    let dropped = report
        .dropped
        .iter()
        .map(|dropped| (format!("{{reason=\"{}\"}}", escaped(&dropped.reason)), dropped.count as f64));
    family(&mut text, "longstrap_pod_dropped_samples", "Dropped samples by reason.", dropped);
    text
}

/// A gauge with its values by labels; nothing when there is none.
fn family(text: &mut String, name: &str, meaning: &str, values: impl IntoIterator<Item = (String, f64)>) {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {meaning}\n# TYPE {name} gauge");
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Resident memory of this process, where the system tells it.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_proto::v1alpha1::Dropped;

    /// The lines that hold values, but for the memory, which is not ours to choose.
    fn values(report: &ProgressReport) -> Vec<String> {
        let text = render(report);
        let values = text.lines().filter(|line| !line.starts_with('#'));
        values.filter(|line| !line.starts_with("process_")).map(str::to_owned).collect()
    }

    #[test]
    fn what_is_known_is_told_and_nothing_else() {
        let dropped = |reason: &str, count| Dropped { reason: reason.into(), count };
        let samples = ProgressReport {
            step: "generate".into(),
            done: 41.0,
            total: 164.0,
            tokens_per_second: 810.5,
            remaining_seconds: 12.0,
            count: 3,
            of: 12,
            dropped: vec![dropped("TooShort", 2), dropped("a\"\\\n", 1)],
            waiting: "endpoint a".into(),
            ..ProgressReport::default()
        };
        let expected = [
            "longstrap_pod_progress_ratio 0.25",
            "longstrap_pod_tokens_per_second 810.5",
            "longstrap_pod_remaining_seconds 12",
            "longstrap_pod_samples 3",
            "longstrap_pod_samples_wanted 12",
            "longstrap_pod_waiting 1",
            r#"longstrap_pod_info{step="generate",stage=""} 1"#,
            r#"longstrap_pod_dropped_samples{reason="TooShort"} 2"#,
            r#"longstrap_pod_dropped_samples{reason="a\"\\\n"} 1"#,
        ];
        assert_eq!(values(&samples), expected);

        let train = ProgressReport {
            step: "train-1".into(),
            stage: "512k".into(),
            count: 4,
            of: 100,
            loss: 1.75,
            gang_generation: 7,
            remaining_seconds: -1.0,
            ..ProgressReport::default()
        };
        let expected = [
            "longstrap_pod_optimizer_step 4",
            "longstrap_pod_optimizer_steps 100",
            "longstrap_pod_loss 1.75",
            "longstrap_pod_gang_generation 7",
            "longstrap_pod_waiting 0",
            r#"longstrap_pod_info{step="train-1",stage="512k"} 1"#,
        ];
        assert_eq!(values(&train), expected);
    }

    #[test]
    fn memory_is_that_of_a_process() {
        let bytes = resident_bytes().unwrap();
        assert!((1e6..1e12).contains(&bytes), "{bytes}");
    }
}
