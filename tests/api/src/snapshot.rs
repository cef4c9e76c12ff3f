//! All that an operator owns in a test's namespace, comparable between two runs of a course.
//!
//! Invariant: only what cannot be equal is masked: identities, times, and names that contain them. Pods
//! and the status of Jobs are the Job controller's, and late.

use std::{sync::LazyLock, time::Duration};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Service},
};
use kube::{Resource, api::ListParams};
use regex::Regex;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::Sandbox;

/// What is masked by what, in the order of its application.
static MASKS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        // Names of children and of their pods.
        (
            r"\b(r-[a-z0-9-]+?-)[a-z2-7]{8}(-(?:prepare|generate|finalize|train-\d+|export)-\d+-\d+)-[a-z0-9]{5}\b",
            "${1}HASH${2}-POD",
        ),
        (r"\b(r-[a-z0-9-]+?-)[a-z2-7]{8}(-(?:prepare|generate|finalize|train-\d+|export)-\d+)\b", "${1}HASH${2}"),
        (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UID"),
        (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z\b", "TIME"),
    ]
    .map(|(pattern, mask)| (Regex::new(pattern).unwrap(), mask))
    .into()
});

/// Fields whose values are times or counts of writes.
const DROPPED: [&str; 4] = ["managedFields", "resourceVersion", "podSeconds", "usage"];

fn is_zero(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| fields.values().all(|v| v == 0))
}

fn drop_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !DROPPED.contains(&key.as_str()));
            fields.values_mut().for_each(drop_fields);
            // Left out when even the dropped time is zero.
            fields.retain(|key, value| key != "recovery" || !is_zero(value));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_fields),
        _ => {}
    }
}

impl Sandbox {
    async fn all<K>(&self) -> Vec<Value>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let items = self.api::<K>().list(&ListParams::default()).await.unwrap().items;
        items.iter().map(|item| serde_json::to_value(item).unwrap()).collect()
    }

    /// Our objects and their children, masked, in the order of their names.
    pub async fn snapshot(&self) -> Value {
        let mut objects = Vec::new();
        for kind in ["SynthesisJob", "ContextExtensionRun"] {
            let items = self.objects(kind).list(&ListParams::default()).await.unwrap().items;
            objects.extend(items.iter().map(|item| serde_json::to_value(item).unwrap()));
        }
        let mut maps = self.all::<ConfigMap>().await;
        maps.retain(|m| m["metadata"]["ownerReferences"].is_array());
        let mut jobs = self.all::<Job>().await;
        jobs.iter_mut().for_each(|job| drop(job.as_object_mut().unwrap().remove("status")));
        let services = self.all::<Service>().await;
        let mut all = json!({"objects": objects, "jobs": jobs, "configMaps": maps, "services": services});
        drop_fields(&mut all);
        let mut text = all.to_string().replace(&self.namespace, "NAMESPACE");
        for (pattern, mask) in MASKS.iter() {
            text = pattern.replace_all(&text, *mask).into_owned();
        }
        let mut masked: Value = serde_json::from_str(&text).unwrap();
        for list in masked.as_object_mut().unwrap().values_mut() {
            list.as_array_mut().unwrap().sort_by_key(|o| o["metadata"]["name"].to_string());
        }
        masked
    }

    /// Waits until two snapshots, taken more than a second apart, are equal.
    pub async fn settled(&self) -> Value {
        let mut before = self.snapshot().await;
        loop {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let now = self.snapshot().await;
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// Waits until the namespace looks like that.
    pub async fn becomes(&self, wanted: &Value, what: &str) {
        self.until(what, async || {
            let differences = differences(&self.snapshot().await, wanted);
            if differences.is_empty() { Ok(()) } else { Err(differences) }
        })
        .await;
    }
}

/// Paths at which two snapshots differ, with both values.
pub fn differences(one: &Value, other: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", one, other, &mut found);
    found
}

fn compare(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}/{key}"), &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(&format!("{path}/{i}"), a, b, found));
        }
        _ if one == other => {}
        _ => found.push(format!("{path}: {one} ≠ {other}")),
    }
}
