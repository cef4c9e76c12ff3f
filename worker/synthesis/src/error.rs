//! Errors of synthesis and what they mean for the pod: which can be mended by an edit, which go
//! away, which are bugs.

use longstrap_corpus::CorpusError;
use longstrap_crds::Reason;
use longstrap_model::ModelError;
use longstrap_runtime::StepError;

use crate::llm::LlmError;
use crate::prompts::PromptError;

/// Result of this crate.
pub(crate) type Result<T, E = SynthError> = std::result::Result<T, E>;

/// Anything that ends a step. A bad sample never does.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// The generator.
    #[error(transparent)]
    Llm(#[from] LlmError),
    /// The corpus.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// Tokenizer or template of the target model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// Object storage.
    #[error(transparent)]
    Storage(#[from] longstrap_storage::Error),
    /// The embedded generator.
    #[error(transparent)]
    Inference(#[from] longstrap_inference::InferenceError),
    /// A local working file.
    #[error("{0}")]
    Disk(#[from] std::io::Error),
    /// Can never work with this spec or these data.
    #[error("{message}")]
    Invalid {
        /// For the condition.
        reason: Reason,
        /// What, where, what to do.
        message: String,
    },
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl SynthError {
    /// `Invalid` in one call.
    pub fn invalid(reason: Reason, message: impl Into<String>) -> SynthError {
        SynthError::Invalid { reason, message: message.into() }
    }
}

impl From<SynthError> for StepError {
    fn from(error: SynthError) -> StepError {
        let message = error.to_string();
        let reason = match error {
            SynthError::Storage(error)
            | SynthError::Llm(LlmError::Log(error))
            | SynthError::Corpus(CorpusError::Storage(error)) => return error.into(),
            SynthError::Disk(error) | SynthError::Corpus(CorpusError::Scratch { source: error, .. }) => {
                // The path is in the message, the kind in the error.
                return std::io::Error::new(error.kind(), message).into();
            }
            SynthError::Llm(LlmError::Away(_) | LlmError::Rubbish(_)) => {
                return StepError::outage(Reason::EndpointUnavailable, message);
            }
            SynthError::Other(error) => return StepError::Failed(error),
            SynthError::Corpus(CorpusError::Stopped) => return StepError::Stopped,
            SynthError::Corpus(CorpusError::Index(error)) => return StepError::Failed(error.into()),
            SynthError::Llm(LlmError::Denied(_)) => Reason::AccessDenied,
            SynthError::Llm(_) | SynthError::Inference(_) => Reason::InvalidModel,
            SynthError::Corpus(CorpusError::Damaged { .. }) => Reason::DataChanged,
            SynthError::Corpus(_) => Reason::InvalidData,
            SynthError::Model(_) => Reason::InvalidTokenizer,
            SynthError::Prompt(_) => Reason::InvalidData,
            SynthError::Invalid { reason, .. } => reason,
        };
        StepError::Invalid { reason, message }
    }
}
