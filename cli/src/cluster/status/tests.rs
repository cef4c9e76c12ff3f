//! What people look at: whole screens, for objects in typical states.

use longstrap_crds::Object;
use serde_json::{Value, json};

use super::Line;
use super::render::{View, list, object};
use crate::cluster::children::{Children, EventView, PodView};
use crate::cluster::target::Kind;
use crate::cluster::tests::{condition, job, run};

const NOW: &str = "2026-01-01T01:00:00Z";

fn shown(what: &Object, children: &Children, wide: bool) -> String {
    object(&View { object: what, children: Ok(children), now: NOW.parse().unwrap(), wide })
}

fn job_of(step: &str, attempt: u32, rest: Value) -> Value {
    let mut job = json!({"metadata": {
        "name": format!("r-x-{step}-{attempt}"),
        "creationTimestamp": "2026-01-01T00:30:00Z",
        "labels": {"longstrap.io/step": step, "longstrap.io/attempt": attempt.to_string()},
    }});
    job["status"] = rest;
    job
}

fn pod(step: &str, attempt: u32, index: u32, phase: &str, state: Value) -> PodView {
    let pod = json!({
        "metadata": {
            "name": format!("r-x-{step}-{attempt}-{index}-abcde"),
            "creationTimestamp": "2026-01-01T00:30:00Z",
            "labels": {"longstrap.io/step": step, "longstrap.io/attempt": attempt.to_string()},
            "annotations": {"batch.kubernetes.io/job-completion-index": index.to_string()},
        },
        "spec": {"nodeName": "node-1", "containers": []},
        "status": {"phase": phase, "containerStatuses": [
            {"name": "sidecar", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
             "state": {"terminated": {"exitCode": 99}}},
            {"name": "worker", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "state": state},
        ]},
    });
    PodView::new(&serde_json::from_value(pod).unwrap())
}

