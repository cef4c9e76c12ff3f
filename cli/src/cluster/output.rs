//! Objects as the server gave them, for other programs.

use anyhow::Result;
use serde_json::{Value, json};

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns
    Wide,
    /// The object as JSON
    Json,
    /// The object as YAML
    Yaml,
}

/// Writes `value` as JSON or YAML.
pub(crate) fn write(value: &Value, format: Format) -> Result<String> {
    Ok(match format {
        Format::Yaml => yaml(value)?,
        Format::Json | Format::Wide => serde_json::to_string_pretty(value)?,
    })
}

/// YAML without a newline at its end.
pub(crate) fn yaml(value: &Value) -> Result<String> {
    Ok(serde_saphyr::to_string(value)?.trim_end().to_owned())
}

/// Many objects, as kubectl lists them.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
