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
use std::path::Path;
use std::time::{Duration, Instant};

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::processes::{self, Process};
use longstrap_tests::smoke::Smoke;
use longstrap_tests::tree;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A run that commits nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(180);
/// How often the storage is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[test]
#[ignore = "minutes: run by make test"]
fn kills_at_random_instants_change_no_byte() {
    let wanted: usize = std::env::var("LONGSTRAP_KILLS").map_or(50, |count| count.parse().unwrap());
    let server = ChatServer::start(Manner::Helpful);
    let mut undisturbed = Smoke::new(&server);
    undisturbed.clock_speed = 30;
    undisturbed.complete();
    let expected = tree::published(&undisturbed.out());
    assert!(
        expected.contains_key("run/results.json") && expected.contains_key("synthesis/dataset/dataset.json")
    );

    let mut killed: BTreeMap<String, usize> = BTreeMap::new();
    let mut seed = 0;
    while killed.values().sum::<usize>() < wanted {
        seed += 1;
        let mut smoke = Smoke::new(&server);
        smoke.clock_speed = 30;
        let left = wanted - killed.values().sum::<usize>();
        for role in disturbed(&smoke, seed, left) {
            *killed.entry(role).or_default() += 1;
        }
        let found = tree::published(&smoke.out());
        let differences = tree::differences(&expected, &found);
        assert_eq!(differences, "", "run {seed}, kills so far {killed:?}\n{}", smoke.log());
    }
    println!("kills by process: {killed:?} in {seed} runs");
    for role in ["generate", "rank"] {
        assert!(wanted < 50 || killed.contains_key(role), "no {role} was killed: {killed:?}");
    }
}

/// Runs to the end under kills; the roles of what was killed.
fn disturbed(smoke: &Smoke, seed: u64, most: usize) -> Vec<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut executor = smoke.spawn();
    let mut killed = Vec::new();
    let mut commits = BTreeSet::new();
    let mut moved = Instant::now();
    loop {
        assert!(moved.elapsed() < STUCK, "nothing was committed for {STUCK:?}\n{}", smoke.log());
        if let Some(status) = executor.try_wait().unwrap() {
            assert!(status.success(), "{status}\n{}", smoke.log());
            return killed;
        }
        let now = manifests(&smoke.out());
        if now.is_subset(&commits) || killed.len() >= most {
            commits = now;
            std::thread::sleep(LOOK);
            continue;
        }
        moved = Instant::now();
        std::thread::sleep(Duration::from_millis(random.random_range(0..700)));
        let pid = i32::try_from(executor.id()).unwrap();
        let Some(victim) = choose(&processes::tree(pid), &mut random) else { continue };
        if kill(Pid::from_raw(victim.pid), Signal::SIGKILL).is_err() {
            continue;
        }
        // What was committed before the kill does not count as a commit since.
        commits = manifests(&smoke.out());
        killed.push(victim.role.clone());
        if victim.role == "executor" {
            executor.wait().unwrap();
            executor = smoke.spawn();
        }
    }
}

/// The executor in one of eight cases, else a process of a pod.
fn choose(tree: &[Process], random: &mut impl Rng) -> Option<Process> {
    let (executor, pods): (Vec<_>, Vec<_>) = tree.iter().partition(|process| process.role == "executor");
    let among = if random.random_range(0..8) == 0 { executor } else { pods };
    let at = random.random_range(0..among.len().max(1));
    among.get(at).map(|process| (*process).clone())
}

/// Everything that counts as committed: JSON files below the runs' folders.
fn manifests(out: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for run in ["synthesis", "run"] {
        collect(&out.join(run), &mut found);
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.insert(path.display().to_string());
        }
    }
}
