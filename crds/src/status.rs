//! Status that both kinds have. Written by the operator (or the local executor) alone.
//!
//! Invariant: `attempt`, `recovery.lastCommitted` and `recovery.podSeconds` never decrease; what must
//! survive the operator and a deleted Job is here and nowhere else.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Status fields common to both kinds, flattened into each status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CommonStatus {
    /// One word for where the run is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The message of the condition that explains the phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// The current step: prepare, generate, finalize, train-0, …, export.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub step: Option<String>,
    /// 1 for the first Job of every step, one more for every Job after a step's first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub attempt: Option<u32>,
    /// Image of the pods: that of spec.image, or the operator's when the first Job without it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// The image was that of spec.image: without it, the next attempt has the operator's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub image_from_spec: bool,
    /// When the first Job was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub start_time: Option<Time>,
    /// When the run became complete or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub completion_time: Option<Time>,
    /// Conditions; the documentation lists types and reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Telemetry of the running step; no decision depends on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// What the run has cost so far.
    #[serde(skip_serializing_if = "UsageStatus::is_empty")]
    pub usage: UsageStatus,
    /// What recovery has to remember.
    #[serde(skip_serializing_if = "RecoveryStatus::is_empty")]
    pub recovery: RecoveryStatus,
}

/// Where a run is: the first that applies, in the order of the documentation's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It will not go on.
    Failed,
    /// The result is there.
    Complete,
    /// A human must mend something; it goes on then.
    Blocked,
    /// spec.suspend, and no pod is left.
    Suspended,
    /// Data is awaited, or prepare has not succeeded.
    Pending,
    /// No pod of the current Job runs.
    Queued,
    /// Pods run.
    Running,
}

impl Phase {
    /// The word in status and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Failed => "Failed",
            Phase::Complete => "Complete",
            Phase::Blocked => "Blocked",
            Phase::Suspended => "Suspended",
            Phase::Pending => "Pending",
            Phase::Queued => "Queued",
            Phase::Running => "Running",
        }
    }

    /// Failed and Complete never change again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Failed | Phase::Complete)
    }
}

/// Telemetry of the running step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProgressStatus {
    /// The step that reported.
    #[schemars(length(max = 32))]
    pub step: String,
    /// The stage, in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub stage: Option<String>,
    /// Finished part of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Kept samples so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub samples: Option<u64>,
    /// Finished optimizer steps of the stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub optimizer_step: Option<u64>,
    /// Samples or optimizer steps there are to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub of: Option<u64>,
    /// Loss of the last optimizer step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub loss: Option<String>,
    /// Tokens per second over the last minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub tokens_per_second: Option<u64>,
    /// Time left by the rate so far, as 3h12m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub remaining: Option<String>,
    /// Samples dropped, by reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["reason"]))]
    pub dropped: Vec<Dropped>,
    /// When it was reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub time: Option<Time>,
}

/// Dropped samples of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dropped {
    /// Why they were dropped.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// How many.
    #[schemars(schema_with = "schema::count")]
    pub count: u64,
}

/// What recovery has to remember.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryStatus {
    /// Consecutive failures without progress.
    #[schemars(schema_with = "schema::count")]
    pub failures: u32,
    /// Consecutive attempts of the step that ended because something outside was away.
    #[schemars(schema_with = "schema::count")]
    pub outages: u32,
    /// Shards, checkpoints and steps of the current step that were committed when last seen.
    #[schemars(schema_with = "schema::count")]
    pub last_committed: u64,
    /// Pods of this attempt that were counted as failures: UIDs, or `generation-N` and `start-N` of a gang.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 36)))]
    pub counted_pods: Vec<String>,
    /// Seconds with pods, of deleted Jobs and of pods that have ended.
    #[schemars(schema_with = "schema::count")]
    pub pod_seconds: u64,
    /// Until when this attempt is in podSeconds and usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub counted_until: Option<Time>,
    /// The next attempt is not made before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub next_attempt_time: Option<Time>,
    /// Value of the annotation longstrap.io/restart-at that was acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub restarted_at: Option<String>,
    /// Bytes of one checkpoint, as prepare planned it: pods that train get the time to write one when
    /// they are told to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub checkpoint_bytes: Option<u64>,
    /// Nodes on which failures without progress were counted, and how many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub node_failures: Vec<NodeFailures>,
    /// Nodes that the next attempts avoid where there are others; longstrap restart forgets them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub avoided_nodes: Vec<AvoidedNode>,
}

/// Failures without progress on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFailures {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub name: String,
    /// How many.
    #[schemars(schema_with = "schema::count")]
    pub count: u32,
}

/// A node that is avoided where there is another that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AvoidedNode {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What happened there.
    #[schemars(length(max = 128))]
    pub reason: String,
}

/// What a run has cost, of the attempts that are over; told by Jobs and pods, never by telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UsageStatus {
    /// Seconds of training pods times the processes of each (one per accelerator).
    #[schemars(range(min = 0))]
    pub accelerator_seconds: u64,
    /// The part of it that has to be done again: from the newest checkpoint to the end of a pod that
    /// did not reach its own end.
    #[schemars(range(min = 0))]
    pub lost_accelerator_seconds: u64,
    /// Seconds from the creation of a Job until its first pod started.
    #[schemars(range(min = 0))]
    pub queued_seconds: u64,
}

impl UsageStatus {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The finished model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishedModel {
    /// Folder in Hugging Face layout.
    #[schemars(length(max = 640))]
    pub uri: String,
}

/// A checkpoint that is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckpointStatus {
    /// The stage that it belongs to.
    #[schemars(length(max = 63))]
    pub stage: String,
    /// Finished optimizer steps of the whole run.
    #[schemars(schema_with = "schema::count")]
    pub step: u64,
    /// Where it is.
    #[schemars(length(max = 640))]
    pub uri: String,
    /// When it was committed, by the clock of the pod.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
}

impl CheckpointStatus {
    /// A checkpoint committed at `time`, seconds of Unix time; a time beyond the calendar is its start.
    pub fn new(stage: &str, step: u64, uri: String, time: i64) -> Self {
        let time = Time(Timestamp::from_second(time).unwrap_or_default());
        Self { stage: stage.to_owned(), step, uri, time }
    }
}

/// How far a stage is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StageStatus {
    /// Name of the stage.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Where it is.
    pub phase: StagePhase,
    /// The step that trains it, train-0 and so on.
    #[schemars(length(max = 32))]
    pub step: String,
}

/// Where a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum StagePhase {
    /// No pod trains it.
    Pending,
    /// The current Job trains it.
    Running,
    /// Its weights are committed.
    Complete,
}

impl RecoveryStatus {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A finished dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetRef {
    /// Prefix with dataset.json and the parquet files.
    #[schemars(length(max = 540))]
    pub uri: String,
    /// Digest of dataset.json, sha256:….
    #[schemars(length(max = 71))]
    pub digest: String,
    /// Samples.
    #[schemars(range(min = 0))]
    pub rows: u64,
    /// Tokens of all samples.
    #[schemars(range(min = 0))]
    pub tokens: u64,
}

/// Data with the digest that the run is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PinnedDataStatus {
    /// Name of the data source.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Where the data is.
    #[schemars(length(max = 540))]
    pub uri: String,
    /// Digest of its manifest; unset until prepare has read data of a uri.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub digest: Option<String>,
}
