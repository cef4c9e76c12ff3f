//! From creation to the end, and what people do in between.

use k8s_openapi::api::core::v1::Event;
use kube::api::DeleteParams;
use longstrap_api_tests::{End, NEW, RUN, SYNTH, Sandbox, extension_run, synthesis_job};
use serde_json::json;

const RUNS: &str = "PodsScheduled:PodsHaveNodes Running:PodsRunning UpToDate:SpecApplied";

#[tokio::test]
async fn both_kinds_from_creation_to_complete() {
    let s = Sandbox::new("complete").await;
    let _operator = s.operator("a");
    // The run first: one `kubectl apply -f dir/` has no order.
    s.create(&extension_run("run", "docs")).await;
    s.expect(RUN, "run", "Pending prepare/1 [] !DataReady:SynthesisNotFound").await;
    s.create(&synthesis_job("docs")).await;
    s.expect(SYNTH, "docs", &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
    s.expect(RUN, "run", "Pending prepare/1 [] !DataReady:SynthesisNotComplete").await;
    s.succeed(1).await;
    s.expect(SYNTH, "docs", &format!("Queued generate/1 [prepare-1 generate-1*] {NEW}")).await;
    s.start_pods(2).await;
    s.expect(SYNTH, "docs", &format!("Running generate/1 [prepare-1 generate-1*] {RUNS}")).await;
    s.end_pods(&End::committed()).await;
    s.expect(SYNTH, "docs", &format!("Queued finalize/1 [prepare-1 generate-1 finalize-1*] {NEW}")).await;
    s.succeed(1).await;
    let done = "Complete finalize/1 [prepare-1 generate-1 finalize-1] Ready:Completed Complete:Completed";
    s.expect(SYNTH, "docs", done).await;

    s.expect(RUN, "run", "Pending prepare/1 [prepare-1*] DataReady:DataAvailable Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied").await;
    // Pinned: the SynthesisJob is needed no more.
    s.objects(SYNTH).delete("docs", &DeleteParams::default()).await.unwrap();
    s.succeed(1).await;
    s.expect(RUN, "run", &format!("Queued train-0/1 [prepare-1 train-0-1*] DataReady:DataAvailable {NEW}"))
        .await;
    s.start_pods(2).await;
    s.expect(RUN, "run", &format!("Running train-0/1 [prepare-1 train-0-1*] DataReady:DataAvailable {RUNS}"))
        .await;
    s.end_pods(&End::committed()).await;
    s.expect(
        RUN,
        "run",
        &format!("Queued export/1 [prepare-1 train-0-1 export-1*] DataReady:DataAvailable {NEW}"),
    )
    .await;
    s.succeed(1).await;
    let done = "Complete export/1 [prepare-1 train-0-1 export-1] Ready:Completed Complete:Completed DataReady:DataAvailable";
    s.expect(RUN, "run", done).await;
    let status = s.objects(RUN).get("run").await.unwrap().data["status"].clone();
    assert_eq!(status["data"][0]["digest"], "sha256:d");
    assert_eq!(status["data"][1]["digest"], "sha256:s");
    assert_eq!(status["model"]["uri"], "s3://b/run/model");
}

#[tokio::test]
async fn suspension_child_deletion_and_restart() {
    let s = Sandbox::new("requests").await;
    let operator = s.operator("a");
    let mut doc = synthesis_job("docs");
    doc["spec"]["suspend"] = json!(true);
    s.create(&doc).await;
    s.expect(SYNTH, "docs", "Suspended prepare/1 [] Suspended:SuspendRequested").await;
    s.edit(SYNTH, "docs", json!({"spec": {"suspend": false}})).await;
    s.succeed(1).await;
    s.start_pods(2).await;
    s.expect(SYNTH, "docs", &format!("Running generate/1 [prepare-1 generate-1*] {RUNS}")).await;
    s.edit(SYNTH, "docs", json!({"spec": {"suspend": true}})).await;
    s.expect(SYNTH, "docs", "Suspended generate/2 [prepare-1] Suspended:SuspendRequested").await;
    s.edit(SYNTH, "docs", json!({"spec": {"suspend": false}})).await;
    s.expect(SYNTH, "docs", &format!("Queued generate/2 [prepare-1 generate-2*] {NEW}")).await;
    // A child that somebody deletes comes back.
    let name = |suffix: &str, jobs: &[k8s_openapi::api::batch::v1::Job]| {
        jobs.iter().filter_map(|j| j.metadata.name.clone()).find(|n| n.ends_with(suffix)).unwrap()
    };
    let generate = name("generate-2", &s.jobs().await);
    let before = s.api::<k8s_openapi::api::batch::v1::Job>().get(&generate).await.unwrap().metadata.uid;
    let jobs = s.api::<k8s_openapi::api::batch::v1::Job>();
    jobs.delete(&generate, &DeleteParams::foreground()).await.unwrap();
    s.until("the Job is made again", async || {
        match jobs.get_opt(&generate).await.unwrap().and_then(|j| j.metadata.uid) {
            Some(uid) if Some(&uid) != before.as_ref() => Ok(()),
            other => Err(other),
        }
    })
    .await;
    s.expect(SYNTH, "docs", &format!("Queued generate/2 [prepare-1 generate-2*] {NEW}")).await;
    // Each request once, also by another operator, which tells of it in the same Event.
    let mut operator = operator;
    let now = || k8s_openapi::jiff::Timestamp::now().as_second();
    for (n, attempt) in [(1, 3), (2, 4)] {
        let request = json!({"metadata": {"annotations": {"longstrap.io/restart-at": n.to_string()}}});
        s.edit(SYNTH, "docs", request).await;
        s.expect(SYNTH, "docs", &format!("Queued generate/{attempt} [prepare-1 generate-{attempt}*] {NEW}"))
            .await;
        s.until("one Event of it", async || {
            let events = s.api::<Event>().list(&Default::default()).await.unwrap().items;
            let of_restart = |e: &&Event| e.reason.as_deref() == Some("RestartRequested");
            let told: Vec<_> = events.iter().filter(of_restart).collect();
            match told.as_slice() {
                // Times of Events have whole seconds: the next one must fall into a later one to be seen.
                [event] if n == 1 && event.last_timestamp.as_ref().unwrap().0.as_second() < now() => Ok(()),
                [event] if n == 2 && event.last_timestamp > event.first_timestamp => Ok(()),
                other => Err(other.len()),
            }
        })
        .await;
        if n == 1 {
            drop(operator);
            operator = s.operator("a");
        }
    }
    // ConfigMap and Service of a deleted Job went with it.
    s.until("two ConfigMaps", async || {
        let maps = s.api::<k8s_openapi::api::core::v1::ConfigMap>().list(&Default::default()).await.unwrap();
        let names: Vec<_> =
            maps.items.into_iter().filter_map(|m| m.metadata.name).filter(|n| n.starts_with("r-")).collect();
        if names.len() == 2 { Ok(()) } else { Err(names) }
    })
    .await;
}

#[tokio::test]
async fn failures_are_counted_and_end_the_run() {
    let s = Sandbox::new("failures").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    let crash = End::with(1, json!({"message": "out of luck"}));
    s.start_pods(1).await;
    s.end_pods(&crash).await;
    s.until("one failure", async || {
        let status = s.objects(SYNTH).get("docs").await.unwrap().data["status"].clone();
        if status["recovery"]["failures"] == 1 { Ok(()) } else { Err(status) }
    })
    .await;
    // The Job controller replaces the pod after 10 s.
    s.start_pods(1).await;
    s.end_pods(&crash).await;
    s.expect(
        SYNTH,
        "docs",
        "Failed prepare/1 [] !Ready:BackoffLimitExceeded Stalled:BackoffLimitExceeded Failed:BackoffLimitExceeded",
    )
    .await;
}

#[tokio::test]
async fn blocked_by_the_worker_and_mended_by_an_edit() {
    let s = Sandbox::new("blocked").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.start_pods(1).await;
    s.end_pods(&End::with(10, json!({"reason": "InvalidTokenizer", "message": "no chat template"}))).await;
    let blocked = "Blocked prepare/2 [..] !Ready:InvalidTokenizer Stalled:InvalidTokenizer";
    s.expect(SYNTH, "docs", blocked).await;
    s.edit(SYNTH, "docs", json!({"spec": {"backoffLimit": 3}})).await;
    s.expect(SYNTH, "docs", &format!("Pending prepare/2 [..] {NEW}")).await;
    // Outages wait for their time, in the open.
    s.start_pods(1).await;
    s.end_pods(&End::with(12, json!({"reason": "EndpointUnavailable", "message": "vllm is away"}))).await;
    s.expect(SYNTH, "docs", "Pending prepare/3 [..] Queued:EndpointUnavailable").await;
    // Suspended and resumed before it: the time stays.
    s.edit(SYNTH, "docs", json!({"spec": {"suspend": true}})).await;
    s.phase(SYNTH, "docs", "Suspended").await;
    s.edit(SYNTH, "docs", json!({"spec": {"suspend": false}})).await;
    s.expect(SYNTH, "docs", "Pending prepare/3 [..] Queued:BackingOff").await;
}

#[tokio::test]
async fn deleted_and_created_again_at_once() {
    let s = Sandbox::new("again").await;
    let _operator = s.operator("a");
    for _ in 0..2 {
        s.create(&synthesis_job("docs")).await;
        s.start_pods(1).await;
        s.expect(
            SYNTH,
            "docs",
            "Pending prepare/1 [prepare-1*] PodsScheduled:PodsHaveNodes UpToDate:SpecApplied",
        )
        .await;
        s.objects(SYNTH).delete("docs", &DeleteParams::default()).await.unwrap();
    }
    // The garbage collector takes the children of the first.
    s.until("nothing is left", async || {
        let left = s.jobs().await.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_name_of_253_characters_and_objects_of_others() {
    let s = Sandbox::new("names").await;
    let _operator = s.operator("a");
    let long = format!("7.{}", "x".repeat(251));
    s.create(&synthesis_job(&long)).await;
    s.expect(SYNTH, &long, &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
    let mut other = synthesis_job("other");
    other["spec"]["managedBy"] = json!("example.com/other");
    s.create(&other).await;
    s.succeed(1).await;
    s.expect(SYNTH, &long, &format!("Queued generate/1 [prepare-1 generate-1*] {NEW}")).await;
    s.expect(SYNTH, "other", "- -/null [] ").await;
}

#[tokio::test]
async fn time_to_live_deletes_the_object_and_its_children() {
    let s = Sandbox::new("ttl").await;
    let operator = s.operator("a");
    let mut doc = synthesis_job("docs");
    doc["spec"]["ttlSecondsAfterFailure"] = json!(3);
    s.create(&doc).await;
    s.start_pods(1).await;
    s.end_pods(&End::with(13, json!({"message": "exhausted"}))).await;
    s.until("it has failed", async || {
        let shown = s.shown(SYNTH, "docs").await;
        if shown.starts_with("Failed") { Ok(()) } else { Err(shown) }
    })
    .await;
    let mut run = extension_run("run", "docs");
    run["spec"]["data"].as_array_mut().unwrap().remove(0);
    run["spec"]["ttlSecondsAfterFailure"] = json!(0);
    s.create(&run).await;
    s.start_pod(&s.pod_of("run").await).await;
    s.end_pods(&End::with(13, json!({"message": "exhausted"}))).await;
    // Across a restart of the operator.
    drop(operator);
    let _operator = s.operator("b");
    s.expect(SYNTH, "docs", "gone").await;
    s.expect(RUN, "run", "gone").await;
}
