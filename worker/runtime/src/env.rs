//! Environment variables of a pod process, beyond those of the task file's module.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{StepError, StepResult};

pub use longstrap_crds::task::{
    ENV_CACHE_DIR as CACHE_DIR, ENV_CREDENTIALS_DIR as CREDENTIALS_DIR, ENV_INDEX as INDEX,
    ENV_POD_UID as POD_UID, ENV_PROGRESS_ADDR_FILE as PROGRESS_ADDR_FILE, ENV_PROGRESS_PORT as PROGRESS_PORT,
    ENV_TASK as TASK, ENV_TERMINATION_FILE as TERMINATION_FILE,
};

/// Filter of the log, as `tracing` reads it (`info`, `longstrap_agent=debug`, …).
pub const LOG: &str = "LONGSTRAP_LOG";
/// Where the kubelet looks for the termination message.
pub const DEFAULT_TERMINATION_FILE: &str = "/dev/termination-log";

/// The variable, when it is set and not empty.
pub fn get(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variable as a path.
pub fn path(name: &str) -> Option<PathBuf> {
    get(name).map(PathBuf::from)
}

/// A variable that must be there and be a `T`.
///
/// # Errors
/// Names the variable and its value.
pub fn require<T: FromStr>(name: &str) -> StepResult<T> {
    let value = get(name).ok_or_else(|| missing(name, "it is not set"))?;
    value.parse().map_err(|_| missing(name, &format!("{value:?} cannot be read")))
}

/// A variable that may be absent, else must be a `T`.
///
/// # Errors
/// Names the variable and its value.
pub fn optional<T: FromStr>(name: &str) -> StepResult<Option<T>> {
    get(name).map(|_| require(name)).transpose()
}

fn missing(name: &str, why: &str) -> StepError {
    let what = "is this process started by an operator or by `longstrap local run`?";
    StepError::Failed(anyhow::anyhow!("environment variable {name}: {why}; {what}"))
}
