//! Removes what dead writers left: data that no manifest names, and staging files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::attempt::AttemptId;
use crate::error::{Error, Result};
use crate::store::Store;

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Keys of data objects.
    pub objects: Vec<String>,
    /// Staging files of the local file system.
    pub staging_files: Vec<PathBuf>,
}

impl Store {
    /// Deletes below `prefix` the data objects of dead writers (their key carries the attempt
    /// id) that are not in `named`, the keys that committed manifests name.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn sweep(&self, prefix: &str, named: &BTreeSet<String>, now: &AttemptId) -> Result<Sweep> {
        let mut swept = Sweep::default();
        for meta in self.list(prefix).await? {
            let dead = AttemptId::of_key(&meta.key).is_some_and(|writer| writer.is_dead_to(now));
            if dead && !named.contains(&meta.key) {
                self.delete(&meta.key).await?;
                swept.objects.push(meta.key);
            }
        }
        swept.staging_files = self.sweep_staging(prefix, |key| {
            AttemptId::of_key(key).is_some_and(|writer| writer.is_dead_to(now))
        })?;
        Ok(swept)
    }

    /// On a local file system an upload that was killed leaves `NAME#1`, which listings hide.
    /// Removes those below `prefix` whose key `dead` accepts. A writer that lives after all
    /// loses its upload and must do it again. Other stores have none.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn sweep_staging(&self, prefix: &str, dead: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
        let Some(root) = self.local_root() else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        let mut folders = vec![root.join(prefix)];
        while let Some(folder) = folders.pop() {
            let failed = |e: std::io::Error| Error::from_io("clean", &folder, &e);
            let entries = match std::fs::read_dir(&folder) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(path);
                } else if let Some(key) = staged_key(&root, &path)
                    && dead(&key)
                {
                    match std::fs::remove_file(&path) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                            return Err(failed(e));
                        }
                        _ => removed.push(path),
                    }
                }
            }
        }
        removed.sort();
        Ok(removed)
    }
}

/// The key that the staging file `path` was to become.
fn staged_key(root: &Path, path: &Path) -> Option<String> {
    let relative = path.strip_prefix(root).ok()?.to_str()?;
    let (key, number) = relative.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then(|| key.to_owned())
}
