//! Commands on a cluster: where a run is, what it says, and the small edits that people make.
//!
//! Invariant: nothing here is needed by a command that works without a cluster; what is printed is
//! made by pure functions of what was read, apart from the requests.

mod access;
mod children;
mod clean;
mod edit;
mod error;
mod follow;
mod logs;
mod output;
mod retry;
mod status;
mod target;
mod wait;
mod words;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use jiff::SignedDuration;

/// Who writes, in managedFields.
const FIELD_MANAGER: &str = "longstrap-cli";

/// Commands on a cluster.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show where an object on a cluster is, why, and what belongs to it; without a name, all objects
    Status(status::StatusArgs),
    /// Wait until an object on a cluster is complete, failed or blocked
    #[command(after_help = "Exit codes: 0 complete, 1 failed, 2 blocked (something must be mended), \
        3 neither within --timeout, 4 it could not be found out (no such object, no access).")]
    Wait(wait::WaitArgs),
    /// Show what the pods of an object wrote; of pods that are gone, their last messages
    Logs(logs::LogsArgs),
    /// Stop a run on a cluster; its pods save their state first
    Suspend(edit::EditArgs),
    /// Let a suspended run go on from its storage
    Resume(edit::EditArgs),
    /// Start the next attempt now: with the newest spec, or after something was mended
    Restart(edit::EditArgs),
    /// Make an object that has ended again; it goes on from its storage
    Retry(retry::RetryArgs),
    /// Delete what a run has written to its storage; without --yes only show it
    Clean(clean::CleanArgs),
}

/// Runs the command; the exit code.
pub(crate) fn run(command: &Command) -> Result<u8> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Status(args) => status::status(args).await,
            Command::Wait(args) => wait::wait(args).await,
            Command::Logs(args) => logs::logs(args).await,
            Command::Suspend(args) => edit::suspend(args).await,
            Command::Resume(args) => edit::resume(args).await,
            Command::Restart(args) => edit::restart(args).await,
            Command::Retry(args) => retry::retry(args).await,
            Command::Clean(args) => clean::clean(args).await,
        }
    })
}

/// `90s`, `30m`, `2h`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration like 90s or 2h"))?;
    Duration::try_from(parsed).map_err(|_| "a duration cannot be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use longstrap_crds::Object;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::target::{Found, Kind};

    fn object(kind: Kind, name: &str, spec: Value, status: Value) -> Found {
        let raw = json!({
            "apiVersion": longstrap_crds::API_VERSION,
            "kind": kind.as_str(),
            "metadata": {
                "name": name, "namespace": "ml", "uid": format!("uid-of-{name}"), "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": spec,
            "status": status,
        });
        Found::new(kind, serde_json::from_value(raw).unwrap()).unwrap()
    }

    /// A ContextExtensionRun of two stages, in a state.
    pub(crate) fn run(status: Value) -> Object {
        let spec = json!({
            "storage": {"uri": "s3://acme/run"},
            "model": {"uri": "s3://acme/model"},
            "data": [{"name": "long", "synthesisJobRef": {"name": "docs"}}],
            "stages": [
                {"name": "256k", "contextLength": "256Ki", "steps": 200},
                {"name": "512k", "contextLength": "512Ki", "steps": 100},
            ],
            "parallelism": {"nodes": 2, "ranksPerNode": 4},
        });
        object(Kind::ContextExtensionRun, "run", spec, status).object
    }

    /// A SynthesisJob, in a state.
    pub(crate) fn job(status: Value) -> Object {
        found_job(status).object
    }

    /// The same, as it is found.
    pub(crate) fn found_job(status: Value) -> Found {
        let spec = json!({
            "storage": {"uri": "s3://acme/docs"},
            "tokenizer": {"uri": "s3://acme/model"},
            "corpus": [{"name": "web", "uri": "s3://acme/corpus", "format": "Parquet"}],
            "generator": {"endpoints": [{"name": "a", "url": "http://vllm/v1", "model": "m"}], "contextLength": "8Ki"},
            "samples": {"longInput": {"count": 1100, "lengths": [{"name": "x", "tokens": 16384}]}},
        });
        object(Kind::SynthesisJob, "docs", spec, status)
    }

    /// A condition that came up at midnight.
    pub(crate) fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    #[test]
    fn durations_are_written_with_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("90").is_err());
        assert!(duration("-5m").is_err());
    }
}
