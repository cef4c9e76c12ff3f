//! Whether a `file:` storage outlives the pods that write it.
//!
//! Invariant: judged by the pods that a step would get, so a volume of the user's podTemplate counts
//! exactly when it is mounted there.

use longstrap_crds::{Object, Reason, names::CONTAINER};
use serde_json::Value;

use super::draft::{Cause, Draft};

/// Volumes that are gone with their pod, or that nobody can write.
const FLEETING: [&str; 7] =
    ["emptyDir", "ephemeral", "configMap", "secret", "projected", "downwardAPI", "image"];

/// Why the run cannot keep its files, when it is to run in pods.
pub(super) fn refusal(draft: &Draft<'_>, template: &Value) -> Option<Cause> {
    if draft.world.config.one_machine {
        return None;
    }
    relative(draft.object()).or_else(|| {
        let uri = &draft.object().common().storage.uri;
        let path = path(uri)?;
        (!lasts(template, path)).then(|| {
            Cause::new(
                Reason::StorageNotDurable,
                format!(
                    "spec.storage.uri {uri} does not lie under a writable mount of a durable volume in the pods of {}; \
                     mount one (a PersistentVolumeClaim, nfs, …) into the container {CONTAINER} by podTemplate, or use an object store",
                    draft.step
                ),
            )
        })
    })
}

/// A relative `file:` URI means a folder of a local run; pods have none.
fn relative(object: &Object) -> Option<Cause> {
    let mut found = None;
    object.clone().visit_uris(&mut |field, uri| {
        if uri.strip_prefix("file:").is_some_and(|path| !path.starts_with('/')) {
            found.get_or_insert_with(|| {
                let message = format!(
                    "{field} {uri} is relative to the output folder of `longstrap local run`; on a cluster write file:///…, or an object store"
                );
                Cause::new(Reason::StorageNotDurable, message)
            });
        }
    });
    found
}

/// The path of an absolute `file:` URI.
fn path(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("file:")?;
    match rest.strip_prefix("//") {
        Some(after) => after.find('/').map(|start| &after[start..]),
        None => Some(rest),
    }
}

fn lasts(template: &Value, path: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let spec = &template["spec"];
    let worker = list(&spec["containers"]).into_iter().find(|c| c["name"] == CONTAINER).unwrap_or_default();
    let under = |mount: &Value| {
        let at = mount["mountPath"].as_str()?.trim_end_matches('/');
        let below = path.strip_prefix(at)?;
        (below.is_empty() || below.starts_with('/')).then_some(at.len())
    };
    let mounts = list(&worker["volumeMounts"]);
    // The deepest mount is the one that is written.
    let Some(mount) = mounts.iter().filter(|m| under(m).is_some()).max_by_key(|m| under(m)) else {
        return false;
    };
    let volume = list(&spec["volumes"]).into_iter().find(|v| v["name"] == mount["name"]).unwrap_or_default();
    let source = volume.as_object().and_then(|v| v.keys().find(|key| *key != "name"));
    mount["readOnly"] != true && source.is_some_and(|kind| !FLEETING.contains(&kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_deepest_mount_decides() {
        let template = json!({"spec": {
            "containers": [
                {"name": "sidecar", "volumeMounts": [{"mountPath": "/", "name": "pvc"}]},
                {"name": "worker", "volumeMounts": [
                    {"mountPath": "/data", "name": "pvc"},
                    {"mountPath": "/data/tmp/", "name": "scratch"},
                    {"mountPath": "/models", "name": "nfs", "readOnly": true},
                    {"mountPath": "/typo", "name": "absent"},
                ]},
            ],
            "volumes": [
                {"name": "pvc", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "scratch", "emptyDir": {}},
                {"name": "nfs", "nfs": {}},
            ],
        }});
        for (uri, lasting) in [
            ("file:///data/run", true),
            ("file:/data", true),
            ("file://localhost/data/run", true),
            ("file:///database", false),
            ("file:///data/tmp/run", false),
            ("file:///models/run", false),
            ("file:///typo/run", false),
            ("file:///", false),
        ] {
            assert_eq!(lasts(&template, path(uri).unwrap()), lasting, "{uri}");
        }
        assert_eq!(path("s3://b/data"), None);
    }
}
