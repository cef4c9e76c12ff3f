//! YAML values that remember their lines, so that an error about a field names its line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A YAML value with the lines of its parts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Located {
    Scalar(Value),
    List(Vec<(u64, Located)>),
    /// Key, line of the key, value.
    Map(Vec<(String, u64, Located)>),
}

impl Located {
    /// The same without lines.
    pub(crate) fn value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => items.iter().map(|(_, item)| item.value()).collect(),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, _, value)| (key.clone(), value.value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// The line of the field at `path` (`spec.stages[1].contextLength`), or of the nearest field
    /// above it that is there; `None` when not even the first part is.
    pub(crate) fn line(&self, path: &str) -> Option<u64> {
        let path = path.strip_prefix('.').unwrap_or(path);
        let (line, rest, below) = match self {
            Self::Scalar(_) => return None,
            Self::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let (line, item) = items.get(index.parse::<usize>().ok()?)?;
                (*line, rest, item)
            }
            // Keys may hold dots themselves: the longest one that fits.
            Self::Map(entries) => {
                let fits = |key: &str| {
                    let rest = path.strip_prefix(key)?;
                    (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
                };
                let found = entries.iter().filter_map(|(key, line, value)| Some((*line, fits(key)?, value)));
                found.min_by_key(|(_, rest, _)| rest.len())?
            }
        };
        below.line(rest).or(Some(line))
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Parts)
    }
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Located;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Located, E> {
        Ok(Located::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Located, E> {
        Ok(Located::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Located, D::Error> {
        Located::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Located, E> {
        Ok(Located::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Located, E> {
        Ok(Located::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Located, E> {
        Ok(Located::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Located, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Located::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Located, E> {
        Ok(Located::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Located, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Located>>()? {
            items.push((item.referenced.line(), item.value));
        }
        Ok(Located::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Located, A::Error> {
        let mut entries: Vec<(String, u64, Located)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Located>()? {
            if entries.iter().any(|(other, _, _)| *other == key.value) {
                return Err(A::Error::custom(format!("the field {} is given twice", key.value)));
            }
            entries.push((key.value, key.referenced.line(), value));
        }
        Ok(Located::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_knows_its_line() {
        let text = "kind: A\nmetadata:\n  labels:\n    a.b/c: x\nspec:\n  stages:\n  - {name: s}\n  - name: t\n    steps: 3\n";
        let located: Located = serde_saphyr::from_str(text).unwrap();
        for (path, line) in [
            ("kind", Some(1)),
            ("metadata.labels.a.b/c", Some(4)),
            ("spec.stages[0].name", Some(7)),
            ("spec.stages[1].steps", Some(9)),
            ("spec.stages[1].missing", Some(8)),
            ("spec.missing.deep", Some(5)),
            ("", None),
            ("status", None),
        ] {
            assert_eq!(located.line(path), line, "{path}");
        }
        assert_eq!(located.value()["spec"]["stages"][1], serde_json::json!({"name": "t", "steps": 3}));
        assert!(serde_saphyr::from_str::<Located>("a: 1\na: 2\n").is_err());
    }
}
