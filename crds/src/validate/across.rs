//! The third pass: what holds between fields and CEL cannot say within the server's cost limits.
//!
//! Invariant: fields of a wrong shape are passed over; the first pass has reported them.

use serde_json::Value;

use super::FieldError;
use crate::Length;

pub(super) fn check(doc: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    stages_grow(doc, &mut errors);
    ranges_rise(doc, &mut errors);
    errors
}

fn length(value: Option<&Value>) -> Option<Length> {
    serde_json::from_value(value?.clone()).ok()
}

fn list<'a>(doc: &'a Value, pointer: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    doc.pointer(pointer).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn stages_grow(doc: &Value, errors: &mut Vec<FieldError>) {
    let mut longest: Option<Length> = None;
    for (i, stage) in list(doc, "/spec/stages") {
        let Some(here) = length(stage.get("contextLength")) else { continue };
        if let Some(before) = longest.filter(|before| here <= *before) {
            errors.push(FieldError::new(
                format!("spec.stages[{i}].contextLength"),
                format!("{here} must be longer than the stage before it ({before}): every stage extends the window"),
            ));
        }
        longest = longest.max(Some(here));
    }
}

fn ranges_rise(doc: &Value, errors: &mut Vec<FieldError>) {
    for (i, item) in list(doc, "/spec/samples/longInput/lengths") {
        if let (Some(from), Some(to)) = (length(item.get("from")), length(item.get("to")))
            && from >= to
        {
            errors.push(FieldError::new(
                format!("spec.samples.longInput.lengths[{i}].to"),
                format!("{to} must be longer than from ({from}); write tokens for an exact length"),
            ));
        }
    }
    if let Some(output) = doc.pointer("/spec/samples/longOutput")
        && let (Some(min), Some(max)) = (
            length(output.get("minTokens").or(Some(&Value::from(2 << 10)))),
            length(output.get("maxTokens").or(Some(&Value::from(32 << 10)))),
        )
        && min > max
    {
        errors.push(FieldError::new(
            "spec.samples.longOutput.maxTokens",
            format!("{max} must not be shorter than minTokens ({min})"),
        ));
    }
}
