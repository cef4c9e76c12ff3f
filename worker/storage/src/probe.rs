//! Does this store do what the protocol needs? Asked once, before anything is written.

use crate::attempt::AttemptId;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

impl Store {
    /// Creates a key twice (the second must be refused and change nothing), reads it, lists
    /// it, deletes it. Leaves nothing behind.
    ///
    /// # Errors
    /// `Unsupported` with what the store did wrong; others as the store answers.
    pub async fn probe(&self, attempt: &AttemptId) -> Result<()> {
        let key = format!("probe/{attempt}");
        // A former try of this pod may have died here.
        self.delete(&key).await?;
        let verdict = self.probe_with(&key).await;
        let deleted = self.delete(&key).await;
        verdict?;
        deleted?;
        match self.try_get(&key).await? {
            Some(_) => Err(self.unsupported("an object that was deleted can still be read")),
            None => Ok(()),
        }
    }

    async fn probe_with(&self, key: &str) -> Result<()> {
        if !self.create_clearly(key, b"first").await? {
            return Err(self.unsupported("a conditional write of a new object was refused"));
        }
        let second = self.create_clearly(key, b"second").await?;
        if second || self.get(key).await? != b"first"[..] {
            return Err(self.unsupported(
                "a conditional write (If-None-Match: *) replaced an object that existed, so two \
                 writers could destroy each other's work",
            ));
        }
        match self.list("probe").await?.iter().any(|meta| meta.key == key) {
            true => Ok(()),
            false => Err(self.unsupported("an object that was just written is missing in its listing")),
        }
    }

    fn unsupported(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unsupported, "use", self.uri(), why)
    }

    /// Whether the Create put `bytes` there. An unclear answer is resolved by reading.
    async fn create_clearly(&self, key: &str, bytes: &'static [u8]) -> Result<bool> {
        use object_store::Error as E;
        match self.create(key, &bytes.into()).await {
            Ok(()) => Ok(true),
            Err(E::AlreadyExists { .. }) => Ok(self.try_get(key).await?.is_some_and(|found| found == bytes)),
            Err(error) => {
                let error = Error::from_store("use", self.uri_of(key), &error);
                match (error.kind(), self.try_get(key).await?) {
                    (ErrorKind::Away, Some(found)) => Ok(found == bytes),
                    _ => Err(error),
                }
            }
        }
    }
}
