//! `--restart-from`: a run that starts over beside its old results, below a new prefix.
//!
//! Restart `k` exists when `r{k}/restart.json` does; the highest `k` is the run.

use serde::{Deserialize, Serialize};

use crate::commit::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::store::Store;

/// Where to start over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RestartFrom {
    /// Keep the prepared data, do the stages again.
    Stage,
    /// Do everything again.
    Data,
}

/// Content of `r{k}/restart.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Where to start over.
    pub from: RestartFrom,
    /// Who asked; asking twice under one id is one restart.
    pub request_id: String,
}

impl Store {
    /// The prefix of the current run, its number `k` (0: never restarted), and its record.
    ///
    /// # Errors
    /// As the store answers; `Malformed` when a record cannot be read.
    pub async fn current_run(&self) -> Result<(Self, u32, Option<Restart>)> {
        let mut k = 0;
        let mut record = None;
        while let Some(bytes) = self.try_get(&keys::restart_record(k + 1)).await? {
            k += 1;
            record = Some(serde_json::from_slice(&bytes).map_err(|e| {
                let object = self.uri_of(&keys::restart_record(k));
                Error::new(ErrorKind::Malformed, "read", object, e.to_string())
            })?);
        }
        Ok((self.sub(&keys::restart(k)), k, record))
    }

    /// Starts over, unless the current restart is of the same request. Returns the new run.
    ///
    /// # Errors
    /// As [`Store::commit`]; `Conflict` when another restart was asked for at the same time.
    pub async fn start_over(&self, restart: &Restart) -> Result<(Self, u32)> {
        let (current, k, record) = self.current_run().await?;
        if record.as_ref() == Some(restart) {
            return Ok((current, k));
        }
        let key = keys::restart_record(k + 1);
        let bytes = serde_json::to_vec_pretty(restart)
            .map_err(|e| Error::new(ErrorKind::Malformed, "commit", self.uri_of(&key), e.to_string()))?;
        // Published bytes either win or conflict.
        let _ = self.commit(&key, bytes, &Commit::Published).await?;
        Ok((self.sub(&keys::restart(k + 1)), k + 1))
    }
}
