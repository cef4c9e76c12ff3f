//! From a pod object to the process to start: command, variables, files.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use longstrap_crds::task::{
    ENV_CACHE_DIR, ENV_INDEX, ENV_POD_UID, ENV_PROGRESS_ADDR_FILE, ENV_PROGRESS_PORT, ENV_TERMINATION_FILE,
};

use super::folder::OutFolder;
use super::mounts::{self, KeyedData, MountError};
use super::process::Launch;

/// Name of the worker's program in an image.
const WORKER_PROGRAM: &str = "longstrap-worker";
/// A kubelet's own default.
const GRACE_SECONDS: i64 = 30;

/// Why a pod cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A volume or variable.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The pod's folder.
    #[error("cannot create {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Where a pod writes the address of its progress service.
pub(crate) fn address_file(folder: &OutFolder, pod: &Pod) -> PathBuf {
    folder.pod_dir(name(pod)).join("progress-address")
}

/// Name of a pod.
pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Writes the files of a pod and returns its process. `worker` is the program that stands for the
/// worker of the image.
pub(crate) fn launch(
    pod: &Pod,
    data: &KeyedData,
    folder: &OutFolder,
    worker: &Path,
    lock: RawFd,
) -> Result<Launch, LaunchError> {
    let dir = folder.pod_dir(name(pod));
    let cache = dir.join("cache");
    fs::create_dir_all(&cache).map_err(|source| LaunchError::Io { path: cache.clone(), source })?;
    let mut env = mounts::prepare(pod, data, &dir)?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.as_ref();
    let index = annotations.and_then(|all| all.get("batch.kubernetes.io/job-completion-index"));
    let termination = dir.join("termination");
    for (key, value) in [
        (ENV_INDEX, index.cloned().unwrap_or_else(|| "0".into()).into()),
        (ENV_POD_UID, uid.clone().into()),
        (ENV_TERMINATION_FILE, termination.clone().into_os_string()),
        // Any free port: the pods of a machine share its network.
        (ENV_PROGRESS_PORT, "0".into()),
        (ENV_PROGRESS_ADDR_FILE, address_file(folder, pod).into_os_string()),
        (ENV_CACHE_DIR, cache.into_os_string()),
    ] {
        env.insert(key.to_owned(), value);
    }
    let grace =
        pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS);
    Ok(Launch {
        uid,
        command: command(pod, worker),
        env,
        log: folder.log(name(pod)),
        dir,
        termination,
        grace: Duration::from_secs(u64::try_from(grace).unwrap_or(0)),
        lock,
    })
}

fn command(pod: &Pod, worker: &Path) -> Vec<String> {
    let container = mounts::worker(pod).cloned().unwrap_or_default();
    // An image without a command of its own starts the worker.
    let mut words = container.command.unwrap_or_else(|| vec![WORKER_PROGRAM.into()]);
    words.extend(container.args.unwrap_or_default());
    if let Some(program) = words.first_mut()
        && Path::new(program).file_name().is_some_and(|name| name == WORKER_PROGRAM)
    {
        *program = worker.display().to_string();
    }
    words
}
