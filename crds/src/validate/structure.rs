//! The first pass: shape, types, bounds, unknown fields, duplicate names.
//!
//! Invariant: what the API server's structural schema refuses is refused here, with words for a
//! person; on top of it, unknown fields are refused except under
//! `x-kubernetes-preserve-unknown-fields`.

use kube::core::cel::{CompiledSchema, compile_schema};
use serde_json::{Map, Value, json};

use super::FieldError;
use crate::{Length, schema};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

/// The schema of a kind, with what is made from it once.
pub(super) struct Shape {
    /// The structural schema, as the server has it.
    pub(super) schema: Value,
    /// Its rules, compiled.
    pub(super) rules: CompiledSchema,
    closed: Value,
    validator: Result<jsonschema::Validator, String>,
}

impl Shape {
    pub(super) fn new(schema: Value) -> Self {
        let mut closed = close(&schema);
        closed["properties"]["apiVersion"] = json!({"type": "string"});
        closed["properties"]["kind"] = json!({"type": "string"});
        // The server knows the fields of metadata, this schema does not.
        closed["properties"]["metadata"] = json!({"type": "object"});
        let validator = jsonschema::validator_for(&closed).map_err(|e| e.to_string());
        Self { rules: compile_schema(&schema), schema, closed, validator }
    }

    /// All errors of shape.
    pub(super) fn check(&self, doc: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        match &self.validator {
            Ok(validator) => {
                for error in validator.iter_errors(doc) {
                    explain(&self.closed, doc, &error, &mut errors);
                }
            }
            Err(error) => {
                errors.push(FieldError::new("", format!("the schema of this kind is broken: {error}")));
            }
        }
        walk(&self.schema, doc, "", &mut errors);
        errors
    }
}

/// A structural schema as a JSON Schema with every object closed that does not say otherwise.
fn close(schema: &Value) -> Value {
    let Value::Object(from) = schema else { return schema.clone() };
    let mut to = Map::new();
    for (key, value) in from {
        match key.as_str() {
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                to.insert(key.clone(), properties.map(|(k, v)| (k.clone(), close(v))).collect());
            }
            "items" | "additionalProperties" => {
                to.insert(key.clone(), close(value));
            }
            k if k.starts_with("x-") || matches!(k, "description" | "default" | "format" | "nullable") => {}
            _ => {
                to.insert(key.clone(), value.clone());
            }
        }
    }
    if from.get(INT_OR_STRING) == Some(&json!(true)) {
        to.insert("type".into(), json!(["integer", "string"]));
    }
    let object = from.get("type") == Some(&json!("object"));
    if object && from.get(PRESERVE).is_none() && !to.contains_key("additionalProperties") {
        to.insert("additionalProperties".into(), json!(false));
    }
    Value::Object(to)
}

/// Calls `visit` with the schema and value of every child that the schema knows.
fn children<'a>(schema: &'a Value, value: &'a Value, mut visit: impl FnMut(String, &'a Value, &'a Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let schema = schema
                    .get("properties")
                    .and_then(|p| p.get(key))
                    .or_else(|| schema.get("additionalProperties"));
                if let Some(schema) = schema {
                    visit(format!(".{key}"), schema, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (i, value) in items.iter().enumerate() {
                    visit(format!("[{i}]"), schema, value);
                }
            }
        }
        _ => {}
    }
}

/// What JSON Schema cannot say: keys of lists are unique, integers are written as such, a length
/// stays below 2^53.
fn walk(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let (Some(key), Value::Array(items)) = (list_key(schema), value) {
        let names: Vec<_> = items.iter().map(|i| i.get(key).and_then(Value::as_str)).collect();
        for (i, name) in names.iter().enumerate() {
            if let Some(name) = name.filter(|_| names[..i].contains(name)) {
                errors.push(FieldError::new(
                    format!("{path}[{i}].{key}"),
                    format!("{name:?} is used twice; names in this list must differ"),
                ));
            }
        }
    }
    let integer = schema.get("type") == Some(&json!("integer")) || schema.get(INT_OR_STRING).is_some();
    if integer && value.as_f64().is_some_and(|f| value.is_f64() && f.fract() == 0.0) {
        errors.push(FieldError::new(path, "must be written as a whole number"));
    }
    let pattern = schema.get("pattern").and_then(Value::as_str);
    if let (Some(schema::LENGTH_PATTERN), Some(text)) = (pattern, value.as_str()) {
        let shaped = text.ends_with(|c: char| c.is_ascii_digit() || c == 'i') && text.len() <= 16;
        if let (true, Err(error)) = (shaped, text.parse::<Length>()) {
            // A wrong shape is the pattern's to report.
            let digits = text.trim_end_matches(['K', 'M', 'G', 'i']);
            if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0') {
                errors.push(FieldError::new(path, error.to_string()));
            }
        }
    }
    children(schema, value, |step, schema, value| {
        let path = format!("{path}{step}");
        walk(schema, value, path.strip_prefix('.').unwrap_or(&path), errors);
    });
}

