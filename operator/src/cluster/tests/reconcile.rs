//! One object against faults: what is unanswered, refused, outdated or somebody else's.

use std::time::Duration;

use jiff::Timestamp;
use longstrap_crds::names::{ANNOTATION_INPUTS, ANNOTATION_RESTART, child_name};
use serde_json::{Value, json};

use super::{
    RUNS, SYNTHESIS, extension_run,
    fake::{Fake, Fault},
    reconciler, synthesis_job,
};
use crate::cluster::{
    Shared,
    metrics::Metrics,
    observe::observe,
    queue::{Outcome, Queue},
    reconcile::{Reconciled, Reconciler},
    store::{Key, Kind},
    watch::Watch,
    writer::RequestError,
};

const JOBS: &str = "/apis/batch/v1 jobs";
const MAPS: &str = "/api/v1 configmaps";

/// A reconciler, what it knows, and its server.
struct Rig {
    fake: Fake,
    reconciler: Reconciler,
    metrics: Metrics,
}

impl Rig {
    fn new() -> Self {
        let fake = Fake::new();
        let (reconciler, metrics) = reconciler(&fake);
        Self { fake, reconciler, metrics }
    }

    /// Puts the SynthesisJob `docs` there; the watch brings it.
    fn docs(&self, edit: impl FnOnce(&mut Value)) {
        let mut doc = synthesis_job("docs");
        edit(&mut doc);
        let doc = self.fake.put(SYNTHESIS, doc);
        self.reconciler.stores.synthesis.apply(serde_json::from_value(doc).unwrap());
    }

    /// Puts the Job of its first attempt there, started long ago; whether the watch brings it.
    fn job(&self, brought: bool) {
        let job = json!({
            "metadata": {"name": child(), "namespace": "ml", "uid": "j", "labels": {"longstrap.io/owner-uid": "uid-of-docs"},
                "ownerReferences": [owner("uid-of-docs")]},
            "spec": {"completions": 1, "template": {}},
            "status": {"startTime": "2026-01-01T00:00:00Z"},
        });
        let job = self.fake.put(JOBS, job);
        if brought {
            self.reconciler.stores.jobs.apply(serde_json::from_value(job).unwrap());
        }
    }

    async fn reconcile(&self) -> Result<Reconciled, RequestError> {
        self.reconciler.reconcile(&key()).await
    }

    fn status(&self) -> Value {
        self.fake.all("synthesisjobs")[0]["status"].clone()
    }

    fn counted(&self, reason: &str) -> bool {
        self.metrics.render().contains(&format!(r#"longstrap_events_total{{reason="{reason}"}} 1"#))
    }
}

fn key() -> Key {
    Key { kind: Kind::SynthesisJob, namespace: "ml".into(), name: "docs".into() }
}

fn child() -> String {
    child_name("docs", "uid-of-docs", "prepare".parse().unwrap(), 1)
}

fn owner(uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid, "controller": true})
}

fn pending(doc: &mut Value) {
    doc["status"] = json!({"phase": "Pending", "step": "prepare", "attempt": 1, "observedGeneration": 1});
}

