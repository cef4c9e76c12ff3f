//! The storage of a run, as `clean` reads and empties it.
//!
//! Invariant: only a storage with an owner is a run's, and only what [`super::inventory`] finds to be
//! its own is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt};
use longstrap_storage::{AttemptId, Digest, Meta, StorageOwner, Store, keys};

use super::inventory::{self, Item, What};

/// Requests in flight.
const AT_ONCE: usize = 16;

/// What a storage holds.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) owner: StorageOwner,
    /// In the order of deletion.
    pub(super) items: Vec<Item>,
    /// Keys of files that uploads to this machine's disk have left.
    pub(super) staged: Vec<String>,
}

/// Reads what is there.
pub(super) async fn read(store: &Store) -> Result<Contents> {
    let listed = store.list("").await?;
    let Some(owner) = owner(store, &listed).await? else {
        bail!(
            "{} is no run's storage: it has no owner/0.json, which every run writes first; nothing was deleted",
            store.uri()
        );
    };
    let fingerprints = fingerprints(store, &listed).await?;
    let candidates = listed.iter().filter(|meta| inventory::names_others(&meta.key));
    let read = futures::stream::iter(candidates.cloned())
        .map(|meta| async move { Ok::<_, anyhow::Error>((store.try_get(&meta.key).await?, meta.key)) })
        .buffer_unordered(AT_ONCE);
    let read: Vec<_> = read.try_collect().await?;
    let (mut manifests, mut named) = (BTreeSet::new(), BTreeSet::new());
    for (bytes, key) in read {
        let fingerprint = fingerprints.get(inventory::place(&key).0).copied();
        if let Some(keys) = bytes.and_then(|bytes| inventory::named(&key, &bytes, fingerprint)) {
            named.extend(keys);
            manifests.insert(key);
        }
    }
    let items = inventory::classify(&listed, &manifests, &named);
    let ours = items.iter().filter(|item| item.what != What::Foreign).map(|item| item.key.clone());
    let ours: BTreeSet<String> = ours.chain(named).collect();
    let staged = staged(store, &ours)?;
    Ok(Contents { owner, items, staged })
}

/// The newest owner.
async fn owner(store: &Store, listed: &[Meta]) -> Result<Option<StorageOwner>> {
    let number = |meta: &Meta| {
        let (folder, name) = meta.key.split_once('/')?;
        let n: u32 = name.strip_suffix(".json")?.parse().ok()?;
        (folder == keys::OWNERS).then_some(n)
    };
    let Some(newest) = listed.iter().filter_map(number).max() else { return Ok(None) };
    let key = keys::owner(newest);
    let bytes = store.get(&key).await?;
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} names no owner", store.uri_of(&key)))
}

/// The fingerprint of the run in each restart's folder.
async fn fingerprints(store: &Store, listed: &[Meta]) -> Result<BTreeMap<String, Digest>> {
    let mut found = BTreeMap::new();
    for meta in listed {
        let (folder, key) = inventory::place(&meta.key);
        if key == keys::RUN {
            found.insert(folder.to_owned(), Digest::of(store.get(&meta.key).await?));
        }
    }
    Ok(found)
}

/// Keys of unfinished uploads to a local disk; listings hide them.
fn staged(store: &Store, ours: &BTreeSet<String>) -> Result<Vec<String>> {
    let found = Mutex::new(Vec::new());
    store.sweep_staging("", |key| {
        let meta = [Meta { key: key.to_owned(), size: 0 }];
        let by_name = inventory::classify(&meta, &BTreeSet::new(), &BTreeSet::new());
        if ours.contains(key) || by_name.iter().any(|item| item.what != What::Foreign) {
            found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(key.to_owned());
        }
        false
    })?;
    Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Deletes all that is the run's, class after class.
pub(super) async fn empty(store: &Store, contents: &Contents) -> Result<()> {
    // Uploads in parts: their records are read before they go. Every writer is dead to an attempt
    // that is not to come.
    let last = AttemptId::new(u32::MAX, 0, "clean")?;
    store.sweep_uploads(&last).await?;
    for class in contents.items.chunk_by(|a, b| a.what == b.what) {
        if class.first().is_none_or(|item| item.what == What::Foreign) {
            continue;
        }
        futures::stream::iter(class)
            .map(|item| async move { store.delete(&item.key).await })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
    }
    store.sweep_staging("", |key| contents.staged.iter().any(|staged| staged == key))?;
    if let Some(root) = store.local_root() {
        remove_empty_folders(&root);
    }
    Ok(())
}

/// Folders are nothing to a store; on a disk they stay behind. Returns whether `folder` is gone.
fn remove_empty_folders(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_folders(&entry.path());
        }
    }
    // Refused by the system unless it is empty.
    fs::remove_dir(folder).is_ok()
}

/// Refuses a folder that `longstrap local run` works in.
pub(super) fn refuse_busy(store: &Store) -> Result<()> {
    let Some(root) = store.local_root() else { return Ok(()) };
    for folder in root.ancestors() {
        let lock = folder.join(".local/lock");
        let Ok(file) = File::open(&lock) else { continue };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(anyhow!(
                "a `longstrap local run` works in {}; wait for it or stop it first",
                folder.display()
            ));
        }
    }
    Ok(())
}
