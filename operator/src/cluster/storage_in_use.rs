//! Two live objects at one place: the older one has it.
//!
//! Invariant: of two objects exactly one is told so, whichever is looked at first and whatever
//! replica looks. (An object of another cluster is found by its claim in the storage itself.)

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longstrap_crds::{CommonSpec, Object, Phase, Reason, common::MANAGED_BY};

use crate::plan::Obstacle;

/// What is compared of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim<'a> {
    pub(super) kind: &'static str,
    pub(super) metadata: &'a ObjectMeta,
    pub(super) common: &'a CommonSpec,
    pub(super) phase: Option<Phase>,
}

impl<'a> Claim<'a> {
    pub(super) fn of(object: &'a Object) -> Self {
        let phase = object.phase();
        Self { kind: object.kind(), metadata: object.metadata(), common: object.common(), phase }
    }

    fn lives(&self) -> bool {
        self.common.managed_by == MANAGED_BY
            && self.metadata.deletion_timestamp.is_none()
            && !self.phase.is_some_and(Phase::is_terminal)
    }

    /// The older creationTimestamp, then the lower UID.
    fn seniority(&self) -> (Option<jiff::Timestamp>, Option<&'a str>) {
        (self.metadata.creation_timestamp.as_ref().map(|t| t.0), self.metadata.uid.as_deref())
    }

    fn uri(&self) -> &'a str {
        self.common.storage.uri.trim_end_matches('/')
    }

    /// What the URI is relative to: file: lies in a namespace's volumes, s3: at an endpoint.
    fn within(&self) -> Option<&'a str> {
        match self.uri().starts_with("file:") {
            true => self.metadata.namespace.as_deref(),
            false => self.common.storage.options.get("endpoint").map(String::as_str),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let under =
            |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let (a, b) = (self.uri(), other.uri());
        (under(a, b) || under(b, a)) && self.within() == other.within()
    }
}

/// The obstacle when an older live object has the place.
pub(super) fn obstacle<'o>(
    object: Claim<'_>,
    mut others: impl Iterator<Item = Claim<'o>>,
) -> Option<Obstacle> {
    if !object.lives() {
        return None;
    }
    let rival = others.find(|o| {
        o.overlaps(&object)
            && o.metadata.uid != object.metadata.uid
            && o.lives()
            && o.seniority() < object.seniority()
    })?;
    let name = |part: &Option<String>| part.clone().unwrap_or_default();
    Some(Obstacle {
        reason: Reason::StorageInUse,
        message: format!(
            "{} overlaps {}, where the older {} {}/{} works; give each object a prefix of its own",
            object.common.storage.uri,
            rival.common.storage.uri,
            rival.kind,
            name(&rival.metadata.namespace),
            name(&rival.metadata.name),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(uid: &str, created: &str, uri: &str, namespace: &str, phase: Option<&str>) -> Object {
        let mut doc = json!({
            "apiVersion": "longstrap.io/v1alpha1",
            "kind": "SynthesisJob",
            "metadata": {"name": uid, "namespace": namespace, "uid": uid, "creationTimestamp": created},
            "spec": {
                "storage": {"uri": uri},
                "tokenizer": {"uri": "s3://b/model"},
                "corpus": [{"name": "web", "uri": "s3://b/corpus", "format": "Parquet"}],
                "generator": {"endpoints": [{"name": "a", "url": "http://vllm/v1", "model": "m"}], "contextLength": "8Ki"},
                "samples": {"longInput": {"count": 2, "lengths": [{"name": "x", "tokens": 16384}]}},
                "workers": 2,
            },
        });
        if let Some(phase) = phase {
            doc["status"] = json!({"phase": phase});
        }
        Object::SynthesisJob(Box::new(serde_json::from_value(doc).unwrap()))
    }

    #[test]
    fn the_older_object_has_the_place() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        for (what, a, b, blocked) in [
            ("equal", ("1", old, "s3://b/x", "m", None), ("2", new, "s3://b/x/", "n", None), "2"),
            ("nested", ("1", new, "s3://b/x", "m", None), ("2", old, "s3://b/x/y", "m", None), "1"),
            (
                "of one second: the lower UID",
                ("1", old, "s3://b/x", "m", None),
                ("2", old, "s3://b/x", "m", None),
                "2",
            ),
            ("no path border", ("1", old, "s3://b/x", "m", None), ("2", new, "s3://b/xy", "m", None), ""),
            (
                "files of other volumes",
                ("1", old, "file:///x", "m", None),
                ("2", new, "file:///x", "n", None),
                "",
            ),
            ("finished", ("1", old, "s3://b/x", "m", Some("Failed")), ("2", new, "s3://b/x", "m", None), ""),
        ] {
            let objects = [a, b].map(|(uid, created, uri, ns, phase)| object(uid, created, uri, ns, phase));
            let told: Vec<&str> = objects
                .iter()
                .filter(|o| obstacle(Claim::of(o), objects.iter().map(Claim::of)).is_some())
                .map(|o| o.uid())
                .collect();
            assert_eq!(told.join(" "), blocked, "{what}");
        }
    }
}
