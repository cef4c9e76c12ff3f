//! What is said about a pod that ended: nothing for a good end, the cause and the end of its log
//! for a bad one.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use longstrap_crds::names::LABEL_STEP;
use longstrap_crds::{ExitCode, Object, TerminationMessage};

use super::pod::Exit;

/// Lines of a log that are shown.
const LINES: usize = 15;
/// As much of a log's end is read to find them.
const TAIL: u64 = 16 << 10;

/// `docs generate`, with the index where there are several pods.
pub(crate) fn label(object: &Object, pod: &Pod) -> String {
    let several = match object {
        Object::SynthesisJob(job) => step(pod) == "generate" && job.spec.workers > 1,
        Object::ContextExtensionRun(run) => {
            let mut nodes =
                run.spec.stages.iter().map(|stage| stage.parallelism(&run.spec.parallelism).nodes);
            trains(pod) && nodes.any(|nodes| nodes > 1)
        }
    };
    let index = if several { format!("[{}]", index(pod)) } else { String::new() };
    format!("{} {}{index}", object.name(), step(pod))
}

/// Whether the pod speaks for itself: of a gang only the first does, the others say the same.
pub(crate) fn speaks(pod: &Pod) -> bool {
    !trains(pod) || index(pod) == "0"
}

fn trains(pod: &Pod) -> bool {
    step(pod).starts_with("train")
}

fn step(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|all| all.get(LABEL_STEP)).map_or("", String::as_str)
}

fn index(pod: &Pod) -> &str {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get("batch.kubernetes.io/job-completion-index"))
        .map_or("0", String::as_str)
}

/// A pod that ended.
pub(crate) struct PodReport<'a> {
    pub(crate) label: &'a str,
    pub(crate) exit: &'a Exit,
    pub(crate) log: &'a Path,
    /// The executor stopped it.
    pub(crate) asked_to_stop: bool,
}

impl PodReport<'_> {
    /// Lines to show.
    pub(crate) fn lines(&self) -> Vec<String> {
        let code = ExitCode::from_code(self.exit.code);
        if code == ExitCode::Committed || self.asked_to_stop {
            return Vec::new();
        }
        let how = match self.exit.signal {
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("ended with code {}", self.exit.code),
        };
        if matches!(code, ExitCode::Invalid | ExitCode::Exhausted) {
            // The object's standing tells the cause.
            return vec![format!("{}: {how}; its log is {}", self.label, self.log.display())];
        }
        let message = self.exit.message.as_deref().map(TerminationMessage::parse).unwrap_or_default().message;
        let cause = if message.is_empty() { String::new() } else { format!(": {message}") };
        let mut lines = vec![format!("{}: {how}{cause}", self.label)];
        // An outage explains itself; for a crash the log is the only witness.
        if code == ExitCode::Failed {
            lines.extend(tail(self.log).into_iter().map(|line| format!("  | {line}")));
        }
        lines.push(format!("  log: {}", self.log.display()));
        lines
    }
}

fn tail(log: &Path) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    // A log that cannot be read is named all the same.
    let text = read().unwrap_or_default();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_end_is_reported_and_only_a_crash_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, (0..40).map(|i| format!("line {i}\n")).collect::<String>()).unwrap();
        let lines = |code, message: Option<&str>, asked_to_stop| {
            let exit = Exit { code, signal: None, message: message.map(str::to_owned) };
            PodReport { label: "docs generate", exit: &exit, log: &log, asked_to_stop }.lines()
        };
        assert!(lines(0, None, false).is_empty());
        assert!(lines(143, None, true).is_empty());
        let crash = lines(1, None, false);
        assert_eq!((crash.len(), crash[1].as_str(), crash[15].as_str()), (17, "  | line 25", "  | line 39"));
        let away = lines(12, Some(r#"{"reason":"StorageUnavailable","message":"timed out"}"#), false);
        assert_eq!((away.len(), away[0].as_str()), (2, "docs generate: ended with code 12: timed out"));
        let invalid = lines(10, Some(r#"{"reason":"InvalidData","message":"row 3"}"#), false);
        assert_eq!((invalid.len(), invalid[0].contains("row 3")), (1, false));
    }
}
