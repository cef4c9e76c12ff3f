//! `Store`: objects below one URI, addressed by keys relative to it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use crate::client::{Client, Credentials};
use crate::error::{Error, ErrorKind, Result};
use crate::owner::Fence;
use crate::upload::Writer;

/// Objects below one URI. Cheap to clone; clones share client and credentials.
#[derive(Clone)]
pub struct Store {
    pub(crate) client: Arc<Client>,
    pub(crate) root: Path,
    pub(crate) fence: Option<Arc<Fence>>,
    pub(crate) patience: Option<Arc<dyn Patience>>,
    pub(crate) writer: Option<Arc<Writer>>,
}

/// What to do while a store is away. Every operation asks it, so that a caller need not.
pub trait Patience: Send + Sync {
    /// Waits a while after the `failures`-th failure in a row of one operation; false: give up.
    fn failed<'a>(&'a self, error: &'a Error, failures: u32) -> BoxFuture<'a, bool>;
    /// An operation that had failed has worked.
    fn recovered(&self);
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
        Ok(Self { client: Arc::new(client), root, fence: None, patience: None, writer: None })
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
        // As it is: `join` would write %7E for ~ and %C3%BC for ü, and look for objects of that name.
        parts.fold(self.root.clone(), |path, part| match Path::parse(format!("{path}/{part}")) {
            Ok(path) => path,
            Err(_) => path.join(part),
        })
    }

    /// The same store, whose operations wait out a store that is away.
    pub fn patient(&self, patience: Arc<dyn Patience>) -> Self {
        Self { patience: Some(patience), ..self.clone() }
    }

    /// Runs `operation` on `key`'s path, for as long as patience lasts.
    pub(crate) async fn operate<T, F>(
        &self,
        action: &'static str,
        key: &str,
        operation: impl Fn(Arc<dyn ObjectStore>, Path) -> F,
    ) -> Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let path = self.path(key);
        self.patiently(|| async {
            let result = self.client.call(|store| operation(store, path.clone())).await;
            result.map_err(|error| Error::from_store(action, self.uri_of(key), &error))
        })
        .await
    }

    /// Repeats `operation` while it fails with `Away` and patience lasts.
    pub(crate) async fn patiently<T, F>(&self, operation: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut failures = 0;
        loop {
            let result = operation().await;
            match (&result, &self.patience) {
                (Err(error), Some(patience)) if error.kind() == ErrorKind::Away => {
                    failures += 1;
                    if !patience.failed(error, failures).await {
                        return result;
                    }
                }
                // Any other answer is an answer.
                (_, Some(patience)) if failures > 0 => {
                    patience.recovered();
                    return result;
                }
                _ => return result,
            }
        }
    }

    /// The whole object.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        self.operate("read", key, |store, path| async move { store.get(&path).await?.bytes().await }).await
    }

    /// The whole object, or `None` when there is none.
    ///
    /// # Errors
    /// Everything but `NotFound`.
    pub async fn try_get(&self, key: &str) -> Result<Option<Bytes>> {
        optional(self.get(key).await)
    }

    /// Bytes `range` of the object.
    ///
    /// # Errors
    /// `NotFound`; `Torn` when the object is shorter.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let asked = &range;
        let bytes = self
            .operate("read", key, |store, path| {
                let range = asked.clone();
                async move { store.get_range(&path, range).await }
            })
            .await?;
        if bytes.len() as u64 != range.end - range.start {
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
        let head = self.operate("look at", key, |store, path| async move { store.head(&path).await }).await;
        optional(head.map(|meta| meta.size))
    }

    /// Writes an object whose name no other writer uses, or whose bytes every writer would
    /// write alike. Manifests go through [`Store::commit`].
    ///
    /// # Errors
    /// As the store answers.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        self.operate("write", key, |store, path| {
            let payload = PutPayload::from_bytes(bytes.clone());
            async move { store.put(&path, payload).await.map(drop) }
        })
        .await
    }

    /// One Create, without patience: what its failure means is for the caller to find out.
    pub(crate) async fn create(&self, key: &str, bytes: &Bytes) -> object_store::Result<()> {
        let path = self.path(key);
        self.client
            .call(|store| {
                let (path, payload) = (path.clone(), PutPayload::from_bytes(bytes.clone()));
                async move { store.put_opts(&path, payload, PutMode::Create.into()).await.map(drop) }
            })
            .await
    }

    /// Every object below `prefix`, sorted by key.
    ///
    /// # Errors
    /// As the store answers; a prefix without objects is an empty list.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Meta>> {
        let found = self
            .operate("list", prefix, |store, path| async move {
                store.list(Some(&path)).try_collect::<Vec<_>>().await
            })
            .await?;
        let root_segments = self.root.parts().count();
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
        let deleted =
            self.operate("delete", key, |store, path| async move { store.delete(&path).await }).await;
        optional(deleted).map(drop)
    }
}

fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
