//! The rights that the operator has in the tests: those that the chart installs it with.
//!
//! Invariant: one table, given to the API server and compared with what was used. Only the place
//! differs: each test has a Lease in a namespace of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::control_plane::from_env;

/// Name of the operator's user.
pub const OPERATOR: &str = "system:serviceaccount:longstrap-system:longstrap";
/// Name of its Lease, as the chart calls it.
pub const LEASE: &str = "longstrap";

/// Objects of the chart.
fn rendered(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Roles of the chart that are bound to the operator, by name.
fn roles() -> BTreeMap<String, Vec<PolicyRule>> {
    let docs = rendered(&from_env("LONGSTRAP_RENDERED_CHART"));
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

/// Takes the operator's rights on the cluster away, and gives it those that the chart does for a list of
/// namespaces, which exist.
pub async fn only_in_namespaces(client: &Client) {
    let bindings = Api::<ClusterRoleBinding>::all(client.clone());
    for name in roles().keys() {
        bindings.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let chart = from_env("LONGSTRAP_RENDERED_CHART").with_file_name("chart-namespaced.yaml");
    for doc in rendered(&chart).iter().filter(|d| d["apiVersion"] == "rbac.authorization.k8s.io/v1") {
        let resource = match doc["kind"].as_str().unwrap() {
            "Role" => ApiResource::erase::<Role>(&()),
            "RoleBinding" => ApiResource::erase::<RoleBinding>(&()),
            // For people; nothing on the cluster is bound to the operator.
            _ => {
                assert!(!doc["subjects"].to_string().contains("longstrap"), "{doc}");
                continue;
            }
        };
        let name = doc["metadata"]["name"].as_str().unwrap();
        let namespace = doc["metadata"]["namespace"].as_str().unwrap();
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        api.patch(name, &PatchParams::apply("tests"), &Patch::Apply(doc)).await.unwrap();
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
