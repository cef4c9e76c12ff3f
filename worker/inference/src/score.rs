//! Likelihood of given tokens: one pass, logits tile by tile. [`Scorer`] reads a long row once and
//! then scores any number of continuations from its cache, which is cut back, never copied.

use std::path::Path;

use longstrap_model::Rope;

use crate::error::{InferenceError, Result};
use crate::model::{Model, ModelOptions};

impl Model {
    /// −log p of `tokens[from..]` (from ≥ 1), each given all before it, read from position `start`
    /// of a cache on. `progress` hears how many tokens have been read.
    pub(crate) fn read_and_score(
        &self,
        cache: usize,
        start: usize,
        tokens: &[u32],
        from: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        self.check_tokens(tokens)?;
        // The last token is predicted, never read.
        let read = tokens.len().saturating_sub(1);
        let mut losses = Vec::with_capacity(tokens.len() - from);
        for first in (0..read).step_by(self.block()) {
            let end = read.min(first + self.block());
            self.read_block(cache, start + first, &tokens[first..end])?;
            let target = |i: usize| (i + 1 >= from).then(|| tokens[i + 1]);
            let targets: Vec<_> = (first..end).map(target).collect();
            let block = self.losses(&targets)?;
            losses.extend(block.iter().zip(&targets).filter(|(_, t)| t.is_some()).map(|(l, _)| l));
            progress(end);
        }
        Ok(losses)
    }
}

/// A model that has read a row and can be asked how it goes on, in any number of branches.
pub struct Scorer {
    model: Model,
    /// The last token of the row and its position: each branch begins by reading it, so that it has
    /// the first prediction.
    last: Option<(u32, usize)>,
}

/// Positions that a scorer reads at once.
const BLOCK: usize = 512;

impl Scorer {
    /// Loads a model folder for rows of up to `context` tokens, branches included. `rope` replaces
    /// the configuration's: the same weights with another base.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(dir: &Path, context: usize, threads: usize, rope: Option<Rope>) -> Result<Self> {
        let options = ModelOptions { threads, context, caches: 1, block: BLOCK, rope };
        Ok(Self::new(Model::open(dir, options)?))
    }

    /// Scores with a loaded model, in its first cache.
    pub fn new(model: Model) -> Self {
        Self { model, last: None }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Sees the weights with another rotary embedding; the row has to be read again.
    ///
    /// # Errors
    /// The device's.
    pub fn set_rope(&mut self, rope: Rope) -> Result<()> {
        self.last = None;
        self.model.set_rope(rope)
    }

    /// Reads `tokens` from position 0 and keeps their cache; gives −log p of `tokens[1..]`, each
    /// given all before it. `progress` hears how many tokens have been read.
    ///
    /// # Errors
    /// No tokens, more than the context, an unknown id, numbers that are not finite.
    pub fn prefill(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>> {
        self.last = None;
        let last = *tokens.last().ok_or(InferenceError::Empty)?;
        self.fits(tokens.len())?;
        let losses = self.model.read_and_score(0, 0, tokens, 1, progress)?;
        self.last = Some((last, tokens.len() - 1));
        Ok(losses)
    }

    /// −log p of each of `tokens` after the row; the cache is as before afterwards.
    ///
    /// # Errors
    /// As [`Scorer::prefill`]; no row has been read.
    pub fn branch(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>> {
        let (last, position) = self.last.ok_or(InferenceError::Empty)?;
        self.fits(position + 1 + tokens.len())?;
        let row: Vec<u32> = std::iter::once(last).chain(tokens.iter().copied()).collect();
        self.model.read_and_score(0, position, &row, 1, progress)
    }

    /// log p of each candidate as the one next token after the row and `prefix`; the cache is as
    /// before afterwards.
    ///
    /// # Errors
    /// As [`Scorer::branch`].
    pub fn next(&mut self, prefix: &[u32], candidates: &[u32]) -> Result<Vec<f32>> {
        self.model.check_tokens(candidates)?;
        let logits = self.next_logits(prefix)?;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        if !log_sum.is_finite() {
            return Err(InferenceError::NotFinite);
        }
        Ok(candidates.iter().map(|&c| (f64::from(logits[c as usize]) - log_sum) as f32).collect())
    }

    /// The logits of the one next token after the row and `prefix`, by id; the cache is as before
    /// afterwards.
    ///
    /// # Errors
    /// As [`Scorer::branch`].
    pub fn next_logits(&mut self, prefix: &[u32]) -> Result<Vec<f32>> {
        let (last, position) = self.last.ok_or(InferenceError::Empty)?;
        self.fits(position + 1 + prefix.len())?;
        self.model.check_tokens(prefix)?;
        let row: Vec<u32> = std::iter::once(last).chain(prefix.iter().copied()).collect();
        let mut row_of_last = 0;
        for (i, block) in row.chunks(self.model.block()).enumerate() {
            self.model.read_block(0, position + i * self.model.block(), block)?;
            row_of_last = block.len() - 1;
        }
        let mut logits = Vec::new();
        self.model.row_logits(row_of_last, &mut logits)?;
        Ok(logits)
    }

    fn fits(&self, tokens: usize) -> Result<()> {
        let limit = self.model.context();
        if tokens > limit { Err(InferenceError::TooLong { tokens, limit }) } else { Ok(()) }
    }
}
