//! `run.json`: everything that decides content, resolved once; its digest is the fingerprint.
//!
//! The first `prepare` commits it; every later pod, attempt and version reads it and never
//! computes it again from the spec.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::commit::{Commit, CommitOutcome};
use crate::diff::{FieldChange, diff};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::store::Store;

/// A `run.json` that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Run<T> {
    /// Its content.
    pub content: T,
    /// Digest of its bytes.
    pub fingerprint: Digest,
}

/// What `prepare` learns when it commits its `run.json`.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum RunCommit {
    /// It stands (written now, or earlier with equal content).
    Committed(Digest),
    /// Another one stands: the spec or its inputs changed in these fields since. Refuse with
    /// them, and offer `--restart-from stage|data` or another storage.
    Changed(Vec<FieldChange>),
}

impl Store {
    /// Commits `run` as `run.json`. The bytes are `run` as pretty JSON in the order of its
    /// fields: equal content gives equal bytes.
    ///
    /// # Errors
    /// As [`Store::commit`]; `Malformed` when the one that stands is no JSON.
    pub async fn commit_run(&self, run: &impl Serialize) -> Result<RunCommit> {
        let malformed = |e: serde_json::Error| {
            Error::new(ErrorKind::Malformed, "commit", self.uri_of(keys::RUN), e.to_string())
        };
        let ours = serde_json::to_value(run).map_err(malformed)?;
        let mut bytes = serde_json::to_vec_pretty(&ours).map_err(malformed)?;
        bytes.push(b'\n');
        let bytes = Bytes::from(bytes);
        match self.try_get(keys::RUN).await? {
            Some(found) if found != bytes => return self.changed(&found, &ours),
            Some(_) => return Ok(RunCommit::Committed(Digest::of(&bytes))),
            None => {}
        }
        match self.commit(keys::RUN, bytes.clone(), &Commit::Published).await {
            Ok(CommitOutcome::Won) => Ok(RunCommit::Committed(Digest::of(&bytes))),
            Ok(CommitOutcome::Lost(found)) => self.changed(&found, &ours),
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let found = self.get(keys::RUN).await?;
                self.changed(&found, &ours)
            }
            Err(error) => Err(error),
        }
    }

    fn changed(&self, found: &[u8], ours: &Value) -> Result<RunCommit> {
        let found: Value = serde_json::from_slice(found).map_err(|e| self.malformed_run(&e))?;
        let changes = diff(&found, ours);
        match changes.is_empty() {
            // Written by another version with other white space: what stands counts.
            true => Err(self.malformed_run(&"equal fields but other bytes than this version writes")),
            false => Ok(RunCommit::Changed(changes)),
        }
    }

    /// Reads `run.json`. `T` should deny unknown fields: one of a newer version may decide
    /// content.
    ///
    /// # Errors
    /// `NotFound` before `prepare`; `FormatTooNew` when `formatVersion` is above `known`;
    /// `Malformed` when a field is unknown or wrong.
    pub async fn read_run<T: DeserializeOwned>(&self, known: u32) -> Result<Run<T>> {
        let bytes = self.get(keys::RUN).await?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| self.malformed_run(&e))?;
        let version = value.get("formatVersion").and_then(Value::as_u64);
        match version {
            Some(version) if version > u64::from(known) => Err(Error::new(
                ErrorKind::FormatTooNew,
                "read",
                self.uri_of(keys::RUN),
                format!("its formatVersion is {version} and this version knows up to {known}"),
            )),
            Some(_) => {
                let content = serde_json::from_value(value).map_err(|e| self.malformed_run(&e))?;
                Ok(Run { content, fingerprint: Digest::of(&bytes) })
            }
            None => Err(self.malformed_run(&"formatVersion is missing")),
        }
    }

    fn malformed_run(&self, why: &dyn std::fmt::Display) -> Error {
        Error::new(ErrorKind::Malformed, "read", self.uri_of(keys::RUN), why.to_string())
    }
}
