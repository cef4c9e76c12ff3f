//! Standard output: lines for people, objects for other programs.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
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

/// Prints a line; false when nobody reads any more (`| head`), which is no error.
pub(crate) fn say(line: &str) -> Result<bool> {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
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
