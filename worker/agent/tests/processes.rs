//! Agents and ranks as real processes: this program starts itself as either.
//!
//! The ranks are no trainers, but behave like them: they connect over the listeners that they
//! inherit, show the token, do each step together, die of each other's death, commit a checkpoint
//! after each step and save when told to stop. A folder of files tells them when to fail.
//!
//! Breakages that these tests catch: no restart, a restart from an older checkpoint, a
//! generation used twice, a count of failures that forgets or never resets, ranks that outlive
//! their agent, a second start of a finished step.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use longstrap_agent::{RankCommand, run_with};
use longstrap_crds::{Reason, TerminationMessage};
use longstrap_runtime::rank::{AgentLink, RANK, RankEnv};
use longstrap_runtime::{StepContext, StepError, StepResult, env, main_rank, main_step};
use longstrap_storage::{CheckpointId, Store, newest_checkpoint};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Folder whose files `RANK-STEP` (or `RANK-join`, before it meets the others) tell ranks what to
/// do: `kill`, `exit1`, `exit10`, `hang`, `wait` (for the stop), `save` (wait, then save for longer than
/// a rank may be silent); removed when it is done, unless it begins with `always `.
const PLAN: &str = "LONGSTRAP_TEST_PLAN";
const STEPS: u64 = 6;
/// Nothing that is waited for takes so long.
const STUCK: Duration = Duration::from_secs(180);

/// Not a test: what the ranks' and agents' processes run.
#[test]
fn process() {
    if std::env::var_os(PLAN).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let code = match std::env::var_os(RANK) {
        Some(_) => runtime.block_on(main_rank(rank)),
        None => runtime.block_on(main_step(async |ctx| run_with(ctx, this_program()).await)),
    };
    std::process::exit(code.code());
}

fn this_program() -> RankCommand {
    let args = ["process", "--exact", "--nocapture"].map(Into::into).into();
    RankCommand { program: std::env::current_exe().unwrap().into(), args }
}

async fn rank(ctx: &StepContext, gang: RankEnv, link: AgentLink) -> StepResult {
    note("pid", gang.rank);
    obey_plan(ctx, gang.rank, "join").await?;
    ctx.progress.activity("waiting for the other ranks");
    let mut peers = connect(&gang).await?;
    let mut step = gang.resume.map_or(0, |id| id.step);
    while step < STEPS {
        ctx.progress.update(|report| report.count = step);
        let stop = obey_plan(ctx, gang.rank, &step.to_string()).await?;
        let met = together(&mut peers, stop || ctx.stop.is_cancelled()).await;
        if met.inspect_err(|_| note("lost-its-peer", gang.rank))? {
            return Err(StepError::Stopped);
        }
        step += 1;
        if gang.rank == 0 {
            let id = CheckpointId { generation: gang.generation, step };
            ctx.store.put(&id.manifest_key(), "{}").await?;
            link.committed(step, &id.key());
        }
        together(&mut peers, false).await?;
    }
    Ok(())
}

/// Leaves a file `WHAT-RANK` with the process's number beside the plan.
fn note(what: &str, rank: u32) {
    let file = PathBuf::from(std::env::var_os(PLAN).unwrap()).join(format!("{what}-{rank}"));
    std::fs::write(file, std::process::id().to_string()).unwrap();
}

async fn obey_plan(ctx: &StepContext, rank: u32, when: &str) -> StepResult<bool> {
    let file = PathBuf::from(std::env::var_os(PLAN).unwrap()).join(format!("{rank}-{when}"));
    let Ok(plan) = std::fs::read_to_string(&file) else { return Ok(false) };
    let what = plan.trim_start_matches("always ");
    if what == plan {
        std::fs::remove_file(&file).unwrap();
    }
    match what {
        "kill" => nix::sys::signal::raise(Signal::SIGKILL).unwrap(),
        "exit1" => return Err(StepError::Failed(anyhow::anyhow!("told to fail"))),
        "exit10" => return Err(StepError::invalid(Reason::DoesNotFit, "too large")),
        "hang" => std::future::pending().await,
        "wait" | "save" => {
            std::fs::write(file.with_extension("waits"), "").unwrap();
            ctx.stop.cancelled().await;
            if what == "save" {
                tokio::time::sleep(Duration::from_secs(ctx.task.rank_timeout_seconds + 2)).await;
                note("saved", rank);
            }
        }
        other => panic!("{other}"),
    }
    Ok(true)
}

