//! What a step gets: its task, its storage, and the ways to tell how it goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use longstrap_crds::task::TaskError;
use longstrap_crds::{Reason, TaskFile};
use longstrap_storage::{AttemptId, Claim, Credentials, Restart, StorageOwner, Store};
use tokio_util::sync::CancellationToken;

use crate::env;
use crate::error::{StepError, StepResult};
use crate::outage::Outage;
use crate::progress::Progress;
use crate::serve::serve;
use crate::signals::stop_token;
use crate::termination::Termination;

/// Everything that a step may use.
#[derive(Clone)]
pub struct StepContext {
    /// The task file.
    pub task: TaskFile,
    /// Index of this pod in its Job.
    pub index: u32,
    /// UID of this pod.
    pub pod_uid: String,
    /// Names this writer.
    pub attempt_id: AttemptId,
    /// The run's storage: below the newest restart's prefix, waiting when it is away, committing
    /// nothing once it has another owner.
    pub store: Store,
    /// Number of the restart that `store` is of; 0: never restarted.
    pub restarts: u32,
    /// What the newest restart asked for.
    pub restart: Option<Restart>,
    /// The object's whole storage (`store` without a restart's prefix).
    pub storage: Store,
    /// Progress report.
    pub progress: Progress,
    /// Termination message.
    pub termination: Termination,
    /// Cancelled by SIGTERM.
    pub stop: CancellationToken,
    /// Scratch folder of the pod.
    pub cache_dir: PathBuf,
    /// Waits for what is away.
    pub outage: Outage,
    credentials: Credentials,
}

/// What the surroundings of a process decide, read from its environment or chosen by a test.
pub struct Surroundings {
    /// Index of this pod in its Job.
    pub index: u32,
    /// UID of this pod.
    pub pod_uid: String,
    /// Scratch folder of the pod.
    pub cache_dir: PathBuf,
    /// Credentials of the storage.
    pub credentials: Credentials,
    /// Termination message.
    pub termination: Termination,
    /// Cancelled when the process shall stop.
    pub stop: CancellationToken,
}

impl Surroundings {
    /// Of this process; installs its signal handlers.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong.
    pub fn from_env(termination: Termination) -> StepResult<Self> {
        let credentials = match env::path(env::CREDENTIALS_DIR) {
            Some(folder) => Credentials::Folder(folder),
            None => Credentials::Environment,
        };
        let cache_dir = env::path(env::CACHE_DIR).unwrap_or_else(|| std::env::temp_dir().join("longstrap"));
        std::fs::create_dir_all(&cache_dir)
            .with_context(|| format!("cannot make the scratch folder {}", cache_dir.display()))?;
        Ok(Self {
            index: env::optional(env::INDEX)?.unwrap_or(0),
            pod_uid: env::require(env::POD_UID)?,
            cache_dir,
            credentials,
            termination,
            stop: stop_token().context("cannot listen for signals")?,
        })
    }
}

/// Reads the task file that the environment names.
///
/// # Errors
/// When it cannot be read, or is of a newer format.
pub(crate) fn task_from_env() -> StepResult<TaskFile> {
    let path: PathBuf = env::require(env::TASK)?;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the task file {}", path.display()))?;
    TaskFile::from_json(&text).map_err(|error| match error {
        TaskError::TooNew(_) => StepError::invalid(Reason::FormatTooNew, error.to_string()),
        TaskError::Malformed(_) => {
            StepError::Failed(anyhow::Error::from(error).context(path.display().to_string()))
        }
    })
}

impl StepContext {
    /// The context of this pod; serves its progress.
    ///
    /// # Errors
    /// When the environment or the task file is wrong, or the storage cannot be used.
    pub(crate) async fn from_env(termination: Termination) -> StepResult<Self> {
        let task = task_from_env()?;
        let surroundings = Surroundings::from_env(termination)?;
        let progress = Progress::new(&task.owner.uid, task.step.to_string());
        let port = env::optional(env::PROGRESS_PORT)?.unwrap_or(task.ports.progress);
        serve(progress.clone(), port, env::path(env::PROGRESS_ADDR_FILE).as_deref())
            .await
            .with_context(|| format!("cannot serve progress on port {port}"))?;
        Self::new(task, surroundings, progress).await
    }

    /// The context of `task` in `surroundings`. Finds the current run in storage, waiting for
    /// it when it is away.
    ///
    /// # Errors
    /// When the storage cannot be used, or stays away.
    pub async fn new(task: TaskFile, surroundings: Surroundings, progress: Progress) -> StepResult<Self> {
        let Surroundings { index, pod_uid, cache_dir, credentials, termination, stop } = surroundings;
        let attempt_id = AttemptId::new(task.attempt, index, &pod_uid).context("UID of the pod")?;
        let patience = Duration::from_secs(task.outage_timeout_seconds);
        let outage = Outage::new(progress.clone(), stop.clone(), patience);
        let settings = &task.spec.common().storage;
        let storage = Store::open_with(&settings.uri, &settings.options, &credentials)?
            .patient(std::sync::Arc::new(outage.clone()))
            .fenced(&task.owner.uid);
        let (store, restarts, restart) = storage.current_run().await?;
        let store = store.written_by(&attempt_id);
        Ok(Self {
            task,
            index,
            pod_uid,
            attempt_id,
            store,
            restarts,
            restart,
            storage,
            progress,
            termination,
            stop,
            cache_dir,
            outage,
            credentials,
        })
    }

