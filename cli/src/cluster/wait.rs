//! `longstrap wait`: until an object is Complete, Failed or Blocked; the exit code says which.
//!
//! Invariant: a Blocked that is older than the newest edit or restart decides nothing.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use indicatif::ProgressBar;
use jiff::Timestamp;
use longstrap_crds::names::ANNOTATION_RESTART;
use longstrap_crds::{Object, Phase};

use super::access::{Access, Cluster};
use super::follow::follow;
use super::target::{Target, find};
use super::words;
use crate::{text, told_once};

/// Options of `wait`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WaitArgs {
    /// Object, as docs, synth/docs or cer/run
    #[arg(value_name = "[KIND/]NAME")]
    target: Target,
    /// Give up after so long, as 90s, 30m, 2h; by default never
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    access: Access,
}

/// How waiting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Failed,
    Blocked,
    /// Neither of them within `--timeout`.
    TimedOut,
    /// It could not be found out.
    Unknown,
}

impl End {
    fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Failed => 1,
            Self::Blocked => 2,
            Self::TimedOut => 3,
            Self::Unknown => 4,
        }
    }
}

/// Waits; an error has a code of its own, because 1 says that the run has failed.
pub(crate) async fn wait(args: &WaitArgs) -> Result<u8> {
    let end = match limited(args).await {
        Ok(end) => end,
        Err(error) => {
            eprintln!("error: {}", told_once(&error));
            End::Unknown
        }
    };
    Ok(end.code())
}

async fn limited(args: &WaitArgs) -> Result<End> {
    let Some(limit) = args.timeout else { return waited(args).await };
    match tokio::time::timeout(limit, waited(args)).await {
        Ok(end) => end,
        Err(_) => {
            eprintln!(
                "{} has not ended within {}; it goes on (`longstrap status`)",
                args.target,
                text::duration(limit.as_secs_f64())
            );
            Ok(End::TimedOut)
        }
    }
}

async fn waited(args: &WaitArgs) -> Result<End> {
    let cluster = Cluster::connect(&args.access).await?;
    let found = find(&cluster, &args.target).await?;
    let mut display = Display::new();
    let uid = found.object.uid().to_owned();
    let last = follow(&cluster, &found, |state| {
        let Some(now) = state.filter(|now| now.object.uid() == uid) else { return Some(None) };
        let end = end(&now.object);
        display.show(&words::line(&now.object, Timestamp::now()));
        end.map(|end| Some((now, end)))
    })
    .await?;
    display.close();
    match last {
        Some((now, end)) => {
            println!("{}", verdict(&now.object));
            Ok(end)
        }
        None => anyhow::bail!("{} has been deleted meanwhile", found.described()),
    }
}

/// Whether there is nothing more to wait for.
fn end(object: &Object) -> Option<End> {
    let status = object.status();
    match status.phase? {
        Phase::Complete => Some(End::Complete),
        Phase::Failed => Some(End::Failed),
        Phase::Blocked if is_current(object) => Some(End::Blocked),
        _ => None,
    }
}

/// The status is about the newest edit and the newest restart.
fn is_current(object: &Object) -> bool {
    let (metadata, status) = (object.metadata(), object.status());
    let asked = metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_RESTART));
    // The status keeps the first 64 characters.
    let asked: Option<String> = asked.map(|at| at.chars().take(64).collect());
    status.observed_generation >= metadata.generation
        && (asked.is_none() || asked == status.recovery.restarted_at)
}

/// The last words: phase, then the result or the cause with what to do.
fn verdict(object: &Object) -> String {
    let mut told = format!("{} is {}", words::described(object), words::phase(object));
    match words::product(object) {
        Some(product) if object.phase() == Some(Phase::Complete) => told += &format!(": {product}"),
        _ => {
            let cause = words::cause_words(object);
            if !cause.is_empty() {
                told += &format!(": {cause}");
            }
        }
    }
    if let Some(how) = words::goes_on(object) {
        told += &format!("\n{how}");
    }
    told
}

/// One line that changes on a terminal; elsewhere a line for each change.
struct Display {
    bar: Option<ProgressBar>,
    last: String,
}

impl Display {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self { bar, last: String::new() }
    }

    fn show(&mut self, line: &str) {
        if line == self.last {
            return;
        }
        line.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(line.to_owned()),
            None => eprintln!("{line}"),
        }
    }

    fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{condition, job};
    use serde_json::json;

    fn told(status: serde_json::Value, edit: impl Fn(&mut Object)) -> (Option<u8>, String) {
        let mut object = job(status);
        edit(&mut object);
        (end(&object).map(End::code), verdict(&object))
    }

    #[test]
    fn codes_and_last_words() {
        let untouched = |_: &mut Object| {};
        let blocked = || {
            json!({
                "phase": "Blocked", "observedGeneration": 2,
                "conditions": [condition("Stalled", "True", "InvalidTokenizer", "no chat template")],
            })
        };
        let edited = |object: &mut Object| object.metadata_mut().generation = Some(3);
        let restarted = |object: &mut Object| {
            object.metadata_mut().annotations = Some([(ANNOTATION_RESTART.into(), "now".into())].into());
        };
        let mend = "goes on after an edit or `longstrap restart`";
        let complete = json!({
            "phase": "Complete",
            "dataset": {"uri": "s3://acme/docs/dataset", "digest": "sha256:d", "rows": 1100, "tokens": 140_000_000},
        });
        let failed = json!({
            "phase": "Failed",
            "conditions": [condition("Failed", "True", "DeadlineExceeded", "ran for 2 h")],
        });
        assert_eq!(
            told(complete, untouched),
            (
                Some(0),
                "SynthesisJob ml/docs is Complete: dataset of 1,100 samples, 140,000,000 tokens: s3://acme/docs/dataset"
                    .into()
            )
        );
        assert_eq!(
            told(failed, edited),
            (
                Some(1),
                "SynthesisJob ml/docs is Failed: DeadlineExceeded: ran for 2 h\n\
                 `longstrap retry` makes it again; it goes on from its storage"
                    .into()
            )
        );
        let words = format!("SynthesisJob ml/docs is Blocked: InvalidTokenizer: no chat template\n{mend}");
        assert_eq!(told(blocked(), untouched), (Some(2), words));
        // What has been edited or restarted since is not known to be blocked.
        assert_eq!(told(blocked(), edited).0, None);
        assert_eq!(told(blocked(), restarted).0, None);
        for phase in ["Pending", "Queued", "Running", "Suspended"] {
            assert_eq!(told(json!({"phase": phase}), untouched).0, None, "{phase}");
        }
        assert_eq!(told(json!({}), untouched).0, None);
    }
}