/// The key of a `listType: map` list with one key.
fn list_key(schema: &Value) -> Option<&str> {
    schema.get("x-kubernetes-list-map-keys")?.get(0)?.as_str()
}

/// The document with `null` properties taken out, as the server does for fields that are not nullable.
pub(super) fn without_nulls(schema: &Value, doc: &Value) -> Value {
    let mut copy = doc.clone();
    children(schema, doc, |step, schema, child| {
        if let Some(key) = step.strip_prefix('.') {
            if child.is_null() {
                copy.as_object_mut().map(|map| map.shift_remove(key));
            } else {
                copy[key] = without_nulls(schema, child);
            }
        } else if let Ok(i) = step.trim_matches(['[', ']']).parse::<usize>() {
            copy[i] = without_nulls(schema, child);
        }
    });
    copy
}

/// A JSON pointer as a field path: `/spec/stages/1` → `spec.stages[1]`.
fn field_path(doc: &Value, pointer: &str) -> String {
    let mut path = String::new();
    let mut at = Some(doc);
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        match at {
            Some(Value::Array(items)) => {
                path.push_str(&format!("[{key}]"));
                at = key.parse::<usize>().ok().and_then(|i| items.get(i));
            }
            _ => {
                join(&mut path, &key);
                at = at.and_then(|v| v.get(&key));
            }
        }
    }
    path
}

fn join(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// An error of the schema in words for a person.
fn explain(
    closed: &Value,
    doc: &Value,
    error: &jsonschema::ValidationError<'_>,
    errors: &mut Vec<FieldError>,
) {
    use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
    let path = field_path(doc, error.instance_path().as_str());
    let keyword = error.schema_path().as_str().to_owned();
    let parent = keyword.rsplit_once('/').map_or("", |(parent, _)| parent);
    let here = closed.pointer(parent).unwrap_or(&Value::Null);
    let inside = |key: &str| {
        let mut path = path.clone();
        join(&mut path, key);
        path
    };
    let message = match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            for key in unexpected {
                errors.push(FieldError::new(inside(key), unknown(key, here)));
            }
            return;
        }
        // An object without any fields reports one error for all that are in it.
        Kind::FalseSchema => {
            let object = doc.pointer(error.instance_path().as_str()).and_then(Value::as_object);
            for key in object.into_iter().flat_map(Map::keys) {
                errors.push(FieldError::new(inside(key), "unknown field"));
            }
            return;
        }
        Kind::Required { property } => {
            errors.push(FieldError::new(inside(property.as_str().unwrap_or_default()), "is required"));
            return;
        }
        Kind::Type { kind } => {
            let wanted = match kind {
                TypeKind::Single(t) => article(&t.to_string()),
                TypeKind::Multiple(_) => "a whole number such as 131072 or a text such as 128Ki".to_owned(),
            };
            format!("must be {wanted}, not {}", article(type_of(error.instance())))
        }
        Kind::Enum { options } => {
            let options: Vec<_> =
                options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!("{} is not known; write {}", error.instance(), one_of(&options))
        }
        Kind::Pattern { pattern } => format!("{} must be {}", error.instance(), schema::words(pattern)),
        Kind::Minimum { limit } => format!("{} must be at least {}", error.instance(), whole(limit)),
        Kind::Maximum { limit } => format!("{} must be at most {}", error.instance(), whole(limit)),
        Kind::MinLength { .. } => "must not be empty".to_owned(),
        Kind::MaxLength { limit } => format!("must be at most {limit} characters long"),
        Kind::MinItems { .. } => "must have at least one item".to_owned(),
        Kind::MaxItems { limit } => format!("must have at most {limit} item{}", plural(*limit)),
        Kind::MaxProperties { limit } => format!("must have at most {limit} entries"),
        _ => error.to_string(),
    };
    errors.push(FieldError::new(path, message));
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn whole(limit: &Value) -> String {
    limit.as_f64().map_or_else(|| limit.to_string(), |f| format!("{f:.0}"))
}

fn one_of(words: &[&str]) -> String {
    match words {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => words.concat(),
    }
}

fn article(kind: &str) -> String {
    match kind {
        "integer" => "a whole number".to_owned(),
        "array" => "a list".to_owned(),
        "object" => "an object".to_owned(),
        "null" => "null".to_owned(),
        other => format!("a {other}"),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// "unknown field", with the known field that was probably meant.
fn unknown(key: &str, schema: &Value) -> String {
    let known = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let close = known
        .map(|k| (distance(&k.to_lowercase(), &key.to_lowercase()), k))
        .min()
        .filter(|(d, k)| *d <= 2.min(k.len() / 2));
    match close {
        Some((_, k)) => format!("unknown field; did you mean {k}?"),
        None => "unknown field".to_owned(),
    }
}

/// Edit distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}
