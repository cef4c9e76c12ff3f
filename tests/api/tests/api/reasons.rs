//! Every reason of a condition, from what brings it about on a real API to what mends it.

use futures::future::join_all;
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        batch::v1::Job,
        core::v1::{Event, Namespace},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use longstrap_api_tests::{End, RUN, SYNTH, Sandbox, extension_run, synthesis_job};
use longstrap_crds::{
    Reason, Step,
    names::{LABEL_APP, LABEL_OWNER, child_name},
    reason::Effect,
};
use serde_json::{Value, json};

#[tokio::test]
async fn what_a_worker_reports() {
    let s = Sandbox::new("reports").await;
    let _operator = s.operator("a");
    let of = |effect: &[Effect]| -> Vec<Reason> {
        Reason::ALL.iter().copied().filter(|r| effect.contains(&r.effect())).collect()
    };
    let mut blocks = of(&[Effect::BlockedUntilEdit, Effect::BlockedRetried]);
    // Seen on the object itself: without its cause it goes by itself.
    blocks.retain(|r| *r != Reason::KueueKeyNotSupported);
    let outages = of(&[Effect::Outage]);
    let rows = blocks.iter().map(|r| (*r, 10)).chain(outages.iter().map(|r| (*r, 12)));
    join_all(rows.map(async |(reason, code)| {
        let name = reason.as_str().to_lowercase();
        s.create(&synthesis_job(&name)).await;
        let pod = s.pod_of(&name).await;
        s.start_pod(&pod).await;
        s.end_pod(&pod, &End::with(code, json!({"reason": reason, "message": "in words"}))).await;
        let condition = if code == 10 { "Stalled" } else { "Queued" };
        s.reason(SYNTH, &name, condition, reason.as_str()).await;
        let status = s.status(SYNTH, &name).await;
        assert!(status["message"].as_str().unwrap().starts_with("in words"), "{reason}: {status}");
        assert_eq!(status["attempt"], 2, "{reason}");
        let again = status["recovery"]["nextAttemptTime"].is_string();
        assert_eq!(again, reason.effect() != Effect::BlockedUntilEdit, "{reason}: tried again by itself");
        s.edit(SYNTH, &name, json!({"spec": {"backoffLimit": 3}})).await;
        if code == 10 {
            s.pod_of(&name).await;
        }
    }))
    .await;
}

#[tokio::test]
async fn what_pods_wait_for() {
    let s = Sandbox::new("waits").await;
    let _operator = s.operator("a");
    let scheduled = json!([{"type": "PodScheduled", "status": "True"}]);
    let waiting = |reason: &str, message: &str| {
        let state = json!({"waiting": {"reason": reason, "message": message}});
        json!({
            "conditions": scheduled,
            "containerStatuses": [{"name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}],
        })
    };
    let nowhere = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]});
    let rows = [
        ("Unschedulable", nowhere, "0/3 nodes"),
        ("ImagePull", waiting("ImagePullBackOff", "no such manifest"), "no such manifest"),
        (
            "SecretNotFound",
            waiting("CreateContainerConfigError", "secret \"s3\" not found"),
            "secret \"s3\" not found",
        ),
    ];
    join_all(rows.map(async |(reason, status, message)| {
        let name = reason.to_lowercase();
        s.create(&synthesis_job(&name)).await;
        let pod = s.pod_of(&name).await;
        s.set(&pod, status).await;
        s.reason(SYNTH, &name, "Queued", reason).await;
        assert_eq!(s.status(SYNTH, &name).await["message"], message);
        s.start_pod(&pod).await;
        s.reason(SYNTH, &name, "PodsScheduled", "PodsHaveNodes").await;
    }))
    .await;
}