/// Rank 0 listens, the others connect and show the token.
async fn connect(gang: &RankEnv) -> anyhow::Result<Vec<TcpStream>> {
    let hello = format!("{}{:08}", gang.token, gang.rank);
    if gang.rank > 0 {
        let mut stream = TcpStream::connect(&gang.peers[0]).await?;
        stream.write_all(hello.as_bytes()).await?;
        return Ok(vec![stream]);
    }
    let listener = gang.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut streams = BTreeMap::new();
    while streams.len() + 1 < gang.world as usize {
        let (mut stream, _) = listener.accept().await?;
        let mut shown = vec![0; hello.len()];
        stream.read_exact(&mut shown).await?;
        let shown = String::from_utf8(shown)?;
        let number = shown.strip_prefix(&gang.token).context("a stranger")?.to_owned();
        streams.insert(number, stream);
    }
    Ok(streams.into_values().collect())
}

/// All ranks meet; true when any wants to stop. A star: rank 0 in its middle has heard all after
/// the first exchange, the others after the second.
async fn together(peers: &mut [TcpStream], stop: bool) -> anyhow::Result<bool> {
    let mut any = stop;
    for _ in 0..2 {
        for peer in peers.iter_mut() {
            peer.write_u8(any.into()).await?;
        }
        for peer in peers.iter_mut() {
            any |= peer.read_u8().await? != 0;
        }
    }
    Ok(any)
}

struct Job {
    folder: tempfile::TempDir,
    task: serde_json::Value,
    /// Bound and never listening: nobody else gets the port, and pod 0's agent, which sets
    /// SO_REUSEADDR as every listener of ours, may listen on it, after a restart too.
    _rendezvous: TcpSocket,
}

