//! What the ends of pods lead to on a real Job controller: which count as failures, which are replaced;
//! and a run whose stages ask for different pods.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use longstrap_api_tests::{End, RUN, SYNTH, Sandbox, extension_run, synthesis_job};
use serde_json::{Value, json};

/// Waits for pods of an object that have not started.
async fn pending(s: &Sandbox, name: &str, wanted: usize) -> Vec<Pod> {
    s.until(&format!("{wanted} pending pods of {name}"), async || {
        let mut pods = s.pods_of(name).await;
        pods.retain(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending"));
        if pods.len() == wanted { Ok(pods) } else { Err(pods.len()) }
    })
    .await
}

#[tokio::test]
async fn which_ends_are_failures() {
    let s = Sandbox::new("exits").await;
    let _operator = s.operator("a");
    // Exit code, whether the cluster ended the pod, failures that are counted.
    let rows =
        [(11, false, 0), (143, false, 0), (137, false, 1), (1, false, 1), (1, true, 0), (137, true, 0)];
    join_all(rows.map(async |(code, disrupted, failures)| {
        let name = format!("exit-{code}-{disrupted}");
        s.create(&synthesis_job(&name)).await;
        let prepare = s.pod_of(&name).await;
        s.start_pod(&prepare).await;
        s.end_pod(&prepare, &End::committed()).await;
        let workers = pending(&s, &name, 2).await;
        for worker in &workers {
            s.start_pod(worker).await;
        }
        s.phase(SYNTH, &name, "Running").await;
        if disrupted {
            let condition =
                json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"});
            s.set(&workers[0], json!({"conditions": [condition]})).await;
        }
        s.end_pod(&workers[0], &End::with(code, json!({}))).await;
        // Whatever it was, its index gets another pod, in the same attempt.
        pending(&s, &name, 1).await;
        s.until(&format!("{name}: {failures} failures"), async || {
            let status = s.status(SYNTH, &name).await;
            let seen = (status["attempt"].as_u64(), status["recovery"]["failures"].as_u64().unwrap_or(0));
            if seen == (Some(1), failures) { Ok(()) } else { Err(seen) }
        })
        .await;
    }))
    .await;
}

#[tokio::test]
async fn stages_that_ask_for_different_pods_have_jobs_of_their_own() {
    let s = Sandbox::new("shapes").await;
    let _operator = s.operator("a");
    let mut run = extension_run("run", "none");
    run["spec"]["data"].as_array_mut().unwrap().remove(0);
    run["spec"]["stages"][1]["parallelism"] = json!({"nodes": 3});
    s.create(&run).await;
    let stages = async || -> Vec<Value> {
        let status = s.status(RUN, "run").await;
        let stages = status["stages"].as_array().cloned().unwrap_or_default();
        stages.iter().map(|stage| json!([stage["name"], stage["phase"]])).collect()
    };
    for (step, pods, seen) in [
        ("prepare", 1, [json!(["a", "Pending"]), json!(["b", "Pending"])]),
        ("train-0", 2, [json!(["a", "Running"]), json!(["b", "Pending"])]),
        ("train-1", 3, [json!(["a", "Complete"]), json!(["b", "Running"])]),
        ("export", 1, [json!(["a", "Complete"]), json!(["b", "Complete"])]),
    ] {
        s.start_pods(pods).await;
        s.until(&format!("{step}: {seen:?}"), async || {
            let now = (s.status(RUN, "run").await["step"].clone(), stages().await);
            if now.0 == step && now.1 == seen { Ok(()) } else { Err(now) }
        })
        .await;
        s.end_pods(&End::committed()).await;
    }
    s.phase(RUN, "run", "Complete").await;
}
