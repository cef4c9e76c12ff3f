//! The operator dies after its n-th write, before it learns what came of it, for every n; another
//! one goes on, and in the end everything is as if nothing had happened.
//!
//! Caught: a ConfigMap that was left over when its Job was deleted first.

use std::pin::pin;

use futures::{StreamExt, stream};
use longstrap_api_tests::{
    End, RUN, SYNTH, Sandbox, Verdict, extension_run, snapshot::differences, synthesis_job,
};
use longstrap_crds::names::ANNOTATION_RESTART;
use serde_json::{Value, json};

/// Operators at once.
const AT_ONCE: usize = 6;

/// What people and kubelets do, and what is then to be seen.
#[derive(Clone, Copy)]
enum Course {
    SynthesisToComplete,
    ExtensionToComplete,
    SuspendAndResume,
    FailureAndNextAttempt,
    BlockedAndMended,
    RestartedByHand,
    FailedAndForgotten,
}

impl Course {
    async fn run(self, s: &Sandbox) {
        match self {
            Self::SynthesisToComplete => {
                s.create(&synthesis_job("docs")).await;
                s.succeed(1).await;
                s.succeed(2).await;
                s.succeed(1).await;
                s.phase(SYNTH, "docs", "Complete").await;
            }
            Self::ExtensionToComplete => {
                let mut docs = synthesis_job("docs");
                docs["spec"]["managedBy"] = json!("example.com/test");
                s.create(&docs).await;
                s.create(&extension_run("run", "docs")).await;
                s.phase(RUN, "run", "Pending").await;
                let dataset =
                    json!({"uri": "s3://b/docs/dataset", "digest": "sha256:d", "rows": 2, "tokens": 9});
                s.set_status(SYNTH, "docs", json!({"phase": "Complete", "dataset": dataset})).await;
                s.succeed(1).await;
                s.succeed(2).await;
                s.succeed(1).await;
                s.phase(RUN, "run", "Complete").await;
            }
            Self::SuspendAndResume => {
                s.create(&synthesis_job("docs")).await;
                s.succeed(1).await;
                s.start_pods(2).await;
                s.phase(SYNTH, "docs", "Running").await;
                s.edit(SYNTH, "docs", json!({"spec": {"suspend": true}})).await;
                s.phase(SYNTH, "docs", "Suspended").await;
                s.edit(SYNTH, "docs", json!({"spec": {"suspend": false}})).await;
                s.start_pods(2).await;
                s.phase(SYNTH, "docs", "Running").await;
            }
            Self::FailureAndNextAttempt => {
                let mut docs = synthesis_job("docs");
                docs["spec"]["recovery"] = json!({"waitForReplacementSeconds": 5});
                s.create(&docs).await;
                s.succeed(1).await;
                s.start_pods(2).await;
                let crash = End::with(1, json!({"message": "out of luck"}));
                s.end_pod(&s.running().await[0], &crash).await;
                s.attempt(SYNTH, "docs", 2).await;
                s.start_pods(2).await;
                s.phase(SYNTH, "docs", "Running").await;
            }
            Self::BlockedAndMended => {
                s.create(&synthesis_job("docs")).await;
                s.start_pods(1).await;
                s.end_pods(&End::with(10, json!({"reason": "InvalidData", "message": "empty"}))).await;
                s.phase(SYNTH, "docs", "Blocked").await;
                s.edit(SYNTH, "docs", json!({"spec": {"backoffLimit": 3}})).await;
                s.attempt(SYNTH, "docs", 2).await;
                s.succeed(1).await;
                s.phase(SYNTH, "docs", "Queued").await;
            }
            Self::RestartedByHand => {
                s.create(&synthesis_job("docs")).await;
                s.succeed(1).await;
                s.start_pods(2).await;
                s.phase(SYNTH, "docs", "Running").await;
                let annotations = json!({"metadata": {"annotations": {ANNOTATION_RESTART: "now"}}});
                s.edit(SYNTH, "docs", annotations).await;
                s.attempt(SYNTH, "docs", 2).await;
                s.start_pods(2).await;
                s.phase(SYNTH, "docs", "Running").await;
            }
            Self::FailedAndForgotten => {
                let mut docs = synthesis_job("docs");
                docs["spec"]["activeDeadlineSeconds"] = json!(1);
                docs["spec"]["ttlSecondsAfterFailure"] = json!(1);
                s.create(&docs).await;
                s.start_pods(1).await;
                s.expect(SYNTH, "docs", "gone").await;
            }
        }
    }
}

