//! Work that blocks for long, beside the runtime.
//!
//! Invariant: on a thread and no task of the runtime, so a process that is told to stop does not wait for it.

use anyhow::Context as _;
use longstrap_runtime::{StepContext, StepError, StepResult};

/// What `work` returns; its thread has a name.
///
/// # Errors
/// `Stopped`: the process was told to; the thread goes on until the process ends. When there is no thread,
/// or it has panicked.
pub(crate) async fn aside<T: Send + 'static>(
    ctx: &StepContext,
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> StepResult<T> {
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody listens when the process was told to stop.
        drop(send.send(work()));
    })?;
    tokio::select! {
        () = ctx.stop.cancelled() => Err(StepError::Stopped),
        done = receive => Ok(done.with_context(|| format!("the thread of the {name} has ended"))?),
    }
}
