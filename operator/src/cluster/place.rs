//! Where an object keeps what it writes, in a form that can be compared and ordered.
//!
//! Invariant: one place lies within another exactly when its text begins with the other's, so that
//! everything below a place stands together in an ordered index.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use longstrap_crds::CommonSpec;

/// Normalised URI with what it is relative to; ends with a slash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(String);

impl Place {
    /// `storage.uri`: schemes of one store are one, empty segments and the last slash do not count,
    /// escapes are resolved. `file:` lies in the volumes of a namespace, a bucket at an endpoint.
    pub(super) fn of(metadata: &ObjectMeta, common: &CommonSpec) -> Self {
        let uri = common.storage.uri.as_str();
        let (scheme, rest) = uri.split_once(':').unwrap_or(("", uri));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "abfs" | "abfss" => "az".to_owned(),
            "s3a" => "s3".to_owned(),
            other => other.to_owned(),
        };
        let relative_to = match scheme.as_str() {
            "file" => metadata.namespace.clone().unwrap_or_default(),
            _ => {
                let options = common.storage.options.iter();
                let of_store = options.filter(|(key, _)| key.contains("endpoint") || key.contains("account"));
                of_store.map(|(_, value)| value.trim_end_matches('/')).collect::<Vec<_>>().join(" ")
            }
        };
        let mut text = format!("{scheme} {relative_to} /");
        for segment in unescaped(rest).split('/').filter(|s| !s.is_empty() && *s != ".") {
            text.push_str(segment);
            text.push('/');
        }
        Self(text)
    }

    /// Equal to another place, or below it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// The places that this one is properly within.
    pub(super) fn above(&self) -> impl Iterator<Item = Self> {
        let ends = self.0.match_indices('/').map(|(at, _)| at + 1);
        ends.filter(|end| *end < self.0.len()).map(|end| Self(self.0[..end].to_owned()))
    }
}

/// `%2F` and the like as the characters that they stand for.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_by_what_they_mean() {
        let place = |namespace: &str, uri: &str, endpoint: &str| {
            let mut common = CommonSpec::at(uri);
            if !endpoint.is_empty() {
                common.storage.options.insert("endpoint".into(), endpoint.into());
            }
            Place::of(&ObjectMeta { namespace: Some(namespace.into()), ..ObjectMeta::default() }, &common)
        };
        let s3 = |uri: &str| place("m", uri, "");
        for (what, inner, outer, within) in [
            ("itself", s3("s3://b/x"), s3("s3://b/x/"), true),
            ("below", s3("s3://b/x/y"), s3("s3://b/x"), true),
            ("above", s3("s3://b/x"), s3("s3://b/x/y"), false),
            ("the bucket", s3("s3://b/x"), s3("s3://b"), true),
            ("no border of a path", s3("s3://b/xy"), s3("s3://b/x"), false),
            ("empty segments", s3("s3://b//x/./y"), s3("s3://b/x/"), true),
            ("escapes", s3("s3://b/%78/y"), s3("s3://b/x"), true),
            ("a percent sign", s3("s3://b/100%"), s3("s3://b/100%/"), true),
            ("schemes of one store", s3("abfss://c/x"), s3("az://c/x"), true),
            ("schemes of two", s3("gs://b/x"), s3("s3://b/x"), false),
            ("another namespace", place("n", "s3://b/x", ""), s3("s3://b/x"), true),
            ("another endpoint", place("m", "s3://b/x", "http://e"), s3("s3://b/x"), false),
            ("one endpoint", place("m", "s3://b/x", "http://e/"), place("m", "s3://b/x", "http://e"), true),
            ("another's volumes", place("n", "file:///x", ""), place("m", "file:///x", ""), false),
            ("one volume, two spellings", place("m", "file:/x/y", ""), place("m", "file:///x", ""), true),
        ] {
            assert_eq!(inner.is_within(&outer), within, "{what}");
            assert_eq!(
                inner != outer && inner.above().any(|a| a == outer),
                within && inner != outer,
                "{what}"
            );
        }
    }
}
