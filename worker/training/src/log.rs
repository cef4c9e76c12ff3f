//! Timings of a run: the one thing that is not a function of its inputs.
//!
//! Invariant: every process writes its own object; `export` joins them into `run-log.jsonl`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longstrap_runtime::StepResult;
use longstrap_storage::{Store, keys};
use serde_json::{Map, Value, json};

/// Folder of the parts.
const PARTS: &str = "run-log";

/// The log of one process.
#[derive(Clone, Debug)]
pub(crate) struct RunLog {
    store: Store,
    key: String,
    lines: String,
}

impl RunLog {
    /// A log whose `writer` is unique.
    pub(crate) fn new(store: &Store, writer: &str) -> Self {
        Self { store: store.clone(), key: format!("{PARTS}/{writer}.jsonl"), lines: String::new() }
    }

    /// Notes that `phase` took `elapsed`, with details, and writes the log.
    pub(crate) async fn note(&mut self, phase: &str, elapsed: Duration, details: Value) -> StepResult {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("time".into(), json!((now.as_secs_f64() * 1e3).round() / 1e3));
        line.insert("phase".into(), json!(phase));
        line.insert("seconds".into(), json!((elapsed.as_secs_f64() * 1e3).round() / 1e3));
        if let Value::Object(details) = details {
            line.extend(details);
        }
        self.lines += &format!("{}\n", Value::Object(line));
        Ok(self.store.put(&self.key, self.lines.clone()).await?)
    }
}

/// Joins all parts in the order of time, writes `run-log.jsonl`, and sums the seconds of each phase.
///
/// # Errors
/// As the store answers.
pub(crate) async fn join(store: &Store) -> StepResult<Vec<(String, f64)>> {
    let mut lines: Vec<(f64, String)> = Vec::new();
    let mut phases: Vec<(f64, String, f64)> = Vec::new();
    for part in store.list(PARTS).await? {
        let bytes = store.get(&part.key).await?;
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Ok(value) = serde_json::from_str::<Value>(line) else { continue };
            let time = value["time"].as_f64().unwrap_or_default();
            lines.push((time, line.to_owned()));
            let phase = value["phase"].as_str().unwrap_or_default().to_owned();
            phases.push((time, phase, value["seconds"].as_f64().unwrap_or_default()));
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    phases.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: String = lines.into_iter().map(|(_, line)| line + "\n").collect();
    store.put(keys::RUN_LOG, all).await?;
    let mut sums: Vec<(String, f64)> = Vec::new();
    for (_, phase, seconds) in phases {
        match sums.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, sum)) => *sum += seconds,
            None => sums.push((phase, seconds)),
        }
    }
    Ok(sums)
}
