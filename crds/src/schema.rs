//! Pieces of schema that many fields share: names, URIs, lists with a `name` key.
//!
//! Invariant: every string, list and map has a bound, because the API server estimates the cost of
//! a CEL rule from the bounds and refuses a CRD whose rules could be too dear.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

/// The longest URI or URL: a status of 16 KiB holds 16 of them, with digests.
pub const MAX_URI: u32 = 512;

/// Schemes that `object_store` opens and the protocol of the run was tested with.
const URI_PATTERN: &str = "^(s3|gs|az|abfss|file):.+$";

const URL_PATTERN: &str = "^https?://.+$";
const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const OBJECT_NAME_PATTERN: &str = "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$";
/// [`crate::Length`] as a text.
pub const LENGTH_PATTERN: &str = "^[1-9][0-9]*(Ki|Mi|Gi)?$";
/// [`crate::Decimal`]: with a digit that is not 0, before the exponent.
pub const DECIMAL_PATTERN: &str = r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)([eE][+-]?[0-9]{1,2})?$";

/// A pattern of these schemas in words, to go on after "must be".
pub(crate) fn words(pattern: &str) -> &str {
    match pattern {
        URI_PATTERN => "a URI that begins with s3://, gs://, az://, abfss:// or file:",
        URL_PATTERN => "a URL that begins with http:// or https://",
        LABEL_PATTERN => "lower case letters, digits and '-', with a letter or digit at both ends",
        OBJECT_NAME_PATTERN => "the name of an object: lower case letters, digits, '-' and '.'",
        LENGTH_PATTERN => "a whole number such as 131072, or with Ki, Mi or Gi such as 128Ki",
        DECIMAL_PATTERN => "a positive decimal number such as \"2e-5\"",
        other => other,
    }
}

/// CEL's url library does not know user info, hence a regex.
const USER_INFO: &str = "!self.matches('^[A-Za-z][A-Za-z0-9+.-]*:[/]{0,2}[^/?#]*@')";
const SIGNATURE: &str = "!self.matches('(?i)[?&](x-amz-|x-goog-|sig=|signature=|token=|sv=|key=)')";

fn without_secrets(pattern: &str) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_URI,
        "pattern": pattern,
        "x-kubernetes-validations": [
            {"rule": USER_INFO, "message": "must not contain a user name or password; name a Secret instead"},
            {"rule": SIGNATURE, "message": "must not contain a signature, key or token in its query; name a Secret instead"},
        ],
    })
}

/// A place in object storage or a file system.
pub fn uri(_: &mut SchemaGenerator) -> Schema {
    without_secrets(URI_PATTERN)
}

/// The base address of an HTTP server.
pub fn url(_: &mut SchemaGenerator) -> Schema {
    without_secrets(URL_PATTERN)
}

/// A DNS label: names of list items.
pub fn label(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 63,
        "pattern": LABEL_PATTERN,
    })
}

/// A DNS subdomain: names of objects.
pub fn object_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": OBJECT_NAME_PATTERN,
    })
}

/// Options of a store: `endpoint`, `region` and the like.
pub fn store_options(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 1024},
    })
}

/// A whole number from `min` to `max`, the bounds included.
pub fn integer(min: u64, max: u64) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": min, "maximum": max})
}

/// A number of seconds up to ten years.
pub fn seconds(_: &mut SchemaGenerator) -> Schema {
    integer(0, 315_360_000)
}

/// A deadline: at least one second.
pub fn deadline(_: &mut SchemaGenerator) -> Schema {
    integer(1, 315_360_000)
}

/// A seed: all values that JSON holds exactly.
pub fn seed(_: &mut SchemaGenerator) -> Schema {
    integer(0, (1 << 53) - 1)
}

/// A share: a positive whole number; only ratios matter.
pub fn weight(_: &mut SchemaGenerator) -> Schema {
    integer(1, 1_000_000)
}

/// A count that may not be zero.
pub fn positive(_: &mut SchemaGenerator) -> Schema {
    integer(1, 1_000_000_000)
}

/// A count.
pub fn count(_: &mut SchemaGenerator) -> Schema {
    integer(0, 1_000_000_000)
}

/// A number of pods or processes.
pub fn processes(_: &mut SchemaGenerator) -> Schema {
    integer(1, 1024)
}

/// `metav1.Condition` as a list-map keyed by type.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "message": {"type": "string", "maxLength": 32768},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "status": {"type": "string", "enum": json!(["True", "False", "Unknown"])},
                "type": {"type": "string", "maxLength": 316},
            },
        },
    })
}

/// A server timestamp.
pub fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}
