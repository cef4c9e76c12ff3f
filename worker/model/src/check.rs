//! Checks a Hugging Face folder before anything is built on it.

use std::path::Path;

use crate::chat::ChatTemplate;
use crate::config::{Dtype, ModelConfig};
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// What was found in a sound model folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The configuration.
    pub config: ModelConfig,
    /// Element type of the weights on disk (of the embedding, when they differ).
    pub dtype: Dtype,
    /// Number of parameters; a tied output layer counts once.
    pub parameters: u64,
    /// One more than the highest token id.
    pub tokens: usize,
}

/// Checks configuration, tensor names, shapes and types, tokenizer and chat template.
///
/// # Errors
/// The first thing that is missing, malformed, unsupported, or disagrees with the configuration.
pub fn check_hf(dir: &Path) -> Result<Checked> {
    let config = ModelConfig::load(dir)?;
    let weights = Weights::open(dir)?;
    weights.check(&config)?;
    let tokenizer = Tokenizer::load(dir)?;
    let tokens = tokenizer.id_bound();
    if tokens > config.vocab_size {
        return Err(ModelError::Tokenizer(format!(
            "{} has ids up to {}, but the embedding has {} rows (vocab_size in config.json)",
            dir.join("tokenizer.json").display(),
            tokens - 1,
            config.vocab_size
        )));
    }
    ChatTemplate::load(dir, &tokenizer)?;
    Ok(Checked {
        dtype: weights.dtype("model.embed_tokens.weight")?,
        parameters: config.parameters(),
        tokens,
        config,
    })
}
