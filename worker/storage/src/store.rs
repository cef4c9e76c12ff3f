//! `Store`: objects below one URI, addressed by keys relative to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutPayload};

use crate::client::{Client, Credentials};
use crate::error::{Error, ErrorKind, Result};
use crate::owner::Fence;

/// Objects below one URI. Cheap to clone; clones share client and credentials.
#[derive(Clone)]
pub struct Store {
    pub(crate) client: Arc<Client>,
    pub(crate) root: Path,
    pub(crate) fence: Option<Arc<Fence>>,
}

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Meta {
    /// Relative to the store.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.uri())
    }
}

impl Store {
    /// Opens `uri` (file, s3, gs, az) with the SDK's environment variables as credentials.
    /// Nothing is read or written yet.
    ///
    /// # Errors
    /// `Invalid` when the URI or an option is not understood.
    pub fn open(uri: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        Self::open_with(uri, options, &Credentials::Environment)
    }

    /// [`Store::open`] with credentials from a folder as well.
    ///
    /// # Errors
    /// As [`Store::open`]; also when the folder cannot be read.
    pub fn open_with(
        uri: &str,
        options: &BTreeMap<String, String>,
        credentials: &Credentials,
    ) -> Result<Self> {
        let client = Client::open(uri, options, credentials)?;
        let root = client.location.prefix.clone();
        Ok(Self { client: Arc::new(client), root, fence: None })
    }

    /// The same store below `prefix`.
    pub fn sub(&self, prefix: &str) -> Self {
        Self { root: self.path(prefix), ..self.clone() }
    }

    /// URI of the store's root.
    pub fn uri(&self) -> String {
        self.client.location.uri_of(&self.root)
    }

    /// URI of `key`, for messages and manifests that users read.
    pub fn uri_of(&self, key: &str) -> String {
        self.client.location.uri_of(&self.path(key))
    }

    /// The folder, when the store is one of this machine.
    pub fn local_root(&self) -> Option<PathBuf> {
        self.client.location.local_path(&self.root)
    }

    pub(crate) fn path(&self, key: &str) -> Path {
        let parts = key.split('/').filter(|part| !part.is_empty());
        parts.fold(self.root.clone(), |path, part| path.join(part))
    }

    pub(crate) fn failed<'a>(
        &'a self,
        action: &'static str,
        key: &'a str,
    ) -> impl Fn(object_store::Error) -> Error + 'a {
        move |error| Error::from_store(action, self.uri_of(key), &error)
    }

    /// The whole object.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        let path = self.path(key);
        self.client
            .call(|store| {
                let path = path.clone();
                async move { store.get(&path).await?.bytes().await }
            })
            .await
            .map_err(self.failed("read", key))
    }

    /// The whole object, or `None` when there is none.
    ///
    /// # Errors
    /// Everything but `NotFound`.
    pub async fn try_get(&self, key: &str) -> Result<Option<Bytes>> {
        match self.get(key).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes `range` of the object.
    ///
    /// # Errors
    /// `NotFound`; `Torn` when the object is shorter.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = self.path(key);
        let asked = range.clone();
        let bytes = self
            .client
            .call(|store| {
                let (path, range) = (path.clone(), asked.clone());
                async move { store.get_range(&path, range).await }
            })
            .await
            .map_err(self.failed("read", key))?;
        let length = range.end - range.start;
        if bytes.len() as u64 != length {
            return Err(Error::new(
                ErrorKind::Torn,
                "read",
                self.uri_of(key),
                format!("bytes {range:?} were asked for and only {} came", bytes.len()),
            ));
        }
        Ok(bytes)
    }

    /// Size in bytes, or `None` when there is no such object.
    ///
    /// # Errors
    /// Everything but `NotFound`.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key);
        let head = self
            .client
            .call(|store| {
                let path = path.clone();
                async move { store.head(&path).await }
            })
            .await
            .map_err(self.failed("look at", key));
        match head {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an object whose name no other writer uses, or whose bytes every writer would
    /// write alike. Manifests go through [`Store::commit`].
    ///
    /// # Errors
    /// As the store answers.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.put_mode(key, bytes.into(), PutMode::Overwrite).await.map_err(self.failed("write", key))
    }

    pub(crate) async fn put_mode(&self, key: &str, bytes: Bytes, mode: PutMode) -> object_store::Result<()> {
        let path = self.path(key);
        self.client
            .call(|store| {
                let payload = PutPayload::from_bytes(bytes.clone());
                let (path, mode) = (path.clone(), mode.clone());
                async move { store.put_opts(&path, payload, mode.into()).await }
            })
            .await
            .map(drop)
    }

    /// Every object below `prefix`, sorted by key.
    ///
    /// # Errors
    /// As the store answers; a prefix without objects is an empty list.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Meta>> {
        let path = self.path(prefix);
        let root_segments = self.root.parts().count();
        let found = self
            .client
            .call(|store| {
                let path = path.clone();
                async move { store.list(Some(&path)).try_collect::<Vec<_>>().await }
            })
            .await
            .map_err(self.failed("list", prefix))?;
        let mut metas: Vec<Meta> = found
            .into_iter()
            .map(|meta| Meta {
                key: Path::from_iter(meta.location.parts().skip(root_segments)).to_string(),
                size: meta.size,
            })
            .collect();
        metas.sort();
        Ok(metas)
    }

    /// Removes the object; one that does not exist is no error.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        let deleted = self
            .client
            .call(|store| {
                let path = path.clone();
                async move { store.delete(&path).await }
            })
            .await
            .map_err(self.failed("delete", key));
        match deleted {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}
