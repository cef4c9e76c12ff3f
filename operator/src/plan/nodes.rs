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
const HOSTNAME: &str = "kubernetes.io/hostname";

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

/// Keeps a pod from nodes, whatever else its affinity asks for. An affinity that is none is left to
/// the API server to refuse.
pub(super) fn avoid(spec: &mut Value, nodes: &[AvoidedNode]) {
    if nodes.is_empty() {
        return;
    }
    let names: Vec<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
    let not_there = json!({"key": HOSTNAME, "operator": "NotIn", "values": names});
    let mut at = spec;
    for field in ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"] {
        let Some(object) = at.as_object_mut() else { return };
        at = object.entry(field).or_insert_with(|| json!({}));
    }
    let Some(required) = at.as_object_mut() else { return };
    let terms = required.entry("nodeSelectorTerms").or_insert_with(|| json!([]));
    let Some(terms) = terms.as_array_mut() else { return };
    if terms.is_empty() {
        terms.push(json!({}));
    }
    // Terms are alternatives: each has to keep away from the nodes.
    for term in terms.iter_mut().filter_map(Value::as_object_mut) {
        let expressions = term.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(expressions) = expressions.as_array_mut() {
            expressions.push(not_there.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alternative_keeps_away() {
        let nodes = [AvoidedNode { name: "n1".into(), reason: String::new() }];
        let ours = json!({"key": HOSTNAME, "operator": "NotIn", "values": ["n1"]});
        let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
        let pod = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        for nonsense in [json!({"affinity": "x"}), pod(json!([1, {"matchExpressions": 2}]))] {
            let mut spec = nonsense.clone();
            avoid(&mut spec, &nodes);
            assert_eq!(spec, nonsense);
        }
        for (given, wanted) in [
            (json!({}), json!([{"matchExpressions": [ours]}])),
            (pod(json!([])), json!([{"matchExpressions": [ours]}])),
            (
                pod(json!([{"matchExpressions": [zone]}, {"matchFields": []}])),
                json!([{"matchExpressions": [zone, ours]}, {"matchFields": [], "matchExpressions": [ours]}]),
            ),
        ] {
            let mut spec = given.clone();
            avoid(&mut spec, &nodes);
            assert_eq!(spec, pod(wanted));
            let mut same = given.clone();
            avoid(&mut same, &[]);
            assert_eq!(same, given);
        }
    }
}
