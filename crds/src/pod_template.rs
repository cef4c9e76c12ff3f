//! `spec.podTemplate`: a partial PodTemplateSpec, kept as JSON.
//!
//! Invariant: nothing that the user wrote is lost: it is merged as JSON, because typed structs would
//! drop fields of a newer Kubernetes. The schema types only what the rules must see.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A partial PodTemplateSpec: `metadata` and `spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(pub Map<String, Value>);

impl PodTemplate {
    /// The containers of the pod, the main one among them.
    pub fn containers(&self) -> &[Value] {
        self.0
            .get("spec")
            .and_then(|spec| spec.get("containers"))
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The main container.
    pub fn worker(&self) -> Option<&Value> {
        self.containers().iter().find(|c| c.get("name").and_then(Value::as_str) == Some("worker"))
    }
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

fn env() -> Value {
    json!({
        "type": "array",
        "maxItems": 64,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 128},
                "value": {"type": "string", "maxLength": 4096},
            },
            "x-kubernetes-validations": [
                rule(
                    "!has(self.value) || !self.name.matches('(?i)_(TOKEN|KEY|SECRET|PASSWORD)$')",
                    "must take its value from a Secret (valueFrom.secretKeyRef), not from a literal",
                ),
                rule(
                    "!self.name.startsWith('LONGSTRAP_') && self.name != 'JOB_COMPLETION_INDEX'",
                    "is set by Longstrap",
                ),
            ],
        },
    })
}

fn containers(main: bool) -> Value {
    let mut item = json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 63},
            "command": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 4096}},
            "args": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 4096}},
            "env": env(),
        },
    });
    let rules = if main {
        json!([rule(
            "self.name != 'worker' || (!has(self.command) && !has(self.args))",
            "command and args of the container worker are set by Longstrap",
        )])
    } else {
        json!([rule("self.name != 'worker'", "worker is the name of the main container")])
    };
    item["x-kubernetes-validations"] = rules;
    json!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": item,
    })
}

impl JsonSchema for PodTemplate {
    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let volumes = json!({
            "type": "array",
            "maxItems": 64,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
                "required": ["name"],
                "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 63}},
                "x-kubernetes-validations": [
                    rule("!self.name.startsWith('longstrap-')", "names that begin with longstrap- are used by Longstrap"),
                ],
            },
        });
        json_schema!({
            "type": "object",
            "properties": {
                "metadata": {
                    "type": "object",
                    "properties": {
                        "labels": {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 63}},
                        "annotations": {"type": "object", "maxProperties": 64, "additionalProperties": {"type": "string", "maxLength": 65536}},
                    },
                },
                "spec": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "restartPolicy": {"type": "string", "maxLength": 63},
                        "hostname": {"type": "string", "maxLength": 253},
                        "subdomain": {"type": "string", "maxLength": 253},
                        "volumes": volumes,
                        "initContainers": containers(false),
                        "containers": containers(true),
                    },
                    "x-kubernetes-validations": [
                        rule("!has(self.restartPolicy)", "restartPolicy is set by Longstrap"),
                        rule("!has(self.hostname)", "hostname is set by Longstrap"),
                        rule("!has(self.subdomain)", "subdomain is set by Longstrap"),
                    ],
                },
            },
        })
    }
}
