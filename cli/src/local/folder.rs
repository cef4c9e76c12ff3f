//! The output folder of a local run: its lock, and what is remembered of each object.
//!
//! Invariant: one executor works in a folder at a time, and none starts while a process of an
//! earlier one lives: every pod process inherits the lock's descriptor, and a `flock` is free only
//! when the last holder is gone.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long processes of a killed executor may take to disappear.
const DYING: Duration = Duration::from_secs(15);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// Another executor lives.
    #[error(
        "another `longstrap local run` (process {pid}) works in {folder}; wait for it, stop it, or give another folder with --out"
    )]
    Busy { folder: PathBuf, pid: u32 },
    /// No executor, but one of its processes lives.
    #[error(
        "a process of an earlier run still holds {lock} after {} s; find it with `fuser {lock}`, end it and try again",
        DYING.as_secs()
    )]
    Orphans { lock: String },
    /// The file system refused.
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A file of ours that does not read.
    #[error("{path} is damaged: {source}; remove it to go on (finished work is kept)")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// What is remembered of an object between executors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remembered {
    /// Drawn once for each object of this folder.
    pub(crate) uid: String,
    /// Raised when the spec changes.
    pub(crate) generation: i64,
    /// The spec of that generation.
    pub(crate) spec: Value,
    /// The object's status.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) status: Value,
    /// When the object was first seen here.
    pub(crate) created: jiff::Timestamp,
}

/// A locked output folder.
#[derive(Debug)]
pub(crate) struct OutFolder {
    root: PathBuf,
    lock: File,
}

impl OutFolder {
    /// Creates what is missing and takes the lock.
    pub(crate) fn open(root: &Path) -> Result<Self, FolderError> {
        let local = root.join(".local");
        for part in ["objects", "pods", "logs"] {
            let path = local.join(part);
            fs::create_dir_all(&path).map_err(|source| FolderError::Io {
                doing: "cannot create",
                path,
                source,
            })?;
        }
        let root = root.canonicalize().map_err(|source| FolderError::Io {
            doing: "cannot find",
            path: root.to_owned(),
            source,
        })?;
        let lock = take_lock(&root)?;
        let folder = Self { root, lock };
        folder.forget_pods()?;
        Ok(folder)
    }

    /// The folder as an absolute path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The descriptor that pod processes inherit.
    pub(crate) fn lock_descriptor(&self) -> RawFd {
        self.lock.as_raw_fd()
    }

    /// Files of one pod: mounted volumes, termination file, scratch.
    pub(crate) fn pod_dir(&self, pod: &str) -> PathBuf {
        self.root.join(".local/pods").join(pod)
    }

    /// The log of one pod.
    pub(crate) fn log(&self, pod: &str) -> PathBuf {
        self.root.join(".local/logs").join(format!("{pod}.log"))
    }

    /// What is remembered of an object; `None` for a new one.
    pub(crate) fn recall(&self, kind: &str, name: &str) -> Result<Option<Remembered>, FolderError> {
        let path = self.object_file(kind, name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| FolderError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FolderError::Io { doing: "cannot read", path, source }),
        }
    }

    /// Remembers an object; a torn write leaves the state before.
    pub(crate) fn remember(&self, kind: &str, name: &str, what: &Remembered) -> Result<(), FolderError> {
        let path = self.object_file(kind, name);
        let io = |source| FolderError::Io { doing: "cannot write", path: path.clone(), source };
        let text = serde_json::to_vec_pretty(what).map_err(|error| io(error.into()))?;
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh).map_err(io)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io)?;
        fs::rename(&fresh, &path).map_err(io)
    }

    fn object_file(&self, kind: &str, name: &str) -> PathBuf {
        self.root.join(".local/objects").join(format!("{}.{name}.json", kind.to_lowercase()))
    }

    /// Scratch of pods is worth nothing once their processes are gone, which the lock has shown.
    fn forget_pods(&self) -> Result<(), FolderError> {
        let path = self.root.join(".local/pods");
        fs::remove_dir_all(&path).and_then(|()| fs::create_dir(&path)).map_err(|source| FolderError::Io {
            doing: "cannot clear",
            path,
            source,
        })
    }
}

fn take_lock(root: &Path) -> Result<File, FolderError> {
    let path = root.join(".local/lock");
    let io = |doing| {
        let path = path.clone();
        move |source| FolderError::Io { doing, path, source }
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("cannot open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(source)) => return Err(io("cannot lock")(source)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(io("cannot read"))?;
            if let Some(pid) = alive(&holder) {
                return Err(FolderError::Busy { folder: root.to_owned(), pid });
            }
            file = wait_for_lock(file)
                .ok_or_else(|| FolderError::Orphans { lock: path.display().to_string() })?;
        }
    }
    let identity = identity(std::process::id()).unwrap_or_default();
    file.set_len(0).and_then(|()| fs::write(&path, identity)).map_err(io("cannot write"))?;
    Ok(file)
}

/// Waits in a thread of its own, so that a lock that never comes free can be given up.
fn wait_for_lock(file: File) -> Option<File> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let locked = file.lock().is_ok().then_some(file);
        // The receiver is gone when the wait was given up: the lock is dropped again with the file.
        let _ = sender.send(locked);
    });
    receiver.recv_timeout(DYING).ok().flatten()
}

/// Number and start time of a process: a number alone may have been given to another one since.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; the start time is the 20th field after it.
    let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.to_owned();
    Some(format!("{pid} {started}"))
}

fn alive(holder: &str) -> Option<u32> {
    let pid = holder.split_whitespace().next()?.parse().ok()?;
    (identity(pid)?.as_str() == holder.trim()).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_executor_at_a_time_and_none_beside_an_orphan() {
        let dir = tempfile::tempdir().unwrap();
        let first = OutFolder::open(dir.path()).unwrap();
        let busy = OutFolder::open(dir.path()).unwrap_err();
        assert!(matches!(busy, FolderError::Busy { pid, .. } if pid == std::process::id()), "{busy}");

        // A killed executor's number is of no living process, but a child holds its descriptor.
        let child = first.lock.try_clone().unwrap();
        fs::write(dir.path().join(".local/lock"), "4194304999 1").unwrap();
        drop(first);
        let path = dir.path().to_owned();
        let (sender, receiver) = mpsc::channel();
        let waiting = std::thread::spawn(move || sender.send(OutFolder::open(&path).map(drop)));
        assert!(receiver.recv_timeout(Duration::from_millis(200)).is_err(), "taken beside an orphan");
        drop(child);
        receiver.recv().unwrap().unwrap();
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn objects_are_remembered_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OutFolder::open(dir.path()).unwrap();
        assert_eq!(folder.recall("SynthesisJob", "a").unwrap(), None);
        let what = Remembered {
            uid: "u".into(),
            generation: 1,
            spec: serde_json::json!({"seed": 1}),
            status: Value::Null,
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        folder.remember("SynthesisJob", "a", &what).unwrap();
        assert_eq!(folder.recall("SynthesisJob", "a").unwrap(), Some(what));
        fs::write(dir.path().join(".local/objects/synthesisjob.a.json"), "{").unwrap();
        let error = folder.recall("SynthesisJob", "a").unwrap_err().to_string();
        assert!(error.contains("synthesisjob.a.json is damaged"), "{error}");
    }
}
