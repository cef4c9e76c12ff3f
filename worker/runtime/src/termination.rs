//! The termination file: rewritten after every commit, so that the kubelet finds the last state
//! even after SIGKILL.
//!
//! It is a mounted file, so it cannot be replaced by a rename: one write of at most 4 KiB, padded
//! over the text before, leaves a readable message at any moment.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use longstrap_crds::TerminationMessage;

/// Handle on the pod's termination message; clones share it.
#[derive(Clone)]
pub struct Termination {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// `None`: this process has none (a rank; its agent writes).
    path: Option<PathBuf>,
    message: TerminationMessage,
}

impl Termination {
    /// Writes to `path`, from an empty message.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self::shared(Some(path.into()))
    }

    /// Keeps the message in memory only.
    pub fn nowhere() -> Self {
        Self::shared(None)
    }

    fn shared(path: Option<PathBuf>) -> Self {
        let message = TerminationMessage::default();
        Self { shared: Arc::new(Mutex::new(Shared { path, message })) }
    }

    /// Changes the message and rewrites the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, change: impl FnOnce(&mut TerminationMessage)) -> io::Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        change(&mut shared.message);
        match &shared.path {
            Some(path) => rewrite(path, &shared.message.to_json()),
            None => Ok(()),
        }
    }

    /// The message as it is now.
    pub fn message(&self) -> TerminationMessage {
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).message.clone()
    }
}

fn rewrite(path: &Path, json: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let padded = format!("{json:<width$}", width = before.min(TerminationMessage::MAX_BYTES));
    file.write_all(padded.as_bytes())?;
    file.set_len(json.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rewrite_is_the_whole_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("termination-log");
        std::fs::write(&path, "x".repeat(9000)).unwrap();
        let termination = Termination::at(&path);
        for (committed, text) in [(1, "long ".repeat(3000)), (2, "short".to_owned())] {
            termination
                .write(|m| {
                    m.committed = committed;
                    m.message.clone_from(&text);
                })
                .unwrap();
            let found = std::fs::read_to_string(&path).unwrap();
            assert!(found.len() <= TerminationMessage::MAX_BYTES);
            assert_eq!(TerminationMessage::parse(&found).committed, committed);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), termination.message().to_json());
    }
}
