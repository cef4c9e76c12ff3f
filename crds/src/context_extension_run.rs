//! `ContextExtensionRun`: a model and long-context data in, the model with a longer window out.
//!
//! Invariant: a stage's effective values (RoPE base aside, which needs the model) are methods of
//! the spec, so that operator, `prepare` and trainer resolve them alike.
#![allow(
    clippy::duplicated_attributes,
    reason = "the arguments of several printer columns are no duplicates"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    common::{CommonSpec, LocalRef, ModelRef},
    decimal::Decimal,
    length::Length,
    pod_template::PodTemplate,
    schema,
    status::{CheckpointStatus, CommonStatus, PinnedDataStatus, PublishedModel, StageStatus},
};

/// Which model to extend, on which data, in which stages.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "longstrap.io",
    version = "v1alpha1",
    kind = "ContextExtensionRun",
    namespaced,
    status = "ContextExtensionRunStatus",
    derive = "PartialEq",
    shortname = "cer",
    category = "longstrap",
    doc = "Trains a model in stages, each with a longer context window than the one before.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.progress.stage"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress.percent"),
    printcolumn(name = "Tokens/s", type_ = "integer", json_path = ".status.progress.tokensPerSecond"),
    printcolumn(name = "Remaining", type_ = "string", json_path = ".status.progress.remaining"),
    printcolumn(name = "Loss", type_ = "string", json_path = ".status.progress.loss", priority = 1),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ContextExtensionRunSpec {
    /// Fields that both kinds have.
    #[serde(flatten)]
    pub common: CommonSpec,
    /// The model to extend.
    pub model: ModelRef,
    /// Sources of training samples.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub data: Vec<DataSource>,
    /// Stages in order; context lengths must grow.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub stages: Vec<Stage>,
    /// How to train.
    #[serde(default)]
    pub training: Training,
    /// How the work is spread over pods and processes.
    #[serde(default)]
    pub parallelism: Parallelism,
    /// Memory of one accelerator; unset: the device is asked in the first seconds of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_memory: Option<Length>,
    /// What is measured, and when; unset: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// How the result is written.
    #[serde(default)]
    pub export: Export,
    /// Train even when the first stage is not longer than the model's window.
    #[serde(default)]
    pub allow_window_not_extended: bool,
}

/// A source of training samples: exactly one of synthesisJobRef and uri.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataSource {
    /// Name of the source, unique in the list.
    #[schemars(schema_with = "schema::label")]
    pub name: String,
    /// A SynthesisJob in the same namespace; the run waits until it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthesis_job_ref: Option<LocalRef>,
    /// A file or folder of *.jsonl or parquet with messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uri")]
    pub uri: Option<String>,
    /// Share of the training tokens; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::weight")]
    pub weight: Option<u32>,
    /// Tokens that have a loss; by default All for a synthesisJobRef, Response for a uri.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_on: Option<LossOn>,
}

impl DataSource {
    /// Share of the training tokens.
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }

    /// Tokens that have a loss.
    pub fn loss_on(&self) -> LossOn {
        self.loss_on.unwrap_or(match self.synthesis_job_ref {
            Some(_) => LossOn::All,
            None => LossOn::Response,
        })
    }
}

/// Which tokens of a sample have a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LossOn {
    /// All tokens, the prompt's too.
    All,
    /// The assistant's tokens only.
    Response,
}

/// One stage: a context length and its optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Name of the stage, unique in the list.
    #[schemars(schema_with = "schema::label")]
    pub name: String,
    /// Context window of the stage in tokens.
    pub context_length: Length,
    /// Optimizer steps.
    #[schemars(schema_with = "schema::positive")]
    pub steps: u64,
    /// RoPE base; by default 4 × the base of the stage before (of the model, for the first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_base: Option<Decimal>,
    /// Peak learning rate; by default training.learningRate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<Decimal>,
    /// Tokens of one optimizer step; by default training.tokensPerStep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<Length>,
    /// How this stage is spread over pods and processes; what is not given is taken from spec.parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<StageParallelism>,
    /// Merged into the pods that train this stage, after spec.podTemplate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

impl Stage {
    /// How the stage is spread, with `spec.parallelism` where it says nothing itself.
    pub fn parallelism(&self, spec: &Parallelism) -> Parallelism {
        let own = self.parallelism.unwrap_or_default();
        Parallelism {
            nodes: own.nodes.unwrap_or(spec.nodes),
            ranks_per_node: own.ranks_per_node.unwrap_or(spec.ranks_per_node),
            sequence: own.sequence.unwrap_or(spec.sequence),
        }
    }

