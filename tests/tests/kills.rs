//! Whatever is killed, the final bytes are those of the undisturbed run.
//!
//! Processes of the smoke run (worker, agent, rank, sometimes the executor itself) get SIGKILL at
//! seeded random instants, the next one only after something was committed since the last, so that
//! the run can go on. The count is `LONGSTRAP_KILLS`.
//!
//! Deliberate breakages that it catches: data published before its manifest, a random choice that
//! depends on the attempt, a checkpoint that is read before it is whole, a resume that skips or
//! repeats a row, an executor whose pods outlive it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::processes::{self, Process};
use longstrap_tests::smoke::{Running, Smoke};
use longstrap_tests::tree;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A run that commits nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(180);
/// A kill of the rank that uploads, after which the begun checkpoint has no manifest.
const INSIDE: &str = "rank inside a checkpoint upload";
/// Least number of kills of each kind, where 50 or more are wanted in all.
const QUOTA: [(&str, usize); 5] = [("generate", 1), ("agent", 1), ("rank", 1), ("executor", 1), (INSIDE, 3)];
/// Kills of a run that only a quota needs, and how many such runs there may be.
const MORE: (usize, usize) = (10, 15);
/// How often the storage is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[test]
#[ignore = "minutes: run by make test"]
fn kills_at_random_instants_change_no_byte() {
    let wanted: usize = std::env::var("LONGSTRAP_KILLS").map_or(50, |count| count.parse().unwrap());
    let server = ChatServer::start(Manner::Helpful);
    let undisturbed = prepared(&server);
    undisturbed.complete();
    let expected = tree::published(&undisturbed.out());
    assert!(
        expected.contains_key("run/results.json") && expected.contains_key("synthesis/dataset/dataset.json")
    );

    let mut killed: BTreeMap<String, usize> = BTreeMap::new();
    let (mut seed, mut more) = (0, 0);
    loop {
        let left = wanted.saturating_sub(killed.values().sum());
        // Chance decides whom a kill hits, and a slow machine whom it can hit.
        let short = if wanted < 50 { None } else { falls_short(&killed) };
        let most = match (left, short) {
            (0, None) => break,
            (0, Some((what, least))) => {
                more += 1;
                assert!(more <= MORE.1, "{what}: fewer than {least} kills after {seed} runs: {killed:?}");
                MORE.0
            }
            _ => left,
        };
        seed += 1;
        let smoke = prepared(&server);
        for what in disturbed(&smoke, seed, most) {
            *killed.entry(what).or_default() += 1;
        }
        let differences = tree::differences(&expected, &tree::published(&smoke.out()));
        assert_eq!(differences, "", "run {seed}, kills so far {killed:?}\n{}", smoke.log());
        println!("{seed} runs, kills: {killed:?}");
    }
}

/// The first quota that is not reached.
fn falls_short(killed: &BTreeMap<String, usize>) -> Option<(&'static str, usize)> {
    QUOTA.into_iter().find(|(what, least)| killed.get(*what).copied().unwrap_or(0) < *least)
}

/// The smoke run with enough steps that many checkpoints are written.
fn prepared(server: &ChatServer) -> Smoke {
    let mut smoke = Smoke::new(server);
    smoke.clock_speed = 30;
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 50");
    smoke.edit("extension.yaml", "contextLength: 1Ki, steps: 6", "contextLength: 1Ki, steps: 50");
    smoke.edit("extension.yaml", "maxEpochs: 8", "maxEpochs: 1000");
    smoke
}