impl Job {
    fn new(pods: u32, ranks_per_pod: u32, backoff_limit: u32, rank_timeout: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("plan")).unwrap();
        let rendezvous = TcpSocket::new_v4().unwrap();
        rendezvous.set_reuseaddr(true).unwrap();
        rendezvous.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let port = rendezvous.local_addr().unwrap().port();
        let spec = json!({
            "storage": {"uri": format!("file://{}/run", folder.path().display())},
            "model": {"uri": "file:///none"}, "data": [],
            "stages": [{"name": "a", "contextLength": 512, "steps": STEPS}],
        });
        let task = json!({
            "formatVersion": 1, "attempt": 1, "step": "train-0",
            "owner": {"cluster": "c", "namespace": "n", "name": "x", "uid": "run-uid"},
            "spec": {"contextExtensionRun": spec}, "stages": {"start": 0, "end": 1},
            "workers": pods, "ranksPerNode": ranks_per_pod, "threadsPerRank": 1,
            "backoffLimit": backoff_limit, "rankTimeoutSeconds": rank_timeout, "outageTimeoutSeconds": 5,
            "rendezvousHost": "127.0.0.1", "ports": {"rendezvous": port, "progress": 0},
        });
        Self { folder, task, _rendezvous: rendezvous }
    }

    fn plan(self, plans: &[(&str, &str)]) -> Self {
        for (when, what) in plans {
            std::fs::write(self.path("plan").join(when), what).unwrap();
        }
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, index: u32, attempt: u32, uid: &str) -> Agent {
        let mut task = self.task.clone();
        task["attempt"] = attempt.into();
        let file = |kind: &str| self.path(&format!("{kind}-{uid}"));
        std::fs::write(file("task"), task.to_string()).unwrap();
        let log = std::fs::File::create(file("log")).unwrap();
        let command = this_program();
        let child = Command::new(&command.program)
            .args(&command.args)
            .env(PLAN, self.path("plan"))
            .env(env::TASK, file("task"))
            .env(env::INDEX, index.to_string())
            .env(env::POD_UID, uid)
            .env(env::TERMINATION_FILE, file("end"))
            .env(env::PROGRESS_PORT, "0")
            .env(env::CACHE_DIR, self.path("cache"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Agent { child, end: file("end"), log: file("log") }
    }

    fn store(&self) -> Store {
        Store::open(&format!("file://{}/run", self.folder.path().display()), &BTreeMap::new()).unwrap()
    }

    /// Resume points of the generations in order, and the newest checkpoint.
    async fn history(&self) -> (Vec<String>, Option<CheckpointId>) {
        let store = self.store();
        let mut resumes = Vec::new();
        while let Some(record) = store.try_get(&format!("gang/{}.json", resumes.len() + 1)).await.unwrap() {
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            resumes.push(record["resume"].as_str().unwrap_or("").to_owned());
        }
        (resumes, newest_checkpoint(&store).await.unwrap())
    }
}

struct Agent {
    child: Child,
    end: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Exit code and termination message.
    fn wait(self) -> (Option<i32>, TerminationMessage) {
        let (code, end, _) = self.wait_with_log();
        (code, end)
    }

    /// Besides, what it and its ranks logged.
    fn wait_with_log(mut self) -> (Option<i32>, TerminationMessage, String) {
        let status = eventually("the agent ends", || self.child.try_wait().unwrap());
        let end = std::fs::read_to_string(&self.end).unwrap_or_default();
        let log = std::fs::read_to_string(&self.log).unwrap();
        println!("{log}");
        (status.code(), TerminationMessage::parse(&end), log)
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Also when a test fails: ranks die with their agent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + STUCK;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "not within {STUCK:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn exists(path: &Path) -> Option<()> {
    path.exists().then_some(())
}

fn checkpoint(generation: u64, step: u64) -> Option<CheckpointId> {
    Some(CheckpointId { generation, step })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_dies_and_the_gang_goes_on_from_the_newest_checkpoint() {
    let job = Job::new(1, 3, 6, 60).plan(&[("1-2", "kill"), ("0-4", "exit1"), ("2-5", "exit1")]);
    let (code, end) = job.start(0, 1, "uid-1").wait();
    assert_eq!((code, end.complete, end.generation, end.committed), (Some(0), true, 4, STEPS));
    let resumes = ["", "ckpt/1/2", "ckpt/2/4", "ckpt/3/5"].map(str::to_owned).to_vec();
    assert_eq!(job.history().await, (resumes, checkpoint(4, STEPS)));
    // A pod that starts when its step is committed exits 0 and starts nothing.
    let (code, end) = job.start(0, 2, "uid-2").wait();
    assert_eq!((code, end.complete, end.committed), (Some(0), true, STEPS));
    assert_eq!(job.history().await.0.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_without_progress_end_with_13_and_a_lasting_cause_with_its_own_code() {
    let job = Job::new(1, 2, 3, 60).plan(&[("1-0", "exit1"), ("0-2", "always exit1")]);
    let (code, end) = job.start(0, 1, "uid").wait();
    assert_eq!((code, end.reason), (Some(13), Some(Reason::BackoffLimitExceeded)));
    assert!(end.message.starts_with("3 failures in a row"), "{}", end.message);
    assert!(end.message.contains("pod 0: rank 0 exited with 1: told to fail"), "{}", end.message);
    // One before the first checkpoint, one that had made two, three that made none.
    let resumes = ["", "", "ckpt/2/2", "ckpt/2/2", "ckpt/2/2"].map(str::to_owned).to_vec();
    assert_eq!(job.history().await, (resumes, checkpoint(2, 2)));

    let job = Job::new(1, 2, 3, 60).plan(&[("1-3", "exit10")]);
    let (code, end) = job.start(0, 1, "uid").wait();
    assert_eq!((code, end.reason), (Some(10), Some(Reason::DoesNotFit)));
    assert_eq!((end.message.as_str(), end.committed), ("rank 1: too large", 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_rank_is_killed_and_a_rank_or_pod_that_never_joins_is_named() {
    // Long enough that a healthy rank starts within it on a busy machine.
    const LIMIT: u64 = 10;
    let hanging = Job::new(1, 2, 3, LIMIT).plan(&[("1-2", "hang")]);
    let missing = Job::new(1, 2, 1, LIMIT).plan(&[("1-join", "always hang")]);
    let alone = Job::new(2, 2, 3, LIMIT);
    let (hanging_agent, missing_agent) = (hanging.start(0, 1, "uid"), missing.start(0, 1, "uid"));
    let lonely_agent = alone.start(0, 1, "uid");
    let (code, end, log) = hanging_agent.wait_with_log();
    assert_eq!((code, end.complete), (Some(0), true));
    // Rank 0 waits for rank 1; which of them told its last step first is chance.
    let cause = |line: &str| line.contains("the gang failed") && line.contains("made no progress for");
    assert!(log.lines().any(cause), "no gang was ended because a rank hung");
    let (resumes, newest) = hanging.history().await;
    assert!(resumes.contains(&"ckpt/1/2".to_owned()), "{resumes:?}");
    assert_eq!(newest, checkpoint(end.generation, STEPS));
    let (code, end) = missing_agent.wait();
    assert_eq!((code, end.reason), (Some(13), Some(Reason::BackoffLimitExceeded)));
    let message = "1 failures in a row without a new checkpoint (backoffLimit 1); the last: pod 0: rank 1 said nothing since its start";
    assert!(end.message.starts_with(message), "{}", end.message);
    let (code, end) = lonely_agent.wait();
    assert_eq!(code, Some(1));
    let message = format!("pod 1 (ranks 2 to 3) never joined: waited {LIMIT} s; see the log of its pod");
    assert_eq!(end.message, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_saves_and_the_next_attempt_goes_on() {
    let job = Job::new(1, 2, 3, 60).plan(&[("1-3", "wait")]);
    let agent = job.start(0, 1, "uid-1");
    eventually("rank 1 waits", || exists(&job.path("plan/1-3.waits")));
    agent.signal(Signal::SIGTERM);
    let (code, end) = agent.wait();
    assert_eq!((code, end.committed, end.complete), (Some(11), 3, false));
    assert_eq!(job.start(0, 2, "uid-2").wait().0, Some(0));
    assert_eq!(job.history().await.0, ["", "ckpt/1/3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_that_save_get_the_pods_grace_period() {
    /// Long enough that a healthy rank starts within it on a busy machine.
    const LIMIT: u64 = 10;
    let start = |grace: Option<u64>| {
        let mut job = Job::new(1, 1, 3, LIMIT).plan(&[("0-3", "save")]);
        job.task["graceSeconds"] = json!(grace);
        let agent = job.start(0, 1, "uid");
        (job, agent)
    };
    let (with, without) = (start(Some(120)), start(None));
    for (job, agent) in [&with, &without] {
        eventually("the rank waits", || exists(&job.path("plan/0-3.waits")));
        agent.signal(Signal::SIGTERM);
    }
    for ((job, agent), saved) in [(with, true), (without, false)] {
        assert_eq!(agent.wait().0, Some(11));
        assert_eq!(job.path("plan/saved-0").exists(), saved);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pods_lose_the_first_one_and_lose_nothing() {
    let job = Job::new(3, 1, 3, 60).plan(&[("2-2", "wait"), ("1-4", "kill")]);
    let first = job.start(0, 1, "uid-0");
    let others = [job.start(1, 1, "uid-1"), job.start(2, 1, "uid-2")];
    eventually("rank 2 waits", || exists(&job.path("plan/2-2.waits")));
    // Pod 0 dies with its coordinator and its rank; the others wait for the next one.
    let rank_0 = std::fs::read_to_string(job.path("plan/pid-0")).unwrap();
    first.signal(Signal::SIGKILL);
    assert_eq!(first.wait().0, None);
    eventually("rank 0 dies with its agent", || {
        let stat = std::fs::read_to_string(format!("/proc/{rank_0}/stat")).unwrap_or_default();
        // Gone, or a zombie that nobody has reaped.
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert!(!job.path("plan/lost-its-peer-0").exists(), "rank 0 lived on until its peers were gone");
    let mut agents = Vec::from(others);
    agents.push(job.start(0, 1, "uid-new"));
    for agent in agents {
        assert_eq!(agent.wait().0, Some(0));
    }
    let resumes = ["", "ckpt/1/2", "ckpt/2/4"].map(str::to_owned).to_vec();
    assert_eq!(job.history().await, (resumes, checkpoint(3, STEPS)));
}
