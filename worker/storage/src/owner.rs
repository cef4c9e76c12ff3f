//! Who owns a storage: `owner/{n}.json`, each claimed by Create, the highest is the owner.
//!
//! A store with a fence commits nothing once the storage has another owner.

use std::sync::atomic::{AtomicU32, Ordering};

use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::commit::{Commit, CommitOutcome};
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::store::Store;

/// The API object that a storage belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageOwner {
    /// Identity of the cluster, or of the output folder of a local run.
    pub cluster: String,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
}

impl StorageOwner {
    fn is_recreation_of(&self, other: &Self) -> bool {
        (&self.cluster, &self.namespace, &self.name) == (&other.cluster, &other.namespace, &other.name)
    }
}

/// A claim that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its number.
    pub n: u32,
    /// The owner before it, if the storage changed hands.
    pub previous: Option<StorageOwner>,
}

/// Stops commits of an owner that was superseded.
#[derive(Debug)]
pub(crate) struct Fence {
    uid: String,
    /// Where the owner files lie (a run may live below a restart's prefix).
    root: Path,
    /// A claim of ours that was the highest when we looked last.
    seen: AtomicU32,
}

impl Store {
    /// Claims this storage for `owner`, or finds its claim.
    ///
    /// # Errors
    /// `InUse` when another object owns it (and `adopt` is false), or took it over from us.
    pub async fn claim_owner(&self, owner: &StorageOwner, adopt: bool) -> Result<Claim> {
        let mut previous: Option<StorageOwner> = None;
        let mut held_before = false;
        let bytes = serde_json::to_vec_pretty(owner)
            .map_err(|e| Error::new(ErrorKind::Malformed, "claim", self.uri(), e.to_string()))?;
        let mut n = 0;
        loop {
            let key = keys::owner(n);
            let found = match self.try_get(&key).await? {
                Some(found) => found,
                None => {
                    if let Some(other) = &previous {
                        let ours = owner.is_recreation_of(other) || adopt;
                        if held_before || !ours {
                            return Err(self.in_use(other, held_before));
                        }
                    }
                    match self.commit(&key, bytes.clone(), &Commit::Published).await {
                        Ok(CommitOutcome::Won) => return Ok(Claim { n, previous }),
                        Ok(CommitOutcome::Lost(found)) => found,
                        // Another claimed at the same moment: it is the one to judge now.
                        Err(error) if error.kind() == ErrorKind::Conflict => self.get(&key).await?,
                        Err(error) => return Err(error),
                    }
                }
            };
            let holder = self.parse_owner(&key, &found)?;
            if holder.uid == owner.uid {
                if self.size(&keys::owner(n + 1)).await?.is_none() {
                    return Ok(Claim { n, previous });
                }
                held_before = true;
            }
            previous = Some(holder);
            n += 1;
        }
    }

    /// The same store, whose commits fail with `InUse` once the storage belongs to another
    /// UID. The claim files are looked for at this store's root; [`Store::sub`] keeps that.
    pub fn fenced(&self, uid: &str) -> Self {
        let fence = Fence { uid: uid.to_owned(), root: self.root.clone(), seen: AtomicU32::new(0) };
        Self { fence: Some(std::sync::Arc::new(fence)), ..self.clone() }
    }

    pub(crate) async fn check_fence(&self) -> Result<()> {
        let Some(fence) = &self.fence else { return Ok(()) };
        let root = Self { root: fence.root.clone(), fence: None, ..self.clone() };
        let mut n = fence.seen.load(Ordering::Relaxed);
        // A claim that we saw as ours cannot change, so only newer ones are read.
        let mut last = match n {
            0 => root.read_owner(0).await?,
            _ => None,
        };
        while let Some(newer) = root.read_owner(n + 1).await? {
            last = Some(newer);
            n += 1;
        }
        match last {
            Some(owner) if owner.uid != fence.uid => Err(self.in_use(&owner, true)),
            _ => {
                fence.seen.store(n, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    async fn read_owner(&self, n: u32) -> Result<Option<StorageOwner>> {
        let key = keys::owner(n);
        match self.try_get(&key).await? {
            Some(bytes) => self.parse_owner(&key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    fn parse_owner(&self, key: &str, bytes: &[u8]) -> Result<StorageOwner> {
        serde_json::from_slice(bytes)
            .map_err(|e| Error::new(ErrorKind::Malformed, "read", self.uri_of(key), e.to_string()))
    }

    fn in_use(&self, other: &StorageOwner, superseded: bool) -> Error {
        let StorageOwner { cluster, namespace, name, uid } = other;
        let how = if superseded { "was taken over by" } else { "belongs to" };
        Error::new(
            ErrorKind::InUse,
            "use",
            self.uri(),
            format!("it {how} {namespace}/{name} (UID {uid}) of cluster {cluster}"),
        )
    }
}