fn failed(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed { .. })
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_holds_up_the_job_alone() {
    // Kueue's webhook is away: nothing is made, all else is said, and it is asked again.
    let rig = Rig::new();
    rig.docs(|_| {});
    rig.fake.fault("dryRun", Some(Fault::Status(500, "failed calling webhook")));
    let done = rig.reconcile().await.unwrap();
    assert!(failed(done.outcome) && done.unanswered.unwrap().contains("failed calling webhook"));
    assert_eq!((rig.status()["phase"].clone(), rig.fake.all("jobs").len()), (json!("Pending"), 0));
    assert!(!rig.counted("JobCreated") && rig.fake.all("configmaps").is_empty());
    let reconciling = || {
        let conditions = rig.status()["conditions"].clone();
        let mut all = conditions.as_array().unwrap().iter();
        all.find(|c| c["type"] == "Reconciling").map(|c| (c["status"].clone(), c["reason"].clone()))
    };
    assert_eq!(reconciling(), Some((json!("True"), json!("DryRunUnanswered"))));
    rig.fake.fault("dryRun", None);
    let done = rig.reconcile().await.unwrap();
    assert!(!failed(done.outcome) && done.unanswered.is_none());
    assert_eq!(reconciling(), None);
    assert!(rig.fake.all("jobs").len() == 1 && rig.counted("JobCreated"));

    // Where no Job is to be made, nobody asks.
    let rig = Rig::new();
    rig.fake.fault("dryRun", Some(Fault::Status(500, "failed calling webhook")));
    rig.docs(|doc| {
        pending(doc);
        doc["spec"]["suspend"] = json!(true);
    });
    rig.job(true);
    assert!(!failed(rig.reconcile().await.unwrap().outcome));
    assert_eq!((rig.fake.all("jobs").len(), rig.fake.requests("dryRun")), (0, 0));

    // Events may not be listed: deadlines hold.
    let rig = Rig::new();
    rig.fake.fault("/events?", Some(Fault::Status(403, "events is forbidden")));
    rig.docs(|doc| {
        pending(doc);
        doc["spec"]["startupDeadlineSeconds"] = json!(60);
    });
    rig.job(true);
    assert!(failed(rig.reconcile().await.unwrap().outcome));
    assert_eq!(rig.status()["phase"], json!("Failed"));
}

#[tokio::test(start_paused = true)]
async fn events_are_told_once_the_status_is_written() {
    let rig = Rig::new();
    rig.docs(|doc| doc["metadata"]["annotations"] = json!({ANNOTATION_RESTART: "now"}));
    rig.fake.fault("POST /api/v1/namespaces/ml/configmaps", Some(Fault::Status(500, "etcd")));
    rig.reconcile().await.unwrap_err();
    assert!(rig.counted("RestartRequested") && !rig.counted("JobCreated"));
}