    /// The peak learning rate.
    pub fn learning_rate(&self, training: &Training) -> f64 {
        self.learning_rate.as_ref().unwrap_or(&training.learning_rate).value()
    }

    /// A step takes whole rows until it has at least so many tokens; `None`: one row.
    pub fn tokens_per_step(&self, training: &Training) -> Option<u64> {
        self.tokens_per_step.or(training.tokens_per_step).map(Length::get)
    }
}

/// How to train. The defaults are ours: the paper gives none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Training {
    /// Peak learning rate.
    pub learning_rate: Decimal,
    /// Shape of the learning rate after the warm-up, over the steps of a stage.
    pub schedule: Schedule,
    /// Steps of linear warm-up at the start of every stage.
    #[schemars(schema_with = "schema::count")]
    pub warmup_steps: u64,
    /// A step takes whole rows until it has at least so many tokens; unset: one row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<Length>,
    /// A source that would repeat more often than this is refused.
    #[schemars(range(min = 1, max = 1000))]
    pub max_epochs: u32,
    /// Order of the samples.
    #[schemars(schema_with = "schema::seed")]
    pub seed: u64,
    /// When checkpoints are written.
    pub checkpoint: Checkpoint,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            learning_rate: "2e-5".parse().expect("a constant that parses"),
            schedule: Schedule::Cosine,
            warmup_steps: 10,
            tokens_per_step: None,
            max_epochs: 8,
            seed: 0,
            checkpoint: Checkpoint::default(),
        }
    }
}

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schedule {
    /// Half a cosine from the peak to a tenth of it.
    Cosine,
    /// A straight line from the peak towards zero, which it would reach one step after the last.
    Linear,
    /// The peak to the end.
    Constant,
}

/// When checkpoints are written and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// Seconds between checkpoints.
    #[schemars(schema_with = "schema::deadline")]
    pub every_seconds: u64,
    /// Newest checkpoints that are kept.
    #[schemars(range(min = 1, max = 100))]
    pub keep_last: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every_seconds: 900, keep_last: 2 }
    }
}

/// How the work is spread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Parallelism {
    /// Training pods.
    #[schemars(schema_with = "schema::processes")]
    pub nodes: u32,
    /// Processes in each pod: one per accelerator.
    #[schemars(range(min = 1, max = 64))]
    pub ranks_per_node: u32,
    /// How one sequence is spread over the processes.
    pub sequence: SequenceMode,
}

impl Default for Parallelism {
    fn default() -> Self {
        Self { nodes: 1, ranks_per_node: 1, sequence: SequenceMode::Auto }
    }
}

impl Parallelism {
    /// Processes of all pods.
    pub fn ranks(&self) -> u32 {
        self.nodes.max(1) * self.ranks_per_node.max(1)
    }
}

/// How the work of one stage is spread, where that differs from the other stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageParallelism {
    /// Training pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::processes")]
    pub nodes: Option<u32>,
    /// Processes in each pod: one per accelerator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub ranks_per_node: Option<u32>,
    /// How one sequence is spread over the processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<SequenceMode>,
}

/// How one sequence is spread over the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SequenceMode {
    /// Longstrap chooses.
    Auto,
    /// Zigzag ring attention.
    Ring,
}

/// What is measured, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// Measure the model unchanged, and with the first stage's RoPE base, before any training.
    #[serde(default)]
    pub before_first_stage: bool,
    /// Measure after each stage.
    #[serde(default)]
    pub after_each_stage: bool,
    /// Mean loss on held-out text by position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_by_position: Option<LossByPosition>,
    /// Loss of a passage that was shown before, by distance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<Recall>,
    /// Facts hidden in a long text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needle: Option<Needle>,
}

/// No options yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LossByPosition {}

/// No options yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recall {}

/// No options yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Needle {}

/// How the result is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Export {
    /// Type of the weights; by default the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
}

/// Type of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dtype {
    /// 32-bit floats.
    Float32,
    /// bfloat16.
    BFloat16,
    /// IEEE half precision.
    Float16,
}

/// What is known about the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ContextExtensionRunStatus {
    /// Fields that both kinds have.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// Highest generation of the gang of processes that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub gang_generation: Option<u64>,
    /// The data with the digests that the run is bound to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub data: Vec<PinnedDataStatus>,
    /// The newest checkpoint that a pod told of when it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// The stages in order, and how far each is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub stages: Vec<StageStatus>,
    /// The finished model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PublishedModel>,
}
