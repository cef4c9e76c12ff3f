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
    let documents = encode(texts, tokenizer, usize::MAX)?;
    plan(&documents, request, &|text| Ok(tokenizer.encode_ordinary(text)?))
}

/// Whether [`plan_texts`] can do what each of `requests` asks for. Text beyond the largest window is
/// not looked at: no row needs it.
///
/// # Errors
/// As [`plan`].
pub fn check_texts<T: AsRef<str>>(texts: &[T], tokenizer: &Tokenizer, requests: &[Request]) -> Result<()> {
    let largest = requests.iter().map(|request| request.window).max().unwrap_or(0);
    let documents = encode(texts, tokenizer, largest)?;
    requests.iter().try_for_each(|request| {
        plan(&documents, *request, &|text| Ok(tokenizer.encode_ordinary(text)?)).map(drop)
    })
}

/// The documents in tokens, as many of them as hold `enough`.
fn encode<T: AsRef<str>>(texts: &[T], tokenizer: &Tokenizer, enough: usize) -> Result<Vec<Vec<u32>>> {
    let mut documents: Vec<Vec<u32>> = Vec::new();
    let mut tokens = 0;
    for text in texts {
        if tokens >= enough {
            break;
        }
        let mut ids = tokenizer.encode_ordinary(text.as_ref())?;
        if documents.is_empty() {
            ids.splice(0..0, tokenizer.prefix().iter().copied());
        }
        tokens += ids.len();
        documents.push(ids);
    }
    Ok(documents)
}
