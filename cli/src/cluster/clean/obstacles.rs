//! What a cluster has against a clean: a run that may still write, pods that have not ended, another
//! object that needs the data, another owner.
//!
//! Invariant: other objects are read as the server gives them, so that those of a newer version
//! count too; what may not be looked at is told, never taken for absent.

use anyhow::{Result, bail};
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};
use longstrap_crds::{Object, Phase};
use longstrap_storage::{StorageOwner, overlap};
use serde_json::Value;

use crate::cluster::access::Cluster;
use crate::cluster::children::{self, PodView};
use crate::cluster::error::{ClusterError, Request};
use crate::cluster::target::{Found, Kind};
use crate::cluster::words;

/// A run that goes on by itself.
pub(super) fn refuse_live(found: &Found) -> Result<()> {
    match found.phase() {
        Some(Phase::Complete | Phase::Failed | Phase::Suspended) => Ok(()),
        _ => bail!(
            "{} is {} and may be writing; stop it first: longstrap suspend {}/{}",
            found.described(),
            words::phase(&found.object),
            found.kind.as_str(),
            found.name()
        ),
    }
}

/// Pods of the object with this UID that still run: they outlive the phase that their run has ended with.
pub(super) async fn refuse_pods(cluster: &Cluster, uid: &str) -> Result<()> {
    let pods = children::pods_of(cluster, uid).await?;
    let Some(pod) = pods.iter().find(|pod| !has_ended(pod)) else { return Ok(()) };
    bail!(
        "pod {} is {} and may be writing; wait until it has ended (longstrap status -o wide), then clean again",
        pod.name,
        pod.phase
    )
}

fn has_ended(pod: &PodView) -> bool {
    matches!(pod.phase.as_str(), "Succeeded" | "Failed")
}

/// Objects that need what lies at the storage, or keep their own data there.
pub(super) async fn refuse_others(cluster: &Cluster, found: &Found) -> Result<()> {
    for kind in Kind::ALL {
        for other in visible(cluster, kind).await? {
            if let Some(why) = need(found, kind, &other) {
                let namespace = other.namespace().unwrap_or_default();
                bail!("{} {namespace}/{} {why}; nothing was deleted", kind.as_str(), other.name_any());
            }
        }
    }
    Ok(())
}

/// The objects that may be listed: of all namespaces, else of the object's own.
async fn visible(cluster: &Cluster, kind: Kind) -> Result<Vec<DynamicObject>> {
    let request = Request { verb: "list", resource: kind.resource(), name: "" };
    let all = ListParams::default();
    match cluster.ask(request, cluster.everywhere(kind).list(&all)).await {
        Ok(list) => Ok(list.items),
        Err(ClusterError::Forbidden { .. }) => {
            let list = cluster.ask(request, cluster.objects(kind).list(&all)).await?;
            eprintln!(
                "warning: of {} only those in namespace {} may be listed; whether one of another namespace needs the data is not known",
                kind.resource(),
                cluster.namespace
            );
            Ok(list.items)
        }
        Err(error) => Err(error.into()),
    }
}

/// Why the other object stands in the way, as the end of a sentence about it.
fn need(found: &Found, kind: Kind, other: &DynamicObject) -> Option<String> {
    if other.metadata.uid.as_deref() == Some(found.object.uid()) {
        return None;
    }
    let storage = found.object.common().storage.uri.as_str();
    let (spec, status) = (&other.data["spec"], &other.data["status"]);
    // Also of one that has ended: its results are there.
    if let Some(uri) = spec["storage"]["uri"].as_str().filter(|uri| overlap(uri, storage)) {
        return Some(format!("keeps its own data in {uri}; delete that object first if they may go"));
    }
    if matches!(status["phase"].as_str(), Some("Complete" | "Failed")) {
        return None;
    }
    let mut uris = Vec::new();
    collect(spec, "spec", &mut uris);
    collect(status, "status", &mut uris);
    if let Some((field, uri)) = uris.into_iter().find(|(_, uri)| overlap(uri, storage)) {
        return Some(format!("has not ended and reads {uri} ({field})"));
    }
    // Before it has pinned a URI.
    let namespace = other.metadata.namespace.as_deref().unwrap_or_default();
    let mut sources = spec["data"].as_array().into_iter().flatten();
    let named = found.kind == Kind::SynthesisJob
        && kind == Kind::ContextExtensionRun
        && namespace == found.object.namespace()
        && sources.any(|source| source["synthesisJobRef"]["name"] == found.name());
    named.then(|| format!("has not ended and reads the data of {}", found.described()))
}

