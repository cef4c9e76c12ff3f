//! Scores a model on a layout: one prefill, then branches from the shared cache.
//!
//! Invariant: sums run in f64 in the order of the tokens, so equal losses give equal bytes.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{EvaluationError, Result};
use crate::layout::{Layout, Request};

/// Loss by position is given in this many equal parts of the window; the part that the old window
/// ends in is cut there.
pub(crate) const BINS: usize = 16;

/// A model that has read a row and can be asked how it goes on, in any number of branches.
pub trait Scorer {
    /// The model's own error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads `tokens` from position 0 and keeps its cache; gives −log p of `tokens[1..]`, each given
    /// all before it. `progress` is told how many tokens have been read.
    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<f32>, Self::Error>;

    /// −log p of each of `tokens` after the prefilled row; the cache is as before afterwards.
    fn branch(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<f32>, Self::Error>;

    /// log p of each candidate as the one next token after the row and `prefix`; the cache is as
    /// before afterwards.
    fn next(&mut self, prefix: &[u32], candidates: &[u32]) -> std::result::Result<Vec<f32>, Self::Error>;
}

/// What is being scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The shared row.
    Prefill,
    /// Branch (a): more text.
    Continuation,
    /// Branch (b): the passages again.
    Copies,
    /// Branches (c): the questions.
    Needles,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "reading the held-out row",
            Self::Continuation => "scoring the text at the window's end",
            Self::Copies => "scoring the repeated passages",
            Self::Needles => "asking for the needles",
        })
    }
}

/// What one model scored on one layout; what was not wanted is empty, and absent in JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scores {
    /// Mean loss of running text, in parts of the window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loss_by_position: Vec<PositionLoss>,
    /// The repeated passages, farthest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recall: Vec<Recall>,
    /// The needles, by depth.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needles: Vec<NeedleScore>,
}

/// Mean loss of the running text in a range of positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PositionLoss {
    /// First position.
    pub from: usize,
    /// One past the last.
    pub to: usize,
    /// Tokens counted: without inserted ones.
    pub tokens: usize,
    /// Nats per token; absent without tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// A passage, shown and asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Tokens from the first showing to the copy.
    pub distance: usize,
    /// Mean loss when it was shown first.
    pub first: f64,
    /// Mean loss of the copy.
    pub copy: f64,
}

/// A needle's answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeedleScore {
    /// Position of the hidden sentence.
    pub position: usize,
    /// Tokens from it to the question.
    pub distance: usize,
    /// The right answer was the most likely of all.
    pub hit: bool,
    /// log p of the right answer minus that of the best wrong one.
    pub margin: f64,
}

/// Runs all branches of `layout` on one model. `progress` gets what runs, and tokens done and in all.
///
/// # Errors
/// The scorer's own errors, a wrong number of values, losses that are not finite.
pub fn measure<S: Scorer>(
    scorer: &mut S,
    layout: &Layout,
    progress: &mut dyn FnMut(Phase, usize, usize),
) -> Result<Scores> {
    let row = layout.prefill.len();
    let questions = layout.needles.iter().map(|n| n.question.len()).sum::<usize>();
    let total = row + layout.continuation.len() + layout.copies.len() + questions;

    let losses = scorer.prefill(&layout.prefill, &mut |done| progress(Phase::Prefill, done, total));
    let prefill = checked(losses, Phase::Prefill, row - 1)?;
    let mut done = row;
    let mut branch = |phase, tokens: &[u32]| {
        // What is not wanted has no tokens.
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let losses = scorer.branch(tokens, &mut |more| progress(phase, done + more, total));
        done += tokens.len();
        checked(losses, phase, tokens.len())
    };
    let continuation = branch(Phase::Continuation, &layout.continuation)?;
    let copies = branch(Phase::Copies, &layout.copies)?;

    let mut needles = Vec::with_capacity(layout.needles.len());
    for needle in &layout.needles {
        progress(Phase::Needles, done, total);
        let answers = scorer.next(&needle.question, &needle.candidates);
        let answers = checked(answers, Phase::Needles, needle.candidates.len())?;
        needles.push(needle_score(&answers, needle.answer, needle.at, row));
        done += needle.question.len();
        progress(Phase::Needles, done, total);
    }
    Ok(Scores {
        loss_by_position: loss_by_position(layout, &prefill, &continuation),
        recall: recall(layout, &prefill, &copies),
        needles,
    })
}

fn checked<E: std::error::Error + Send + Sync + 'static>(
    values: std::result::Result<Vec<f32>, E>,
    phase: Phase,
    want: usize,
) -> Result<Vec<f32>> {
    let values = values.map_err(|e| EvaluationError::Scorer { phase, source: Box::new(e) })?;
    if values.len() != want {
        return Err(EvaluationError::Shape { phase, got: values.len(), want });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(EvaluationError::NotFinite { phase, index }),
        None => Ok(values),
    }
}

/// `prefill[p − 1]` is the loss at position p: position 0 has none.
fn loss_by_position(layout: &Layout, prefill: &[f32], continuation: &[f32]) -> Vec<PositionLoss> {
    let Request { window, old_window, measure, .. } = layout.request;
    if !measure.loss_by_position {
        return Vec::new();
    }
    let row = layout.prefill.len();
    let mut is_text = vec![true; window];
    is_text[0] = false;
    for item in &layout.inserted {
        is_text[item.span.clone()].fill(false);
    }
    let mut edges: Vec<usize> = (0..=BINS).map(|bin| window * bin / BINS).collect();
    if let Err(place) = edges.binary_search(&old_window)
        && place < edges.len()
    {
        edges.insert(place, old_window);
    }
    edges
        .windows(2)
        .map(|edge| {
            let (from, to) = (edge[0], edge[1]);
            let counted = (from..to).filter(|&p| is_text[p]);
            let losses = counted.map(|p| if p < row { prefill[p - 1] } else { continuation[p - row] });
            let tokens = losses.clone().count();
            PositionLoss { from, to, tokens, loss: mean(losses) }
        })
        .collect()
}

fn recall(layout: &Layout, prefill: &[f32], copies: &[f32]) -> Vec<Recall> {
    let (row, sizes) = (layout.prefill.len(), layout.sizes);
    layout
        .shown
        .iter()
        .enumerate()
        .filter_map(|(i, shown)| {
            let counted: Range<usize> = shown.start + sizes.skip..shown.end;
            let first = mean(counted.map(|p| prefill[p - 1]))?;
            let start = i * sizes.passage;
            let copy = mean(copies[start + sizes.skip..start + sizes.passage].iter().copied())?;
            Some(Recall { distance: row + start - shown.start, first, copy })
        })
        .collect()
}

fn needle_score(answers: &[f32], right: usize, position: usize, row: usize) -> NeedleScore {
    let wrong = answers.iter().enumerate().filter(|(i, _)| *i != right).map(|(_, &v)| f64::from(v));
    let best_wrong = wrong.fold(f64::NEG_INFINITY, f64::max);
    let margin = rounded(f64::from(answers[right]) - best_wrong);
    NeedleScore { position, distance: row - position, hit: margin > 0.0, margin }
}

/// `None` for no losses: that is not a loss of 0.
fn mean(losses: impl Iterator<Item = f32>) -> Option<f64> {
    let (sum, count) = losses.fold((0.0, 0u32), |(sum, count), loss| (sum + f64::from(loss), count + 1));
    (count > 0).then(|| rounded(sum / f64::from(count)))
}

/// To a millionth of a nat: short decimals come back from JSON as the same number.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
