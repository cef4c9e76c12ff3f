//! The rights that the operator has in the tests: those that the chart installs it with.
//!
//! Invariant: one table, given to the API server and compared with what was used. Only the place
//! differs: each test has a Lease in a namespace of its own.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::control_plane::from_env;

/// Name of the operator's user.
pub const OPERATOR: &str = "system:serviceaccount:longstrap-system:longstrap";
/// Name of its Lease, as the chart calls it.
pub const LEASE: &str = "longstrap";

/// Roles of the chart that are bound to the operator, by name.
fn roles() -> BTreeMap<String, Vec<PolicyRule>> {
    let text = std::fs::read_to_string(from_env("LONGSTRAP_RENDERED_CHART")).unwrap();
    let docs: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let bound: BTreeSet<&str> = docs
        .iter()
        .filter(|d| d["subjects"][0]["name"] == "longstrap")
        .filter_map(|d| d["roleRef"]["name"].as_str())
        .collect();
    docs.iter()
        .filter(|d| d["kind"].as_str().is_some_and(|k| k.ends_with("Role")))
        .filter_map(|d| Some((d["metadata"]["name"].as_str()?, &d["rules"])))
        .filter(|(name, _)| bound.contains(name))
        .map(|(name, rules)| (name.to_owned(), serde_json::from_value(rules.clone()).unwrap()))
        .collect()
}

/// All that the operator may do, as `create jobs.batch` or `patch pods/status`.
pub fn rights() -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for rule in roles().into_values().flatten() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                rights.extend(rule.verbs.iter().map(|verb| right(verb, group, resource)));
            }
        }
    }
    rights
}

/// Names a right.
pub fn right(verb: &str, group: &str, resource: &str) -> String {
    if group.is_empty() { format!("{verb} {resource}") } else { format!("{verb} {resource}.{group}") }
}

/// Gives the operator its rights.
pub(crate) async fn install(client: &Client) {
    let roles = roles();
    assert!(!roles.is_empty(), "the chart binds no role to {OPERATOR}");
    let params = PatchParams::apply("tests");
    for (name, rules) in roles {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules,
        });
        let api = Api::<ClusterRole>::all(client.clone());
        api.patch(&name, &params, &Patch::Apply(&role)).await.unwrap();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OPERATOR}],
        });
        let api = Api::<ClusterRoleBinding>::all(client.clone());
        api.patch(&name, &params, &Patch::Apply(&binding)).await.unwrap();
    }
}

/// Logs each request of the operator, and nothing else.
pub(crate) fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
    })
}
