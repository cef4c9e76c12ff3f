//! From a step to a process: context in, exit code and termination message out.

use std::time::Duration;

use longstrap_crds::{ExitCode, Step};
use tokio::sync::watch;

use crate::context::{StepContext, Surroundings, task_from_env};
use crate::env;
use crate::error::{StepError, StepResult};
use crate::logging;
use crate::progress::Progress;
use crate::rank::{AgentLink, RankEnv};
use crate::termination::Termination;

/// A rank tells its agent changes at most this often.
const TELL_AFTER: Duration = Duration::from_millis(200);

/// Runs `step` as the whole of this process: its context from the environment, its end as
/// termination message and as the code to exit with.
pub async fn main_step(step: impl AsyncFnOnce(&StepContext) -> StepResult) -> ExitCode {
    logging::init();
    let path = env::path(env::TERMINATION_FILE).unwrap_or_else(|| env::DEFAULT_TERMINATION_FILE.into());
    let termination = Termination::at(path);
    let result = match StepContext::from_env(termination.clone()).await {
        Ok(context) => {
            let result = async {
                context.store.sweep_uploads(&context.attempt_id).await?;
                step(&context).await?;
                clean_up(&context)
            };
            stopped_first(result.await, context.stop.is_cancelled())
        }
        Err(error) => Err(error),
    };
    let written = termination.write(|message| match &result {
        Ok(()) => message.complete = true,
        Err(error) => {
            message.reason = error.reason();
            message.message = error.to_string();
        }
    });
    if let Err(error) = written {
        tracing::warn!(%error, "the termination message cannot be written");
    }
    exit(&result)
}

/// The last step is committed, so every other writer is dead or too late: staging files that
/// kills left on a local disk go.
fn clean_up(context: &StepContext) -> StepResult {
    if matches!(context.task.step, Step::Finalize | Step::Export) {
        context.store.sweep_staging("", |_| true)?;
    }
    Ok(())
}

/// [`main_step`] of a rank: its agent hears progress and end, and writes the termination file.
pub async fn main_rank(step: impl AsyncFnOnce(&StepContext, RankEnv, AgentLink) -> StepResult) -> ExitCode {
    logging::init();
    let result = match RankEnv::from_env() {
        Ok((environment, link)) => {
            let result = run_rank(step, environment, link.clone()).await;
            if let Err(error) = &result {
                link.ended(error);
            }
            result
        }
        Err(error) => Err(error),
    };
    exit(&result)
}

async fn run_rank(
    step: impl AsyncFnOnce(&StepContext, RankEnv, AgentLink) -> StepResult,
    environment: RankEnv,
    link: AgentLink,
) -> StepResult {
    let task = task_from_env()?;
    let surroundings = Surroundings::from_env(Termination::nowhere())?;
    let progress = Progress::new(&task.owner.uid, task.step.to_string());
    progress.update(|report| report.gang_generation = environment.generation);
    tokio::spawn(tell(progress.clone(), progress.changes(), link.clone()));
    let context = StepContext::new(task, surroundings, progress.clone()).await?;
    let result = step(&context, environment, link.clone()).await;
    link.report(&progress.report());
    stopped_first(result, context.stop.is_cancelled())
}

/// Tells the agent every change. No change is no sign of life: a rank that hangs is silent.
async fn tell(progress: Progress, mut changes: watch::Receiver<u64>, link: AgentLink) {
    while changes.changed().await.is_ok() {
        link.report(&progress.report());
        tokio::time::sleep(TELL_AFTER).await;
    }
}

/// Who was told to stop while something was away has stopped.
fn stopped_first(result: StepResult, told: bool) -> StepResult {
    match result {
        Err(StepError::Outage { .. }) if told => Err(StepError::Stopped),
        result => result,
    }
}

fn exit(result: &StepResult) -> ExitCode {
    let Err(error) = result else {
        tracing::info!("done");
        return ExitCode::Committed;
    };
    tracing::error!(code = error.exit_code().code(), reason = ?error.reason(), "{error}");
    error.exit_code()
}
