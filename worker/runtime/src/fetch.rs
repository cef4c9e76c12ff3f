//! A remote folder as a local one: downloaded once per machine, used in place when it is local.

use std::path::{Path, PathBuf};

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
        fetch(&store, &self.cache_dir, &|file, done, total| {
            self.progress.activity(format!("fetching {file}"));
            self.progress.work(done as f64, total as f64, "bytes");
            self.check_stop()
        })
        .await
    }
}

/// `progress` gets the file, the bytes done and those of all files; its error ends the download.
async fn fetch(
    store: &Store,
    cache: &Path,
    progress: &(dyn Fn(&str, u64, u64) -> StepResult + Send + Sync),
) -> StepResult<PathBuf> {
    let nothing = || {
        let uri = store.uri();
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
    let folder = cache.join("fetched").join(name.finish().hex());
    if folder.is_dir() {
        return Ok(folder);
    }
    let unfinished = folder.with_extension(std::process::id().to_string());
    let total = files.iter().map(|file| file.size).sum();
    let mut before = 0;
    for file in &files {
        progress(&file.key, before, total)?;
        let told = |bytes| {
            // A stop is noticed at the next file.
            let _ = progress(&file.key, before + bytes, total);
        };
        store.download(&file.key, &unfinished.join(&file.key), &told).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    #[tokio::test]
    async fn a_folder_is_fetched_once_and_again_when_it_changed() {
        let store = Store::open("memory:///model", &BTreeMap::new()).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let told = Mutex::new(Vec::new());
        let progress = |file: &str, done, total| {
            told.lock().unwrap().push((file.to_owned(), done, total));
            Ok(())
        };
        let error = fetch(&store, cache.path(), &progress).await.unwrap_err();
        assert!(error.to_string().contains("no file at memory:///model"), "{error}");
        store.put("config.json", "{}").await.unwrap();
        store.put("deep/weights", "1234").await.unwrap();
        let folder = fetch(&store, cache.path(), &progress).await.unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("deep/weights")).unwrap(), "1234");
        let last = ("deep/weights".to_owned(), 6, 6);
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()).last(), Some(&last));
        assert_eq!(fetch(&store, cache.path(), &progress).await.unwrap(), folder);
        assert_eq!(told.lock().unwrap().len(), 0, "nothing is downloaded twice");

        store.put("deep/weights", "12345").await.unwrap();
        let again = fetch(&store, cache.path(), &progress).await.unwrap();
        assert_ne!(again, folder);
        assert_eq!(std::fs::read_to_string(again.join("deep/weights")).unwrap(), "12345");
        assert_eq!(std::fs::read_dir(cache.path().join("fetched")).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn a_local_folder_is_used_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let open =
            |path: &Path| Store::open(&format!("file://{}", path.display()), &BTreeMap::new()).unwrap();
        let found = fetch(&open(folder.path()), Path::new("/none"), &|_, _, _| Ok(())).await.unwrap();
        assert_eq!(found, folder.path());
        let missing = open(&folder.path().join("missing"));
        assert_eq!(
            fetch(&missing, folder.path(), &|_, _, _| Ok(())).await.unwrap_err().exit_code().code(),
            10
        );
    }
}