fn jobs(jobs: Vec<Value>) -> Vec<k8s_openapi::api::batch::v1::Job> {
    jobs.into_iter().map(|job| serde_json::from_value(job).unwrap()).collect()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_run_in_training() {
    let run = run(json!({
        "phase": "Running", "observedGeneration": 2, "step": "train-0", "attempt": 2,
        "startTime": "2026-01-01T00:00:00Z",
        "progress": {"step": "train-0", "stage": "512k", "percent": 71, "optimizerStep": 41, "of": 100, "loss": "1.93",
            "tokensPerSecond": 4100, "remaining": "3h12m", "time": "2026-01-01T00:59:55Z"},
        "recovery": {"failures": 1, "lastCommitted": 5, "avoidedNodes": [{"name": "node-7", "reason": "2 failures"}]},
        "stages": [
            {"name": "256k", "phase": "Complete", "step": "train-0"},
            {"name": "512k", "phase": "Running", "step": "train-0"},
        ],
        "checkpoint": {"stage": "512k", "step": 240, "uri": "s3://acme/run/ckpt/3/240", "time": "2026-01-01T00:55:00Z"},
        "usage": {"acceleratorSeconds": 7500, "lostAcceleratorSeconds": 300, "queuedSeconds": 12},
        "conditions": [
            condition("Running", "True", "PodsRunning", "train-0: 1 of 2 pods run"),
            condition("UpToDate", "False", "SpecEdited", ""),
        ],
    }));
    let message = json!({"message": "out of luck", "committed": 5}).to_string();
    let ended = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": message, "finishedAt": "2026-01-01T00:50:00Z"}});
    let children = Children {
        jobs: jobs(vec![
            job_of("prepare", 1, json!({"conditions": [{"type": "Complete", "status": "True"}]})),
            job_of("train-0", 2, json!({})),
        ]),
        pods: vec![
            pod("train-0", 2, 0, "Failed", ended),
            pod("train-0", 2, 1, "Running", json!({"running": {}})),
        ],
        events: vec![EventView {
            warning: true,
            reason: "PodFailed".into(),
            message: "pod r-x ended".into(),
            at: "2026-01-01T00:50:05Z".parse().ok(),
        }],
    };
    let narrow = "\
ContextExtensionRun ml/run: Running

why           PodsRunning: train-0: 1 of 2 pods run
attempt       2, 1 failure without progress (6 are allowed)
last failure  10m 00s ago, pod r-x-train-0-2-0-abcde: exit code 137 (OOMKilled): out of luck
goes on from  step 240 in stage 512k, 5m 00s ago: s3://acme/run/ckpt/3/240
avoids        node node-7: 2 failures
storage       s3://acme/run
started       1h 00m ago
cost          accelerators 2h 05m (5m 00s of it lost), in queues 12 s

STEP     STATE    PROGRESS
prepare  done
train-0  Running  71 %, stage 512k, step 41 of 100, loss 1.93, 4,100 tokens/s, 3h12m left
export   -

STAGE  WINDOW   STEPS  STATE
256k   262,144  200    done
512k   524,288  100    41 steps done

CONDITION  IS   SINCE   REASON       IN WORDS
Running    yes  1h 00m  PodsRunning  train-0: 1 of 2 pods run
UpToDate   no   1h 00m  SpecEdited   The spec was edited; the next attempt takes it up.

JOB            ATTEMPT  STATE     PODS                 AGE
r-x-prepare-1  1        complete  none                 30m 00s
r-x-train-0-2  2        active    1 running, 1 failed  30m 00s";
    assert_eq!(lines(&shown(&run, &children, false)), lines(narrow));
    let wide = shown(&run, &children, true);
    let pods = "
POD                    STATE    NODE    AGE      END
r-x-train-0-2-0-abcde  failed   node-1  30m 00s  exit code 137 (OOMKilled): out of luck
r-x-train-0-2-1-abcde  running  node-1  30m 00s

EVENT      SINCE   IN WORDS
PodFailed  9m 55s  pod r-x ended";
    assert!(wide.ends_with(pods), "{wide}");
    assert!(wide.contains("\nuid           uid-of-run\n"), "{wide}");
}

#[test]
fn a_job_that_waits_for_its_next_attempt() {
    let job = job(json!({
        "phase": "Queued", "observedGeneration": 1, "step": "generate", "attempt": 3,
        "progress": {"step": "prepare", "percent": 100},
        "recovery": {"outages": 2, "lastCommitted": 1451, "nextAttemptTime": "2026-01-01T01:00:42Z"},
        "conditions": [condition("Queued", "True", "EndpointUnavailable", "vllm is away")],
    }));
    let text = "\
SynthesisJob ml/docs: Queued

why           EndpointUnavailable: vllm is away
then          tried again by itself after 1 to 30 minutes
next attempt  in 42 s
attempt       3
goes on from  1,451 committed shards or steps
storage       s3://acme/docs
note          the newest edit has not been looked at yet

STEP      STATE   PROGRESS
prepare   done
generate  Queued
finalize  -

CONDITION  IS   SINCE   REASON               IN WORDS
Queued     yes  1h 00m  EndpointUnavailable  vllm is away";
    assert_eq!(lines(&shown(&job, &Children::default(), false)), lines(text));
}

#[test]
fn an_object_that_nobody_has_looked_at_and_children_that_may_not_be_read() {
    let job = job(json!({}));
    let view =
        View { object: &job, children: Err("not allowed".into()), now: NOW.parse().unwrap(), wide: false };
    let text = "\
SynthesisJob ml/docs: New

why      no operator has looked at it yet; is one installed, and does it watch this namespace?
attempt  1
storage  s3://acme/docs

STEP      STATE  PROGRESS
prepare   -
generate  -
finalize  -

children: not allowed";
    assert_eq!(lines(&object(&view)), lines(text));
}

#[test]
fn ends_say_what_came_of_it_and_what_then() {
    let complete = job(json!({
        "phase": "Complete", "step": "finalize", "attempt": 1, "observedGeneration": 2,
        "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:40:00Z",
        "dataset": {"uri": "s3://acme/docs/dataset", "digest": "sha256:d", "rows": 1100, "tokens": 9000},
        "conditions": [condition("Complete", "True", "Completed", "the result is published")],
    }));
    let shown_complete = shown(&complete, &Children::default(), false);
    for line in [
        "result   dataset of 1,100 samples, 9,000 tokens: s3://acme/docs/dataset",
        "started  1h 00m ago, took 40m 00s",
        "finalize  done",
    ] {
        assert!(shown_complete.lines().any(|l| l == line), "{line}\n{shown_complete}");
    }
    let failed = run(json!({
        "phase": "Failed", "step": "train-0", "attempt": 9, "observedGeneration": 2,
        "conditions": [condition("Failed", "True", "BackoffLimitExceeded", "7 failures")],
    }));
    let shown_failed = shown(&failed, &Children::default(), false);
    for line in [
        "why      BackoffLimitExceeded: 7 failures",
        "then     `longstrap retry` makes it again; it goes on from its storage",
        "train-0  Failed",
    ] {
        assert!(shown_failed.lines().any(|l| l == line), "{line}\n{shown_failed}");
    }
}

#[test]
fn many_objects_in_a_line_each() {
    let running = run(json!({
        "phase": "Running", "step": "train-0", "attempt": 2,
        "progress": {"step": "train-0", "stage": "512k", "percent": 71, "tokensPerSecond": 4100, "remaining": "3h12m"},
    }));
    let blocked = job(json!({
        "phase": "Blocked", "step": "prepare", "attempt": 1,
        "conditions": [condition("Stalled", "True", "AccessDenied", "403")],
    }));
    let objects = [blocked, running].map(|object| Line::Object(Box::new(object)));
    let now = NOW.parse().unwrap();
    let narrow = "\
OBJECT                   PHASE    STEP            PROGRESS  TOKENS/S  REMAINING  AGE
SynthesisJob/docs        Blocked  prepare         -         -         -          1h 00m
ContextExtensionRun/run  Running  train-0 (512k)  71 %      4,100     3h12m      1h 00m";
    assert_eq!(lines(&list(&objects, false, false, now)), lines(narrow));
    let wide = list(&objects, true, true, now);
    assert!(wide.starts_with("NAMESPACE  OBJECT"), "{wide}");
    assert!(wide.contains("1h 00m  1        AccessDenied: 403"), "{wide}");
}

#[test]
fn an_object_of_a_newer_version_hides_no_other() {
    let line = |name: &str, phase: &str| {
        let mut object = job(json!({"phase": "Complete", "step": "finalize"})).to_json().unwrap();
        (object["metadata"]["name"], object["status"]["phase"]) = (json!(name), json!(phase));
        Line::read(Kind::SynthesisJob, serde_json::from_value(object).unwrap())
    };
    let all = [line("a", "Complete"), line("b", "Paused"), line("c", "Complete")];
    let told = list(&all, false, false, NOW.parse().unwrap());
    let (table, below) = told.split_once("\n\n").unwrap();
    let wanted = "\
OBJECT          PHASE     STEP      PROGRESS  TOKENS/S  REMAINING  AGE
SynthesisJob/a  Complete  finalize  -         -         -          1h 00m
SynthesisJob/b  Paused    -         -         -         -          1h 00m
SynthesisJob/c  Complete  finalize  -         -         -          1h 00m";
    assert_eq!(lines(table), lines(wanted));
    let why = "SynthesisJob ml/b was written for another version of longstrap: unknown variant `Paused`";
    assert!(below.starts_with(why) && below.ends_with("a newer longstrap can read it"), "{below}");
    assert!(list(&all, true, true, NOW.parse().unwrap()).contains("not readable, see below"));
}
