//! A run that is killed goes on with another number of ranks from its last checkpoint.
//!
//! Deliberate breakages that it catches: a checkpoint in the layout of the ranks that wrote it, a
//! resume that starts over, a gradient that is averaged over the wrong number of ranks.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::smoke::Smoke;
use longstrap_tests::{tensors, tree};
use serde_json::Value;

/// Largest difference of the weights' change from the undisturbed run's, relative to that change
/// (both as Euclidean norms): ranks add up in another order, and the optimizer carries that on.
const TOLERANCE: f64 = 1e-3;

#[test]
fn another_number_of_ranks_goes_on_from_the_checkpoint() {
    let server = ChatServer::start(Manner::Helpful);
    let undisturbed = prepared(&server);
    undisturbed.complete();
    let start = tensors::values(&undisturbed.out().join("model/model.safetensors"));
    let expected = tensors::values(&weights(&undisturbed));

    for (ranks, before, after) in [
        ([4, 2], "nodes: 2, ranksPerNode: 2", "nodes: 2, ranksPerNode: 1"),
        ([2, 3], "nodes: 1, ranksPerNode: 2", "nodes: 1, ranksPerNode: 3"),
    ] {
        let smoke = prepared(&server);
        if ranks[0] != 4 {
            smoke.edit("extension.yaml", "nodes: 2, ranksPerNode: 2", before);
        }
        let mut executor = smoke.spawn();
        let since = Instant::now();
        while checkpoint(&smoke.out()).is_none() {
            assert!(since.elapsed() < Duration::from_secs(120), "no checkpoint\n{}", smoke.log());
            assert_eq!(executor.try_wait().unwrap(), None, "{}", smoke.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        executor.kill().unwrap();
        executor.wait().unwrap();
        let saved = checkpoint(&smoke.out()).unwrap();
        assert_eq!(saved["worldSize"], ranks[0], "{saved}");

        smoke.edit("extension.yaml", before, after);
        smoke.complete();
        let stage = read(&smoke.out().join("run/stages/one-k/stage.json"));
        assert_eq!(stage["worldSize"], ranks[1], "{stage}");
        let (from, saved) = (first_step(&smoke.out()), saved["stageStep"].as_u64().unwrap());
        assert!(from > saved, "{ranks:?}: went on with step {from}, though {saved} were saved");

        let found = tensors::values(&weights(&smoke));
        let norm = |pairs: &mut dyn Iterator<Item = (&f32, &f32)>| {
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let change = norm(&mut expected.iter().zip(&start));
        let difference = norm(&mut found.iter().zip(&expected)) / change;
        println!("{ranks:?}: relative difference {difference:.2e}");
        assert!(found.len() == expected.len() && difference < TOLERANCE, "{ranks:?}: {difference}");
    }
}

/// Enough steps in the first stage that a checkpoint, one a second, falls into it on a fast machine too.
fn prepared(server: &ChatServer) -> Smoke {
    let mut smoke = Smoke::new(server);
    smoke.clock_speed = 30;
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 300");
    smoke.edit("extension.yaml", "maxEpochs: 8", "maxEpochs: 1000");
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

/// The manifest of a committed checkpoint.
fn checkpoint(out: &Path) -> Option<Value> {
    let folder = out.join("run/ckpt");
    let name = tree::names(&folder).into_iter().find(|name| name.ends_with("/checkpoint.json"))?;
    serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()
}

/// The first step of the first stage that the last attempt made; what a killed one noted is lost.
fn first_step(out: &Path) -> u64 {
    let log = std::fs::read_to_string(out.join("run/run-log.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["stage"] == "half-k").filter_map(|line| line["step"].as_u64()).min().unwrap()
}
