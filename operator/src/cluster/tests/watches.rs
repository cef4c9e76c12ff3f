//! Watches fail alone; events are told once.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    SYNTHESIS,
    fake::{Fake, Fault},
    options, synthesis_job, writer,
};
use crate::cluster::{
    dry_run::DryRuns,
    events::{self, Recorder},
    health::Health,
    kept::Kept,
    metrics::Metrics,
    store::{Changed, Store},
    watch::{Scoped, Watch},
};
use crate::plan::{Event, World};
use longstrap_crds::{Object, Reason, SynthesisJob};

fn child(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ml", "labels": {"longstrap.io/owner-uid": "u"}}})
}

/// When which object changed.
type Seen = Arc<Mutex<Vec<(Duration, String)>>>;

/// Starts a watch of all namespaces.
fn start<K>(fake: &Fake) -> (Arc<Health>, Seen)
where
    K: Kept + std::fmt::Debug + serde::de::DeserializeOwned,
    kube::Api<K>: Scoped,
{
    let watch = Watch::<K>::new(fake.client(), None, None);
    let (health, seen) = (watch.health(), Arc::new(Mutex::new(Vec::new())));
    let (changes, begin) = (seen.clone(), Instant::now());
    tokio::spawn(async move {
        let store = Store::<K>::default();
        let changed = |what: Changed| changes.lock().unwrap().push((begin.elapsed(), what.name.1));
        watch.run(&store, changed, || {}).await;
    });
    (health, seen)
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_delays_no_other() {
    let fake = Fake::new();
    fake.fault("/pods?", Some(Fault::Status(403, "pods is forbidden")));
    fake.put("/apis/batch/v1 jobs", child("before"));
    let (jobs, seen) = start::<Job>(&fake);
    let (pods, _) = start::<Pod>(&fake);
    sleep(Duration::from_secs(20)).await;
    fake.put("/apis/batch/v1 jobs", child("after"));
    sleep(Duration::from_secs(1)).await;
    let times: Vec<_> = seen.lock().unwrap().iter().map(|(at, name)| (at.as_secs(), name.clone())).collect();
    assert_eq!(times, [(0, "before".to_owned()), (20, "after".to_owned())]);
    // 0, 0.5, 1.5, 3.5, 7.5, 15.5 s; the jobs were listed once, and watched once.
    assert_eq!((fake.requests("/pods?"), pods.failures()), (6, 6));
    assert_eq!((fake.requests("/jobs?"), jobs.failures()), (2, 0));
    assert!(jobs.synced() && !pods.synced());
    assert!(pods.error().unwrap().contains("pods is forbidden"));
    // A refusal is an answer: a new process would get no other.
    assert!(pods.silence() < Duration::from_secs(20), "{:?}", pods.silence());
    assert!(pods.age() >= Duration::from_secs(20), "{:?}", pods.age());
    fake.fault("/pods?", None);
    sleep(Duration::from_secs(30)).await;
    assert!(pods.synced() && pods.error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_noticed_and_left() {
    let fake = Fake::new();
    fake.fault("/pods?", Some(Fault::Silence));
    let (pods, seen) = start::<Pod>(&fake);
    let (jobs, _) = start::<Job>(&fake);
    sleep(Duration::from_secs(700)).await;
    assert!(pods.silence() >= Duration::from_secs(700), "{:?}", pods.silence());
    assert!(jobs.age() < Duration::from_secs(300), "{:?}", jobs.age());
    fake.put("/api/v1 pods", child("p"));
    fake.fault("/pods?", None);
    sleep(Duration::from_secs(50)).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert!(pods.age() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_stops_no_other() {
    let fake = Fake::new();
    let newer = |name: &str| {
        let mut doc = synthesis_job(name);
        doc["spec"]["recovery"] = json!({"lostNode": "AskTheOracle"});
        doc
    };
    fake.put(SYNTHESIS, newer("bad"));
    fake.put(SYNTHESIS, synthesis_job("good"));
    let (health, seen) = start::<SynthesisJob>(&fake);
    sleep(Duration::from_secs(1)).await;
    assert!(health.synced() && health.error().is_none());
    assert_eq!(health.unreadable(), ["ml/bad"]);
    // One that could be read until now, and one that can be again.
    fake.put(SYNTHESIS, newer("good"));
    fake.put(SYNTHESIS, synthesis_job("bad"));
    fake.put(SYNTHESIS, synthesis_job("last"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!((health.unreadable(), health.failures()), (vec!["ml/good".to_owned()], 0));
    let names: Vec<_> = seen.lock().unwrap().iter().map(|(_, name)| name.clone()).collect();
    assert_eq!(names, ["good", "good", "bad", "last"]);
    fake.remove("/apis/longstrap.io/v1alpha1 synthesisjobs", "ml", "good");
    sleep(Duration::from_secs(1)).await;
    assert!(health.unreadable().is_empty());
}

fn world(name: &str) -> World {
    let mut doc = synthesis_job(name);
    doc["metadata"]["generation"] = json!(1);
    World {
        object: Object::SynthesisJob(Box::new(serde_json::from_value(doc).unwrap())),
        jobs: Vec::new(),
        pods: Vec::new(),
        synthesis: Default::default(),
        obstacles: Vec::new(),
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
        config: options().config("c".into()),
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_told_once_and_then_counted() {
    let fake = Fake::new();
    let object = world("docs").object;
    let event = Event { warning: true, reason: Reason::StorageUnavailable, message: "503".into() };
    let leader = || {
        let (recorder, recorded) = Recorder::new(Metrics::default());
        tokio::spawn(events::write(recorded, writer(&fake).0));
        recorder
    };
    let told = |recorder: &Recorder| recorder.planned(&object, std::slice::from_ref(&event));
    let count = || -> Vec<Value> { fake.all("events").iter().map(|e| e["count"].clone()).collect() };
    let recorder = leader();
    for (wait, expected) in [(1, 1), (60, 1), (120, 2), (4000, 3), (1, 3)] {
        told(&recorder);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(count(), [json!(expected)], "then {wait} s");
        sleep(Duration::from_secs(wait)).await;
    }
    // Another leader knows nothing of it.
    told(&leader());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(count().len(), 1);
    let created = Event { warning: false, reason: Reason::JobCreated, message: "Job r-x is created".into() };
    recorder.planned(&object, std::slice::from_ref(&created));
    recorder.done(&object, std::slice::from_ref(&created), &Default::default());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(count().len(), 1, "somebody else has created it");
    recorder.done(&object, &[created], &["r-x".to_owned()].into());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(count().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_server_is_asked_about_each_kind_of_job_once() {
    let fake = Fake::new();
    let (writer, _) = writer(&fake);
    let dry_runs = DryRuns::default();
    let ask = async |name: &str, edit: fn(&mut World)| {
        let mut world = world(name);
        edit(&mut world);
        let before = fake.requests("dryRun=All&fieldManager=longstrap-operator&fieldValidation=Strict");
        let answer = dry_runs.obstacle(&writer, &world).await;
        let answer = match answer {
            Ok(None) => "accepted".to_owned(),
            Ok(Some(obstacle)) => format!("{}: {}", obstacle.reason, obstacle.message),
            Err(_) => "again".to_owned(),
        };
        (answer, fake.requests("fieldValidation=Strict") - before)
    };
    let other: fn(&mut World) = |world| world.config.image = "worker@sha256:2".into();
    let third: fn(&mut World) = |world| world.config.image = "worker@sha256:3".into();
    assert_eq!(ask("a", |_| {}).await, ("accepted".into(), 3));
    assert_eq!(ask("b", |_| {}).await, ("accepted".into(), 0), "the same but for the name");
    assert_eq!(ask("c", other).await, ("accepted".into(), 3));
    sleep(Duration::from_secs(301)).await;
    assert_eq!(ask("b", |_| {}).await.1, 3, "the server's policies may have changed");
    sleep(Duration::from_secs(301)).await;
    for (fault, answer) in [
        (
            Fault::Status(422, "unknown field \"a\""),
            "InvalidPodTemplate: the API server refuses the Job of prepare: unknown field \"a\"",
        ),
        (Fault::Status(500, "etcd"), "again"),
        (Fault::Silence, "again"),
        (Fault::Status(403, "exceeded quota"), "accepted"),
    ] {
        fake.fault("dryRun", Some(fault));
        assert_eq!(ask("a", |_| {}).await, (answer.to_owned(), 3));
    }
    // The next attempt's Job is of the same kind.
    let next: fn(&mut World) = |world| {
        let Object::SynthesisJob(job) = &mut world.object else { unreachable!() };
        job.status = serde_json::from_value(json!({"phase": "Pending", "attempt": 2})).unwrap();
    };
    assert_eq!(ask("a", next).await, ("accepted".into(), 0));
    // Many at once: one asks, all hear the answer.
    fake.fault("dryRun", Some(Fault::Late(Duration::from_secs(1))));
    let before = fake.requests("dryRun");
    let (d, e) = tokio::join!(ask("d", third), ask("e", third));
    assert_eq!((d.0.as_str(), e.0.as_str()), ("accepted", "accepted"));
    assert_eq!(fake.requests("dryRun") - before, 3);
    assert!(fake.all("jobs").is_empty());
}
