//! What stands in a run's way: storage of others, names, templates, quotas, lost nodes.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Event, ResourceQuota},
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use longstrap_api_tests::{NEW, SYNTH, Sandbox, synthesis_job};
use longstrap_crds::{Step, names::child_name};
use serde_json::json;

#[tokio::test]
async fn the_older_object_has_the_storage() {
    let s = Sandbox::new("storage").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.expect(SYNTH, "docs", &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let mut nested = synthesis_job("nested");
    nested["spec"]["storage"]["uri"] = json!("s3://b/docs/below");
    s.create(&nested).await;
    s.expect(SYNTH, "nested", "Blocked prepare/1 [] !Ready:StorageInUse Stalled:StorageInUse").await;
    let status = s.objects(SYNTH).get("nested").await.unwrap().data["status"].clone();
    assert!(status["message"].as_str().unwrap().contains("/docs"), "{status}");
    assert!(status["recovery"]["nextAttemptTime"].is_string(), "tried again by itself: {status}");
    // The older one goes; an edit tries at once.
    s.objects(SYNTH).delete("docs", &Default::default()).await.unwrap();
    s.expect(SYNTH, "docs", "gone").await;
    s.edit(SYNTH, "nested", json!({"spec": {"backoffLimit": 2}})).await;
    s.expect(SYNTH, "nested", &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
}

#[tokio::test]
async fn a_child_of_somebody_else_is_not_touched() {
    let s = Sandbox::new("conflict").await;
    s.create(&synthesis_job("docs")).await;
    let uid = s.objects(SYNTH).get("docs").await.unwrap().metadata.uid.unwrap();
    let name = child_name("docs", &uid, Step::Prepare, 1);
    let theirs: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": name}, "data": {"theirs": "1"}})).unwrap();
    s.api().create(&PostParams::default(), &theirs).await.unwrap();
    let _operator = s.operator("a");
    s.expect(SYNTH, "docs", "Blocked prepare/1 [] !Ready:NameConflict Stalled:NameConflict").await;
    let kept = s.api::<ConfigMap>().get(&name).await.unwrap();
    assert_eq!(kept.data, theirs.data);
    s.api::<ConfigMap>().delete(&name, &Default::default()).await.unwrap();
    // So is a Job.
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let theirs: Job = serde_json::from_value(
        json!({"metadata": {"name": name}, "spec": {"suspend": true, "template": template}}),
    )
    .unwrap();
    s.api().create(&PostParams::default(), &theirs).await.unwrap();
    s.edit(SYNTH, "docs", json!({"spec": {"backoffLimit": 3}})).await;
    s.until("the edit is taken up", async || {
        let status = s.status(SYNTH, "docs").await;
        let taken_up =
            status["observedGeneration"] == 2 && status["conditions"][0]["reason"] == "NameConflict";
        if taken_up { Ok(()) } else { Err(status) }
    })
    .await;
    s.api::<Job>().delete(&name, &DeleteParams::background()).await.unwrap();
    s.edit(SYNTH, "docs", json!({"spec": {"backoffLimit": 2}})).await;
    s.expect(SYNTH, "docs", &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
}

#[tokio::test]
async fn a_template_that_the_server_refuses_is_told_before_anything_runs() {
    let s = Sandbox::new("template").await;
    let _operator = s.operator("a");
    for (name, spec) in
        [("typo", json!({"nodeSelektor": {"a": "b"}})), ("invalid", json!({"dnsPolicy": "Never"}))]
    {
        let mut doc = synthesis_job(name);
        doc["spec"]["podTemplate"] = json!({"spec": spec});
        s.create(&doc).await;
        let blocked = "Blocked prepare/1 [] !Ready:InvalidPodTemplate Stalled:InvalidPodTemplate";
        s.expect(SYNTH, name, blocked).await;
        s.edit(SYNTH, name, json!({"spec": {"podTemplate": null}})).await;
        s.expect(SYNTH, name, &format!("Pending prepare/1 [prepare-1*] {NEW}")).await;
    }
}

#[tokio::test]
async fn a_quota_is_named_and_may_be_raised() {
    let s = Sandbox::new("quota").await;
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}})).unwrap();
    s.api().create(&PostParams::default(), &quota).await.unwrap();
    // Its controller does not run here: the test sets what it would.
    let status = json!({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}});
    s.api::<ResourceQuota>().patch_status("q", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    let queued = "Pending prepare/1 [prepare-1*] Queued:QuotaExceeded !PodsScheduled:QuotaExceeded UpToDate:SpecApplied";
    s.expect(SYNTH, "docs", queued).await;
    let raised = json!({"spec": {"hard": {"pods": "9"}}});
    s.api::<ResourceQuota>().patch("q", &PatchParams::default(), &Patch::Merge(raised)).await.unwrap();
    let status = json!({"status": {"hard": {"pods": "9"}, "used": {"pods": "0"}}});
    s.api::<ResourceQuota>().patch_status("q", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    s.start_pods(1).await;
    s.expect(
        SYNTH,
        "docs",
        "Pending prepare/1 [prepare-1*] PodsScheduled:PodsHaveNodes UpToDate:SpecApplied",
    )
    .await;
    let events = s.api::<Event>().list(&ListParams::default()).await.unwrap();
    let created = events.items.iter().filter(|e| e.reason.as_deref() == Some("JobCreated")).count();
    assert_eq!(created, 1);
}

#[tokio::test]
async fn files_lie_on_volumes_that_last() {
    let s = Sandbox::new("files").await;
    let _operator = s.operator("a");
    let mut docs = synthesis_job("docs");
    docs["spec"]["storage"]["uri"] = json!("file:///data/docs");
    s.create(&docs).await;
    s.reason(SYNTH, "docs", "Stalled", "StorageNotDurable").await;
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let container = json!({"name": "worker", "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let template = json!({"spec": {"volumes": volumes, "containers": [container]}});
    s.edit(SYNTH, "docs", json!({"spec": {"podTemplate": template}})).await;
    s.start_pod(&s.pod_of("docs").await).await;
    s.reason(SYNTH, "docs", "PodsScheduled", "PodsHaveNodes").await;
}
