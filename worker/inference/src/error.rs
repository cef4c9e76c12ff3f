//! What can go wrong while a model answers or is scored.

use longstrap_model::ModelError;

/// Why there is no answer and no score.
#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    /// The model folder, its tokenizer or its chat template.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device.
    #[error(transparent)]
    Engine(#[from] longstrap_engine::Error),
    /// More tokens than the cache was made for.
    #[error(
        "{tokens} tokens do not fit a context of {limit}: shorten the text or open the model with a longer context"
    )]
    TooLong {
        /// Tokens that would have to be held.
        tokens: usize,
        /// Positions of a cache.
        limit: usize,
    },
    /// A token that the model has no row for.
    #[error("token id {id} is not below the vocabulary's {vocab}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// Nothing stands before what is to be scored or continued.
    #[error("at least one token must stand before what is scored or continued")]
    Empty,
    /// The weights or the text made numbers that are not finite.
    #[error("the model's output is not a number: its weights are damaged")]
    NotFinite,
}

/// Result of this crate.
pub type Result<T, E = InferenceError> = std::result::Result<T, E>;