#[tokio::test(start_paused = true)]
async fn what_another_controller_manages_is_left_alone() {
    let rig = Rig::new();
    rig.docs(|doc| {
        pending(doc);
        doc["spec"]["managedBy"] = json!("example.com/other");
        doc["status"]["progress"] = json!({"step": "prepare", "tokensPerSecond": 9, "remaining": "1m0s"});
    });
    assert_eq!(rig.reconcile().await.unwrap().outcome, Outcome::Idle);
    assert_eq!(rig.fake.requests(""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_does_not_get_around_the_servers_check() {
    let rig = Rig::new();
    rig.docs(|doc| {
        pending(doc);
        doc["status"]["phase"] = json!("Blocked");
        doc["status"]["conditions"] = json!([{"type": "Stalled", "status": "True", "reason": "InvalidPodTemplate",
            "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        doc["metadata"]["annotations"] = json!({ANNOTATION_RESTART: "now"});
    });
    rig.fake.fault("fieldValidation=Strict", Some(Fault::Status(400, "unknown field \"spec.a\"")));
    rig.reconcile().await.unwrap();
    let message = rig.status()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("unknown field \"spec.a\""), "{message}");
    assert_eq!((rig.status()["phase"].clone(), rig.fake.all("jobs").len()), (json!("Blocked"), 0));
    // Whatever the dry run has overlooked, the create says.
    let rig = Rig::new();
    rig.docs(|_| {});
    rig.reconcile().await.unwrap();
    let strict = "fieldManager=longstrap-operator&fieldValidation=Strict";
    assert_eq!((rig.fake.requests("POST"), rig.fake.requests(strict)), (6, 6), "3 dry runs, 3 children");
}

#[tokio::test(start_paused = true)]
async fn an_edit_while_a_job_works_is_asked_about_once() {
    let rig = Rig::new();
    rig.docs(pending);
    rig.job(true);
    let mut job = rig.fake.all("jobs")[0].clone();
    job["metadata"]["annotations"] = json!({ANNOTATION_INPUTS: "of an earlier spec"});
    let job = rig.fake.put(JOBS, job);
    rig.reconciler.stores.jobs.apply(serde_json::from_value(job).unwrap());
    rig.fake.fault("dryRun", Some(Fault::Status(400, "unknown field \"spec.a\"")));
    for _ in 0..2 {
        assert!(!failed(rig.reconcile().await.unwrap().outcome));
        let conditions = rig.status()["conditions"].as_array().unwrap().clone();
        let told = conditions.iter().find(|c| c["type"] == "UpToDate").unwrap();
        assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("InvalidPodTemplate")));
        assert!(told["message"].as_str().unwrap().contains("unknown field"), "{told}");
        assert_eq!(rig.fake.requests("dryRun"), 3, "the Jobs of three steps");
        assert_eq!((rig.fake.all("jobs").len(), rig.fake.requests("DELETE")), (1, 0), "it works on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_the_watch_does_not_bring_is_looked_for() {
    let rig = Rig::new();
    rig.docs(|_| {});
    let done = rig.reconcile().await.unwrap();
    let Outcome::Again(at) = done.outcome else { panic!("{done:?}") };
    assert!(at <= tokio::time::Instant::now() + Duration::from_secs(5));
    // Somebody has deleted it, and no watch tells.
    rig.fake.remove(JOBS, "ml", &child());
    tokio::time::sleep_until(at).await;
    rig.reconcile().await.unwrap();
    assert_eq!(rig.fake.all("jobs").len(), 1, "it is made again");
}

#[tokio::test(start_paused = true)]
async fn a_lost_pod_that_may_not_be_given_up_holds_up_nothing_else() {
    let rig = Rig::new();
    rig.docs(|doc| {
        pending(doc);
        doc["spec"]["suspend"] = json!(true);
    });
    rig.job(true);
    let pod = json!({
        "metadata": {"name": "lost", "namespace": "ml", "uid": "p", "ownerReferences": [owner("j")],
            "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30,
            "labels": {"longstrap.io/owner-uid": "uid-of-docs", "batch.kubernetes.io/job-name": child()}},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running"},
    });
    rig.reconciler.stores.pods.apply(serde_json::from_value(pod).unwrap());
    rig.fake.fault("/pods/lost/status", Some(Fault::Status(403, "a policy forbids it")));
    let error = rig.reconcile().await.unwrap_err().to_string();
    assert!(error.contains("a policy forbids it"), "{error}");
    assert_eq!(rig.fake.requests("/pods/lost/status"), 1);
    assert!(rig.fake.requests("DELETE /apis/batch/v1/namespaces/ml/jobs/") == 1, "the Job is deleted");
}

#[tokio::test(start_paused = true)]
async fn an_object_is_not_deleted_from_an_outdated_view() {
    for (raised_meanwhile, left) in [(false, 0), (true, 1)] {
        let rig = Rig::new();
        let lives = |doc: &mut Value, seconds: u64| doc["spec"]["ttlSecondsAfterSuccess"] = json!(seconds);
        rig.docs(|doc| {
            lives(doc, 1_000_000_000);
            doc["status"] = json!({"phase": "Complete", "step": "finalize", "attempt": 1,
                "observedGeneration": 1, "completionTime": "2026-01-01T00:00:00Z"});
        });
        // Its status is as the plan has it: nothing but the delete is to be written below.
        rig.reconcile().await.unwrap();
        let mut doc = rig.fake.all("synthesisjobs")[0].clone();
        lives(&mut doc, 60);
        rig.docs(|docs| *docs = doc.clone());
        if raised_meanwhile {
            lives(&mut doc, 1_000_000_000);
            rig.fake.put(SYNTHESIS, doc);
        }
        // Else again, ever less often.
        assert_eq!(failed(rig.reconcile().await.unwrap().outcome), raised_meanwhile);
        assert_eq!((rig.fake.all("synthesisjobs").len(), rig.fake.requests("DELETE")), (left, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_job_mounts_is_not_replaced() {
    for (job, data) in [(true, json!({"task.json": "old"})), (false, Value::Null)] {
        let rig = Rig::new();
        rig.docs(|_| {});
        let map = json!({"metadata": {"name": child(), "namespace": "ml", "ownerReferences": [owner("uid-of-docs")]},
            "data": {"task.json": "old"}});
        rig.fake.put(MAPS, map);
        if job {
            rig.job(false);
        }
        rig.reconcile().await.unwrap();
        let left = rig.fake.all("configmaps").first().map_or(Value::Null, |map| map["data"].clone());
        assert_eq!(left, data, "a Job exists: {job}");
    }
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_job_before_this_one_do_not_count_as_its_own() {
    let rig = Rig::new();
    rig.docs(pending);
    rig.job(true);
    for (name, owners) in
        [("own", json!([owner("j")])), ("before", json!([owner("i")])), ("orphan", json!([]))]
    {
        let pod = json!({"metadata": {"name": name, "namespace": "ml", "ownerReferences": owners, "labels": {
            "longstrap.io/owner-uid": "uid-of-docs", "batch.kubernetes.io/job-name": child()}}});
        rig.reconciler.stores.pods.apply(serde_json::from_value(pod).unwrap());
    }
    let Reconciler { stores, writer, made, config, .. } = &rig.reconciler;
    let seen = observe(stores, writer, made, config, &key()).await.unwrap();
    let counted = seen.world.pods.iter().map(|pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        (pod.metadata.name.clone().unwrap(), labels.contains_key("batch.kubernetes.io/job-name"))
    });
    let counted: Vec<_> = counted.collect();
    // All are there: they may sit on lost nodes.
    assert_eq!(counted, [("before".to_owned(), false), ("orphan".into(), false), ("own".into(), true)]);
}

#[tokio::test(start_paused = true)]
async fn data_that_is_pinned_is_not_waited_for() {
    let fake = Fake::new();
    let (reconciler, metrics) = reconciler(&fake);
    // Its first list has neither come nor failed.
    let watch = Watch::<longstrap_crds::SynthesisJob>::new(fake.client(), None, None);
    let shared = Shared {
        reconciler,
        queue: Queue::default(),
        watches: vec![watch.health()],
        metrics,
        started: Timestamp::UNIX_EPOCH,
    };
    fake.fault("/synthesisjobs?", Some(Fault::Status(403, "forbidden")));
    let health = shared.watches[0].clone();
    tokio::spawn(async move { watch.run(&Default::default(), |_| {}, || {}).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(health.error().is_some());
    let key = Key { kind: Kind::ContextExtensionRun, namespace: "ml".into(), name: "llama".into() };
    for (pinned, known) in [(json!([]), false), (json!([{"name": "long", "uri": "s3://b/d"}]), true)] {
        let mut run = extension_run("llama");
        run["spec"]["data"] = json!([{"name": "long", "synthesisJobRef": {"name": "docs"}}]);
        run["status"] = json!({"phase": "Queued", "data": pinned});
        let run = fake.put(RUNS, run);
        shared.reconciler.stores.runs.apply(serde_json::from_value(run).unwrap());
        assert_eq!(shared.knows_about(&key), known, "{pinned}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_no_failure_and_is_told_once() {
    let rig = Rig::new();
    rig.docs(|_| {});
    rig.fake.fault("POST /apis/batch/v1/namespaces/ml/jobs?", Some(Fault::Status(403, "exceeded quota: q")));
    for writes in [2, 2, 2] {
        let done = rig.reconcile().await.unwrap();
        assert!(matches!(done.outcome, Outcome::Waits { .. }), "{done:?}");
        assert_eq!(
            rig.fake.requests("/synthesisjobs/docs/status"),
            writes,
            "the reason does not come and go"
        );
        let queued = rig.status()["conditions"].as_array().unwrap().clone();
        assert!(queued.iter().any(|c| c["type"] == "Queued" && c["reason"] == "QuotaExceeded"), "{queued:?}");
    }
    rig.fake.fault("POST /apis/batch/v1/namespaces/ml/jobs?", None);
    rig.reconcile().await.unwrap();
    // The Job is there.
    assert!(!failed(rig.reconcile().await.unwrap().outcome));
    assert!(!rig.status().to_string().contains("QuotaExceeded"), "{}", rig.status());
}
