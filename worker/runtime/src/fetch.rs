//! A remote folder as a local one: downloaded once per machine, used in place when it is local.

use std::path::PathBuf;

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_storage::{Hasher, Store};

use crate::context::StepContext;
use crate::error::{StepError, StepResult};

impl StepContext {
    /// A local folder with the files of `uri`. Processes of one pod share a download; a changed
    /// listing is another download.
    ///
    /// # Errors
    /// `Invalid` when there is nothing at `uri`; as storage and disk answer.
    pub async fn fetch_dir(&self, uri: &str) -> StepResult<PathBuf> {
        let store = self.open(uri).await?;
        let nothing = || {
            let message = format!("there is no file at {uri}: correct the URI, or put the files there");
            StepError::invalid(Reason::InvalidModel, message)
        };
        if let Some(folder) = store.local_root() {
            return if folder.is_dir() { Ok(folder) } else { Err(nothing()) };
        }
        let files = store.list("").await?;
        if files.is_empty() {
            return Err(nothing());
        }
        let mut name = Hasher::default();
        name.update(store.uri());
        for file in &files {
            name.update(format!("\n{} {}", file.size, file.key));
        }
        let folder = self.cache_dir.join("fetched").join(name.finish().hex());
        if folder.is_dir() {
            return Ok(folder);
        }
        let unfinished = folder.with_extension(std::process::id().to_string());
        let total: u64 = files.iter().map(|file| file.size).sum();
        let mut before = 0;
        for file in &files {
            self.check_stop()?;
            self.progress.activity(format!("fetching {}", store.uri_of(&file.key)));
            let progress = |bytes| self.progress.work((before + bytes) as f64, total as f64, "bytes");
            download(&store, &file.key, &unfinished, &progress).await?;
            before += file.size;
        }
        match std::fs::rename(&unfinished, &folder) {
            // Another process of the pod was faster.
            Err(_) if folder.is_dir() => {
                std::fs::remove_dir_all(&unfinished).context("cannot remove a second download")?;
            }
            renamed => renamed.with_context(|| format!("cannot make {}", folder.display()))?,
        }
        Ok(folder)
    }
}

async fn download(
    store: &Store,
    key: &str,
    folder: &std::path::Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> StepResult {
    Ok(store.download(key, &folder.join(key), progress).await?)
}