/// Runs to the end under kills; what was killed.
fn disturbed(smoke: &Smoke, seed: u64, most: usize) -> Vec<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut executor = smoke.spawn();
    let mut killed = Vec::new();
    let mut before = BTreeSet::new();
    let mut moved = Instant::now();
    loop {
        assert!(moved.elapsed() < STUCK, "nothing was committed for {STUCK:?}\n{}", smoke.log());
        if let Some(status) = executor.try_wait().unwrap() {
            assert!(status.success(), "{status}\n{}", smoke.log());
            return killed;
        }
        let now = commits(&smoke.out());
        if now.is_subset(&before) {
            std::thread::sleep(LOOK);
            continue;
        }
        moved = Instant::now();
        if killed.len() >= most {
            before = now;
            continue;
        }
        let trains = now.iter().any(|name| name.starts_with("run/"));
        let uploader = (trains && random.random_range(0..2) == 0).then(|| uploader(&executor)).flatten();
        let begun = uploader.as_ref().and_then(|_| upload_begins(&smoke.out()));
        let victim = match (uploader, &begun) {
            (Some(uploader), Some(_)) => Some(uploader),
            _ => {
                // Synthesis is over in a second, training is not.
                let longest = if trains { 700 } else { 60 };
                std::thread::sleep(Duration::from_millis(random.random_range(0..longest)));
                choose(&tree_of(&executor), &mut random)
            }
        };
        let Some(victim) = victim else { continue };
        if kill(Pid::from_raw(victim.pid), Signal::SIGKILL).is_err() {
            continue;
        }
        // Only a dead uploader commits no more.
        let inside = begun.is_some_and(|begun| {
            while processes::lives(victim.pid) {
                std::thread::sleep(Duration::from_millis(1));
            }
            !begun.join("checkpoint.json").exists()
        });
        // What was committed before the kill does not count as a commit since.
        before = commits(&smoke.out());
        killed.push(if inside { INSIDE.to_owned() } else { victim.role.clone() });
        if victim.role == "executor" {
            executor.wait().unwrap();
            executor = smoke.spawn();
        }
    }
}

fn tree_of(executor: &Running) -> Vec<Process> {
    processes::tree(i32::try_from(executor.id()).unwrap())
}

/// The rank that uploads checkpoints.
fn uploader(executor: &Running) -> Option<Process> {
    processes::rank(i32::try_from(executor.id()).unwrap(), 0)
}

/// The executor in one of eight cases, else a process of a pod.
fn choose(tree: &[Process], random: &mut impl Rng) -> Option<Process> {
    let (executor, pods): (Vec<_>, Vec<_>) = tree.iter().partition(|process| process.role == "executor");
    let among = if random.random_range(0..8) == 0 { executor } else { pods };
    let at = random.random_range(0..among.len().max(1));
    among.get(at).map(|process| (*process).clone())
}

/// What counts as progress: shards, checkpoints, stages, steps and published manifests.
fn commits(out: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for run in ["synthesis", "run"] {
        let all = tree::names(&out.join(run));
        let counts = |name: &String| {
            let parts: Vec<&str> = name.split('/').collect();
            matches!(
                parts.as_slice(),
                ["shards" | "steps", _]
                    | ["ckpt", _, _, "checkpoint.json"]
                    | ["stages", _, "stage.json"]
                    | ["dataset", "dataset.json"]
                    | ["model", "model.json"]
                    | ["run.json"]
            )
        };
        found.extend(all.into_iter().filter(counts).map(|name| format!("{run}/{name}")));
    }
    found
}

/// Waits for a checkpoint that has files but no manifest yet, its folder; none when none begins
/// soon.
fn upload_begins(out: &Path) -> Option<PathBuf> {
    let checkpoints = out.join("run/ckpt");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let names = tree::names(&checkpoints);
        // `GENERATION/STEP/…`: data may lie deeper than the manifest.
        let folders =
            names.iter().filter_map(|name| name.match_indices('/').nth(1).map(|(at, _)| &name[..at]));
        let mut begun = folders.filter(|folder| !names.contains(&format!("{folder}/checkpoint.json")));
        // What earlier kills left half done is no upload.
        let fresh = |folder: &Path| {
            let written = folder.metadata().and_then(|folder| folder.modified()).ok();
            written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age < Duration::from_millis(100))
        };
        if let Some(folder) = begun.find(|folder| fresh(&checkpoints.join(folder))) {
            return Some(checkpoints.join(folder));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}
