//! The CEL rules of both kinds: what must hold in one object, and what an edit may not change.
//!
//! Invariant: rules stand in these tables and in the shared pieces of schema, nowhere else. Rules
//! about edits stand on the parent object, because the rule of an optional field does not run when
//! the field is added or removed.

use serde_json::{Value, json};

/// A rule at a place of the spec's schema: `generator`, `samples.longInput.lengths[]`; the empty
/// path is the spec itself.
pub(crate) struct Rule {
    /// Path from the spec; `[]` is the items of a list.
    pub(crate) at: &'static str,
    /// The CEL expression.
    pub(crate) rule: &'static str,
    /// For the person who reads it; the server puts the field's path in front.
    pub(crate) message: &'static str,
}

/// Rules of a SynthesisJob.
pub(crate) const SYNTHESIS_JOB: &[Rule] = &[
    Rule {
        at: "generator",
        rule: "has(self.endpoints) != has(self.embedded)",
        message: "exactly one of endpoints and embedded must be given",
    },
    Rule {
        at: "generator",
        rule: "!has(self.endpoints) || !has(oldSelf.endpoints) || self.endpoints.all(e, oldSelf.endpoints.exists(o, o.model == e.model))",
        message: "the model of the endpoints cannot be changed; make another SynthesisJob",
    },
    Rule {
        at: "samples",
        rule: "has(self.longInput) || has(self.longOutput)",
        message: "at least one of longInput and longOutput must be given",
    },
    Rule {
        at: "samples.longInput.lengths[]",
        rule: "has(self.tokens) ? !has(self.from) && !has(self.to) : has(self.from) && has(self.to)",
        message: "give either tokens (an exact length) or from and to (a range)",
    },
];

/// Rules of a ContextExtensionRun.
pub(crate) const CONTEXT_EXTENSION_RUN: &[Rule] = &[
    Rule {
        at: "data[]",
        rule: "has(self.synthesisJobRef) != has(self.uri)",
        message: "exactly one of synthesisJobRef and uri must be given",
    },
    Rule {
        at: "evaluation",
        rule: "!(self.beforeFirstStage || self.afterEachStage) || has(self.lossByPosition) || has(self.recall) || has(self.needle)",
        message: "name what is to be measured: lossByPosition, recall, needle",
    },
];

/// Fields of both kinds that an edit may not change, by parent.
const COMMON_FIXED: &[(&str, &[&str])] = &[("", &["managedBy"]), ("storage", &["uri"])];

/// Fields of a SynthesisJob that an edit may not change.
const SYNTHESIS_JOB_FIXED: &[(&str, &[&str])] = &[
    ("", &["tokenizer", "corpus", "heldOut", "retriever", "prompts", "samples", "seed"]),
    ("generator", &["endpoints?", "embedded", "contextLength"]),
];

/// Fields of a ContextExtensionRun that an edit may not change.
const CONTEXT_EXTENSION_RUN_FIXED: &[(&str, &[&str])] = &[
    ("", &["model", "data", "evaluation", "export"]),
    ("training", &["learningRate", "schedule", "warmupSteps", "tokensPerStep", "maxEpochs", "seed"]),
];

/// Fields of a stage that an edit may not change; where a stage runs may change.
const STAGE_FIXED: &[&str] = &["contextLength", "steps", "ropeBase", "learningRate", "tokensPerStep"];

/// All rules of a kind: path from the spec, and the `x-kubernetes-validations` entry.
pub(crate) fn of(kind: &str) -> Vec<(&'static str, Value)> {
    let (rules, fixed) = match kind {
        "SynthesisJob" => (SYNTHESIS_JOB, SYNTHESIS_JOB_FIXED),
        _ => (CONTEXT_EXTENSION_RUN, CONTEXT_EXTENSION_RUN_FIXED),
    };
    let plain = rules.iter().map(|r| (r.at, json!({"rule": r.rule, "message": r.message})));
    let fixed = COMMON_FIXED
        .iter()
        .chain(fixed)
        .flat_map(|(at, fields)| fields.iter().map(move |field| (*at, cannot_change(field, kind))));
    let mut all: Vec<_> = plain.chain(fixed).collect();
    if kind == "ContextExtensionRun" {
        all.push(("", stages_stay()));
        all.extend(STAGE_FIXED.iter().map(|field| ("stages[]", cannot_change(field, kind))));
    }
    all
}

/// Equality of a list with a key ignores the order, that of its names does not. What a stage holds is
/// compared by rules of the items: by one over both lists it costs more than a server of 1.33 allows.
fn stages_stay() -> Value {
    json!({
        "rule": "self.stages.map(s, s.name) == oldSelf.stages.map(s, s.name)",
        "message": "stages cannot be added, removed, renamed or put into another order; make another ContextExtensionRun",
        "fieldPath": ".stages",
    })
}

/// `name?`: only whether the field is there cannot change.
fn cannot_change(field: &str, kind: &str) -> Value {
    let name = field.trim_end_matches('?');
    let presence = format!("has(self.{name}) == has(oldSelf.{name})");
    let rule = if field.ends_with('?') {
        presence
    } else {
        format!("{presence} && (!has(self.{name}) || self.{name} == oldSelf.{name})")
    };
    json!({
        "rule": rule,
        "message": format!("{name} cannot be changed; make another {kind}"),
        "fieldPath": format!(".{name}"),
    })
}
