//! Commit by conditional Create.
//!
//! An `AlreadyExists`, a time-out or any other unclear answer decides nothing (the client
//! retries a Create after a 5xx, so a winner can be told that it lost): the key is read, and
//! what stands there decides.

use bytes::Bytes;
use serde::Deserialize;

use crate::attempt::AttemptId;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// How a writer knows its own manifest again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The manifest is JSON with a field `attemptId` of this value.
    Working {
        /// The writer.
        attempt_id: AttemptId,
    },
    /// The manifest holds no trace of its writer: every writer would write the same bytes.
    Published,
}

/// What stands at the key now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum CommitOutcome {
    /// The manifest is ours (or, when published, equal to ours).
    Won,
    /// Another writer's manifest stands, here it is: delete your own data, use the winner's.
    Lost(Bytes),
}

/// Creates, each followed by a read, before the store is called away.
const TRIES: usize = 4;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkingManifest {
    attempt_id: AttemptId,
}

impl Store {
    /// Writes the manifest `key`, unless one stands there already.
    ///
    /// # Errors
    /// `Away` when it stays unclear: nothing is decided, try again. `Conflict` when a published
    /// manifest exists with other bytes. `InUse` when the storage got another owner.
    ///
    /// # Panics
    /// When a working manifest does not carry the attempt id that it is committed under.
    pub async fn commit(&self, key: &str, bytes: impl Into<Bytes>, commit: &Commit) -> Result<CommitOutcome> {
        let bytes = bytes.into();
        if let Commit::Working { attempt_id } = commit {
            assert_eq!(
                author(&bytes).as_ref(),
                Some(attempt_id),
                "the working manifest {key} must hold its writer in attemptId"
            );
        }
        self.check_fence().await?;
        let mut unclear = None;
        for _ in 0..TRIES {
            match self.create(key, &bytes).await {
                Ok(()) => return Ok(CommitOutcome::Won),
                Err(error) => unclear = Some(self.judge(key, error)?),
            }
            if let Some(found) = self.try_get(key).await? {
                return self.decide(key, &bytes, found, commit);
            }
        }
        Err(unclear.unwrap_or_else(|| {
            Error::new(ErrorKind::Away, "commit", self.uri_of(key), "the store gave no answer")
        }))
    }

    /// Whether `error` leaves it open if the object was written: then the error to report
    /// should it stay so.
    fn judge(&self, key: &str, error: object_store::Error) -> Result<Error> {
        if matches!(error, object_store::Error::AlreadyExists { .. }) {
            return Ok(Error::new(
                ErrorKind::Away,
                "commit",
                self.uri_of(key),
                "the store says that the object exists but does not show it",
            ));
        }
        let error = Error::from_store("commit", self.uri_of(key), &error);
        match error.kind() {
            ErrorKind::Away | ErrorKind::Other | ErrorKind::NotFound => Ok(error),
            _ => Err(error),
        }
    }

    fn decide(&self, key: &str, ours: &[u8], found: Bytes, commit: &Commit) -> Result<CommitOutcome> {
        match commit {
            Commit::Working { attempt_id } if author(&found).as_ref() == Some(attempt_id) => {
                Ok(CommitOutcome::Won)
            }
            Commit::Working { .. } => Ok(CommitOutcome::Lost(found)),
            Commit::Published if found == ours => Ok(CommitOutcome::Won),
            Commit::Published => Err(Error::new(
                ErrorKind::Conflict,
                "publish",
                self.uri_of(key),
                "it exists already with other bytes, so it belongs to another run or was \
                 changed; choose another storage.uri or --restart-from",
            )),
        }
    }
}

fn author(manifest: &[u8]) -> Option<AttemptId> {
    serde_json::from_slice::<WorkingManifest>(manifest).ok().map(|m| m.attempt_id)
}
