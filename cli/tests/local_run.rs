//! `longstrap local run` with the real planner and a worker that is a shell script: what the
//! executor does with ends, signals and deaths. Each scenario is one script.
//!
//! Deliberate breakages that it catches: pods without a parent-death signal (the next executor finds
//! the lock held), a terminal's Ctrl-C that reaches pods directly, an exit code that is no outcome's,
//! a second run under the attempt of the first, a restart that begins again with each call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const JOB: &str = r#"
apiVersion: longstrap.io/v1alpha1
kind: SynthesisJob
metadata: {name: docs}
spec:
  storage: {uri: "file:docs"}
  tokenizer: {uri: "file:model"}
  corpus: [{name: web, uri: "file:corpus.jsonl", format: JsonLines}]
  generator: {endpoints: [{name: a, url: "http://127.0.0.1:1/v1", model: m}], contextLength: 8Ki}
  samples: {longOutput: {count: 4}}
  workers: 2
  backoffLimit: 2
"#;

/// Ends every step well; the last one names its dataset. `$LONGSTRAP_TEST` is the output folder.
const GOOD: &str = r#"
say() { printf '%s' "$1" > "$LONGSTRAP_TERMINATION_FILE"; }
echo "$1 $JOB_COMPLETION_INDEX $(grep -o '"attempt": *[0-9]*' "$LONGSTRAP_TASK" | head -1 | tr -d ' ')" >> "$LONGSTRAP_TEST/steps"
finish() {
  case $1 in
    finalize) say '{"complete":true,"committed":1,"dataset":{"uri":"file:///d","digest":"sha256:0","rows":4,"tokens":99}}' ;;
    *) say '{"complete":true,"committed":1,"fingerprint":"sha256:1"}' ;;
  esac
  exit 0
}
"#;

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("docs.yaml"), JOB).unwrap();
        let worker = dir.path().join("worker");
        fs::write(&worker, format!("#!/bin/sh\n{GOOD}\n{script}\n")).unwrap();
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longstrap"));
        command
            .args(["local", "run", "--clock-speed", "200", "-f"])
            .arg(self.path("docs.yaml"))
            .arg("--out")
            .arg(self.path("out"))
            .args(arguments)
            .env("LONGSTRAP_WORKER", self.path("worker"))
            .env("LONGSTRAP_TEST", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self) -> (i32, String) {
        self.run_with(&[])
    }

    fn run_with(&self, arguments: &[&str]) -> (i32, String) {
        let output: Output = self.command(arguments).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        (output.status.code().unwrap_or(-1), text)
    }

    /// Starts a run and waits until a pod opens the pipe `name`.
    fn start(&self, name: &str, arguments: &[&str]) -> (Child, String) {
        nix::unistd::mkfifo(&self.path(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let child = self.command(arguments).spawn().unwrap();
        let line = BufReader::new(fs::File::open(self.path(name)).unwrap()).lines().next().unwrap().unwrap();
        (child, line)
    }

    fn steps(&self) -> Vec<String> {
        fs::read_to_string(self.path("steps")).unwrap().lines().map(str::to_owned).collect()
    }
}

fn gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).join("exe").exists()
}

fn finish(mut child: Child) -> (i32, String) {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), text)
}

#[test]
fn all_steps_run_in_order_and_again_under_a_new_attempt() {
    let bench = Bench::new(r#"finish "$1""#);
    let (code, text) = bench.run();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("dataset: 4 samples, 99 tokens"), "{text}");
    assert!(text.contains("SynthesisJob docs: complete"), "{text}");
    let steps = bench.steps();
    assert_eq!(steps.first().unwrap(), "prepare 0 \"attempt\":1");
    assert_eq!(steps.last().unwrap(), "finalize 0 \"attempt\":1");
    assert!(steps.iter().any(|step| step.starts_with("generate 0 ")), "{steps:?}");
    let (code, text) = bench.run();
    assert_eq!(code, 0, "{text}");
    assert_eq!(bench.steps().last().unwrap(), "finalize 0 \"attempt\":2");
    let left: Vec<_> = fs::read_dir(bench.path("out/.local/pods")).unwrap().collect();
    assert!(left.is_empty(), "folders of ended pods are removed: {left:?}");
}

