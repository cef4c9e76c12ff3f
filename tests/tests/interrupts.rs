//! Ctrl-C at a run that bootstraps itself (the model that is extended writes the data), as a newcomer
//! does: each time it stops in order, and the same command goes on, to the very same bytes.
//!
//! Deliberate breakages that it catches: a stop that is no 130, samples or steps that are done again in
//! another way, a rank that waits for others although it was told to stop.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use longstrap_tests::chat::ChatServer;
use longstrap_tests::smoke::Smoke;
use longstrap_tests::{tree, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The smoke run with the embedded generator, and long enough to be interrupted.
fn prepared() -> Smoke {
    let smoke = Smoke::new(&ChatServer::away());
    let path = smoke.manifests().join("synthesis.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("    endpoints:").unwrap();
    let after = rest.split_once("    contextLength: 8Ki").unwrap().1;
    let embedded = "    embedded: {model: {uri: \"file:model\"}}\n    contextLength: 256";
    std::fs::write(&path, format!("{before}{embedded}{after}")).unwrap();
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 40");
    smoke.edit("extension.yaml", "maxEpochs: 8", "maxEpochs: 1000");
    smoke
}

/// Presses Ctrl-C when it is time.
fn interrupt(smoke: &Smoke, is_time: impl Fn() -> bool) {
    let mut run = smoke.spawn();
    until(is_time);
    kill(Pid::from_raw(i32::try_from(run.id()).unwrap()), Signal::SIGINT).unwrap();
    let pressed = Instant::now();
    assert_eq!(run.wait().unwrap().code(), Some(130), "{}", smoke.log());
    assert!(pressed.elapsed() < Duration::from_secs(30), "stopped after {:?}", pressed.elapsed());
}

#[test]
fn ctrl_c_at_any_step_changes_no_byte() {
    let undisturbed = prepared();
    undisturbed.complete();
    let smoke = prepared();
    let there = |path: &str| smoke.out().join(path).exists();
    interrupt(&smoke, || there("synthesis/run.json"));
    interrupt(&smoke, || smoke.log().contains("smoke-docs generate[0]: starts"));
    interrupt(&smoke, || there("run/gang/1.json"));
    interrupt(&smoke, || there("run/stages/half-k"));
    let said = smoke.log();
    assert_eq!(said.matches("The same command goes on from there").count(), 4, "{said}");
    smoke.complete();
    let differences = tree::differences(&tree::published(&undisturbed.out()), &tree::published(&smoke.out()));
    assert_eq!(differences, "");
}
