//! Bad input: one clear error that names the file, field or row, a non-zero exit, nothing lost.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::smoke::{Smoke, binary};
use longstrap_tests::{processes, tree, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What is done to the input, the exit code, and words that the error must have.
type Case = (&'static str, fn(&Smoke), i32, &'static [&'static str]);

const MANIFESTS: &[Case] = &[
    (
        "malformed YAML",
        |s| s.edit("synthesis.yaml", "spec:", "spec: ["),
        1,
        &["synthesis.yaml:", "is not valid YAML"],
    ),
    (
        "unknown field",
        |s| s.edit("synthesis.yaml", "seed: 7", "seeds: 7"),
        1,
        &["synthesis.yaml:", "SynthesisJob smoke-docs", "spec.seeds"],
    ),
    (
        "two generators",
        |s| {
            s.edit(
                "synthesis.yaml",
                "contextLength: 8Ki",
                "contextLength: 8Ki\n    embedded: {model: {uri: \"file:model\"}}",
            )
        },
        1,
        &["synthesis.yaml:", "spec.generator", "exactly one of endpoints and embedded"],
    ),
    (
        "stages that do not grow",
        |s| s.edit("extension.yaml", "contextLength: 1Ki", "contextLength: 512"),
        1,
        &["extension.yaml:", "spec.stages"],
    ),
    (
        "a place outside the folder",
        |s| s.edit("synthesis.yaml", "file:corpus.jsonl", "file:../corpus.jsonl"),
        1,
        &["spec.corpus[0].uri", "file:../corpus.jsonl"],
    ),
];

const SYNTHESIS: &[Case] = &[
    (
        "empty corpus",
        |s| fs::write(s.out().join("corpus.jsonl"), "").unwrap(),
        2,
        &["InvalidData", "the corpus is empty"],
    ),
    (
        "truncated jsonl",
        |s| {
            let path = s.out().join("corpus.jsonl");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        },
        2,
        &["InvalidData", "corpus `valleys`", "row 60"],
    ),
    (
        "truncated parquet",
        |s| {
            s.edit("synthesis.yaml", "file:corpus.jsonl", "file:corpus.parquet");
            s.edit("synthesis.yaml", "format: JsonLines", "format: Parquet");
            fs::write(s.out().join("corpus.parquet"), b"PAR1 and no more").unwrap();
        },
        2,
        &["InvalidData", "corpus `valleys`", "no whole parquet file"],
    ),
    (
        "missing corpus",
        |s| fs::remove_file(s.out().join("corpus.jsonl")).unwrap(),
        2,
        &["InvalidData", "corpus `valleys`", "no file"],
    ),
    (
        "a length that this corpus cannot reach",
        |s| {
            s.edit(
                "synthesis.yaml",
                "{name: second-window, tokens: 1Ki, weight: 2}",
                "{name: second-window, tokens: 1Mi, weight: 2}",
            )
        },
        2,
        &["second-window"],
    ),
    (
        "truncated tokenizer",
        |s| {
            let path = s.out().join("model/tokenizer.json");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..1000]).unwrap();
        },
        2,
        &["InvalidTokenizer", "tokenizer.json"],
    ),
];

const TRAINING: &[Case] = &[
    (
        "truncated weights",
        |s| {
            let path = s.out().join("model/model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        2,
        &["InvalidModel", "model.safetensors"],
    ),
    (
        "a tensor of the wrong shape",
        |s| replace(s, "model/config.json", "\"intermediate_size\": 128", "\"intermediate_size\": 96"),
        2,
        &["InvalidModel", "mlp"],
    ),
    (
        "token ids beyond the embedding",
        |s| {
            let path = s.out().join("model/tokenizer.json");
            let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mut token = tokenizer["added_tokens"][0].clone();
            (token["id"], token["content"]) = (512.into(), "<|beyond|>".into());
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
            fs::write(path, tokenizer.to_string()).unwrap();
        },
        2,
        &["InvalidModel", "tokenizer.json has ids up to 512, but the embedding has 512 rows"],
    ),
    (
        "weights without permission to read",
        |s| mode(&s.out().join("model/model.safetensors"), 0o000),
        2,
        &["model.safetensors", "Permission denied"],
    ),
    (
        "a storage folder without permission to write",
        |s| {
            fs::create_dir(s.out().join("run")).unwrap();
            mode(&s.out().join("run"), 0o555);
        },
        2,
        &["AccessDenied", "out/run", "Permission denied"],
    ),
    (
        "a first stage not longer than the window",
        |s| s.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 256, steps: 6"),
        2,
        &["WindowNotExtended", "256"],
    ),
    (
        "a row that is no conversation",
        |s| {
            let path = s.out().join("short.jsonl");
            let text = fs::read_to_string(&path).unwrap().replacen("\"messages\"", "\"massages\"", 2);
            fs::write(path, text).unwrap();
        },
        2,
        &["InvalidData", "short.jsonl", "messages"],
    ),
];

fn replace(smoke: &Smoke, path: &str, from: &str, to: &str) {
    let path = smoke.out().join(path);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} in {}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What is wrong with how the case ends; empty when it ends as it should.
fn check((name, spoil, code, words): &Case, server: &ChatServer, prepare: impl Fn(&Smoke)) -> String {
    let smoke = Smoke::new(server);
    prepare(&smoke);
    spoil(&smoke);
    let before = tree::all(&smoke.out());
    let (found, text) = smoke.run(&[]);
    let after = tree::all(&smoke.out());
    let lost: Vec<&String> = before.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
    let missing: Vec<&&str> = words.iter().filter(|word| !text.contains(**word)).collect();
    // A cause is told once.
    let twice = text.lines().filter(|line| line.matches("os error").count() > 1).count();
    let clear = missing.is_empty() && twice == 0 && !text.contains("panicked");
    if found == *code && clear && lost.is_empty() {
        return String::new();
    }
    format!("== {name}: exit code {found}, missing words {missing:?}, changed files {lost:?} in\n{text}\n")
}

#[test]
fn manifests_are_refused_before_anything_starts() {
    let server = ChatServer::start(Manner::Helpful);
    let wrong: String = MANIFESTS.iter().map(|case| check(case, &server, |_| {})).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn synthesis_refuses_what_can_never_work() {
    let server = ChatServer::start(Manner::Helpful);
    let alone = |smoke: &Smoke| fs::remove_file(smoke.manifests().join("extension.yaml")).unwrap();
    let wrong: String = SYNTHESIS.iter().map(|case| check(case, &server, alone)).collect();
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(server.calls(), 0, "the generator was asked before `prepare` had refused");
}

#[test]
fn training_refuses_what_can_never_work() {
    let server = ChatServer::start(Manner::Helpful);
    let wrong: String = TRAINING.iter().map(|case| check(case, &server, training_alone)).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

/// Leaves the training on short samples, without evaluation: no synthesis is needed.
fn training_alone(smoke: &Smoke) {
    fs::remove_file(smoke.manifests().join("synthesis.yaml")).unwrap();
    smoke.edit("extension.yaml", "  - {name: long, synthesisJobRef: {name: smoke-docs}, weight: 8}\n", "");
    let path = smoke.manifests().join("extension.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, text.split("  evaluation:").next().unwrap()).unwrap();
}

#[test]
fn a_generator_that_is_away_or_talks_rubbish_ends_the_run() {
    let nobody = ChatServer::away();
    let smoke = Smoke::new(&nobody);
    let (code, text) = smoke.run(&["--outage-timeout", "1"]);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("EndpointUnavailable") && text.contains(&nobody.address.to_string()), "{text}");

    // Long before it gives up, after ten minutes, it says what it waits for.
    let smoke = Smoke::new(&nobody);
    let mut waiting = smoke.spawn();
    until(|| smoke.log().contains("waits for something outside"));
    assert_eq!(waiting.try_wait().unwrap(), None, "{}", smoke.log());
    assert!(smoke.log().contains(&nobody.address.to_string()), "{}", smoke.log());
    kill(Pid::from_raw(i32::try_from(waiting.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130), "{}", smoke.log());

    let mut smoke = Smoke::new(&ChatServer::start(Manner::Rubbish));
    smoke.clock_speed = 100;
    let (code, text) = smoke.run(&["--outage-timeout", "1"]);
    assert_eq!(code, 3, "{text}");
    for word in ["scripted", "does not answer as an OpenAI-compatible chat server", "ends in /v1"] {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn a_folder_without_permission_and_a_folder_in_use_are_named() {
    // Its run never ends by itself.
    let smoke = Smoke::new(&ChatServer::away());
    let mut command = Command::new(binary("longstrap"));
    // Not even root can write below /proc.
    let output = command
        .args(["local", "run", "-f"])
        .arg(smoke.manifests())
        .args(["--out", "/proc/nowhere"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("/proc/nowhere"), "{text}");

    let mut first = smoke.spawn();
    until(|| smoke.log().contains("smoke-docs"));
    let (code, text) = smoke.run(&[]);
    assert!(code == 1 && text.contains("another `longstrap local run`"), "{code}: {text}");
    assert_eq!(first.try_wait().unwrap(), None, "the first run goes on: {}", smoke.log());
}

/// A file system of its own, which ends with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let disk = Self(at.to_owned());
        disk.command("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        disk
    }

    fn resize(&self, size: &str) {
        self.command("mount", &["-o", &format!("remount,size={size}")]);
    }

    fn command(&self, program: &str, arguments: &[&str]) {
        let status = Command::new(program).args(arguments).arg(&self.0).status().unwrap();
        assert!(status.success(), "{program} {}: {status}: {NEEDS}", self.0.display());
    }
}

/// What tests with a [`SmallDisk`] need.
const NEEDS: &str = "this test mounts a file system: it needs root, or a kernel that lets everybody have user \
                     name spaces (`unshare --map-root-user --mount true` tells)";

/// Runs the test that calls it again where it is root and may mount; false when it is already.
fn runs_as_root_elsewhere(test: &str) -> bool {
    if processes::is_root() {
        return false;
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount"]).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{NEEDS}");
    true
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing can be done about an error here; lazily, since a failed test may leave a process.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_run_until_there_is_room() {
    if runs_as_root_elsewhere("a_full_disk_ends_the_run_until_there_is_room") {
        return;
    }
    let smoke = Smoke::new(&ChatServer::start(Manner::Helpful));
    let run = SmallDisk::mount(&smoke.out().join("run"), "256k");
    let (code, text) = smoke.run(&[]);
    assert!(code == 1 && text.contains("more of disk") && text.contains("make room"), "{code}: {text}");
    assert!(text.contains("ContextExtensionRun smoke-1k") && text.contains("out/run"), "{text}");
    run.resize("64m");
    let synthesis = SmallDisk::mount(&smoke.out().join("synthesis"), "160k");
    let (code, text) = smoke.run(&[]);
    assert!(
        code == 1 && text.contains("SynthesisJob smoke-docs") && text.contains("out/synthesis"),
        "{text}"
    );

    // Somebody else fills the disk that had room when the run began.
    synthesis.resize("2m");
    let mut begun = smoke.spawn();
    until(|| smoke.out().join("synthesis/run.json").exists());
    let filler = smoke.out().join("synthesis/filler");
    fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    let code = begun.wait().unwrap().code();
    let text = smoke.log();
    assert_eq!(code, Some(2), "{text}");
    let line = text.lines().find(|line| line.contains("DoesNotFit")).unwrap_or_else(|| panic!("{text}"));
    for word in ["SynthesisJob smoke-docs: blocked", "out/synthesis/", "No space left", "free some space"] {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
    assert_eq!(line.matches("os error").count(), 1, "{line}");

    fs::remove_file(filler).unwrap();
    smoke.complete();
}

#[test]
fn a_disk_that_fills_up_under_training_ends_the_run_until_there_is_room() {
    if runs_as_root_elsewhere("a_disk_that_fills_up_under_training_ends_the_run_until_there_is_room") {
        return;
    }
    let smoke = Smoke::new(&ChatServer::away());
    training_alone(&smoke);
    // Many steps: the disk is full before the first checkpoint, or the weights that end a stage.
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 150");
    smoke.edit("extension.yaml", "nodes: 2, ranksPerNode: 2", "nodes: 1, ranksPerNode: 1");
    smoke.edit("extension.yaml", "maxEpochs: 8", "maxEpochs: 1000");
    let _disk = SmallDisk::mount(&smoke.out().join("run"), "64m");
    let mut begun = smoke.spawn();
    // What is written after a gang's claim is what training leaves.
    let claims = smoke.out().join("run/gang");
    until(|| tree::names(&claims).iter().any(|name| name.ends_with(".json")));
    let filler = smoke.out().join("run/filler");
    let mut file = fs::File::options().create(true).append(true).open(&filler).unwrap();
    for piece in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0; piece]).is_ok() {}
    }
    let code = begun.wait().unwrap().code();
    let text = smoke.log();
    assert_eq!(code, Some(2), "{text}");
    let line = text.lines().find(|line| line.contains("DoesNotFit")).unwrap_or_else(|| panic!("{text}"));
    for word in ["ContextExtensionRun smoke-1k: blocked", "No space left", "free some space"] {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
    assert!(line.contains("out/run/ckpt/") || line.contains("out/run/stages/"), "{line}");

    drop(file);
    fs::remove_file(filler).unwrap();
    smoke.complete();
}

#[test]
fn a_rank_that_never_joins_is_named() {
    let smoke = Smoke::new(&ChatServer::away());
    training_alone(&smoke);
    smoke.edit("extension.yaml", "nodes: 2, ranksPerNode: 2", "nodes: 1, ranksPerNode: 2");
    let impatient = "  backoffLimit: 1\n  recovery: {rankTimeoutSeconds: 10}\n  parallelism:";
    smoke.edit("extension.yaml", "  parallelism:", impatient);
    let mut run = smoke.spawn();
    let executor = i32::try_from(run.id()).unwrap();
    until(|| {
        let stopped = processes::rank(executor, 1).map(|rank| kill(Pid::from_raw(rank.pid), Signal::SIGSTOP));
        stopped == Some(Ok(()))
    });
    let code = run.wait().unwrap().code();
    let text = smoke.log();
    assert!(code == Some(1) && text.contains("BackoffLimitExceeded"), "{code:?}: {text}");
    // Its peer gives up at the same time as its agent; it may have spoken before it was stopped.
    let words = [
        "rank 0 lost its peer 1: it did not come within 10s",
        "rank 1 said nothing since its start",
        "rank 1 made no progress for",
    ];
    assert!(words.iter().any(|words| text.contains(words)), "{text}");
}

#[test]
fn model_files_that_are_none_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.gguf");
    for (bytes, word) in [(&b"GGUF"[..], "x.gguf"), (&b"no model at all"[..], "x.gguf"), (&b""[..], "x.gguf")]
    {
        fs::write(&file, bytes).unwrap();
        let output = Command::new(binary("longstrap"))
            .args(["import", "gguf"])
            .arg(&file)
            .arg("--out")
            .arg(dir.path().join("out"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{text}");
        assert!(!dir.path().join("out").exists());
    }
}
