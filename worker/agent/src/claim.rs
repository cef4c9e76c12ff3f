//! What the coordinator does in storage: claim a generation, find the newest checkpoint, commit
//! the step's end.

use std::io::Read;

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use longstrap_runtime::{StepContext, StepResult};
use longstrap_storage::{CheckpointId, Commit, CommitOutcome, keys, newest_checkpoint};
use serde::Serialize;

/// Content of `gang/{n}.json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GangRecord<'a> {
    attempt_id: &'a str,
    attempt: u32,
    pod_uid: &'a str,
    world_size: u32,
    resume: Option<String>,
}

/// A generation that is ours.
pub(crate) struct Claimed {
    pub(crate) generation: u64,
    pub(crate) token: String,
    pub(crate) resume: Option<CheckpointId>,
}

/// Claims the lowest generation that is above `last`, above that of every checkpoint, and free.
pub(crate) async fn claim(ctx: &StepContext, last: u64) -> StepResult<Claimed> {
    let resume = newest_checkpoint(&ctx.store).await?;
    let attempt_id = ctx.attempt_id.to_string();
    let record = GangRecord {
        attempt_id: &attempt_id,
        attempt: ctx.task.attempt,
        pod_uid: &ctx.pod_uid,
        world_size: ctx.task.world_size(),
        resume: resume.map(|id| id.key()),
    };
    let bytes = serde_json::to_vec_pretty(&record).context("record of the gang")?;
    let commit = Commit::Working { attempt_id: ctx.attempt_id.clone() };
    let mut generation = last.max(resume.map_or(0, |id| id.generation));
    loop {
        generation += 1;
        // Ours already: an earlier claim of this pod, whose ranks may have run.
        if ctx.store.size(&keys::gang(generation)).await?.is_some() {
            continue;
        }
        if ctx.store.commit(&keys::gang(generation), bytes.clone(), &commit).await? == CommitOutcome::Won {
            return Ok(Claimed { generation, token: token()?, resume });
        }
    }
}

/// Whether the step's end is committed.
pub(crate) async fn has_ended(ctx: &StepContext) -> StepResult<bool> {
    Ok(ctx.store.size(&end_key(ctx)).await?.is_some())
}

/// Commits the step's end.
pub(crate) async fn commit_end(ctx: &StepContext) -> StepResult {
    let bytes = format!("{{\"step\":\"{}\"}}\n", ctx.task.step);
    // Equal bytes or an error: nothing is lost.
    let _ = ctx.store.commit(&end_key(ctx), bytes, &Commit::Published).await?;
    Ok(())
}

/// Named after its last stage too: an edit may give a later attempt at the step more stages.
fn end_key(ctx: &StepContext) -> String {
    keys::step_end(&format!("{}-to-{}", ctx.task.step, ctx.task.stages.end))
}

/// What strangers cannot guess.
fn token() -> StepResult<String> {
    let mut bytes = [0; 16];
    let mut random = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    random.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(HEXLOWER.encode(&bytes))
}
