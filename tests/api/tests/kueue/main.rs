//! The operator's Jobs in real queues: Kueue admits, evicts and preempts, and the operator leaves to
//! it what is Kueue's.
//!
//! Invariant: neither an eviction nor a preemption is a failure or a new attempt, and the operator
//! never writes to a Job that Kueue holds.
#![allow(clippy::unwrap_used)]

mod queues;

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use longstrap_api_tests::{End, SYNTH, Sandbox, synthesis_job};
use queues::{ACCELERATOR, Kueue, queue, set_active};
use serde_json::{Value, json};

/// A SynthesisJob that asks the queue for one CPU per pod.
fn queued(name: &str, priority: &str) -> Value {
    let mut job = synthesis_job(name);
    job["metadata"]["labels"] =
        json!({"kueue.x-k8s.io/queue-name": "gpu", "kueue.x-k8s.io/priority-class": priority});
    let worker = json!({"name": "worker", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}});
    job["spec"]["podTemplate"] = json!({"spec": {"containers": [worker]}});
    job
}

/// The Job of an object that is not finished.
async fn active_job(s: &Sandbox, name: &str) -> Job {
    let uid = s.objects(SYNTH).get(name).await.unwrap().uid().unwrap();
    let ended = |job: &Job| {
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions
            .into_iter()
            .any(|c| c.status == "True" && ["Complete", "SuccessCriteriaMet"].contains(&c.type_.as_str()))
    };
    let mut jobs = s.jobs().await;
    jobs.retain(|j| j.owner_references().iter().any(|o| o.uid == uid) && !ended(j));
    assert_eq!(jobs.len(), 1, "{name} has {} unfinished Jobs", jobs.len());
    jobs.remove(0)
}

fn suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or(false)
}

/// Waits until Kueue has admitted (or suspended) the object's Job.
async fn admitted(s: &Sandbox, name: &str, wanted: bool) -> Job {
    s.until(&format!("{name} admitted: {wanted}"), async || {
        let job = active_job(s, name).await;
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

/// Until the step `generate` waits for its pods.
async fn prepared(s: &Sandbox, name: &str) {
    s.phase(SYNTH, name, "Pending").await;
    admitted(s, name, true).await;
    s.succeed(1).await;
    s.phase(SYNTH, name, "Queued").await;
}

fn failures(status: &Value) -> u64 {
    status["recovery"]["failures"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn kueue_admits_evicts_admits_again_and_preempts() {
    let s = Sandbox::new("kueue").await;
    let _kueue = Kueue::start(&s).await;
    // Room for the two workers of one object.
    queue(&s, 2).await;
    let _operator = s.operator("a");

    s.create(&queued("first", "low")).await;
    prepared(&s, "first").await;
    admitted(&s, "first", true).await;
    s.start_pods(2).await;
    s.phase(SYNTH, "first", "Running").await;

    // Evicted by an administrator, admitted again.
    let job = active_job(&s, "first").await;
    set_active(&s, &job.uid().unwrap(), false).await;
    admitted(&s, "first", false).await;
    s.phase(SYNTH, "first", "Queued").await;
    set_active(&s, &job.uid().unwrap(), true).await;
    let again = admitted(&s, "first", true).await;
    assert_eq!(again.uid(), job.uid(), "a new Job instead of the one that Kueue holds");
    s.start_pods(2).await;
    s.phase(SYNTH, "first", "Running").await;

    // A second object of higher priority takes the room, and gives it back.
    s.create(&queued("second", "high")).await;
    admitted(&s, "first", false).await;
    s.phase(SYNTH, "first", "Queued").await;
    prepared(&s, "second").await;
    admitted(&s, "second", true).await;
    s.succeed(2).await;
    s.phase(SYNTH, "second", "Queued").await;
    admitted(&s, "second", true).await;
    s.succeed(1).await;
    s.phase(SYNTH, "second", "Complete").await;

    let last = admitted(&s, "first", true).await;
    assert_eq!(last.uid(), job.uid(), "a new Job instead of the one that Kueue holds");
    s.start_pods(2).await;
    s.end_pods(&End::committed()).await;
    s.until("finalize", async || {
        let status = s.status(SYNTH, "first").await;
        if status["step"] == "finalize" { Ok(()) } else { Err(status) }
    })
    .await;
    admitted(&s, "first", true).await;
    s.succeed(1).await;
    s.phase(SYNTH, "first", "Complete").await;
    let status = s.status(SYNTH, "first").await;
    assert_eq!((status["attempt"].as_u64(), failures(&status)), (Some(1), 0), "{status}");
}