/// The course without a crash: how many writes it takes, and what there is in the end.
async fn undisturbed(course: Course) -> (usize, Value) {
    let s = Sandbox::new("calm").await;
    let proxy = s.proxy(|_| Verdict::Pass).await;
    let _operator = s.operator_at("a", &proxy.url(), &[]);
    course.run(&s).await;
    (proxy.writes(), s.settled().await)
}

/// The course with an operator that dies after its `n`-th write; whether it came to that.
async fn crashed(course: Course, n: usize, wanted: &Value) -> bool {
    let s = Sandbox::new("crash").await;
    let proxy = s.proxy(|_| Verdict::Pass).await;
    proxy.dies_after(n);
    let first = s.operator_at("a", &proxy.url(), &[]);
    // The write may be one of those that follow the last that people and kubelets do.
    let mut course = pin!(async {
        course.run(&s).await;
        s.becomes(wanted, &format!("crash after write {n}")).await;
    });
    tokio::select! {
        () = &mut course => false,
        () = proxy.died() => {
            drop(first);
            let _second = s.operator("a");
            course.await;
            true
        }
    }
}

/// The course with operators that die after each write of theirs; how many died.
async fn crashed_each_time(course: Course, wanted: &Value) -> usize {
    let s = Sandbox::new("crashes").await;
    let proxy = s.proxy(|_| Verdict::Pass).await;
    proxy.dies_after(1);
    let mut operator = s.operator_at("a", &proxy.url(), &[]);
    let mut deaths = 0;
    {
        let mut course = pin!(course.run(&s));
        loop {
            tokio::select! {
                () = &mut course => break,
                () = proxy.died() => {
                    deaths += 1;
                    drop(operator);
                    proxy.dies_after(1);
                    operator = s.operator_at("a", &proxy.url(), &[]);
                }
            }
        }
    }
    drop(operator);
    let _last = s.operator("a");
    s.becomes(wanted, "crash after each write").await;
    deaths
}

async fn every_crash(course: Course) {
    let (writes, wanted) = undisturbed(course).await;
    let died = stream::iter(1..=writes)
        .map(|n| crashed(course, n, &wanted))
        .buffer_unordered(AT_ONCE)
        .filter(|died| std::future::ready(*died))
        .count()
        .await;
    let deaths = crashed_each_time(course, &wanted).await;
    println!("{writes} writes: {died} operators died after one of them, {deaths} in one course");
    // The last writes may fall after the course's end, and two statuses may become one; Events that
    // are lost with their operator are not written again, and some writes are under way together.
    assert!(died + 3 >= writes && 3 * deaths >= writes, "{died} and {deaths} of {writes}");
}

#[tokio::test]
async fn a_synthesis_job_survives_every_crash() {
    every_crash(Course::SynthesisToComplete).await;
}

#[tokio::test]
async fn a_run_survives_every_crash() {
    every_crash(Course::ExtensionToComplete).await;
}

#[tokio::test]
async fn suspension_survives_every_crash() {
    every_crash(Course::SuspendAndResume).await;
}

#[tokio::test]
async fn a_next_attempt_survives_every_crash() {
    every_crash(Course::FailureAndNextAttempt).await;
}

#[tokio::test]
async fn a_block_that_is_mended_survives_every_crash() {
    every_crash(Course::BlockedAndMended).await;
}

#[tokio::test]
async fn a_restart_survives_every_crash() {
    every_crash(Course::RestartedByHand).await;
}

#[tokio::test]
async fn a_deadline_and_the_end_of_an_object_survive_every_crash() {
    every_crash(Course::FailedAndForgotten).await;
}

// Differences are told by path: a mask that is too wide would hide them.
#[test]
fn snapshots_tell_what_differs() {
    let one = json!({"jobs": [{"spec": {"a": 1}}], "pods": []});
    let other = json!({"jobs": [{"spec": {"a": 2}}], "pods": [1]});
    assert_eq!(differences(&one, &other), ["/jobs/0/spec/a: 1 ≠ 2", "/pods: [] ≠ [1]"]);
    assert!(differences(&one, &one).is_empty());
}
