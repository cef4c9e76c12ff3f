//! The content of `results.json`: what every model of a run scored, and what follows from it.
//!
//! Invariant: no time, host, path or attempt; fields stand in one order.

use serde::{Deserialize, Serialize};

use crate::error::{EvaluationError, Result};
use crate::measure::{Scores, rounded};

/// Rises when equal scores would give other bytes.
pub const FORMAT_VERSION: u32 = 1;

/// All evaluations of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Results {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Window of the model that the run started from.
    pub old_window: usize,
    /// The text that all models read.
    pub held_out: HeldOut,
    /// In the order in which they were evaluated.
    pub models: Vec<ModelResult>,
    /// One for each window at which the base change alone and a trained model were scored.
    pub comparisons: Vec<Comparison>,
}

/// The held-out text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldOut {
    /// Digest of its file, `sha256:…`.
    pub digest: String,
    /// Documents in it.
    pub documents: usize,
    /// Tokens in it.
    pub tokens: usize,
    /// Phrases of the evaluation that the training samples repeat: 12 words in a row of this text, or
    /// a needle's question; 0 is expected.
    pub leaks: usize,
}

/// What a model is in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelKind {
    /// The model as it came.
    Base,
    /// Its weights with the first stage's RoPE base.
    BaseChange,
    /// After a stage.
    Trained,
}

/// One model at one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelResult {
    /// What it is.
    pub kind: ModelKind,
    /// The stage after which, or for which, it was evaluated.
    pub stage: String,
    /// Window of the layout.
    pub window: usize,
    /// Base of its RoPE.
    pub rope_base: f64,
    /// What it scored.
    pub scores: Scores,
}

/// What training gave at one window, in nats: positive is better. What was not measured, or has no
/// token to be measured on, is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// The stage of the trained model.
    pub stage: String,
    /// The window.
    pub window: usize,
    /// Mean text loss within the old window: base change minus trained. Adaptation to the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_gain_within: Option<f64>,
    /// Mean text loss beyond the old window: base change minus trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_gain_beyond: Option<f64>,
    /// Mean text loss in the last sixteenth of the window: base change minus trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_gain_end: Option<f64>,
    /// Mean copy loss over distances beyond the old window: unchanged base minus base change. Absent
    /// when the unchanged base was not evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall_gain_base_change: Option<f64>,
    /// Mean copy loss over distances beyond the old window: base change minus trained. Reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall_gain: Option<f64>,
    /// Needles hit: unchanged base, base change, trained; of this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needles: Option<NeedleHits>,
}

/// Needles hit by each model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeedleHits {
    /// Needles asked for.
    pub of: usize,
    /// By the unchanged base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<usize>,
    /// After the base change alone.
    pub base_change: usize,
    /// After training.
    pub trained: usize,
}

impl Results {
    /// Puts the models together and compares them.
    #[must_use]
    pub fn new(old_window: usize, held_out: HeldOut, models: Vec<ModelResult>) -> Self {
        let comparisons = models
            .iter()
            .filter(|m| m.kind == ModelKind::Trained)
            .filter_map(|trained| compare(&models, trained, old_window))
            .collect();
        Self { format_version: FORMAT_VERSION, old_window, held_out, models, comparisons }
    }

    /// The bytes of `results.json`.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads `results.json`.
    ///
    /// # Errors
    /// Malformed JSON, an unknown field, a newer format.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(bytes)?;
        if format_version > FORMAT_VERSION {
            return Err(EvaluationError::FormatTooNew(format_version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }
}

fn compare(models: &[ModelResult], trained: &ModelResult, old_window: usize) -> Option<Comparison> {
    let at = |kind| models.iter().find(|m| m.kind == kind && m.window == trained.window);
    let changed = at(ModelKind::BaseChange)?;
    let base = at(ModelKind::Base);
    let (new, old) = (&trained.scores, &changed.scores);
    let window = trained.window;
    let loss_gain = |from, to| gain(text_loss(old, from, to), text_loss(new, from, to));
    let needle_hits = |(base_change, trained)| NeedleHits {
        of: new.needles.len(),
        base: base.and_then(|b| hits(&b.scores)),
        base_change,
        trained,
    };
    Some(Comparison {
        stage: trained.stage.clone(),
        window,
        loss_gain_within: loss_gain(0, old_window),
        loss_gain_beyond: loss_gain(old_window, window),
        loss_gain_end: loss_gain(window * 15 / 16, window),
        recall_gain_base_change: base
            .and_then(|b| gain(copy_loss(&b.scores, old_window), copy_loss(old, old_window))),
        recall_gain: gain(copy_loss(old, old_window), copy_loss(new, old_window)),
        needles: hits(old).zip(hits(new)).map(needle_hits),
    })
}

/// How much lower the second loss is, when both were measured.
fn gain(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    Some(rounded(before? - after?))
}

/// Mean loss of the running text in the parts of the window that lie within `from..to`; `None` when
/// no token of it was scored. A border at the old window cuts no part.
pub(crate) fn text_loss(scores: &Scores, from: usize, to: usize) -> Option<f64> {
    let inside = scores.loss_by_position.iter().filter(|p| p.from >= from && p.to <= to);
    let (sum, tokens) = inside
        .filter_map(|p| Some((p.loss?, p.tokens)))
        .fold((0.0, 0), |(sum, all), (loss, tokens)| (sum + loss * tokens as f64, all + tokens));
    (tokens > 0).then(|| sum / tokens as f64)
}

/// Mean loss of the copies over distances beyond `distance`; `None` when there is none.
pub(crate) fn copy_loss(scores: &Scores, distance: usize) -> Option<f64> {
    let far: Vec<f64> = scores.recall.iter().filter(|r| r.distance > distance).map(|r| r.copy).collect();
    (!far.is_empty()).then(|| far.iter().sum::<f64>() / far.len() as f64)
}

/// Needles hit; `None` when none was asked for.
pub(crate) fn hits(scores: &Scores) -> Option<usize> {
    (!scores.needles.is_empty()).then(|| scores.needles.iter().filter(|n| n.hit).count())
}
