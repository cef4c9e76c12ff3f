//! Timings of a run: the one thing that is not a function of its inputs.
//!
//! Invariant: every process writes its own objects, each once; `export` joins them into
//! `run-log.jsonl`. A killed process loses the timings of at most [`FLUSH`].

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longstrap_runtime::StepResult;
use longstrap_storage::{Store, keys};
use serde_json::{Map, Value, json};

/// Folder of the parts.
const PARTS: &str = "run-log";
/// How long lines of steps may wait for an object.
const FLUSH: Duration = Duration::from_secs(30);

/// The log of one process.
#[derive(Clone, Debug)]
pub(crate) struct RunLog {
    store: Store,
    writer: String,
    /// Objects written.
    segments: u64,
    /// Lines that no object holds yet.
    lines: String,
    flushed: Instant,
}

impl RunLog {
    /// A log whose `writer` is unique.
    pub(crate) fn new(store: &Store, writer: &str) -> Self {
        Self {
            store: store.clone(),
            writer: writer.to_owned(),
            segments: 0,
            lines: String::new(),
            flushed: Instant::now(),
        }
    }

    /// Notes that `phase` took `elapsed`, with details, and writes what is noted.
    pub(crate) async fn note(&mut self, phase: &str, elapsed: Duration, details: Value) -> StepResult {
        self.add(phase, elapsed, details);
        self.flush().await
    }

    /// As `note`, for what comes often: writes only now and then, the rest at `flush`.
    pub(crate) async fn note_step(&mut self, phase: &str, elapsed: Duration, details: Value) -> StepResult {
        self.add(phase, elapsed, details);
        if self.flushed.elapsed() < FLUSH { Ok(()) } else { self.flush().await }
    }

    /// Writes the lines that no object holds yet.
    pub(crate) async fn flush(&mut self) -> StepResult {
        self.flushed = Instant::now();
        if self.lines.is_empty() {
            return Ok(());
        }
        let key = format!("{PARTS}/{}-{:06}.jsonl", self.writer, self.segments);
        self.store.put(&key, self.lines.clone()).await?;
        self.lines.clear();
        self.segments += 1;
        Ok(())
    }

    fn add(&mut self, phase: &str, elapsed: Duration, details: Value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("time".into(), json!((now.as_secs_f64() * 1e3).round() / 1e3));
        line.insert("phase".into(), json!(phase));
        line.insert("seconds".into(), json!((elapsed.as_secs_f64() * 1e3).round() / 1e3));
        if let Value::Object(details) = details {
            line.extend(details);
        }
        self.lines += &format!("{}\n", Value::Object(line));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[tokio::test]
    async fn each_line_is_written_once_and_steps_share_objects() {
        let store = Store::open("memory:///run", &BTreeMap::new()).unwrap();
        let mut log = RunLog::new(&store, "w");
        let sizes = async || {
            let mut sizes = Vec::new();
            for part in store.list(PARTS).await.unwrap() {
                sizes.push(String::from_utf8_lossy(&store.get(&part.key).await.unwrap()).lines().count());
            }
            sizes
        };
        let second = Duration::from_secs(1);
        for _ in 0..5 {
            log.note_step("train s", second, json!({})).await.unwrap();
        }
        assert_eq!(sizes().await, [0; 0], "no object for each step");
        log.note("evaluate", second, json!({})).await.unwrap();
        log.flush().await.unwrap();
        log.note_step("train s", second, json!({})).await.unwrap();
        log.flush().await.unwrap();
        assert_eq!(sizes().await, [6, 1]);
        let sums = join(&store).await.unwrap();
        assert_eq!(sums, [("train s".to_owned(), 6.0), ("evaluate".to_owned(), 1.0)]);
    }
}
