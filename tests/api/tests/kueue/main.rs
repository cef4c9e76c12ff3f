//! The operator's Jobs in real queues: Kueue admits, evicts and preempts, and the operator leaves to
//! it what is Kueue's.
//!
//! Invariant: neither an eviction nor a preemption is a failure or a new attempt, and the operator
//! never writes to a Job that Kueue holds.
#![allow(clippy::unwrap_used)]

mod queues;

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use longstrap_api_tests::{End, RUN, SYNTH, Sandbox, extension_run, synthesis_job};
use longstrap_crds::names::LABEL_STEP;
use queues::{ACCELERATOR, Kueue, queue, set_active};
use serde_json::{Value, json};

/// Kind and name of an object.
type Name = (&'static str, &'static str);

const FIRST: Name = (SYNTH, "first");
const SECOND: Name = (RUN, "second");

/// An object that asks the queue `gpu` for one CPU per pod.
fn queued(mut object: Value, priority: &str) -> Value {
    object["metadata"]["labels"] =
        json!({"kueue.x-k8s.io/queue-name": "gpu", "kueue.x-k8s.io/priority-class": priority});
    let worker = json!({"name": "worker", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}});
    object["spec"]["podTemplate"] = json!({"spec": {"containers": [worker]}});
    object
}

/// The Job of an object's present step.
async fn active_job(s: &Sandbox, (kind, name): Name) -> Job {
    s.until(&format!("{name}: the Job of its step"), async || {
        let uid = s.objects(kind).get(name).await.unwrap().uid().unwrap();
        let step = s.status(kind, name).await["step"].clone();
        let mut jobs = s.jobs().await;
        let of_step = |job: &Job| job.labels().get(LABEL_STEP).is_some_and(|label| step == *label);
        jobs.retain(|j| j.owner_references().iter().any(|o| o.uid == uid) && of_step(j));
        match jobs.pop() {
            Some(job) if jobs.is_empty() => Ok(job),
            _ => Err((step, jobs.len())),
        }
    })
    .await
}

fn suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or(false)
}

/// Waits until Kueue has admitted (or suspended) the object's Job, of the queue.
async fn admitted(s: &Sandbox, object: Name, queue: &str, wanted: bool) -> Job {
    s.until(&format!("{object:?} admitted: {wanted}"), async || {
        let job = active_job(s, object).await;
        let its = job.labels().get("kueue.x-k8s.io/queue-name");
        assert_eq!(its.map(String::as_str), Some(queue), "{}", job.name_any());
        let selector = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()?.node_selector.clone());
        let placed =
            selector.is_some_and(|labels| labels.get("accelerator").map(String::as_str) == Some(ACCELERATOR));
        match (suspended(&job), placed) {
            (false, true) if wanted => Ok(job),
            (true, _) if !wanted => Ok(job),
            seen => Err(seen),
        }
    })
    .await
}

/// Until the object has its step and no pods of it.
async fn waits_for(s: &Sandbox, (kind, name): Name, step: &str) {
    s.until(&format!("{name}: {step} waits"), async || {
        let status = s.status(kind, name).await;
        if status["step"] == step && status["phase"] != "Running" { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn kueue_admits_evicts_admits_again_and_preempts() {
    let s = Sandbox::new("kueue").await;
    let _kueue = Kueue::start(&s).await;
    // Room for two pods, and one for CPU steps.
    queue(&s, "gpu", 2).await;
    queue(&s, "cpu", 1).await;
    let _operator = s.operator("a");

    s.create(&queued(synthesis_job("first"), "low")).await;
    waits_for(&s, FIRST, "prepare").await;
    admitted(&s, FIRST, "gpu", true).await;
    s.succeed(1).await;
    waits_for(&s, FIRST, "generate").await;
    admitted(&s, FIRST, "gpu", true).await;
    s.start_pods(2).await;
    s.phase(SYNTH, "first", "Running").await;

    // Evicted by an administrator, admitted again.
    let job = active_job(&s, FIRST).await;
    set_active(&s, &job.uid().unwrap(), false).await;
    admitted(&s, FIRST, "gpu", false).await;
    s.reason(SYNTH, "first", "Queued", "KueueSuspended").await;
    set_active(&s, &job.uid().unwrap(), true).await;
    let again = admitted(&s, FIRST, "gpu", true).await;
    assert_eq!(again.uid(), job.uid(), "a new Job instead of the one that Kueue holds");
    s.start_pods(2).await;
    s.phase(SYNTH, "first", "Running").await;

    // A second object of higher priority prepares in the other queue, trains in the room of the first,
    // and gives it back.
    let mut second = queued(extension_run("second", "none"), "high");
    second["spec"]["data"].as_array_mut().unwrap().remove(0);
    second["spec"]["auxiliaryQueueName"] = json!("cpu");
    s.create(&second).await;
    waits_for(&s, SECOND, "prepare").await;
    admitted(&s, SECOND, "cpu", true).await;
    s.phase(SYNTH, "first", "Running").await;
    let pod = s.pod_of("second").await;
    s.start_pod(&pod).await;
    s.end_pod(&pod, &End::committed()).await;
    waits_for(&s, SECOND, "train-0").await;
    admitted(&s, FIRST, "gpu", false).await;
    s.phase(SYNTH, "first", "Queued").await;
    admitted(&s, SECOND, "gpu", true).await;
    s.succeed(2).await;
    waits_for(&s, SECOND, "export").await;
    admitted(&s, SECOND, "cpu", true).await;
    let last = admitted(&s, FIRST, "gpu", true).await;
    assert_eq!(last.uid(), job.uid(), "a new Job instead of the one that Kueue holds");
    s.start_pods(3).await;
    s.end_pods(&End::committed()).await;
    s.phase(RUN, "second", "Complete").await;
    waits_for(&s, FIRST, "finalize").await;
    admitted(&s, FIRST, "gpu", true).await;
    s.succeed(1).await;
    s.phase(SYNTH, "first", "Complete").await;
    for (kind, name) in [FIRST, SECOND] {
        let status = s.status(kind, name).await;
        let failures = status["recovery"]["failures"].as_u64().unwrap_or(0);
        assert_eq!((status["attempt"].as_u64(), failures), (Some(1), 0), "{status}");
    }
}
