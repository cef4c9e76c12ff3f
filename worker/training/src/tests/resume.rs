//! A run that was stopped goes on from its last finished step: to the same bytes with the same
//! ranks, within a tolerance with others.
//!
//! Deliberate breakages that it catches (the last test plants them in a checkpoint): a resume that
//! skips a row or repeats one, one that puts the state of a layer into another, one that loses the
//! optimizer's moments.

use std::path::PathBuf;

use longstrap_crds::Step;
use longstrap_storage::{Digest, Restart, RestartFrom, keys};
use serde_json::{Value, json};

use super::world::{World, stopped, walk};
use crate::model::Place;

fn two_stages() -> Value {
    json!([
        {"name": "half", "contextLength": 512, "steps": 5, "tokensPerStep": 700},
        {"name": "one", "contextLength": 1024, "steps": 3},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_stopped_anywhere_ends_in_the_same_bytes() {
    let whole = World::new(two_stages(), true);
    whole.prepare().await.unwrap();
    let run = whole.read(keys::RUN);
    for result in whole.train(2, 1, None).await {
        result.unwrap();
    }
    whole.export().await.unwrap();

    let broken = World::new(two_stages(), true);
    broken.prepare().await.unwrap();
    assert_eq!(broken.read(keys::RUN), run, "run.json is a function of content alone");
    // In the first step of the second stage nothing of it is saved: what starts it again must begin
    // with a fresh optimizer, like the gang that came from the stage before.
    let stops = [
        ("half", 1, Place::Forward { row: 0, layer: 0 }),
        ("half", 4, Place::Backward { row: 0, layer: 1 }),
        ("one", 1, Place::Reduce),
        ("one", 2, Place::Head { row: 0 }),
    ];
    for (i, at) in stops.into_iter().enumerate() {
        let results = broken.train(2, 1 + i as u64, Some(at)).await;
        assert!(stopped(&results), "{at:?}: {results:?}");
        broken.prepare().await.unwrap();
    }
    for result in broken.train(2, 9, None).await {
        result.unwrap();
    }
    broken.export().await.unwrap();
    broken.export().await.unwrap();

    for key in [keys::MODEL_MANIFEST, "model/model.safetensors", "model/config.json", keys::RESULTS] {
        assert!(whole.read(key) == broken.read(key), "{key} differs");
    }
    let config = whole.json("model/config.json");
    assert_eq!(
        (&config["max_position_embeddings"], &config["rope_theta"]),
        (&json!(1024), &json!(160_000.0))
    );
    let results = whole.json(keys::RESULTS);
    let kinds: Vec<_> = results["models"].as_array().unwrap().iter().map(|m| m["kind"].clone()).collect();
    assert_eq!(kinds, [json!("Base"), json!("BaseChange"), json!("Trained"), json!("Trained")]);
    assert!(String::from_utf8(broken.read("report.html")).unwrap().contains("train half"));
    let log = String::from_utf8(broken.read(keys::RUN_LOG)).unwrap();
    assert!(log.lines().filter(|l| l.contains(r#""phase":"train half""#)).count() >= 5);
    // Checkpoints: the newest two, nothing unfinished.
    let manifests = walk(&broken.dir.path().join("run/ckpt"));
    assert_eq!(manifests.iter().filter(|p| p.ends_with("checkpoint.json")).count(), 2);
    assert!(!manifests.iter().any(|p| p.to_string_lossy().contains('#')));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_ranks_goes_on_from_a_checkpoint() {
    let stages = json!([{"name": "half", "contextLength": 512, "steps": 4}]);
    let mut weights = Vec::new();
    for ranks in [[2, 2], [2, 3], [3, 1]] {
        let world = World::new(stages.clone(), false);
        world.prepare().await.unwrap();
        let at = ("half", 3, Place::Forward { row: 0, layer: 0 });
        assert!(stopped(&world.train(ranks[0], 1, Some(at)).await));
        for result in world.train(ranks[1], 2, None).await {
            result.unwrap();
        }
        world.export().await.unwrap();
        let stored = longstrap_model::Weights::open(&world.dir.path().join("run/model")).unwrap();
        weights.push(stored.tensor_f32("model.embed_tokens.weight").unwrap());
    }
    for other in &weights[1..] {
        let difference = super::rig::relative(other, &weights[0]);
        assert!(difference > 0.0 && difference < 1e-3, "{difference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_over_at_the_stages_takes_the_tokens_over() {
    let mut world = World::new(json!([{"name": "s", "contextLength": 512, "steps": 2}]), false);
    world.prepare().await.unwrap();
    // What is taken over is copied, not rendered: a planted file of the run before shows up.
    let mut manifest = world.json(keys::TOKENS_MANIFEST);
    let ids = &mut manifest["sources"][0]["ids"];
    let planted = vec![7u8; ids["bytes"].as_u64().unwrap() as usize];
    ids["digest"] = json!(Digest::of(&planted));
    std::fs::write(world.dir.path().join("run").join(ids["key"].as_str().unwrap()), &planted).unwrap();
    std::fs::write(world.dir.path().join("run").join(keys::TOKENS_MANIFEST), manifest.to_string()).unwrap();
    let digests = |world: &World, key: &str| {
        let sources = world.json(key)["sources"].clone();
        [0, 1].map(|i| sources[i]["ids"]["digest"].clone())
    };
    let before = digests(&world, keys::TOKENS_MANIFEST);

    world.spec["training"]["learningRate"] = json!("2e-3");
    let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    std::fs::write(world.dir.path().join("short.jsonl"), line).unwrap();
    let storage = world.context(Step::Prepare, 1, "aaaaaaaa-prepare").await.storage;
    for (k, from, long_is_taken_over) in [(1, RestartFrom::Stage, true), (2, RestartFrom::Data, false)] {
        storage.start_over(&Restart { from, request_id: k.to_string() }).await.unwrap();
        world.prepare().await.unwrap();
        let after = digests(&world, &format!("r{k}/{}", keys::TOKENS_MANIFEST));
        assert_eq!(after[0] == before[0], long_is_taken_over, "restart {k}");
        assert_ne!(after[1], before[1], "its file has changed");
    }
}

/// What a broken resume would do, planted in the manifest of the checkpoint.
type Breakage = (&'static str, fn(&World, &mut Value));

const BREAKAGES: [Breakage; 5] = [
    ("", |_, _| {}),
    ("a row is skipped", |_, manifest| manifest["stageStep"] = json!(3)),
    ("a row is repeated", |_, manifest| manifest["stageStep"] = json!(1)),
    ("two layers change places", |_, manifest| {
        let shards = manifest["shards"].as_array_mut().unwrap();
        let at =
            |shards: &[Value], layer: u64| shards.iter().position(|s| s["group"]["layer"] == layer).unwrap();
        let (first, second) = (at(shards, 0), at(shards, 1));
        let group = shards[first]["group"].take();
        shards[first]["group"] = shards[second]["group"].take();
        shards[second]["group"] = group;
    }),
    ("the moments are lost", |world, manifest| {
        for shard in manifest["shards"].as_array_mut().unwrap() {
            let path = world.dir.path().join("run").join(shard["object"]["key"].as_str().unwrap());
            let mut bytes = std::fs::read(&path).unwrap();
            let moments = 8 * shard["elements"].as_u64().unwrap() as usize;
            let end = bytes.len();
            bytes[end - moments..].fill(0);
            shard["object"]["digest"] = json!(Digest::of(&bytes));
            std::fs::write(path, bytes).unwrap();
        }
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_resume_is_seen_in_the_bytes() {
    // One row a step, one rate for all steps: only what was trained on, and from where, can differ.
    let stages = json!([{"name": "half", "contextLength": 512, "steps": 4}]);
    let constant = |mut world: World| {
        world.spec["training"]["schedule"] = json!("Constant");
        world.spec["training"]["warmupSteps"] = json!(0);
        world
    };
    let model = async |world: &World, generation| {
        world.train(1, generation, None).await.into_iter().for_each(|result| result.unwrap());
        world.export().await.unwrap();
        world.read("model/model.safetensors")
    };
    let whole = constant(World::new(stages.clone(), false));
    whole.prepare().await.unwrap();
    let expected = model(&whole, 1).await;

    let world = constant(World::new(stages, false));
    world.prepare().await.unwrap();
    assert!(stopped(&world.train(1, 1, Some(("half", 3, Place::Forward { row: 0, layer: 0 }))).await));
    let run = world.dir.path().join("run");
    let saved: Vec<(PathBuf, Vec<u8>)> =
        walk(&run).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let checkpoint = run.join("ckpt/1/2/checkpoint.json");
    for (what, breakage) in BREAKAGES {
        std::fs::remove_dir_all(&run).unwrap();
        for (path, bytes) in &saved {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&checkpoint).unwrap()).unwrap();
        assert_eq!(manifest["stageStep"], 2);
        breakage(&world, &mut manifest);
        std::fs::write(&checkpoint, manifest.to_string()).unwrap();
        assert_eq!(model(&world, 2).await == expected, what.is_empty(), "{what}");
    }
}
