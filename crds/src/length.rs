//! A count of tokens or bytes: `131072` or `128Ki`. int-or-string in the schema, an integer here.
//!
//! Invariant: at least 1 and at most 2^53, so every JSON reader holds it exactly.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Tokens (lengths of contexts and samples) or bytes (memory), 1 to 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Length(u64);

/// Why a text is not a [`Length`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a length: write a whole number from 1 to 2^53 such as 131072, or with Ki, Mi or Gi such as 128Ki"
)]
pub struct LengthError(String);

const MAX: u64 = 1 << 53;

impl Length {
    /// A length of `n`; `None` when it is 0 or above 2^53.
    pub const fn new(n: u64) -> Option<Self> {
        if n >= 1 && n <= MAX { Some(Self(n)) } else { None }
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Length {
    type Err = LengthError;

    fn from_str(text: &str) -> Result<Self, LengthError> {
        let error = || LengthError(text.to_owned());
        let (digits, shift) = match text {
            t if t.ends_with("Ki") => (&t[..t.len() - 2], 10),
            t if t.ends_with("Mi") => (&t[..t.len() - 2], 20),
            t if t.ends_with("Gi") => (&t[..t.len() - 2], 30),
            t => (t, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let n: u64 = digits.parse().map_err(|_| error())?;
        n.checked_mul(1 << shift).and_then(Self::new).ok_or_else(error)
    }
}

impl fmt::Display for Length {
    /// The largest suffix that divides it: `128Ki`, `1Mi`, `100`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, suffix) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length such as 131072 or 128Ki")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Length, E> {
                Length::new(n).ok_or_else(|| E::custom(LengthError(n.to_string())))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Length, E> {
                u64::try_from(n)
                    .ok()
                    .and_then(Length::new)
                    .ok_or_else(|| E::custom(LengthError(n.to_string())))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Length, E> {
                text.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for Length {
    fn schema_name() -> Cow<'static, str> {
        "Length".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // maxLength: without it the server's cost estimate refuses any rule that reads the field.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 16,
            "pattern": crate::schema::LENGTH_PATTERN,
            "minimum": 1,
            "maximum": MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, n, shown) in [
            ("1", 1, "1"),
            ("131072", 131_072, "128Ki"),
            ("128Ki", 131_072, "128Ki"),
            ("4Mi", 4 << 20, "4Mi"),
            ("80Gi", 80 << 30, "80Gi"),
            ("1536Ki", 1536 << 10, "1536Ki"),
        ] {
            let length: Length = text.parse().unwrap();
            assert_eq!((length.get(), length.to_string().as_str()), (n, shown));
            assert_eq!(shown.parse::<Length>().unwrap(), length);
        }
        for bad in ["", "0", "Ki", "-1", "1.5Ki", "1k", "+1", "0Ki", "9007199254740993", "99999999999Gi"] {
            assert_eq!(bad.parse::<Length>(), Err(LengthError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn json_is_an_integer_and_reads_both() {
        let both: Vec<Length> = serde_json::from_str(r#"[131072, "128Ki"]"#).unwrap();
        assert_eq!(both[0], both[1]);
        assert_eq!(serde_json::to_string(&both).unwrap(), "[131072,131072]");
        assert!(serde_json::from_str::<Length>("-3").is_err());
        assert!(serde_json::from_str::<Length>("1.5").is_err());
    }
}
