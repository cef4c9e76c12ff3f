//! `longstrap suspend`, `resume` and `restart`: one small edit each, as a person would make it.
//!
//! Invariant: an object that has ended is refused (nothing would happen), and of the spec nothing
//! but `suspend` is ever written.

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use longstrap_crds::Phase;
use longstrap_crds::names::ANNOTATION_RESTART;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::access::{Access, Cluster};
use super::target::{Found, Target, find};

/// Options of `suspend`, `resume` and `restart`.
#[derive(Args, Clone, Debug)]
pub(crate) struct EditArgs {
    /// Object, as docs, synth/docs or cer/run
    #[arg(value_name = "[KIND/]NAME")]
    target: Target,
    #[command(flatten)]
    access: Access,
}

/// Stops the run; its pods save their state first.
pub(crate) async fn suspend(args: &EditArgs) -> Result<u8> {
    let (cluster, found) = live(args).await?;
    if found.object.common().suspend {
        println!("{} is suspended already", found.described());
        return Ok(0);
    }
    edit(&cluster, &found, json!({"spec": {"suspend": true}})).await?;
    println!("{} stops: its pods save their state and end; go on with `longstrap resume`", found.described());
    Ok(0)
}

/// Lets a suspended run go on.
pub(crate) async fn resume(args: &EditArgs) -> Result<u8> {
    let (cluster, found) = live(args).await?;
    if !found.object.common().suspend {
        println!("{} is not suspended", found.described());
        return Ok(0);
    }
    edit(&cluster, &found, json!({"spec": {"suspend": false}})).await?;
    println!("{} goes on with its next attempt, from its storage", found.described());
    Ok(0)
}

/// Asks for a new attempt now: with the newest spec, and whatever blocked the run.
pub(crate) async fn restart(args: &EditArgs) -> Result<u8> {
    let (cluster, found) = live(args).await?;
    let now = Timestamp::now().to_string();
    edit(&cluster, &found, json!({"metadata": {"annotations": {ANNOTATION_RESTART: now}}})).await?;
    let when = if found.object.common().suspend { " when it is resumed" } else { "" };
    println!(
        "{} starts its next attempt{when}, from its storage and with the newest spec",
        found.described()
    );
    Ok(0)
}

async fn live(args: &EditArgs) -> Result<(Cluster, Found)> {
    let cluster = Cluster::connect(&args.access).await?;
    let found = find(&cluster, &args.target).await?;
    if found.raw.metadata.deletion_timestamp.is_some() {
        bail!("{} is being deleted", found.described());
    }
    match found.phase() {
        Some(Phase::Complete) => {
            bail!("{} is Complete: there is nothing to do", found.described())
        }
        Some(Phase::Failed) => bail!(
            "{} has failed and stays so; `longstrap retry` makes it again and goes on from its storage",
            found.described()
        ),
        _ => Ok((cluster, found)),
    }
}

async fn edit(cluster: &Cluster, found: &Found, mut patch: Value) -> Result<()> {
    // Of this object, not of one that was created under its name meanwhile.
    patch["metadata"]["uid"] = json!(found.object.uid());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let api = found.api(cluster);
    let patch = Patch::Merge(patch);
    cluster.ask(found.request("patch"), api.patch(found.name(), &params, &patch)).await?;
    Ok(())
}