/// A pod whose volume needs a Secret that is not there says nothing itself: only the kubelet's Event does.
#[tokio::test]
async fn a_secret_that_a_volume_waits_for() {
    let s = Sandbox::new("volume").await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    let pod = s.pod_of("docs").await;
    let creating = json!({"waiting": {"reason": "ContainerCreating"}});
    s.set(
        &pod,
        json!({
            "startTime": Timestamp::now(),
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": creating}],
        }),
    )
    .await;
    let message = "MountVolume.SetUp failed for volume \"credentials\" : secret \"s3\" not found";
    let event: Event = serde_json::from_value(json!({
        "metadata": {"name": "volume.1", "namespace": s.namespace},
        "involvedObject": {"kind": "Pod", "name": pod.name_any(), "uid": pod.metadata.uid, "namespace": s.namespace},
        "type": "Warning", "reason": "FailedMount", "message": message,
        "lastTimestamp": Timestamp::from_second(Timestamp::now().as_second()).unwrap(),
    }))
    .unwrap();
    s.api::<Event>().create(&PostParams::default(), &event).await.unwrap();
    s.reason(SYNTH, "docs", "Queued", "SecretNotFound").await;
    assert_eq!(s.status(SYNTH, "docs").await["message"], message);
    s.start_pod(&pod).await;
    s.reason(SYNTH, "docs", "PodsScheduled", "PodsHaveNodes").await;
}

/// The server cannot say whether it takes a Job: nothing is made, and the object says why.
#[tokio::test]
async fn a_webhook_that_is_away() {
    let s = Sandbox::new("webhook").await;
    let webhooks = Api::<ValidatingWebhookConfiguration>::all(s.client.clone());
    let webhook: ValidatingWebhookConfiguration = serde_json::from_value(json!({
        "metadata": {"name": s.namespace},
        "webhooks": [{
            "name": "away.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": "Fail", "timeoutSeconds": 1,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": s.namespace}},
            "rules": [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}],
        }],
    }))
    .unwrap();
    webhooks.create(&PostParams::default(), &webhook).await.unwrap();
    let template =
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "worker", "image": "i"}]}});
    let job: Job =
        serde_json::from_value(json!({"metadata": {"name": "any"}, "spec": {"template": template}})).unwrap();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    s.until("the webhook holds", async || match s.api::<Job>().create(&dry_run, &job).await {
        Err(kube::Error::Api(status)) if status.message.contains("webhook") => Ok(()),
        answer => Err(answer.map(|_| ())),
    })
    .await;
    let _operator = s.operator("a");
    s.create(&synthesis_job("docs")).await;
    s.reason(SYNTH, "docs", "Reconciling", "DryRunUnanswered").await;
    assert!(s.jobs().await.is_empty());
    webhooks.delete(&s.namespace, &DeleteParams::default()).await.unwrap();
    s.pod_of("docs").await;
    s.until("it is planned", async || {
        let conditions = s.status(SYNTH, "docs").await["conditions"].clone();
        let reconciling = conditions.as_array().unwrap().iter().any(|c| c["type"] == "Reconciling");
        if reconciling { Err(conditions) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn what_kueue_does() {
    let s = Sandbox::new("kueue").await;
    // MultiKueue marks a Job when it is created: nothing but its webhook can.
    s.create(&synthesis_job("far")).await;
    let uid = s.objects(SYNTH).get("far").await.unwrap().metadata.uid.unwrap();
    let owner = json!({"apiVersion": "longstrap.io/v1alpha1", "kind": SYNTH, "name": "far", "uid": uid, "controller": true});
    let template =
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "worker", "image": "i"}]}});
    let job: Job = serde_json::from_value(json!({
        "metadata": {
            "name": child_name("far", &uid, Step::Prepare, 1), "ownerReferences": [owner],
            "labels": {LABEL_APP: "longstrap", LABEL_OWNER: uid},
        },
        "spec": {"managedBy": "kueue.x-k8s.io/multikueue", "template": template},
    }))
    .unwrap();
    s.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
    let _operator = s.operator("a");
    s.reason(SYNTH, "far", "Stalled", "MultiKueueUnsupported").await;

    let mut keyed = synthesis_job("keyed");
    keyed["metadata"]["labels"] = json!({"kueue.x-k8s.io/pod-group-name": "g"});
    s.create(&keyed).await;
    s.reason(SYNTH, "keyed", "Stalled", "KueueKeyNotSupported").await;
    s.edit(SYNTH, "keyed", json!({"metadata": {"labels": {"kueue.x-k8s.io/pod-group-name": null}}})).await;
    s.pod_of("keyed").await;

    // Taken back into its queue, and admitted again: the same attempt.
    s.create(&synthesis_job("queued")).await;
    s.start_pod(&s.pod_of("queued").await).await;
    let uid = s.objects(SYNTH).get("queued").await.unwrap().metadata.uid.unwrap();
    let name = child_name("queued", &uid, Step::Prepare, 1);
    let suspend = async |suspend: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        s.api::<Job>().patch(&name, &PatchParams::default(), &patch).await.unwrap();
    };
    suspend(true).await;
    s.reason(SYNTH, "queued", "Queued", "KueueSuspended").await;
    suspend(false).await;
    s.start_pod(&s.pod_of("queued").await).await;
    s.reason(SYNTH, "queued", "PodsScheduled", "PodsHaveNodes").await;
    assert_eq!(s.status(SYNTH, "queued").await["attempt"], 1);
}

