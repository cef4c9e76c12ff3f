//! The one binary that every pod runs: a subcommand for each step.
//!
//! A command is chosen by the Job that starts it; task, storage and everything else come from the
//! task file and the environment, so that a pod is the same on a cluster and on one machine.

use clap::Parser;
use longstrap_crds::ExitCode;
use longstrap_crds::task::RunSpec;
use longstrap_runtime::{StepContext, StepResult, main_rank, main_step};

/// Runs one step of a SynthesisJob or ContextExtensionRun. The step's task is the file that the
/// environment variable LONGSTRAP_TASK names.
#[derive(Parser)]
#[command(name = "longstrap-worker", version)]
enum Command {
    /// Check storage, model and data, and fix everything that decides the result in run.json
    Prepare,
    /// Write samples, shard by shard (SynthesisJob)
    Generate,
    /// Publish the dataset (SynthesisJob)
    Finalize,
    /// Supervise the ranks of a training pod (ContextExtensionRun)
    Agent,
    /// Train as one rank; started by the agent
    Rank,
    /// Publish the model (ContextExtensionRun)
    Export,
}

#[tokio::main]
async fn main() {
    let code = run(Command::parse()).await.code();
    // At once: a step that was told to stop may have left a thread that still computes.
    std::process::exit(code)
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Prepare => main_step(prepare).await,
        Command::Generate => main_step(async |ctx| longstrap_synthesis::generate(ctx).await).await,
        Command::Finalize => main_step(async |ctx| longstrap_synthesis::finalize(ctx).await).await,
        Command::Agent => main_step(async |ctx| longstrap_agent::run(ctx).await).await,
        Command::Rank => {
            main_rank(async |ctx, environment, agent| longstrap_training::rank(ctx, environment, agent).await)
                .await
        }
        Command::Export => main_step(async |ctx| longstrap_training::export(ctx).await).await,
    }
}

async fn prepare(ctx: &StepContext) -> StepResult {
    match &ctx.task.spec {
        RunSpec::SynthesisJob(_) => longstrap_synthesis::prepare(ctx).await,
        RunSpec::ContextExtensionRun(_) => longstrap_training::prepare(ctx).await,
    }
}
