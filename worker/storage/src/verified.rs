//! References that hold length and digest, so that a torn file is noticed when it is read.

use std::path::Path as FsPath;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// How a manifest names a data object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectRef {
    /// Relative to the store.
    pub key: String,
    /// SHA-256 of the whole object.
    pub digest: Digest,
    /// Length in bytes.
    pub bytes: u64,
}

impl ObjectRef {
    /// The reference of `bytes` under `key`.
    pub fn of(key: impl Into<String>, bytes: &[u8]) -> Self {
        Self { key: key.into(), digest: Digest::of(bytes), bytes: bytes.len() as u64 }
    }

    /// Checks what was read.
    pub(crate) fn check(&self, store: &Store, bytes: u64, digest: Digest) -> Result<()> {
        let what = match (bytes == self.bytes, digest == self.digest) {
            (true, true) => return Ok(()),
            (false, _) => format!("its manifest says {} bytes and it has {bytes}", self.bytes),
            (true, false) => format!("its manifest says {} and it is {digest}", self.digest),
        };
        Err(Error::new(ErrorKind::Torn, "read", store.uri_of(&self.key), what))
    }

    /// A manifest names data that are gone: as bad as a torn file.
    pub(crate) fn gone_is_torn(&self, store: &Store, error: Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::Torn,
                "read",
                store.uri_of(&self.key),
                "its manifest names it but it does not exist",
            ),
            _ => error,
        }
    }
}

impl Store {
    /// Writes `bytes` under a unique name and returns the reference for the manifest.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn put_ref(&self, key: &str, bytes: impl Into<Bytes>) -> Result<ObjectRef> {
        let bytes = bytes.into();
        let object = ObjectRef::of(key, &bytes);
        self.put(key, bytes).await?;
        Ok(object)
    }

    /// Reads what a manifest names.
    ///
    /// # Errors
    /// `Torn` when it is gone, or its length or digest differs.
    pub async fn get_verified(&self, object: &ObjectRef) -> Result<Bytes> {
        let bytes = self.get(&object.key).await.map_err(|error| object.gone_is_torn(self, error))?;
        object.check(self, bytes.len() as u64, Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// Copies what a manifest names to the file `to`, which appears only when it is right.
    ///
    /// # Errors
    /// `Torn` when it is gone, or its length or digest differs.
    pub async fn download_verified(
        &self,
        object: &ObjectRef,
        to: &FsPath,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<()> {
        self.download_checked(&object.key, to, progress, |bytes, digest| object.check(self, bytes, digest))
            .await
            .map_err(|error| object.gone_is_torn(self, error))
    }
}
