//! Two live objects at one place: the older one has it.
//!
//! Invariant: of two objects exactly one is told so, whichever is looked at first and whatever
//! replica looks. (An object of another cluster is found by its claim in the storage itself.)

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longstrap_crds::{CommonSpec, Object, Phase, Reason, common::MANAGED_BY};

use super::{place::Place, store::Stores};
use crate::plan::Obstacle;

/// What is compared of an object.
#[derive(Clone, Copy, Debug)]
struct Claim<'a> {
    kind: &'static str,
    metadata: &'a ObjectMeta,
    common: &'a CommonSpec,
    phase: Option<Phase>,
}

impl<'a> Claim<'a> {
    fn of(object: &'a Object) -> Self {
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
}

/// The obstacle when an older live object has the place. `others`: those whose places overlap.
fn obstacle<'o>(object: Claim<'_>, others: impl Iterator<Item = Claim<'o>>) -> Option<Obstacle> {
    if !object.lives() {
        return None;
    }
    let rivals = others.filter(|o| o.metadata.uid != object.metadata.uid && o.lives());
    let oldest = rivals.min_by_key(|o| o.seniority())?;
    let rival = Some(oldest).filter(|o| o.seniority() < object.seniority())?;
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

/// As [`obstacle`], among all objects that are known.
pub(super) fn around(stores: &Stores, object: &Object) -> Option<Obstacle> {
    let place = Place::of(object.metadata(), object.common());
    let jobs: Vec<_> = stores.synthesis.around(&place).iter().map(|o| o.open()).collect();
    let runs: Vec<_> = stores.runs.around(&place).iter().map(|o| o.open()).collect();
    let jobs = jobs.iter().map(|o| Claim {
        kind: "SynthesisJob",
        metadata: &o.metadata,
        common: &o.spec.common,
        phase: o.status.as_ref().and_then(|s| s.common.phase),
    });
    let runs = runs.iter().map(|o| Claim {
        kind: "ContextExtensionRun",
        metadata: &o.metadata,
        common: &o.spec.common,
        phase: o.status.as_ref().and_then(|s| s.common.phase),
    });
    obstacle(Claim::of(object), jobs.chain(runs))
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
        let nested = ("1", new, "s3://b/x", "m", None);
        for (what, a, b, blocked) in [
            ("equal", ("1", old, "s3://b/x", "m", None), ("2", new, "s3://b/x/", "n", None), "2"),
            ("nested", nested, ("2", old, "s3://b/x/y", "m", None), "1"),
            ("apart", nested, ("2", old, "s3://b/xy", "m", None), ""),
            ("one second: the lower UID", nested, ("2", new, "s3://b/x", "m", None), "2"),
            ("finished", ("1", old, "s3://b/x", "m", Some("Failed")), ("2", new, "s3://b/x", "m", None), ""),
        ] {
            let stores = Stores::default();
            let objects = [a, b].map(|(uid, created, uri, ns, phase)| object(uid, created, uri, ns, phase));
            for object in &objects {
                let Object::SynthesisJob(job) = object else { unreachable!() };
                stores.synthesis.apply((**job).clone());
            }
            let told: Vec<&str> =
                objects.iter().filter(|o| around(&stores, o).is_some()).map(|o| o.uid()).collect();
            assert_eq!(told.join(" "), blocked, "{what}");
        }
    }
}
