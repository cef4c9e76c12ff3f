//! Samples to token files: rendered by the model's own chat template, exactly as inference would.
//!
//! Invariant: the files' bytes are a function of samples, tokenizer and template alone.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;
use longstrap_corpus::Phrases;
use longstrap_crds::Reason;
use longstrap_model::{ChatTemplate, LossOn, Tokenizer};
use longstrap_runtime::{StepContext, StepError, StepResult};

use super::sources::{OpenSource, read_samples};
use crate::tokens::{IndexedSample, SourceIndex};

/// What samples are rendered with.
pub(super) struct Renderer<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) template: &'a ChatTemplate,
    /// Rows of the embedding.
    pub(super) vocab: usize,
    /// What no sample should repeat.
    pub(super) phrases: &'a Phrases,
}

impl Renderer<'_> {
    /// Writes the ids of all samples of a source to `out` and returns their index.
    ///
    /// # Errors
    /// `InvalidData` with file and row; `InvalidTokenizer` for an id that the model does not have.
    pub(super) fn source(
        &self,
        ctx: &StepContext,
        name: &str,
        source: &OpenSource,
        loss: LossOn,
        out: &Path,
    ) -> StepResult<SourceIndex> {
        let file = std::fs::File::create(out).with_context(|| format!("cannot make {}", out.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let mut index = SourceIndex::default();
        for (object, path) in &source.files {
            ctx.progress.activity(format!("rendering {object}"));
            read_samples(object, path, &mut |place, messages| {
                ctx.check_stop()?;
                let rendered = self.template.render(self.tokenizer, &messages).map_err(|e| {
                    StepError::invalid(Reason::InvalidData, format!("{place} cannot be rendered: {e}"))
                })?;
                self.check_ids(place, &rendered.ids)?;
                index.leaks += messages.iter().map(|m| self.phrases.hits(&m.content) as u64).sum::<u64>();
                let spans = rendered.spans(loss);
                for id in &rendered.ids {
                    writer.write_all(&id.to_le_bytes())?;
                }
                index.samples.push(IndexedSample::new(rendered.ids.len(), loss, &spans));
                ctx.progress.work(index.samples.len() as f64, 0.0, "samples");
                Ok(())
            })?;
        }
        writer.flush()?;
        if index.samples.is_empty() {
            let message = format!("data source {name} has no sample: add some, or leave it out");
            return Err(StepError::invalid(Reason::InvalidData, message));
        }
        Ok(index)
    }

    fn check_ids(&self, place: &str, ids: &[u32]) -> StepResult {
        match ids.iter().find(|id| **id as usize >= self.vocab) {
            None => Ok(()),
            Some(id) => Err(StepError::invalid(
                Reason::InvalidTokenizer,
                format!(
                    "{place}: the tokenizer gives id {id} and the model has {} embedding rows: tokenizer.json and weights do not belong together",
                    self.vocab
                ),
            )),
        }
    }
}
