//! What a person sees while a run goes on: moving bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use longstrap_proto::v1alpha1::ProgressReport;

use crate::text;

/// Steps of a bar.
const RESOLUTION: f64 = 1000.0;
/// Least time between two plain lines of one pod.
const QUIET: Duration = Duration::from_secs(10);

/// The display; lines and bars go to standard error, results do not.
pub(crate) struct Display {
    bars: Option<MultiProgress>,
    pods: BTreeMap<String, Shown>,
}

struct Shown {
    label: String,
    bar: Option<ProgressBar>,
    waiting: String,
    line: String,
    printed: Option<Instant>,
}

impl Display {
    /// Bars when standard error is a terminal.
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, pods: BTreeMap::new() }
    }

    /// A line that stays.
    pub(crate) fn say(&self, line: &str) {
        match &self.bars {
            // A line that the terminal refuses has nowhere else to go.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    /// A pod runs; `label` names it: `docs generate`.
    pub(crate) fn open(&mut self, uid: &str, label: &str) {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(RESOLUTION as u64));
            bar.set_style(style(false));
            bar.set_prefix(label.to_owned());
            bar.set_message("starts");
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if bar.is_none() {
            self.say(&format!("{label}: starts"));
        }
        let shown = Shown {
            label: label.to_owned(),
            bar,
            waiting: String::new(),
            line: String::new(),
            printed: Some(Instant::now()),
        };
        self.pods.insert(uid.to_owned(), shown);
    }

    /// The newest report of a pod.
    pub(crate) fn update(&mut self, uid: &str, report: &ProgressReport) {
        let Some(shown) = self.pods.get_mut(uid) else { return };
        let line = sentence(report);
        if let Some(bar) = &shown.bar {
            bar.set_style(style(report.total > 0.0));
            bar.set_position(permille(report));
            bar.set_message(line.clone());
        }
        let mut news = Vec::new();
        if report.waiting != shown.waiting {
            shown.waiting.clone_from(&report.waiting);
            if !report.waiting.is_empty() {
                news.push(format!("{}: waits for something outside: {}", shown.label, report.waiting));
            }
        }
        if shown.bar.is_none() && line != shown.line && shown.printed.is_none_or(|at| at.elapsed() >= QUIET) {
            shown.printed = Some(Instant::now());
            shown.line.clone_from(&line);
            let percent = (report.total > 0.0).then(|| format!("{:3} %  ", permille(report) / 10));
            news.push(format!("{}: {}{line}", shown.label, percent.unwrap_or_default()));
        }
        for line in news {
            self.say(&line);
        }
    }

    /// A pod ended.
    pub(crate) fn close(&mut self, uid: &str) {
        if let Some(bar) = self.pods.remove(uid).and_then(|shown| shown.bar) {
            bar.finish_and_clear();
        }
    }
}

fn style(known: bool) -> ProgressStyle {
    let template = if known {
        "{prefix:.bold} {bar:24.cyan/dim} {percent:>3} %  {wide_msg}"
    } else {
        "{prefix:.bold} {spinner} {wide_msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─")
}

fn permille(report: &ProgressReport) -> u64 {
    let share = (report.done / report.total).clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000; NaN gives 0"
    )]
    let whole = (share * RESOLUTION) as u64;
    whole
}

/// What is running, how far, how fast, how long still.
fn sentence(report: &ProgressReport) -> String {
    let mut parts = Vec::new();
    if !report.stage.is_empty() {
        parts.push(format!("stage {}", report.stage));
    }
    // An activity says itself which of how many it is at.
    if report.of > 0 && report.activity.is_empty() {
        parts.push(format!("{} of {}", text::count(report.count), text::count(report.of)));
    }
    if !report.activity.is_empty() {
        parts.push(report.activity.clone());
    }
    if report.loss > 0.0 {
        parts.push(format!("loss {:.3}", report.loss));
    }
    if report.tokens_per_second >= 1.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, at least 1")]
        let rate = report.tokens_per_second as u64;
        parts.push(format!("{} tokens/s", text::count(rate)));
    }
    if report.remaining_seconds >= 0.0 && report.total > 0.0 && report.done > 0.0 {
        parts.push(format!("{} left", text::duration(report.remaining_seconds)));
    }
    if !report.waiting.is_empty() {
        parts.push(format!("waits: {}", report.waiting));
    }
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_a_sentence() {
        let report = ProgressReport {
            activity: "forward, layer 12 of 30".into(),
            stage: "16k".into(),
            count: 1,
            of: 2,
            done: 12.0,
            total: 60.0,
            tokens_per_second: 8100.4,
            remaining_seconds: 192.0,
            loss: 2.3456,
            ..ProgressReport::default()
        };
        assert_eq!(
            sentence(&report),
            "stage 16k · forward, layer 12 of 30 · loss 2.346 · 8,100 tokens/s · 3m 12s left"
        );
        assert_eq!(permille(&report), 200);
        assert_eq!(
            (sentence(&ProgressReport::default()).as_str(), permille(&ProgressReport::default())),
            ("", 0)
        );
    }
}
