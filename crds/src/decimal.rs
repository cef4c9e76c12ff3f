//! A decimal number kept as text (`"2e-5"`), so that YAML, Helm and JSON cannot change it.
//!
//! Invariant: parses as a finite number greater than 0; equal texts are equal decimals.

use std::{borrow::Cow, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A positive decimal number with the text that the user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Decimal {
    text: String,
}

/// Why a text is not a [`Decimal`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a positive decimal number: write it as a string such as \"2e-5\" or \"400000\"")]
pub struct DecimalError(String);

impl Decimal {
    /// The number.
    pub fn value(&self) -> f64 {
        // Checked when it was made.
        self.text.parse().unwrap_or(f64::NAN)
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        // Rust's parser also takes "inf", "nan", "+1" and ".5"; the schema's pattern does not.
        let shape = text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_digit())
            && text.ends_with(|c: char| c.is_ascii_digit())
            && !text.contains(".e")
            && !text.contains(".E");
        match text.parse::<f64>() {
            Ok(v) if shape && v.is_finite() && v > 0.0 => Ok(Self { text: text.to_owned() }),
            _ => Err(DecimalError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Decimal {
    type Error = DecimalError;

    fn try_from(text: String) -> Result<Self, DecimalError> {
        text.parse()
    }
}

impl From<Decimal> for String {
    fn from(d: Decimal) -> Self {
        d.text
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 32, "pattern": crate::schema::DECIMAL_PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_agree_with_the_pattern() {
        let pattern = regex::Regex::new(crate::schema::DECIMAL_PATTERN).unwrap();
        for (text, value) in [("2e-5", 2e-5), ("400000", 4e5), ("1.5E+3", 1500.0), ("0.1", 0.1)] {
            assert_eq!(text.parse::<Decimal>().unwrap().value(), value);
            assert!(pattern.is_match(text), "{text}");
        }
        for bad in ["", "inf", "nan", "+1", "-1", ".5", "1.", "1.e3", "0x10", "1e", "1 ", "0.0", "0e5"] {
            assert!(bad.parse::<Decimal>().is_err(), "{bad}");
            assert!(!pattern.is_match(bad), "{bad}");
        }
    }
}
