//! A run that is killed goes on with another number of ranks from its last checkpoint: the whole
//! run, or a single rank by `kill -9`, again and again until the gang gives up.
//!
//! Deliberate breakages that it catches: a checkpoint in the layout of the ranks that wrote it, a
//! resume that starts over, a gradient that is averaged over the wrong number of ranks, a gang that
//! does not notice that one of its ranks is gone.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::smoke::{Running, Smoke};
use longstrap_tests::{processes, tensors, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Largest difference of the weights' change from the undisturbed run's, relative to that change
/// (both as Euclidean norms): ranks add up in another order, and the optimizer carries that on.
const TOLERANCE: f64 = 1e-3;
/// Nothing that is waited for takes so long.
const STUCK: Duration = Duration::from_secs(120);

/// What gets SIGKILL after the first checkpoint.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// The executor, and everything with it.
    Run,
    /// Only this rank, in every gang that forms, until `backoffLimit`.
    Rank(u32),
}

#[test]
fn another_number_of_ranks_goes_on_from_the_checkpoint() {
    let server = ChatServer::start(Manner::Helpful);
    let undisturbed = prepared(&server);
    undisturbed.complete();
    let start = tensors::values(&undisturbed.out().join("model/model.safetensors"));
    let expected = tensors::values(&weights(&undisturbed));

    let two_by_two = "nodes: 2, ranksPerNode: 2";
    for (ranks, victim, before, after) in [
        ([4, 2], Victim::Run, two_by_two, "nodes: 2, ranksPerNode: 1"),
        ([2, 3], Victim::Rank(0), "nodes: 1, ranksPerNode: 2", "nodes: 1, ranksPerNode: 3"),
        ([4, 1], Victim::Rank(3), two_by_two, "nodes: 1, ranksPerNode: 1"),
    ] {
        let smoke = prepared(&server);
        if before != two_by_two {
            smoke.edit("extension.yaml", two_by_two, before);
        }
        let mut executor = smoke.spawn();
        let since = Instant::now();
        while checkpoint(&smoke.out()).is_none() {
            assert!(since.elapsed() < STUCK, "no checkpoint\n{}", smoke.log());
            assert_eq!(executor.try_wait().unwrap(), None, "{}", smoke.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        match victim {
            Victim::Run => {
                executor.kill().unwrap();
                executor.wait().unwrap();
            }
            Victim::Rank(rank) => kill_until_the_gang_gives_up(&smoke, &mut executor, rank),
        }
        let saved = checkpoint(&smoke.out()).unwrap();
        assert_eq!(saved["worldSize"], ranks[0], "{saved}");
        // Steps that survivors noted; from here on only the other ranks note theirs.
        let log = smoke.out().join("run/run-log");
        if log.exists() {
            std::fs::remove_dir_all(log).unwrap();
        }

        smoke.edit("extension.yaml", before, after);
        smoke.complete();
        let stage = read(&smoke.out().join("run/stages/one-k/stage.json"));
        assert_eq!(stage["worldSize"], ranks[1], "{stage}");
        let (from, saved) = (first_step(&smoke.out()), saved["stageStep"].as_u64().unwrap());
        assert_eq!(from, saved + 1, "{ranks:?}: where it went on, and what was saved");

        let found = tensors::values(&weights(&smoke));
        let norm = |pairs: &mut dyn Iterator<Item = (&f32, &f32)>| {
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let change = norm(&mut expected.iter().zip(&start));
        let difference = norm(&mut found.iter().zip(&expected)) / change;
        println!("{ranks:?} {victim:?}: relative difference {difference:.2e}");
        assert!(found.len() == expected.len() && difference < TOLERANCE, "{ranks:?}: {difference}");
    }
}

/// Kills one rank of each gang, nothing else, until the run has failed by that.
fn kill_until_the_gang_gives_up(smoke: &Smoke, executor: &mut Running, rank: u32) {
    let pid = i32::try_from(executor.id()).unwrap();
    let (since, mut killed) = (Instant::now(), 0);
    let status = loop {
        if let Some(status) = executor.try_wait().unwrap() {
            break status;
        }
        assert!(since.elapsed() < STUCK, "{killed} ranks killed, and it goes on\n{}", smoke.log());
        let Some(victim) = processes::rank(pid, rank) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        // It may have ended by itself, because another rank did.
        killed += u32::from(kill(Pid::from_raw(victim.pid), Signal::SIGKILL).is_ok());
        while processes::lives(victim.pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    assert_eq!(status.code(), Some(1), "{}", smoke.log());
    assert!(killed > 0 && smoke.log().contains("BackoffLimitExceeded"), "{killed} killed\n{}", smoke.log());
}

/// Enough steps in the first stage that a checkpoint, one a second, falls into it on a fast machine
/// too; one failure of a gang without a new checkpoint ends it.
fn prepared(server: &ChatServer) -> Smoke {
    let mut smoke = Smoke::new(server);
    smoke.clock_speed = 30;
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 300");
    smoke.edit("extension.yaml", "maxEpochs: 8", "maxEpochs: 1000");
    smoke.edit("extension.yaml", "  parallelism:", "  backoffLimit: 1\n  parallelism:");
    let path = smoke.manifests().join("extension.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, text.split("  evaluation:").next().unwrap()).unwrap();
    smoke
}

fn weights(smoke: &Smoke) -> std::path::PathBuf {
    smoke.out().join("run/model/model.safetensors")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The manifest of the newest checkpoint.
fn checkpoint(out: &Path) -> Option<Value> {
    let folder = out.join("run/ckpt");
    let id = |name: &String| {
        let (generation, step) = name.strip_suffix("/checkpoint.json")?.split_once('/')?;
        Some((generation.parse::<u64>().ok()?, step.parse::<u64>().ok()?))
    };
    let (generation, step) = tree::names(&folder).iter().filter_map(id).max()?;
    let manifest = folder.join(format!("{generation}/{step}/checkpoint.json"));
    serde_json::from_slice(&std::fs::read(manifest).ok()?).ok()
}

/// The first step of the first stage that the last attempt made.
fn first_step(out: &Path) -> u64 {
    let log = std::fs::read_to_string(out.join("run/run-log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["stage"] == "half-k").filter_map(|line| line["step"].as_u64()).min().unwrap()
}