    /// What the first step of every object does before it writes anything: checks that the
    /// store keeps the protocol, and that the storage is this object's.
    ///
    /// # Errors
    /// `Invalid` with `StorageUnsupported`, `StorageInUse`, …
    pub async fn claim_storage(&self) -> StepResult<Claim> {
        self.progress.activity("checking the storage");
        let owner = &self.task.owner;
        let owner = StorageOwner {
            cluster: owner.cluster.clone(),
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        };
        self.storage.probe(&self.attempt_id).await?;
        Ok(self.storage.claim_owner(&owner, self.task.spec.common().storage.adopt).await?)
    }

    /// Opens any URI with the object's credentials; its options hold for the same kind of store.
    ///
    /// # Errors
    /// When the URI is not understood.
    pub async fn open(&self, uri: &str) -> StepResult<Store> {
        let settings = &self.task.spec.common().storage;
        let scheme = |uri: &str| uri.split(':').next().map(str::to_ascii_lowercase);
        let options = match scheme(uri) == scheme(&settings.uri) {
            true => settings.options.clone(),
            false => BTreeMap::new(),
        };
        let store = Store::open_with(uri, &options, &self.credentials)?;
        Ok(store.patient(std::sync::Arc::new(self.outage.clone())))
    }

    /// `Stopped` when the process was told to stop: for the safe points of long work.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn check_stop(&self) -> StepResult {
        match self.stop.is_cancelled() {
            true => Err(StepError::Stopped),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn context(folder: &std::path::Path, name: &str, uid: &str) -> StepResult<StepContext> {
        let task = format!(
            r#"{{"formatVersion": 1, "attempt": 2, "step": "prepare",
            "owner": {{"cluster": "c", "namespace": "n", "name": "{name}", "uid": "{uid}"}},
            "spec": {{"contextExtensionRun": {{"storage": {{"uri": "file://{}"}},
                "model": {{"uri": "file:///m"}}, "data": [], "stages": []}}}},
            "workers": 1, "ranksPerNode": 1, "threadsPerRank": 1, "backoffLimit": 1, "rankTimeoutSeconds": 1,
            "outageTimeoutSeconds": 0, "rendezvousHost": "", "ports": {{"rendezvous": 0, "progress": 0}}}}"#,
            folder.display()
        );
        let surroundings = Surroundings {
            index: 3,
            pod_uid: "0f8fad5b-d9cb".into(),
            cache_dir: folder.join("cache"),
            credentials: Credentials::Environment,
            termination: Termination::nowhere(),
            stop: CancellationToken::new(),
        };
        StepContext::new(TaskFile::from_json(&task).unwrap(), surroundings, Progress::new(uid, "prepare"))
            .await
    }

    #[tokio::test]
    async fn a_foreign_storage_is_refused_with_its_reason_and_commits_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let ours = context(folder.path(), "ours", "uid-1").await.unwrap();
        assert_eq!(ours.attempt_id.to_string(), "2-3-0f8fad5b");
        assert_eq!(ours.claim_storage().await.unwrap().n, 0);
        let theirs = context(folder.path(), "theirs", "uid-2").await.unwrap();
        for error in [
            theirs.claim_storage().await.unwrap_err(),
            theirs.store.commit_run(&serde_json::json!({"formatVersion": 1})).await.unwrap_err().into(),
        ] {
            assert_eq!((error.exit_code().code(), error.reason()), (10, Some(Reason::StorageInUse)));
            assert!(error.to_string().contains("n/ours"), "{error}");
        }
        let committed = ours.store.commit_run(&serde_json::json!({"formatVersion": 1})).await;
        assert!(committed.is_ok(), "{committed:?}");
    }

    #[tokio::test]
    async fn a_restart_moves_the_run_and_keeps_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let before = context(folder.path(), "ours", "uid-1").await.unwrap();
        before.claim_storage().await.unwrap();
        let restart = Restart { from: longstrap_storage::RestartFrom::Stage, request_id: "x".into() };
        before.storage.start_over(&restart).await.unwrap();
        let after = context(folder.path(), "ours", "uid-1").await.unwrap();
        assert_eq!((after.restarts, after.restart.as_ref()), (1, Some(&restart)));
        assert_eq!(after.store.uri(), before.store.uri() + "/r1");
        assert_eq!(after.claim_storage().await.unwrap().n, 0);
    }
}
