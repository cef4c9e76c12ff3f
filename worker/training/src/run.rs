//! The content of a training run's `run.json`: everything that decides bytes, resolved once.
//!
//! Invariant: no address, name of a pod, owner, image or number of ranks; later steps read it and
//! never look at the spec for what decides content.

use longstrap_crds::ContextExtensionRunSpec;
use longstrap_crds::context_extension_run as crd;
use longstrap_evaluation::Measurements;
use longstrap_model::{Dtype, LossOn};
use longstrap_storage::Digest;
use serde::{Deserialize, Serialize};

use crate::optimizer::{Adam, LearningRate, Schedule};

/// Rises only when equal input would give other bytes.
pub const FORMAT_VERSION: u32 = 1;
/// A stage's RoPE base is that of the stage before times this, unless it is given.
const BASE_FACTOR: f64 = 4.0;

/// `run.json` of a ContextExtensionRun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingRun {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The model that is extended.
    pub model: ModelPin,
    /// Sources, sorted by name.
    pub data: Vec<SourcePin>,
    /// Text for the evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutPin>,
    /// Digest of token shards and row plans.
    pub tokens: Digest,
    /// Stages in order.
    pub stages: Vec<StagePin>,
    /// Order of the samples.
    pub seed: u64,
    /// The optimizer.
    pub adam: Adam,
    /// What is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationPin>,
    /// Type of the exported weights.
    pub export: Dtype,
}

/// A model by its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelPin {
    /// Of `config.json`.
    pub config: Digest,
    /// Of all weight files.
    pub weights: Digest,
    /// Of `tokenizer.json`.
    pub tokenizer: String,
    /// Of the chat template.
    pub template: String,
    /// Window that it was trained for.
    pub window: usize,
    /// Its RoPE base.
    pub rope_base: f64,
}

/// A data source by its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourcePin {
    /// Its name.
    pub name: String,
    /// Of its manifest, or of all its files.
    pub digest: String,
    /// Share of the tokens.
    pub weight: u32,
    /// Which tokens have a loss.
    pub loss_on: LossOn,
}

/// The held-out text by its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldOutPin {
    /// Source that it belongs to.
    pub source: String,
    /// File, relative to the source.
    pub name: String,
    /// Of the file.
    pub digest: Digest,
    /// Documents in it.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Phrases of the evaluation that the samples of all sources repeat; 0 is expected.
    pub leaks: u64,
}

/// A stage with all defaults resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StagePin {
    /// Its name.
    pub name: String,
    /// Window and longest row.
    pub context_length: usize,
    /// RoPE base.
    pub rope_base: f64,
    /// Tokens of a step; `None`: one row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<u64>,
    /// Learning rate over the stage's steps.
    pub learning_rate: LearningRate,
    /// Epochs of a source beyond which the run is refused.
    pub max_epochs: u32,
}

/// What is measured, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvaluationPin {
    /// The model as it came, and with the first stage's RoPE base alone.
    pub before_first_stage: bool,
    /// Each trained model.
    pub after_each_stage: bool,
    /// What is measured of each.
    pub measure: Measurements,
}

/// Stages of a spec, with their defaults.
#[must_use]
pub fn resolve_stages(spec: &ContextExtensionRunSpec, model_base: f64) -> Vec<StagePin> {
    let training = &spec.training;
    let schedule = match training.schedule {
        crd::Schedule::Constant => Schedule::Constant,
        crd::Schedule::Cosine => Schedule::Cosine,
        crd::Schedule::Linear => Schedule::Linear,
    };
    let mut base = model_base;
    let resolve = |stage: &crd::Stage| {
        base = stage.rope_base.as_ref().map_or(base * BASE_FACTOR, |b| b.value());
        StagePin {
            name: stage.name.clone(),
            context_length: stage.context_length.get() as usize,
            rope_base: base,
            tokens_per_step: stage.tokens_per_step(training),
            learning_rate: LearningRate {
                peak: stage.learning_rate(training),
                schedule,
                warmup_steps: training.warmup_steps,
                steps: stage.steps,
            },
            max_epochs: training.max_epochs,
        }
    };
    spec.stages.iter().map(resolve).collect()
}

/// Evaluations of a spec; `None` when nothing is measured.
#[must_use]
pub fn resolve_evaluation(spec: &ContextExtensionRunSpec) -> Option<EvaluationPin> {
    let e = spec.evaluation.as_ref()?;
    let measure = Measurements {
        loss_by_position: e.loss_by_position.is_some(),
        recall: e.recall.is_some(),
        needle: e.needle.is_some(),
    };
    let anything = measure.loss_by_position || measure.recall || measure.needle;
    (anything && (e.before_first_stage || e.after_each_stage)).then_some(EvaluationPin {
        before_first_stage: e.before_first_stage,
        after_each_stage: e.after_each_stage,
        measure,
    })
}

/// Type of the exported weights: the spec's, or the source's.
#[must_use]
pub fn export_dtype(spec: &ContextExtensionRunSpec, source: Dtype) -> Dtype {
    match spec.export.dtype {
        None => source,
        Some(crd::Dtype::Float32) => Dtype::F32,
        Some(crd::Dtype::BFloat16) => Dtype::BF16,
        Some(crd::Dtype::Float16) => Dtype::F16,
    }
}

impl TrainingRun {
    /// Index of a stage by its name.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|s| s.name == name)
    }

    /// Optimizer steps of all stages before `stage`.
    #[must_use]
    pub fn steps_before(&self, stage: usize) -> u64 {
        self.stages[..stage].iter().map(|s| s.learning_rate.steps).sum()
    }
}