#[tokio::test]
async fn pod_security_refuses_pods() {
    let s = Sandbox::new("security").await;
    let enforce = async |level: Value| {
        let patch = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        let api = Api::<Namespace>::all(s.client.clone());
        api.patch(&s.namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };
    enforce(json!("restricted")).await;
    let _operator = s.operator("a");
    // Our pods are within its limits unless somebody wants otherwise.
    s.create(&synthesis_job("plain")).await;
    s.start_pod(&s.pod_of("plain").await).await;
    let mut privileged = synthesis_job("privileged");
    let container =
        json!({"name": "worker", "securityContext": {"privileged": true, "allowPrivilegeEscalation": true}});
    privileged["spec"]["podTemplate"] = json!({"spec": {"containers": [container]}});
    s.create(&privileged).await;
    s.reason(SYNTH, "privileged", "Queued", "PodRejected").await;
    let message = s.status(SYNTH, "privileged").await["message"].to_string();
    assert!(message.contains("violates PodSecurity") && message.contains("privileged"), "{message}");
    enforce(Value::Null).await;
    s.start_pod(&s.pod_of("privileged").await).await;
    s.reason(SYNTH, "privileged", "PodsScheduled", "PodsHaveNodes").await;
}

#[tokio::test]
async fn data_that_comes_late_fails_or_changes() {
    let s = Sandbox::new("data").await;
    let _operator = s.operator("a");
    s.create(&extension_run("run", "docs")).await;
    s.reason(RUN, "run", "!DataReady", "SynthesisNotFound").await;
    let mut docs = synthesis_job("docs");
    docs["spec"]["managedBy"] = json!("example.com/test");
    s.create(&docs).await;
    s.reason(RUN, "run", "!DataReady", "SynthesisNotComplete").await;
    s.set_status(SYNTH, "docs", json!({"phase": "Failed"})).await;
    s.reason(RUN, "run", "!DataReady", "SynthesisFailed").await;
    s.objects(SYNTH).delete("docs", &DeleteParams::default()).await.unwrap();
    s.reason(RUN, "run", "!DataReady", "SynthesisNotFound").await;
    s.create(&docs).await;
    let dataset = |digest: &str| json!({"phase": "Complete", "dataset": {"uri": "s3://b/docs/dataset", "digest": digest, "rows": 2, "tokens": 9}});
    s.set_status(SYNTH, "docs", dataset("sha256:first")).await;
    s.reason(RUN, "run", "DataReady", "DataAvailable").await;
    s.start_pod(&s.pod_of("run").await).await;
    // Pinned: what the SynthesisJob says later changes nothing; a worker finds out what the storage holds.
    s.set_status(SYNTH, "docs", dataset("sha256:second")).await;
    let changed = json!({"reason": "DataChanged", "message": "the digest differs"});
    s.end_pod(&s.running().await[0], &End::with(10, changed)).await;
    s.reason(RUN, "run", "Stalled", "DataChanged").await;
    assert_eq!(s.status(RUN, "run").await["data"][0]["digest"], "sha256:first");
}
