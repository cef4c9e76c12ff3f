//! Processes of a local run, as /proc shows them.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// `executor`, or the subcommand of `longstrap-worker`: `generate`, `agent`, `rank`, ….
    pub role: String,
}

/// The executor `pid` and everything below it, in the order of their numbers.
pub fn tree(pid: i32) -> Vec<Process> {
    let all: Vec<(i32, i32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let children = all.iter().filter(|(_, parent)| *parent == found[at]).map(|(child, _)| *child);
        found.extend(children.collect::<Vec<_>>());
        at += 1;
    }
    found.sort_unstable();
    found.into_iter().filter_map(|pid| Some(Process { pid, role: role(pid)? })).collect()
}

/// Whether `pid` runs: what is gone, or dead and not collected, does not.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Whether this process is root's, of the machine or of its own user name space.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A variable of the environment that `pid` was started with.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let all = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
    all.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// The process of a rank, counted over the whole gang, below the executor `pid`.
pub fn rank(pid: i32, rank: u32) -> Option<Process> {
    let ranks = tree(pid).into_iter().filter(|process| process.role == "rank");
    let wanted = Some(rank.to_string());
    ranks.into_iter().find(|process| variable(process.pid, "LONGSTRAP_RANK") == wanted)
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// `None` for a process that is gone, or has not become ours yet.
fn role(pid: i32) -> Option<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split('\0');
    let program = words.next()?.rsplit('/').next()?.to_owned();
    match program.as_str() {
        "longstrap" => Some("executor".to_owned()),
        "longstrap-worker" => words.next().map(str::to_owned),
        _ => None,
    }
}
