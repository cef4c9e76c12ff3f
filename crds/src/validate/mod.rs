//! Validation of a manifest as the API server would do it, and stricter: an unknown field is an
//! error, and so is what CEL cannot say.
//!
//! Invariant: every error is returned, each with the path of its field; a manifest without errors
//! reads as an [`Object`].

mod across;
mod structure;

use std::sync::LazyLock;

use kube::core::cel::{ErrorKind, Validator};
use serde_json::Value;

use self::structure::Shape;
use crate::{API_VERSION, Object, crd};

/// What is wrong with one field of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Path of the field, as `spec.stages[1].contextLength`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// What a kind's documents are checked against; made once.
static SYNTHESIS_JOB: LazyLock<Option<Shape>> = LazyLock::new(|| crd::schema("SynthesisJob").map(Shape::new));
static CONTEXT_EXTENSION_RUN: LazyLock<Option<Shape>> =
    LazyLock::new(|| crd::schema("ContextExtensionRun").map(Shape::new));

/// The shape of a document's kind, or what is wrong with `apiVersion` and `kind`.
fn shape_of(doc: &Value) -> Result<&'static Shape, Vec<FieldError>> {
    if !doc.is_object() {
        return Err(vec![FieldError::new("", "must be an object with apiVersion, kind, metadata and spec")]);
    }
    let word = |field: &str| doc.get(field).and_then(Value::as_str);
    let mut errors = Vec::new();
    match word("apiVersion") {
        Some(API_VERSION) => {}
        Some(other) => {
            errors
                .push(FieldError::new("apiVersion", format!("{other:?} is not known; write {API_VERSION}")));
        }
        None => errors.push(FieldError::new("apiVersion", format!("is required; write {API_VERSION}"))),
    }
    let shape = match word("kind") {
        Some("SynthesisJob") => SYNTHESIS_JOB.as_ref(),
        Some("ContextExtensionRun") => CONTEXT_EXTENSION_RUN.as_ref(),
        Some(other) => {
            errors.push(FieldError::new(
                "kind",
                format!("{other:?} is not known; write SynthesisJob or ContextExtensionRun"),
            ));
            None
        }
        None => {
            errors.push(FieldError::new("kind", "is required; write SynthesisJob or ContextExtensionRun"));
            None
        }
    };
    match shape {
        Some(shape) if errors.is_empty() => Ok(shape),
        _ => Err(errors),
    }
}

/// Errors that the API server cannot see: what does not go together in an object that it has accepted.
pub fn across(doc: &Value) -> Vec<FieldError> {
    across::check(doc)
}

/// Every error of a manifest; empty when it is good.
pub fn validate(doc: &Value) -> Vec<FieldError> {
    let shape = match shape_of(doc) {
        Ok(shape) => shape,
        Err(errors) => return errors,
    };
    let doc = structure::without_nulls(&shape.schema, doc);
    let mut errors = shape.check(&doc);
    errors.extend(name(&doc));
    // A rule about a field of the wrong type cannot be evaluated: the type's error says it all.
    let sound = errors.is_empty();
    errors.extend(rules(shape, &doc, sound));
    errors.extend(across::check(&doc));
    errors.sort();
    errors.dedup();
    errors
}

/// Failed rules.
fn rules(shape: &Shape, doc: &Value, sound: bool) -> Vec<FieldError> {
    let Err(failed) = Validator::new().validate_compiled(&shape.rules, doc, None) else {
        return Vec::new();
    };
    failed
        .into_iter()
        .filter(|e| sound || e.kind == ErrorKind::ValidationFailure)
        .map(|e| FieldError::new(e.field_path, e.message))
        .collect()
}

/// The object's name: a DNS subdomain, as for every custom resource.
fn name(doc: &Value) -> Option<FieldError> {
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(l.chars().next())
            && edge(l.chars().next_back())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match doc.pointer("/metadata/name").and_then(Value::as_str) {
        None => Some(FieldError::new("metadata.name", "is required")),
        Some(name) if name.len() <= 253 && name.split('.').all(label) => None,
        Some(name) => Some(FieldError::new(
            "metadata.name",
            format!("{name:?} must be lower case letters, digits, '-' and '.', at most 253 characters"),
        )),
    }
}

/// The object of a manifest, with defaults filled in.
///
/// # Errors
/// Every error of the manifest.
pub fn parse(doc: &Value) -> Result<Object, Vec<FieldError>> {
    let errors = validate(doc);
    if !errors.is_empty() {
        return Err(errors);
    }
    let doc = structure::without_nulls(&shape_of(doc)?.schema, doc);
    // Does not happen: the test `what_is_valid_can_be_read` looks for it.
    read(doc).map_err(|e| vec![FieldError::new("spec", e.to_string())])
}

fn read(doc: Value) -> serde_json::Result<Object> {
    match doc.get("kind").and_then(Value::as_str) {
        Some("SynthesisJob") => serde_json::from_value(doc).map(|o| Object::SynthesisJob(Box::new(o))),
        _ => serde_json::from_value(doc).map(|o| Object::ContextExtensionRun(Box::new(o))),
    }
}

#[cfg(test)]
mod tests;
