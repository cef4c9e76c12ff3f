//! CPU and memory of the worker: threads for the task file, requests and limits for the container.
//!
//! Invariant: every child pod has requests and limits, and the threads of a process are a function
//! of the spec, never of the machine: they are part of what a run does.

use longstrap_crds::pod_template::PodTemplate;
use serde_json::{Map, Value, json};

/// Compute threads of one process: whole CPUs requested for the worker, shared by its processes.
pub(super) fn threads_per_rank(template: Option<&PodTemplate>, ranks_per_node: u32, default: u32) -> u32 {
    let requested = template.and_then(PodTemplate::worker).and_then(|worker| {
        let resources = worker.get("resources")?;
        let of = |kind: &str| resources.get(kind)?.get("cpu").and_then(whole_cpus);
        of("requests").or_else(|| of("limits"))
    });
    match requested {
        Some(cpus) => (cpus / ranks_per_node.max(1)).max(1),
        None => default.max(1),
    }
}

/// A Kubernetes quantity of CPUs, rounded down: `4`, `"4"`, `"2500m"`.
fn whole_cpus(quantity: &Value) -> Option<u32> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let cpus = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<f64>().ok()? / 1000.0,
        None => text.parse().ok()?,
    };
    (cpus.is_finite() && cpus >= 0.0).then_some(cpus as u32)
}

/// Takes out devices (`nvidia.com/gpu`, claims): a step that needs no accelerator holds none.
pub(super) fn drop_devices(container: &mut Value) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    resources.shift_remove("claims");
    for amounts in resources.values_mut().filter_map(Value::as_object_mut) {
        amounts.retain(|resource, _| !resource.contains('/'));
    }
}

/// Fills in requests and limits of a container that the user left open.
pub(super) fn complete(container: &mut Value) {
    let present = |kind: &str| {
        let map = container.get("resources").and_then(|r| r.get(kind)).and_then(Value::as_object);
        map.cloned().unwrap_or_default()
    };
    let (mut requests, mut limits) = (present("requests"), present("limits"));
    for (resource, amount) in [("cpu", "1"), ("memory", "2Gi")] {
        if !requests.contains_key(resource) && !limits.contains_key(resource) {
            requests.insert(resource.to_owned(), json!(amount));
        }
    }
    let fill = |to: &mut Map<String, Value>, from: &Map<String, Value>| {
        for (resource, amount) in from {
            to.entry(resource.clone()).or_insert_with(|| amount.clone());
        }
    };
    let asked = requests.clone();
    fill(&mut requests, &limits);
    fill(&mut limits, &asked);
    let Some(container) = container.as_object_mut() else { return };
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    // Something else is left to the API server to refuse.
    if let Some(resources) = resources.as_object_mut() {
        resources.insert("requests".to_owned(), Value::Object(requests));
        resources.insert("limits".to_owned(), Value::Object(limits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(resources: Value) -> PodTemplate {
        serde_json::from_value(json!({"spec": {"containers": [
            {"name": "sidecar", "resources": {"requests": {"cpu": "64"}}},
            {"name": "worker", "resources": resources},
        ]}}))
        .unwrap()
    }

    #[test]
    fn threads_come_from_the_workers_request() {
        for (resources, ranks, threads) in [
            (json!({"requests": {"cpu": "4"}}), 2, 2),
            (json!({"requests": {"cpu": 4}}), 1, 4),
            (json!({"requests": {"cpu": "2500m"}}), 1, 2),
            (json!({"limits": {"cpu": "8"}}), 4, 2),
            (json!({"requests": {"cpu": "500m"}}), 1, 1),
            (json!({"requests": {"cpu": "lots"}}), 1, 3),
            (json!({}), 1, 3),
        ] {
            let template = template(resources.clone());
            assert_eq!(threads_per_rank(Some(&template), ranks, 3), threads, "{resources}");
        }
        assert_eq!(threads_per_rank(None, 8, 0), 1);
    }

    #[test]
    fn requests_and_limits_fill_each_other() {
        for (given, wanted) in [
            (
                json!({"name": "a"}),
                json!({"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}),
            ),
            (
                json!({"resources": {"requests": {"cpu": "4"}, "limits": {"nvidia.com/gpu": 8, "memory": "9Gi"}}}),
                json!({
                    "requests": {"cpu": "4", "memory": "9Gi", "nvidia.com/gpu": 8},
                    "limits": {"cpu": "4", "memory": "9Gi", "nvidia.com/gpu": 8},
                }),
            ),
        ] {
            let mut container = given;
            complete(&mut container);
            assert_eq!(container["resources"], wanted);
        }
        let mut nonsense = json!({"resources": "many"});
        complete(&mut nonsense);
        assert_eq!(nonsense, json!({"resources": "many"}));
    }
}
