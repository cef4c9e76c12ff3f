//! Nodes on which pods fail again and again: counted, then avoided by the next attempts.
//!
//! Invariant: only failures that are counted for `backoffLimit` count against a node, so work that is
//! committed clears them; a node that is avoided stays so until a restart is asked for.

use longstrap_crds::{
    Reason,
    status::{AvoidedNode, NodeFailures},
};
use serde_json::{Value, json};

use super::draft::Draft;

/// Failures without progress after which a node is avoided.
const LIMIT: u32 = 2;
/// Nodes that the status holds of either list.
const MOST: usize = 16;
/// Longest reason in the status.
const MAX_REASON: usize = 128;
const NODE_NAME: &str = "metadata.name";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Counts a failure against the node on which it began.
pub(super) fn count(draft: &mut Draft<'_>, node: &str, what: &str) {
    let recovery = draft.recovery();
    if recovery.avoided_nodes.iter().any(|n| n.name == node) {
        return;
    }
    let known = recovery.node_failures.iter().position(|n| n.name == node);
    let at = known.unwrap_or_else(|| {
        if recovery.node_failures.len() >= MOST {
            recovery.node_failures.remove(0);
        }
        recovery.node_failures.push(NodeFailures { name: node.to_owned(), count: 0 });
        recovery.node_failures.len() - 1
    });
    recovery.node_failures[at].count += 1;
    let count = recovery.node_failures[at].count;
    if count < LIMIT {
        return;
    }
    recovery.node_failures.remove(at);
    if recovery.avoided_nodes.len() >= MOST {
        recovery.avoided_nodes.remove(0);
    }
    let reason = format!("{count} failures without progress; the last: {what}");
    let reason = reason.chars().take(MAX_REASON).collect();
    recovery.avoided_nodes.push(AvoidedNode { name: node.to_owned(), reason });
    draft.event(
        true,
        Reason::NodeAvoided,
        format!("node {node} is avoided from the next attempt on: {count} failures without progress"),
    );
}

/// Keeps a pod from nodes where there are others, whatever else its affinity asks for. A preference of
/// the highest weight, no requirement: a cluster without another node that fits would never run the pod
/// again. By the name of the Node object, which nobody can give to a second node as a label can be; a
/// field selector takes one value for each requirement. An affinity that is none is left to the API
/// server to refuse.
pub(super) fn avoid(spec: &mut Value, nodes: &[AvoidedNode]) {
    if nodes.is_empty() {
        return;
    }
    let not_there =
        |node: &AvoidedNode| json!({"key": NODE_NAME, "operator": "NotIn", "values": [node.name]});
    let fields: Vec<Value> = nodes.iter().map(not_there).collect();
    let mut at = spec;
    for field in ["affinity", "nodeAffinity"] {
        let Some(object) = at.as_object_mut() else { return };
        at = object.entry(field).or_insert_with(|| json!({}));
    }
    let Some(affinity) = at.as_object_mut() else { return };
    let preferred = affinity.entry(PREFERRED).or_insert_with(|| json!([]));
    if let Some(preferred) = preferred.as_array_mut() {
        preferred.push(json!({"weight": 100, "preference": {"matchFields": fields}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_nodes_are_preferred() {
        let nodes = ["n1", "n2"].map(|name| AvoidedNode { name: name.to_owned(), reason: String::new() });
        let ours = json!({"weight": 100, "preference": {"matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["n1"]},
            {"key": "metadata.name", "operator": "NotIn", "values": ["n2"]},
        ]}});
        let zone = json!({"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}});
        let required =
            json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]});
        let pod = |preferred: Value| {
            let affinity =
                json!({"requiredDuringSchedulingIgnoredDuringExecution": required, PREFERRED: preferred});
            json!({"affinity": {"nodeAffinity": affinity}})
        };
        for (given, wanted) in [
            (json!({}), json!({"affinity": {"nodeAffinity": {PREFERRED: [ours]}}})),
            (pod(json!([])), pod(json!([ours]))),
            (pod(json!([zone])), pod(json!([zone, ours]))),
            // What is no affinity stays as it is.
            (json!({"affinity": "x"}), json!({"affinity": "x"})),
            (pod(json!(7)), pod(json!(7))),
        ] {
            let mut spec = given.clone();
            avoid(&mut spec, &nodes);
            assert_eq!(spec, wanted);
            let mut same = given.clone();
            avoid(&mut same, &[]);
            assert_eq!(same, given);
        }
    }
}
