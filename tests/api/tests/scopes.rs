//! Where the operator works: everywhere, by ClusterRoles, or in a list of namespaces, by Roles alone, as
//! the chart installs it.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::PostParams};
use longstrap_api_tests::{SYNTH, Sandbox, roles, synthesis_job};
use serde_json::{Value, json};

/// From creation to the second step, then suspended.
async fn works(s: &Sandbox, name: &str) {
    s.create(&synthesis_job(name)).await;
    s.succeed(1).await;
    s.phase(SYNTH, name, "Queued").await;
    s.edit(SYNTH, name, json!({"spec": {"suspend": true}})).await;
    s.phase(SYNTH, name, "Suspended").await;
}

#[tokio::test]
async fn everywhere_or_in_a_list_of_namespaces() {
    // chart.sh renders for these two.
    let (one, two, other) =
        (Sandbox::new("team").await, Sandbox::new("team").await, Sandbox::new("other").await);
    assert_eq!((one.namespace.as_str(), two.namespace.as_str()), ("team-0", "team-1"));
    {
        let _operator = one.operator_at("a", one.server(), &["--namespaces="]);
        // No two of them have one storage.
        works(&one, "a").await;
        works(&two, "b").await;
        works(&other, "c").await;
    }
    let system = serde_json::from_value(json!({"metadata": {"name": "longstrap-system"}})).unwrap();
    Api::<Namespace>::all(one.client.clone()).create(&PostParams::default(), &system).await.unwrap();
    roles::only_in_namespaces(&one.client).await;
    let options = ["--namespaces=team-0,team-1", "--lease-namespace=longstrap-system", "--cluster=c"];
    let _operator = one.operator_at("b", one.server(), &options);
    other.create(&synthesis_job("d")).await;
    works(&one, "e").await;
    works(&two, "f").await;
    assert_eq!(other.status(SYNTH, "d").await, Value::Null);
}
