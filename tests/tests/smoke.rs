//! The whole road on a tiny model with the real binaries: what comes out, that a second run
//! computes nothing, and what an edited manifest gets to hear.
//!
//! Deliberate breakages that these tests catch: a step that ignores its committed manifest (calls
//! and files of the second run differ), a `prepare` that takes an edited spec silently, a restart
//! that writes over the old results.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::smoke::Smoke;
use longstrap_tests::tree;
use serde_json::Value;

#[test]
fn manifests_in_a_longer_window_out_and_nothing_twice() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    let text = smoke.complete();
    for word in [
        "SynthesisJob smoke-docs",
        "ContextExtensionRun smoke-1k",
        "model with a window of 1,024",
        "11 samples",
    ] {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }

    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(smoke.out().join(path)).unwrap()).unwrap()
    };
    let dataset = read("synthesis/dataset/dataset.json");
    let rows: u64 =
        dataset["files"].as_array().unwrap().iter().map(|file| file["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 11, "{dataset}");
    let config = read("run/model/config.json");
    assert_eq!(config["max_position_embeddings"], 1024);
    // 10,000 · 4 · 4.
    assert_eq!(config["rope_theta"].as_f64(), Some(160_000.0));
    let weights = std::fs::read(smoke.out().join("run/model/model.safetensors")).unwrap();
    let before = std::fs::read(smoke.out().join("model/model.safetensors")).unwrap();
    assert_eq!(weights.len() / 1000, before.len() / 1000, "same tensors");
    assert_ne!(weights, before, "trained");
    assert!(smoke.out().join("run/results.json").is_file());

    let (files, calls, start) = (tree::published(&smoke.out()), server.calls(), Instant::now());
    smoke.complete();
    assert!(start.elapsed() < Duration::from_secs(20), "the second run took {:?}", start.elapsed());
    assert_eq!(server.calls(), calls, "the second run asked the generator again");
    assert_eq!(tree::differences(&files, &tree::published(&smoke.out())), "");
}

#[test]
fn an_edited_manifest_is_refused_with_its_fields_until_a_restart_is_asked_for() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    smoke.edit("synthesis.yaml", "count: 8", "count: 2");
    smoke.edit("synthesis.yaml", "workers: 2", "workers: 1");
    std::fs::remove_file(smoke.manifests().join("extension.yaml")).unwrap();
    smoke.complete();
    let before = tree::published(&smoke.out());

    smoke.edit("synthesis.yaml", "seed: 7", "seed: 8");
    let (code, text) = smoke.run(&[]);
    assert_eq!(code, 2, "{text}");
    for word in ["FingerprintMismatch", "seed", "--restart-from"] {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "a refusal changes nothing");

    let (code, text) = smoke.run(&["--restart-from", "data"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "the old results are kept");
    let fresh = std::fs::read(smoke.out().join("synthesis/r1/dataset/dataset.json")).unwrap();
    assert_ne!(fresh, before["synthesis/dataset/dataset.json"]);
}

#[test]
fn stages_are_trained_again_beside_the_old_result() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    std::fs::remove_file(smoke.manifests().join("synthesis.yaml")).unwrap();
    smoke.edit("extension.yaml", "  - {name: long, synthesisJobRef: {name: smoke-docs}, weight: 8}\n", "");
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 1");
    smoke.edit("extension.yaml", "contextLength: 1Ki, steps: 6", "contextLength: 1Ki, steps: 1");
    let path = smoke.manifests().join("extension.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.split("  evaluation:").next().unwrap()).unwrap();
    smoke.complete();
    let before = tree::published(&smoke.out());

    smoke.edit("extension.yaml", "learningRate: \"1e-3\"", "learningRate: \"2e-3\"");
    let (code, text) = smoke.run(&[]);
    assert!(
        code == 2 && text.contains("FingerprintMismatch") && text.contains("learningRate"),
        "{code}: {text}"
    );

    let (code, text) = smoke.run(&["--restart-from", "stage"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "the old result is kept");
    let fresh = std::fs::read(smoke.out().join("run/r1/model/model.safetensors")).unwrap();
    assert_ne!(fresh, before["run/model/model.safetensors"]);
}
