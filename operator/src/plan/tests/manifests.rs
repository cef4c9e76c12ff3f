//! The children as they go to the API server, in a snapshot.

use super::*;

/// The manifests as they go to the API server.
#[test]
fn manifests() {
    let mut doc = synthesis_job();
    doc["metadata"]["labels"] = json!({"kueue.x-k8s.io/queue-name": "gpu", "team": "a"});
    doc["spec"]["auxiliaryQueueName"] = json!("cpu");
    doc["spec"]["storage"]["credentialsSecretRef"] = json!({"name": "s3"});
    doc["spec"]["generator"]["endpoints"][0]["apiKeySecretRef"] = json!({"name": "llm", "key": "token"});
    doc["spec"]["prompts"] = json!({"configMapRef": {"name": "my-prompts"}});
    doc["spec"]["podTemplate"] = json!({
        "metadata": {"labels": {"team": "a", "longstrap.io/step": "fake"}},
        "spec": {"serviceAccountName": "synth", "containers": [
            {"name": "worker", "resources": {"requests": {"cpu": "4"}}, "env": [{"name": "HTTP_PROXY", "value": "http://p"}]},
            {"name": "sidecar", "image": "s"},
        ], "aFieldOfTheFuture": {"deep": [1]}},
    });
    let mut sim = Sim::new(&doc);
    let first = plan(&sim.world);
    let queue = |plan: &Plan| match &plan.create[2] {
        Child::Job(new) => new.job.metadata.labels.as_ref().unwrap()["kueue.x-k8s.io/queue-name"].clone(),
        _ => panic!("the Job comes last"),
    };
    assert_eq!(queue(&first), "cpu");
    sim.settle();
    sim.succeed();
    let plan = plan(&sim.world);
    assert_eq!(queue(&plan), "gpu");
    let mut children: Vec<Value> = Vec::new();
    for child in &plan.create {
        children.push(match child {
            Child::ConfigMap(map) => {
                let mut map = serde_json::to_value(map).unwrap();
                let task: Value = serde_json::from_str(map["data"]["task.json"].as_str().unwrap()).unwrap();
                map["data"]["task.json"] = task;
                map
            }
            Child::Service(service) => serde_json::to_value(service).unwrap(),
            Child::Job(new) => new.manifest.clone(),
        });
    }
    insta::assert_yaml_snapshot!(children);
}
