//! The real thing behind the traits: the embedded engine scores, a model's tokenizer encodes.

use longstrap_inference::InferenceError;
use longstrap_model::Tokenizer;

use crate::error::Result;
use crate::layout::{Layout, Request, plan};
use crate::measure::Scorer;

impl Scorer for longstrap_inference::Scorer {
    type Error = InferenceError;

    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<f32>, InferenceError> {
        longstrap_inference::Scorer::prefill(self, tokens, progress)
    }

    fn branch(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<f32>, InferenceError> {
        longstrap_inference::Scorer::branch(self, tokens, progress)
    }

    fn next(&mut self, prefix: &[u32], candidates: &[u32]) -> std::result::Result<Vec<f32>, InferenceError> {
        longstrap_inference::Scorer::next(self, prefix, candidates)
    }
}

/// [`plan`] for texts: held-out documents in their order, by a model's tokenizer, after whatever
/// that puts before every text.
///
/// # Errors
/// As [`plan`].
pub fn plan_texts<T: AsRef<str>>(texts: &[T], tokenizer: &Tokenizer, request: Request) -> Result<Layout> {
    let encode = |text: &str| Ok(tokenizer.encode_ordinary(text)?);
    let mut documents = texts.iter().map(|text| encode(text.as_ref())).collect::<Result<Vec<_>>>()?;
    if let Some(first) = documents.first_mut() {
        first.splice(0..0, tokenizer.prefix().iter().copied());
    }
    plan(&documents, request, &encode)
}