/// Every field called `uri`, with its path.
fn collect<'v>(value: &'v Value, path: &str, found: &mut Vec<(String, &'v str)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}.{name}");
                match field {
                    Value::String(uri) if name == "uri" => found.push((path, uri)),
                    _ => collect(field, &path, found),
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

/// A storage of another object, be it only one of the same name on another cluster.
pub(super) async fn refuse_foreign_owner(
    cluster: &Cluster,
    found: &Found,
    owner: &StorageOwner,
) -> Result<()> {
    let object = &found.object;
    if owner.uid == object.uid() {
        return Ok(());
    }
    let identity = cluster.identity().await;
    if is_earlier(object, owner, identity.as_deref().ok()) {
        // What was deleted with the earlier object may still be ending.
        return refuse_pods(cluster, &owner.uid).await;
    }
    let here = match &identity {
        Ok(identity) => format!("of cluster {identity}"),
        Err(error) => format!("of this cluster, whose identity cannot be read: {error}"),
    };
    bail!(
        "the storage {} belongs to {}/{} (UID {}) of cluster {}, not to {} (UID {}) {here}; nothing was deleted. \
         What another object has written can only be cleaned by naming its URI",
        object.common().storage.uri,
        owner.namespace,
        owner.name,
        owner.uid,
        owner.cluster,
        found.described(),
        object.uid(),
    )
}

/// Whether the owner was an object of the same name on this very cluster (`identity`), before this one.
fn is_earlier(object: &Object, owner: &StorageOwner, identity: Option<&str>) -> bool {
    identity == Some(owner.cluster.as_str())
        && (owner.namespace.as_str(), owner.name.as_str()) == (object.namespace(), object.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::found_job;
    use serde_json::json;

    fn other(kind: Kind, namespace: &str, spec: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": longstrap_crds::API_VERSION, "kind": kind.as_str(),
            "metadata": {"name": "other", "namespace": namespace, "uid": "uid-of-other"},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn only_the_object_itself_or_an_earlier_one_of_this_cluster_owns() {
        let docs = found_job(json!({"phase": "Complete"}));
        let owner = |cluster: &str, namespace: &str, name: &str| StorageOwner {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: "another".to_owned(),
        };
        for (what, owner, identity, earlier) in [
            ("an earlier one", owner("dev", "ml", "docs"), Some("dev"), true),
            ("of another cluster", owner("prod", "ml", "docs"), Some("dev"), false),
            ("of a cluster that cannot be told", owner("dev", "ml", "docs"), None, false),
            ("of another name", owner("dev", "ml", "other"), Some("dev"), false),
            ("of another namespace", owner("dev", "lm", "docs"), Some("dev"), false),
        ] {
            assert_eq!(is_earlier(&docs.object, &owner, identity), earlier, "{what}");
        }
    }

    /// Cleaned is SynthesisJob ml/docs with s3://acme/docs.
    #[test]
    fn whoever_needs_the_data_stands_in_the_way() {
        use Kind::{ContextExtensionRun as Run, SynthesisJob as Synth};
        let docs = found_job(json!({"phase": "Complete"}));
        let (live, ended) = (json!({"phase": "Running"}), json!({"phase": "Complete"}));
        let storage = |uri: &str| json!({"storage": {"uri": uri}});
        let data = |source: Value| json!({"storage": {"uri": "s3://acme/run"}, "data": [source]});
        let named = data(json!({"name": "a", "synthesisJobRef": {"name": "docs"}}));
        let model = |uri: &str| json!({"model": {"uri": uri}});
        for (kind, namespace, spec, status, wanted) in [
            (Synth, "lm", storage("s3://acme/docs"), &ended, "keeps its own data in s3://acme/docs;"),
            (Synth, "lm", storage("s3a://acme/docs/r1/"), &ended, "keeps its own data in"),
            (Run, "ml", storage("s3://acme"), &ended, "keeps its own data in s3://acme;"),
            (Run, "ml", storage("s3://acme/docs-2"), &live, ""),
            (Run, "ml", named.clone(), &live, "reads the data of SynthesisJob ml/docs"),
            (Run, "ml", named.clone(), &json!({}), "reads the data of SynthesisJob ml/docs"),
            // The reference is one within the namespace.
            (Run, "lm", named.clone(), &live, ""),
            (Run, "ml", named, &ended, ""),
            (Run, "lm", data(json!({"uri": "s3://acme/docs/dataset"})), &live, "(spec.data[0].uri)"),
            (Run, "lm", data(json!({"uri": "s3://acme/docs/dataset"})), &ended, ""),
            (Run, "lm", model("s3://acme/docs/model"), &live, "(spec.model.uri)"),
            (
                Run,
                "lm",
                model("s3://acme/m"),
                &json!({"phase": "Queued", "data": [{"uri": "s3://acme/docs/dataset"}]}),
                "(status.data[0].uri)",
            ),
            (Synth, "lm", json!({"tokenizer": {"uri": "s3://acme/docs/m"}}), &live, "(spec.tokenizer.uri)"),
            (Synth, "lm", json!({"corpus": [{"uri": "s3://acme/"}]}), &live, "(spec.corpus[0].uri)"),
            // Of a newer version: a phase and a field that this one does not know.
            (
                Run,
                "lm",
                json!({"teacher": {"uri": "s3://acme/docs/x"}}),
                &json!({"phase": "Paused"}),
                "(spec.teacher.uri)",
            ),
        ] {
            let object = other(kind, namespace, spec, status.clone());
            let told = need(&docs, kind, &object);
            let fits = match (&told, wanted) {
                (told, "") => told.is_none(),
                (Some(told), wanted) => told.contains(wanted),
                (None, _) => false,
            };
            assert!(fits, "{wanted:?} of {told:?}: {:?}", object.data);
        }
        assert_eq!(need(&docs, Synth, &docs.raw), None, "it does not stand in its own way");
    }

    #[test]
    fn a_pod_that_is_being_deleted_has_not_ended() {
        for (phase, ended) in [
            ("Pending", false),
            ("Running", false),
            ("Unknown", false),
            ("Succeeded", true),
            ("Failed", true),
        ] {
            let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase}});
            assert_eq!(has_ended(&PodView::new(&serde_json::from_value(pod).unwrap())), ended, "{phase}");
        }
    }
}
