//! The fields that both kinds have: where the run lives, limits, recovery, pods.
//!
//! Invariant: every field has one meaning for both kinds; defaults stand outside lists only.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{pod_template::PodTemplate, schema};

/// The operator's value of `spec.managedBy`.
pub const MANAGED_BY: &str = "longstrap.io/operator";

/// Fields common to both kinds, flattened into each spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommonSpec {
    /// Where everything that the run writes is kept.
    pub storage: Storage,
    /// Who reconciles the object; another value than longstrap.io/operator is ignored by the operator.
    #[serde(default = "managed_by")]
    #[schemars(length(min = 1, max = 63))]
    pub managed_by: String,
    /// Kueue queue of the CPU steps; by default the object's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub auxiliary_queue_name: Option<String>,
    /// Stops the run after saving its state; false lets it go on.
    #[serde(default)]
    pub suspend: bool,
    /// Consecutive failures without a new committed shard or checkpoint until the run has failed.
    #[serde(default = "backoff_limit")]
    #[schemars(range(min = 0, max = 1000))]
    pub backoff_limit: u32,
    /// Seconds with running pods until the run has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::deadline")]
    pub active_deadline_seconds: Option<u64>,
    /// Seconds from when a Job is not suspended until all its pods must run; time in a queue does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::deadline")]
    pub startup_deadline_seconds: Option<u64>,
    /// Seconds after which a complete object deletes itself; unset: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::seconds")]
    pub ttl_seconds_after_success: Option<u64>,
    /// Seconds after which a failed object deletes itself; unset: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::seconds")]
    pub ttl_seconds_after_failure: Option<u64>,
    /// Seconds after which finished Jobs of the run are deleted.
    #[serde(default = "clean_children")]
    #[schemars(schema_with = "schema::seconds")]
    pub clean_children_after_seconds: u64,
    /// What happens when a node is lost or a process hangs.
    #[serde(default)]
    pub recovery: Recovery,
    /// Image of the pods; by default the operator's own. Fixed per object in status.image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Merged into the pods of every step; the main container is called worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

impl CommonSpec {
    /// A spec with only its storage given, everything else at its default.
    pub fn at(uri: impl Into<String>) -> Self {
        Self {
            storage: Storage {
                uri: uri.into(),
                credentials_secret_ref: None,
                options: BTreeMap::new(),
                adopt: false,
            },
            managed_by: managed_by(),
            auxiliary_queue_name: None,
            suspend: false,
            backoff_limit: backoff_limit(),
            active_deadline_seconds: None,
            startup_deadline_seconds: None,
            ttl_seconds_after_success: None,
            ttl_seconds_after_failure: None,
            clean_children_after_seconds: clean_children(),
            recovery: Recovery::default(),
            image: None,
            pod_template: None,
        }
    }
}

/// A prefix in object storage that one run owns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// s3://, gs://, az://, abfss:// or file: address of the prefix; one run each.
    #[schemars(schema_with = "schema::uri")]
    pub uri: String,
    /// Secret whose keys are named like the SDK's variables (AWS_ACCESS_KEY_ID, …); serves every URI of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
    /// Options of the store that are no secret: endpoint, region, allow_http, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::store_options")]
    pub options: BTreeMap<String, String>,
    /// Take over a prefix that another object owns.
    #[serde(default)]
    pub adopt: bool,
}

/// Recovery from lost nodes and hanging processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Recovery {
    /// Replace: pods of a node that does not answer are given up and started elsewhere. Wait: they are waited for.
    pub lost_node: LostNode,
    /// Seconds that a run waits for the replacement of a single pod before it starts over as the next attempt.
    #[schemars(schema_with = "schema::seconds")]
    pub wait_for_replacement_seconds: u64,
    /// Seconds without progress after which a training process counts as hanging.
    #[schemars(schema_with = "schema::deadline")]
    pub rank_timeout_seconds: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { lost_node: LostNode::Replace, wait_for_replacement_seconds: 60, rank_timeout_seconds: 600 }
    }
}

/// What is done about pods of a lost node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LostNode {
    /// Given up and started elsewhere.
    Replace,
    /// Waited for.
    Wait,
}

/// The name of an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalRef {
    /// Name of the object in the same namespace.
    #[schemars(schema_with = "schema::object_name")]
    pub name: String,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(schema_with = "schema::object_name")]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A folder in Hugging Face layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelRef {
    /// Folder with config.json, the weights as safetensors and the tokenizer's files.
    #[schemars(schema_with = "schema::uri")]
    pub uri: String,
}

fn managed_by() -> String {
    MANAGED_BY.to_owned()
}

fn backoff_limit() -> u32 {
    6
}

fn clean_children() -> u64 {
    3600
}
