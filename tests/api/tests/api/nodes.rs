//! Nodes that are lost, deadlines, and what happens to finished objects: whatever takes its time.

use futures::join;
use k8s_openapi::api::{batch::v1::Job, core::v1::Node, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use longstrap_api_tests::{End, SYNTH, Sandbox, synthesis_job};
use serde_json::{Value, json};

fn with(name: &str, field: &str, value: Value) -> Value {
    let mut job = synthesis_job(name);
    job["spec"][field] = value;
    job
}

#[tokio::test]
async fn pods_of_a_lost_node_are_given_up() {
    let s = Sandbox::new("lost").await;
    let _operator = s.operator("a");
    let node = s.namespace.clone();
    let not_ready =
        json!({"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]});
    let lost: Node =
        serde_json::from_value(json!({"metadata": {"name": node}, "status": not_ready})).unwrap();
    Api::<Node>::all(s.client.clone()).create(&PostParams::default(), &lost).await.unwrap();
    s.create(&with("replace", "recovery", json!({"lostNode": "Replace"}))).await;
    s.create(&with("wait", "recovery", json!({"lostNode": "Wait"}))).await;
    let on_it = async |name: &str| {
        let pod = s.pod_of(name).await;
        s.bind(&pod, &node).await;
        s.start_pod(&pod).await;
        let params = DeleteParams::default().grace_period(1);
        s.api::<Pod>().delete(&pod.name_any(), &params).await.unwrap();
        pod
    };
    let (replaced, waiting) = join!(on_it("replace"), on_it("wait"));
    // Nothing happens for a minute: the kubelet may only be slow.
    let next = async {
        let pod = s.pod_of("replace").await;
        s.start_pod(&pod).await;
        s.until("the lost pod is gone", async || {
            s.api::<Pod>()
                .get_opt(&replaced.name_any())
                .await
                .unwrap()
                .map_or(Ok(()), |p| Err(Box::new(p.status)))
        })
        .await;
        let status = s.status(SYNTH, "replace").await;
        let failures = status["recovery"]["failures"].as_u64().unwrap_or(0);
        assert_eq!((status["attempt"].as_u64(), failures), (Some(1), 0), "{status}");
    };
    join!(next, s.reason(SYNTH, "wait", "Queued", "NodeLost"));
    assert!(s.api::<Pod>().get_opt(&waiting.name_any()).await.unwrap().is_some(), "it waits for its node");
}

#[tokio::test]
async fn deadlines_outlive_the_operator() {
    let s = Sandbox::new("deadlines").await;
    let first = s.operator("a");
    s.create(&with("active", "activeDeadlineSeconds", json!(6))).await;
    s.create(&with("startup", "startupDeadlineSeconds", json!(6))).await;
    s.start_pod(&s.pod_of("active").await).await;
    s.pod_of("startup").await;
    drop(first);
    let _second = s.operator("b");
    join!(
        s.reason(SYNTH, "active", "Failed", "DeadlineExceeded"),
        s.reason(SYNTH, "startup", "Failed", "StartupDeadlineExceeded")
    );
    // What ran is stopped.
    s.until("no Job is active", async || {
        let left: Vec<_> = s.jobs().await.iter().map(ResourceExt::name_any).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_finished_object_stays_finished() {
    let s = Sandbox::new("finished").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.succeed(1).await;
    s.succeed(2).await;
    s.succeed(1).await;
    s.phase(SYNTH, "docs", "Complete").await;
    let before = s.status(SYNTH, "docs").await;
    for job in s.jobs().await {
        s.api::<Job>().delete(&job.name_any(), &DeleteParams::foreground()).await.unwrap();
    }
    // What was deleted before this object came has been seen when this object is at work.
    s.until("its Jobs are gone", async || {
        let left = s.jobs().await.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    s.create(&synthesis_job("later")).await;
    s.pod_of("later").await;
    assert!(s.pods_of("docs").await.is_empty());
    assert_eq!(s.status(SYNTH, "docs").await, before);
}

#[tokio::test]
async fn an_edit_waits_for_the_next_attempt() {
    let s = Sandbox::new("edits").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.succeed(1).await;
    s.start_pods(2).await;
    s.reason(SYNTH, "docs", "UpToDate", "SpecApplied").await;
    s.edit(SYNTH, "docs", json!({"spec": {"workers": 3}})).await;
    s.reason(SYNTH, "docs", "!UpToDate", "SpecEdited").await;
    // Work that was committed is told, and resets the count.
    let crash = End::with(1, json!({"committed": 3, "message": "out of luck"}));
    s.end_pod(&s.running().await[0], &crash).await;
    s.reason(SYNTH, "docs", "CheckpointAvailable", "Committed").await;
    assert_eq!(s.status(SYNTH, "docs").await["recovery"]["failures"], 0);
    s.edit(SYNTH, "docs", json!({"metadata": {"annotations": {"longstrap.io/restart-at": "1"}}})).await;
    s.attempt(SYNTH, "docs", 2).await;
    s.start_pods(3).await;
    s.reason(SYNTH, "docs", "UpToDate", "SpecApplied").await;
}

#[tokio::test]
async fn a_node_on_which_two_attempts_failed_is_avoided() {
    let s = Sandbox::new("avoided").await;
    let _operator = s.operator("a");
    let mut docs = with("docs", "recovery", json!({"waitForReplacementSeconds": 5}));
    docs["spec"]["backoffLimit"] = json!(5);
    s.create(&docs).await;
    for attempt in 2..=3 {
        let pod = s.pod_of("docs").await;
        s.bind(&pod, "bad-node").await;
        s.start_pod(&pod).await;
        s.end_pod(&pod, &End::with(1, json!({"message": "out of luck"}))).await;
        s.attempt(SYNTH, "docs", attempt).await;
    }
    let pod = serde_json::to_value(s.pod_of("docs").await).unwrap();
    let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
    let rule =
        &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"]["matchFields"][0];
    let wanted = json!({"key": "metadata.name", "operator": "NotIn", "values": ["bad-node"]});
    assert_eq!(*rule, wanted, "{affinity}");
    let avoided = &s.status(SYNTH, "docs").await["recovery"]["avoidedNodes"][0];
    assert_eq!(avoided["name"], "bad-node", "{avoided}");
}
