//! `longstrap local run`: the planner's Jobs as processes of this machine.

mod clock;
mod disk;
mod display;
mod edits;
mod executor;
pub(crate) mod folder;
mod indexes;
mod job;
mod launch;
pub(crate) mod mounts;
pub(crate) mod outcome;
mod pod;
mod policy;
mod process;
mod progress;
mod report;
mod restart;
mod run;
mod summary;
pub(crate) mod uris;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use longstrap_crds::Object;

use crate::manifest::Manifests;
use crate::validate;
use crate::{LocalRun, RestartFrom};
use clock::Clock;
use executor::{End, Executor};
use folder::OutFolder;
use outcome::described;
use restart::Request;
use run::Identity;

/// 128 + SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

/// Runs manifests to their end; the exit code.
pub(crate) fn run(options: &LocalRun) -> Result<u8> {
    if !(options.clock_speed.is_finite() && options.clock_speed > 0.0) {
        bail!("--clock-speed must be greater than 0");
    }
    let Some(mut manifests) = validate::read(&options.files.files) else { return Ok(1) };
    let worker = worker_program()?;
    let folder = OutFolder::open(&options.out)?;
    resolve(&mut manifests, &folder)?;
    let missing: Vec<String> = manifests
        .objects
        .iter()
        .flat_map(|object| {
            manifests
                .data
                .missing_for(object)
                .into_iter()
                .map(|error| format!("{}: {error}", described(object)))
        })
        .collect();
    if !missing.is_empty() {
        bail!(missing.join("\n"));
    }
    mention_unused(&manifests);
    // One thread: a pod's parent-death signal is tied to the thread that starts it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting up")?;
    runtime.block_on(async {
        let identity = Identity::of(&folder, options.outage_timeout);
        make_room(&manifests.objects, options.restart_from, &folder, &identity).await?;
        let root = folder.root().to_owned();
        let clock = Clock::new(Timestamp::now(), options.clock_speed);
        let Manifests { objects, data, .. } = manifests;
        let mut executor = Executor::new(folder, worker, clock, identity, data, objects)?;
        match executor.work().await? {
            End::Outcome(outcome) => {
                println!("{}", summary::table(executor.objects(), &root));
                if outcome == outcome::Outcome::Complete {
                    println!("{}", summary::next_steps(executor.objects(), &options.out));
                }
                Ok(outcome.code())
            }
            End::Interrupted => {
                eprintln!("stopped; what is finished is kept. The same command goes on from there.");
                Ok(INTERRUPTED)
            }
        }
    })
}

/// Checks the disks, then records restarts: a refused restart leaves the run as it is.
async fn make_room(
    objects: &[Object],
    restart: Option<RestartFrom>,
    folder: &OutFolder,
    identity: &Identity,
) -> Result<()> {
    let request = match restart {
        Some(from) => Request::new(from, objects, folder, identity).await?,
        None => None,
    };
    disk::check(objects, request.as_ref()).await?;
    match request {
        Some(request) => request.record(objects).await,
        None => Ok(()),
    }
}

/// Beside this program, or where `LONGSTRAP_WORKER` says.
fn worker_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LONGSTRAP_WORKER") {
        let path = PathBuf::from(path);
        return path.canonicalize().with_context(|| format!("LONGSTRAP_WORKER={}", path.display()));
    }
    let here = std::env::current_exe().context("finding this program")?;
    let worker = here.with_file_name("longstrap-worker");
    if !worker.is_file() {
        bail!(
            "{} is missing; build it, or name it in the environment variable LONGSTRAP_WORKER",
            worker.display()
        );
    }
    Ok(worker)
}

fn resolve(manifests: &mut Manifests, folder: &OutFolder) -> Result<()> {
    let errors: Vec<String> = manifests
        .objects
        .iter_mut()
        .filter_map(|object| uris::resolve(object, folder.root()).err())
        .flatten()
        .collect();
    if errors.is_empty() { Ok(()) } else { bail!(errors.join("\n")) }
}

fn mention_unused(manifests: &Manifests) {
    let unused: Vec<&str> =
        manifests.cluster_only.iter().chain(&manifests.foreign).map(String::as_str).collect();
    if !unused.is_empty() {
        eprintln!("not used here, only on a cluster: {}", unused.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_restart_that_the_disk_refuses_is_not_recorded_and_the_newest_run_is_judged() {
        let out = tempfile::tempdir().unwrap();
        let folder = OutFolder::open(out.path()).unwrap();
        let identity = Identity::of(&folder, 1);
        let storage = folder.root().join("docs");
        let job = |count: u64| {
            let job = serde_json::json!({
                "apiVersion": "longstrap.io/v1alpha1", "kind": "SynthesisJob",
                "metadata": {"name": "docs"},
                "spec": {
                    "storage": {"uri": format!("file://{}", storage.display())},
                    "tokenizer": {"uri": "s3://b/model"}, "corpus": [{"name": "c", "uri": "s3://b/corpus", "format": "JsonLines"}],
                    "generator": {
                        "endpoints": [{"name": "a", "url": "http://h", "model": "m"}], "contextLength": "8Ki"
                    },
                    "samples": {"longInput": {"count": count, "lengths": [{"name": "l", "tokens": "1Mi"}]}},
                },
            });
            [longstrap_crds::parse(&job).unwrap()]
        };
        let make_room = async |count, restart| make_room(&job(count), restart, &folder, &identity).await;
        let finish = |run: &str| {
            let dataset = storage.join(run).join(longstrap_storage::keys::DATASET);
            std::fs::create_dir_all(dataset.parent().unwrap()).unwrap();
            std::fs::write(dataset, "{}").unwrap();
        };
        let restarted = || storage.join("r1").exists();
        let error = make_room(100_000_000, Some(RestartFrom::Data)).await.unwrap_err();
        assert!(error.to_string().contains("of disk") && !restarted(), "{error}");
        // What does not start over is judged by what is there: a dataset that is finished.
        finish("");
        make_room(100_000_000, Some(RestartFrom::Stage)).await.unwrap();
        assert!(!restarted());
        make_room(1, Some(RestartFrom::Data)).await.unwrap();
        assert!(restarted());
        // Not by that of an older run.
        make_room(100_000_000, None).await.unwrap_err();
        finish("r1");
        make_room(100_000_000, None).await.unwrap();
    }
}
