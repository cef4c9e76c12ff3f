//! One error type for everything that reads or writes a model folder. Each message names the
//! file and the field, tensor or token, and what to do where that is known.

use std::path::{Path, PathBuf};

/// Why a model folder, a GGUF file, a tokenizer or a chat template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not what its name says: malformed, truncated, or of an unknown version.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        message: String,
    },
    /// `config.json` (or a GGUF header) describes a model that this program does not run.
    #[error("{file}: {message}")]
    Unsupported {
        /// The file that says so.
        file: String,
        /// The feature, by its name in the file.
        message: String,
    },
    /// A tensor is missing, superfluous, or has another shape or type than the configuration asks for.
    #[error("{file}: tensor {tensor}: {message}")]
    Tensor {
        /// The file that holds (or should hold) it.
        file: String,
        /// Its name there.
        tensor: String,
        /// What is wrong.
        message: String,
    },
    /// The tokenizer cannot be built or disagrees with the model.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template cannot be parsed, or refused the messages.
    #[error("chat template: {0}")]
    Template(String),
}

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

impl ModelError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError + '_ {
        move |source| ModelError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, message: impl ToString) -> ModelError {
        ModelError::Malformed { path: path.to_owned(), message: message.to_string() }
    }

    pub(crate) fn tensor(file: &Path, tensor: &str, message: impl Into<String>) -> ModelError {
        ModelError::Tensor {
            file: file.display().to_string(),
            tensor: tensor.to_owned(),
            message: message.into(),
        }
    }
}
