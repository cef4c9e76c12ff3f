//! An object of either kind, with what both have.
//!
//! Invariant: code that treats both kinds alike goes through here and never through JSON.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::{
    common::CommonSpec,
    context_extension_run::ContextExtensionRun,
    status::{CommonStatus, Phase},
    synthesis_job::SynthesisJob,
    task::RunSpec,
};

/// An object of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A SynthesisJob.
    SynthesisJob(Box<SynthesisJob>),
    /// A ContextExtensionRun.
    ContextExtensionRun(Box<ContextExtensionRun>),
}

impl Object {
    /// `SynthesisJob` or `ContextExtensionRun`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SynthesisJob(_) => "SynthesisJob",
            Self::ContextExtensionRun(_) => "ContextExtensionRun",
        }
    }

    /// Metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::SynthesisJob(o) => &o.metadata,
            Self::ContextExtensionRun(o) => &o.metadata,
        }
    }

    /// Metadata, to write.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::SynthesisJob(o) => &mut o.metadata,
            Self::ContextExtensionRun(o) => &mut o.metadata,
        }
    }

    /// Name; empty before the object has one.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Namespace; `default` when none is given.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or("default")
    }

    /// UID; empty before the object has one.
    pub fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// The spec as the task file carries it.
    pub fn spec(&self) -> RunSpec {
        match self {
            Self::SynthesisJob(o) => RunSpec::SynthesisJob(Box::new(o.spec.clone())),
            Self::ContextExtensionRun(o) => RunSpec::ContextExtensionRun(Box::new(o.spec.clone())),
        }
    }

    /// The fields of the spec that both kinds have.
    pub fn common(&self) -> &CommonSpec {
        match self {
            Self::SynthesisJob(o) => &o.spec.common,
            Self::ContextExtensionRun(o) => &o.spec.common,
        }
    }

    /// The fields of the spec that both kinds have, to write.
    pub fn common_mut(&mut self) -> &mut CommonSpec {
        match self {
            Self::SynthesisJob(o) => &mut o.spec.common,
            Self::ContextExtensionRun(o) => &mut o.spec.common,
        }
    }

    /// The fields of the status that both kinds have.
    pub fn status(&self) -> CommonStatus {
        match self {
            Self::SynthesisJob(o) => o.status.as_ref().map(|s| s.common.clone()),
            Self::ContextExtensionRun(o) => o.status.as_ref().map(|s| s.common.clone()),
        }
        .unwrap_or_default()
    }

    /// Where the run is; `None` before the first status.
    pub fn phase(&self) -> Option<Phase> {
        self.status().phase
    }

    /// The whole object as JSON, `apiVersion` and `kind` included.
    ///
    /// # Errors
    /// Never for an object that was parsed; serde's error is passed on.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::SynthesisJob(o) => serde_json::to_value(o),
            Self::ContextExtensionRun(o) => serde_json::to_value(o),
        }
    }

    /// Calls `visit` with the field path and every URI of the spec, to resolve or check them.
    pub fn visit_uris(&mut self, visit: &mut dyn FnMut(&str, &mut String)) {
        visit("spec.storage.uri", &mut self.common_mut().storage.uri);
        match self {
            Self::SynthesisJob(o) => {
                visit("spec.tokenizer.uri", &mut o.spec.tokenizer.uri);
                for (i, source) in o.spec.corpus.iter_mut().enumerate() {
                    visit(&format!("spec.corpus[{i}].uri"), &mut source.uri);
                }
                if let Some(embedded) = &mut o.spec.generator.embedded {
                    visit("spec.generator.embedded.model.uri", &mut embedded.model.uri);
                }
            }
            Self::ContextExtensionRun(o) => {
                visit("spec.model.uri", &mut o.spec.model.uri);
                for (i, source) in o.spec.data.iter_mut().enumerate() {
                    if let Some(uri) = &mut source.uri {
                        visit(&format!("spec.data[{i}].uri"), uri);
                    }
                }
            }
        }
    }
}
