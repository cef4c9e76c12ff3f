//! Which object is meant: `[KIND/]NAME`, and how it is found.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use longstrap_crds::{Object, Phase};
use serde_json::Value;

use super::access::Cluster;
use super::error::{ClusterError, Request};
use super::words;

/// One of our kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `SynthesisJob`
    SynthesisJob,
    /// `ContextExtensionRun`
    ContextExtensionRun,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::SynthesisJob, Self::ContextExtensionRun];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SynthesisJob => "SynthesisJob",
            Self::ContextExtensionRun => "ContextExtensionRun",
        }
    }

    /// Plural and group, as RBAC calls them.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::SynthesisJob => "synthesisjobs.longstrap.io",
            Self::ContextExtensionRun => "contextextensionruns.longstrap.io",
        }
    }

    /// As kubectl takes it: kind, plural or short name in any case, with or without the group.
    fn of(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        match word.strip_suffix(".longstrap.io").unwrap_or(&word) {
            "synthesisjob" | "synthesisjobs" | "synth" => Some(Self::SynthesisJob),
            "contextextensionrun" | "contextextensionruns" | "cer" => Some(Self::ContextExtensionRun),
            _ => None,
        }
    }
}

/// `[KIND/]NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    kind: Option<Kind>,
    name: String,
}

/// A text that names no object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTarget {
    #[error("{0:?} is no kind of Longstrap: SynthesisJob (synth) or ContextExtensionRun (cer)")]
    Kind(String),
    #[error("{0:?} is no name of an object: lower-case letters, digits, '-' and '.'")]
    Name(String),
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => {
                (Some(Kind::of(kind).ok_or_else(|| InvalidTarget::Kind(kind.to_owned()))?), name)
            }
            None => (None, text),
        };
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if name.is_empty() || name.len() > 253 || !name.bytes().all(legal) {
            return Err(InvalidTarget::Name(name.to_owned()));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{} {}", kind.as_str(), self.name),
            None => write!(f, "SynthesisJob or ContextExtensionRun {}", self.name),
        }
    }
}

/// An object that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    /// As the server gave it.
    pub(crate) raw: DynamicObject,
    /// As this version reads it.
    pub(crate) object: Object,
}

impl Found {
    /// Reads what the server gave.
    pub(crate) fn new(kind: Kind, raw: DynamicObject) -> Result<Self> {
        let object = parse(kind, &raw)?;
        Ok(Self { kind, raw, object })
    }

    pub(crate) fn name(&self) -> &str {
        self.object.name()
    }

    pub(crate) fn phase(&self) -> Option<Phase> {
        self.object.phase()
    }

    /// `SynthesisJob ml/docs`.
    pub(crate) fn described(&self) -> String {
        words::described(&self.object)
    }

    /// A request about this object.
    pub(crate) fn request(&self, verb: &'static str) -> Request<'_> {
        Request { verb, resource: self.kind.resource(), name: self.name() }
    }

    /// Untyped access to it.
    pub(crate) fn api(&self, cluster: &Cluster) -> Api<DynamicObject> {
        cluster.objects(self.kind)
    }
}

/// An object as JSON, with what lists leave out.
pub(crate) fn as_json(kind: Kind, raw: &DynamicObject) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(raw)?;
    value["apiVersion"] = longstrap_crds::API_VERSION.into();
    value["kind"] = kind.as_str().into();
    Ok(value)
}

fn parse(kind: Kind, raw: &DynamicObject) -> Result<Object> {
    let value = as_json(kind, raw)?;
    let read = |value: Value| {
        Ok(match kind {
            Kind::SynthesisJob => Object::SynthesisJob(serde_json::from_value(value)?),
            Kind::ContextExtensionRun => Object::ContextExtensionRun(serde_json::from_value(value)?),
        })
    };
    read(value).map_err(|error: serde_json::Error| error).with_context(|| {
        let namespace = raw.metadata.namespace.as_deref().unwrap_or_default();
        let name = raw.name_any();
        format!("{} {namespace}/{name} was written for another version of longstrap", kind.as_str())
    })
}

/// Finds the object; without a kind it must be the only one of its name.
pub(crate) async fn find(cluster: &Cluster, target: &Target) -> Result<Found> {
    let mut found = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| target.kind.is_none_or(|wanted| wanted == *kind)) {
        let request = Request { verb: "get", resource: kind.resource(), name: &target.name };
        let api = cluster.objects(kind);
        if let Some(raw) = cluster.ask(request, api.get_opt(&target.name)).await? {
            found.push((kind, raw));
        }
    }
    match found.len() {
        0 => Err(not_found(cluster, target).await.into()),
        1 => {
            let (kind, raw) = found.remove(0);
            Found::new(kind, raw)
        }
        _ => bail!(
            "namespace {} has a SynthesisJob and a ContextExtensionRun named {name}: say synth/{name} or cer/{name}",
            cluster.namespace,
            name = target.name
        ),
    }
}

/// Looks for the name in other namespaces, for the hint.
async fn not_found(cluster: &Cluster, target: &Target) -> ClusterError {
    let mut elsewhere = Vec::new();
    let named = ListParams::default().fields(&format!("metadata.name={}", target.name));
    for kind in Kind::ALL.into_iter().filter(|kind| target.kind.is_none_or(|wanted| wanted == *kind)) {
        let request = Request { verb: "list", resource: kind.resource(), name: &target.name };
        // Who may not look around gets the hint without it.
        if let Ok(list) = cluster.ask(request, cluster.everywhere(kind).list(&named)).await {
            elsewhere.extend(list.items.into_iter().filter_map(|o| o.metadata.namespace));
        }
    }
    let hint = match elsewhere.first() {
        Some(namespace) => format!("there is one in namespace {namespace}: -n {namespace}"),
        None => "`longstrap status` lists what is there; choose another namespace with -n".to_owned(),
    };
    ClusterError::NotFound { what: target.to_string(), namespace: cluster.namespace.clone(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_kubectl_takes_them() {
        use Kind::{ContextExtensionRun, SynthesisJob};
        for (text, kind, name) in [
            ("docs", None, "docs"),
            ("synth/7.docs-a", Some(SynthesisJob), "7.docs-a"),
            ("SynthesisJob/docs", Some(SynthesisJob), "docs"),
            ("synthesisjob.longstrap.io/docs", Some(SynthesisJob), "docs"),
            ("contextextensionruns/run", Some(ContextExtensionRun), "run"),
            ("cer/run", Some(ContextExtensionRun), "run"),
        ] {
            assert_eq!(text.parse(), Ok(Target { kind, name: name.to_owned() }), "{text}");
        }
        for bad in ["", "job/docs", "synth/", "Docs", "a/b/c", "synth/../x", "a b"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
