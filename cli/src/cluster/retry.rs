//! `longstrap retry`: a run that has ended is made again and goes on from its storage.
//!
//! Invariant: at every moment the object exists, or its manifest lies in a file whose name was told.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use kube::api::{DeleteParams, DynamicObject, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use longstrap_crds::names::ANNOTATION_RESTART;
use longstrap_crds::{API_VERSION, Phase};
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::access::{Access, Cluster};
use super::error::ClusterError;
use super::follow::follow;
use super::output::yaml;
use super::target::{Found, Target, find};
use super::words;

/// Pauses between tries to create the object, while the API server does not answer.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 16];
/// Files of one object in one folder, left by tries that failed.
const MAX_FILES: u32 = 10;

/// Options of `retry`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RetryArgs {
    /// Object, as docs, synth/docs or cer/run
    #[arg(value_name = "[KIND/]NAME")]
    target: Target,
    #[command(flatten)]
    access: Access,
}

/// Deletes the object and creates it again.
pub(crate) async fn retry(args: &RetryArgs) -> Result<u8> {
    let cluster = Cluster::connect(&args.access).await?;
    let found = find(&cluster, &args.target).await?;
    if !found.phase().is_some_and(Phase::is_terminal) {
        bail!(
            "{} has not ended (it is {}); `longstrap restart` starts its next attempt now",
            found.described(),
            words::phase(&found.object)
        );
    }
    remake(&cluster, &found, &folders()).await?;
    println!(
        "{} has been made again and goes on from {}",
        found.described(),
        found.object.common().storage.uri
    );
    if found.object.common().suspend {
        println!("spec.suspend is true: go on with `longstrap resume`");
    }
    Ok(0)
}

/// Where the manifest may lie meanwhile: here, or where temporary files are.
fn folders() -> Vec<PathBuf> {
    std::env::current_dir().into_iter().chain([std::env::temp_dir()]).collect()
}

async fn remake(cluster: &Cluster, found: &Found, folders: &[PathBuf]) -> Result<()> {
    let manifest = manifest(found)?;
    rehearse(cluster, found, &manifest).await.context("nothing was deleted")?;
    let file = save(found, &manifest, folders)?;
    let shown = file.display();
    eprintln!("{} is deleted and created again; meanwhile its manifest lies in {shown}", found.described());
    let remove = || fs::remove_file(&file).with_context(|| format!("cannot remove {shown}"));
    match again(cluster, found, &manifest).await {
        Ok(()) => remove(),
        // Its manifest is no longer what the file says.
        Err(error) if matches!(error.downcast_ref(), Some(ClusterError::Changed { .. })) => {
            remove()?;
            Err(error.context("nothing was deleted"))
        }
        Err(error) => Err(error
            .context(format!("if {} is gone, make it by `kubectl create -f {shown}`", found.described()))),
    }
}

async fn again(cluster: &Cluster, found: &Found, manifest: &Value) -> Result<()> {
    delete(cluster, found).await?;
    let object: DynamicObject = serde_json::from_value(manifest.clone())?;
    create(cluster, found, &object).await
}

/// What a person would have written: the object without what the server and the operator added.
fn manifest(found: &Found) -> Result<Value> {
    let raw = &found.raw;
    let mut metadata = json!({"name": raw.name_any(), "namespace": found.object.namespace()});
    if !raw.labels().is_empty() {
        metadata["labels"] = json!(raw.labels());
    }
    let mut annotations = raw.annotations().clone();
    // A request that the old object had.
    annotations.remove(ANNOTATION_RESTART);
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    if !raw.owner_references().is_empty() {
        metadata["ownerReferences"] = serde_json::to_value(raw.owner_references())?;
    }
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": found.kind.as_str(),
        "metadata": metadata,
        "spec": raw.data["spec"],
    }))
}

/// Has the server check right and manifest, under a name that it draws, before anything is deleted.
async fn rehearse(cluster: &Cluster, found: &Found, manifest: &Value) -> Result<()> {
    let mut other = manifest.clone();
    other["metadata"]["name"] = Value::Null;
    other["metadata"]["generateName"] = json!(format!("{}-", found.name()));
    let other: DynamicObject = serde_json::from_value(other)?;
    let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.to_owned()) };
    cluster.ask(found.request("create"), found.api(cluster).create(&params, &other)).await?;
    Ok(())
}

/// Writes the manifest into a new file of the first folder that takes it. Others may write there too:
/// what lies there already, be it a link, is left alone.
fn save(found: &Found, manifest: &Value, folders: &[PathBuf]) -> Result<PathBuf> {
    let short: String = found.name().chars().take(100).collect();
    let uid: String = found.object.uid().chars().take(8).collect();
    let text = yaml(manifest)? + "\n";
    let mut refused = Vec::new();
    for folder in folders {
        for n in 1..=MAX_FILES {
            let number = if n == 1 { String::new() } else { format!("-{n}") };
            let path = folder.join(format!("longstrap-retry-{short}-{uid}{number}.yaml"));
            match write_new(&path, &text) {
                Ok(()) => return Ok(path),
                Err(error) => {
                    let taken = error.kind() == ErrorKind::AlreadyExists;
                    refused.push(format!("{}: {error}", path.display()));
                    if !taken {
                        break;
                    }
                }
            }
        }
    }
    bail!("nothing was deleted: its manifest can be kept nowhere ({})", refused.join("; "))
}

/// A file that nobody else reads; none when it cannot be written whole.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // The error is what matters.
        let _ = fs::remove_file(path);
    }
    written
}

/// Deletes this very object, unchanged since its manifest was kept, and waits until it is gone.
async fn delete(cluster: &Cluster, found: &Found) -> Result<()> {
    let precondition = Preconditions {
        uid: Some(found.object.uid().to_owned()),
        resource_version: found.raw.resource_version(),
    };
    let params = DeleteParams::background().preconditions(precondition);
    let api = found.api(cluster);
    match cluster.ask(found.request("delete"), api.delete(found.name(), &params)).await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut told = false;
    follow(cluster, found, |state| match state.filter(|now| now.object.uid() == found.object.uid()) {
        None => Some(()),
        Some(now) => {
            if !told && !now.raw.finalizers().is_empty() {
                eprintln!("its deletion waits for the finalizers {}", now.raw.finalizers().join(", "));
                told = true;
            }
            None
        }
    })
    .await
}

/// Creates the object, through moments without an API server.
async fn create(cluster: &Cluster, found: &Found, object: &DynamicObject) -> Result<()> {
    let params = PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let api: Api<DynamicObject> = found.api(cluster);
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match cluster.ask(found.request("create"), api.create(&params, object)).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // Our own try that had no answer, or somebody who applies manifests all the time.
        if let Ok(Some(now)) = cluster.ask(found.request("get"), api.get_opt(found.name())).await {
            return match now.data["spec"] == object.data["spec"] {
                true => Ok(()),
                false => Err(anyhow!("somebody else has created it meanwhile, with another spec")),
            };
        }
        let pause = match (&error, pauses.next()) {
            (ClusterError::Away { .. } | ClusterError::Refused { .. }, Some(pause)) => pause,
            _ => return Err(error.into()),
        };
        eprintln!("{error}; tried again in {pause} s");
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
