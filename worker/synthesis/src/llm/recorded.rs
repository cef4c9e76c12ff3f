//! The call log: every finished call of an unfinished shard is kept in object storage as part of
//! an immutable segment, and answered from there after a restart or on another worker.
//!
//! Segments are written in the background of the calls: what finishes while one is being written
//! goes into the next together. A call returns only when its answer is kept, so nothing that a
//! later step was built on can be lost.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use longstrap_storage::{AttemptId, Store, keys};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::{Answer, Call, Likelihood, Llm, LlmError, ScoreCall, call_key};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    key: String,
    kept: Kept,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Kept {
    Chat(Answer),
    Score(Likelihood),
}

/// An entry that waits to be written, and who waits for it.
type Pending = (Entry, oneshot::Sender<Result<(), longstrap_storage::Error>>);

/// A generator whose answers are kept below one folder.
pub struct Recorded<'a> {
    inner: &'a dyn Llm,
    model: &'a str,
    store: &'a Store,
    attempt: &'a AttemptId,
    folder: String,
    known: Mutex<HashMap<String, Kept>>,
    pending: Mutex<Vec<Pending>>,
    writer: AsyncMutex<()>,
    next: AtomicU64,
}

impl<'a> Recorded<'a> {
    /// Opens the log in `folder` and reads what any worker has kept there.
    ///
    /// # Errors
    /// Storage.
    pub async fn open(
        inner: &'a dyn Llm,
        model: &'a str,
        store: &'a Store,
        attempt: &'a AttemptId,
        folder: String,
    ) -> Result<Recorded<'a>, longstrap_storage::Error> {
        let log = Recorded {
            inner,
            model,
            store,
            attempt,
            folder,
            known: Mutex::default(),
            pending: Mutex::default(),
            writer: AsyncMutex::new(()),
            next: AtomicU64::new(0),
        };
        log.refresh().await?;
        Ok(log)
    }

    /// Reads the segments again: another worker may be at the same shard.
    ///
    /// # Errors
    /// Storage.
    pub async fn refresh(&self) -> Result<(), longstrap_storage::Error> {
        let mut found: HashMap<String, Kept> = HashMap::new();
        let segments = self.store.list(&self.folder).await?;
        // A name of ours is never used twice, also not by a second opening in one process.
        self.next.fetch_max(segments.len() as u64, Ordering::Relaxed);
        for meta in segments {
            // A segment may vanish when its shard is committed by another worker meanwhile.
            let Some(bytes) = self.store.try_get(&meta.key).await? else { continue };
            for line in bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
                // A line that does not parse is a call that was not kept: it is made again.
                if let Ok(entry) = serde_json::from_slice::<Entry>(line) {
                    found.entry(entry.key).or_insert(entry.kept);
                }
            }
        }
        // What stands first in the order of keys counts, for every reader.
        self.known().extend(found);
        Ok(())
    }

    /// Removes the log of a shard that is committed.
    ///
    /// # Errors
    /// Storage.
    pub async fn remove(store: &Store, folder: &str) -> Result<(), longstrap_storage::Error> {
        for meta in store.list(folder).await? {
            store.delete(&meta.key).await?;
        }
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Kept>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn keep(&self, key: String, kept: Kept) -> Result<(), LlmError> {
        self.known().insert(key.clone(), kept.clone());
        let (done, waiting) = oneshot::channel();
        self.pending
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push((Entry { key, kept }, done));
        // Whoever gets the pen writes for all who wait.
        let pen = self.writer.lock().await;
        let batch =
            std::mem::take(&mut *self.pending.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if !batch.is_empty() {
            let mut bytes = Vec::new();
            for (entry, _) in &batch {
                // A type of ours without maps: serialising it cannot fail.
                bytes.extend(serde_json::to_vec(entry).expect("a log entry is plain data"));
                bytes.push(b'\n');
            }
            let name = format!("{:06}.jsonl", self.next.fetch_add(1, Ordering::Relaxed));
            let written = self.store.put(&keys::working(&self.folder, self.attempt, &name), bytes).await;
            for (_, done) in batch {
                // The other side is gone only when its call was cancelled.
                let _ = done.send(written.clone());
            }
        }
        drop(pen);
        match waiting.await {
            Ok(written) => written.map_err(LlmError::Log),
            // The writer that took our entry was cancelled midway: it is known here and will be
            // asked for again after a restart.
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Llm for Recorded<'_> {
    async fn chat(&self, call: &Call) -> Result<Answer, LlmError> {
        let key = call_key(self.model, "chat", call);
        if let Some(Kept::Chat(answer)) = self.known().get(&key) {
            return Ok(answer.clone());
        }
        let answer = self.inner.chat(call).await?;
        self.keep(key, Kept::Chat(answer.clone())).await?;
        Ok(answer)
    }

    async fn score(&self, call: &ScoreCall) -> Result<Likelihood, LlmError> {
        let key = call_key(self.model, "score", call);
        if let Some(Kept::Score(likelihood)) = self.known().get(&key) {
            return Ok(*likelihood);
        }
        let likelihood = self.inner.score(call).await?;
        self.keep(key, Kept::Score(likelihood)).await?;
        Ok(likelihood)
    }

    fn concurrency(&self) -> usize {
        self.inner.concurrency()
    }
}