#[test]
fn each_way_to_end_badly_has_its_exit_code_and_its_cause() {
    for (script, code, words) in [
        (
            r#"say '{"reason":"InvalidData","message":"corpus.jsonl row 3: no field text"}'; exit 10"#,
            2,
            vec!["blocked", "InvalidData", "corpus.jsonl row 3: no field text"],
        ),
        (
            r#"say '{"reason":"EndpointUnavailable","message":"connection refused"}'; exit 12"#,
            3,
            vec!["something outside stayed away", "connection refused"],
        ),
        (
            "echo first line; echo Segmentation fault >&2; exit 139",
            1,
            vec!["ended with code 139", "| Segmentation fault", "BackoffLimitExceeded", "log: "],
        ),
        (
            r#"say '{"message":"three deaths without progress"}'; exit 13"#,
            1,
            vec!["failed", "three deaths without progress"],
        ),
    ] {
        let bench = Bench::new(script);
        let (found, text) = bench.run();
        assert_eq!(found, code, "{script}: {text}");
        for word in words {
            assert!(text.contains(word), "{script}: {word:?} is missing in: {text}");
        }
        assert!(!text.contains("next attempt at"), "{script}: a run that has ended promises nothing: {text}");
    }
}

#[test]
fn an_object_of_another_manager_is_left_alone_and_waited_for_by_nobody() {
    let bench = Bench::new(r#"finish "$1""#);
    fs::write(
        bench.path("docs.yaml"),
        JOB.replace("  workers: 2", "  workers: 2\n  managedBy: example.com/other"),
    )
    .unwrap();
    let (code, text) = bench.run();
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("SynthesisJob docs: nothing is planned for it here"), "{text}");
    assert!(!bench.path("steps").exists());
}

#[test]
fn a_crashed_pod_is_replaced_and_the_run_completes() {
    let bench = Bench::new(
        r#"[ "$1" = generate ] && mkdir "$LONGSTRAP_TEST/crashed-$JOB_COMPLETION_INDEX" 2> /dev/null && kill -9 $$
finish "$1""#,
    );
    let (code, text) = bench.run();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("was ended by signal 9"), "{text}");
    assert!(bench.path("crashed-0").exists());
}

#[test]
fn ctrl_c_lets_the_pods_save_their_state() {
    let bench = Bench::new(
        r#"trap 'echo saved > "$LONGSTRAP_TEST/saved"; exit 11' TERM
[ "$1" = prepare ] || finish "$1"
echo $$ > "$LONGSTRAP_TEST/ready"
while :; do sleep 0.02; done"#,
    );
    let (child, pid) = bench.start("ready", &[]);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let (code, text) = finish(child);
    assert_eq!(code, 130, "{text}");
    assert!(text.contains("The same command goes on from there"), "{text}");
    assert_eq!(fs::read_to_string(bench.path("saved")).unwrap(), "saved\n");
    assert!(gone(&pid));
}

#[test]
fn a_restart_that_was_interrupted_goes_on_with_the_same_command() {
    let bench = Bench::new(
        r#"if [ "$1" = generate ] && [ ! -e "$LONGSTRAP_TEST/second" ]; then
  trap 'exit 11' TERM
  echo $$ > "$LONGSTRAP_TEST/ready"
  while :; do sleep 0.02; done
fi
finish "$1""#,
    );
    // One worker: the pipe has one reader.
    fs::write(bench.path("docs.yaml"), JOB.replace("workers: 2", "workers: 1")).unwrap();
    let again = ["--restart-from", "data"];
    let (child, _) = bench.start("ready", &again);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let (code, text) = finish(child);
    assert_eq!(code, 130, "{text}");
    assert!(text.contains("starts over below") && text.contains("The same command goes on"), "{text}");

    fs::write(bench.path("second"), "").unwrap();
    let (code, text) = bench.run_with(&again);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("goes on below") && !text.contains("starts over below"), "{text}");
    let restarted = |k: u32| bench.path("out/docs").join(format!("r{k}")).exists();
    assert_eq!([restarted(1), restarted(2)], [true, false]);

    // Finished, it is another restart.
    fs::create_dir_all(bench.path("out/docs/r1/dataset")).unwrap();
    fs::write(bench.path("out/docs/r1/dataset/dataset.json"), "{}").unwrap();
    let (code, text) = bench.run_with(&again);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("starts over below") && restarted(2), "{text}");
}

#[test]
fn pods_die_with_a_killed_executor_and_the_next_one_goes_on() {
    let bench = Bench::new(
        r#"trap '' TERM INT
if [ "$1" = prepare ] && [ ! -e "$LONGSTRAP_TEST/second" ]; then
  echo $$ > "$LONGSTRAP_TEST/ready"
  while :; do sleep 0.02; done
fi
finish "$1""#,
    );
    let (mut child, pid) = bench.start("ready", &[]);

    let (code, text) = bench.run();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("another `longstrap local run`"), "{text}");

    child.kill().unwrap();
    child.wait().unwrap();
    fs::write(bench.path("second"), "").unwrap();
    let (code, text) = bench.run();
    assert_eq!(code, 0, "{text}");
    assert!(gone(&pid), "a pod outlived its executor");
}
