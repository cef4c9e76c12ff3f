//! How a step ends when it does not end well, and which exit code and reason that is.

use longstrap_crds::{ExitCode, Reason};
use longstrap_storage::ErrorKind;

/// Result of a step.
pub type StepResult<T = ()> = Result<T, StepError>;

/// Why a step did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Exit 10: can never work with this spec, data or model.
    #[error("{message}")]
    Invalid {
        /// For the condition.
        reason: Reason,
        /// What, where, what to do.
        message: String,
    },
    /// Exit 11: told to stop; state is saved, or there was nothing to save.
    #[error("told to stop")]
    Stopped,
    /// Exit 12: something outside stayed away.
    #[error("{message}")]
    Outage {
        /// For the condition.
        reason: Reason,
        /// What is away, where, since when.
        message: String,
    },
    /// Exit 13: `backoffLimit` in-place failures without progress.
    #[error("{message}")]
    Exhausted {
        /// The last failure.
        message: String,
    },
    /// Exit 1: anything unexpected.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl StepError {
    /// `Invalid` in one call.
    pub fn invalid(reason: Reason, message: impl Into<String>) -> Self {
        Self::Invalid { reason, message: message.into() }
    }

    /// `Outage` in one call.
    pub fn outage(reason: Reason, message: impl Into<String>) -> Self {
        Self::Outage { reason, message: message.into() }
    }

    /// The exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Invalid { .. } => ExitCode::Invalid,
            Self::Stopped => ExitCode::Stopped,
            Self::Outage { .. } => ExitCode::Outage,
            Self::Exhausted { .. } => ExitCode::Exhausted,
            Self::Failed(_) => ExitCode::Failed,
        }
    }

    /// The reason for a condition, where the exit code needs one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Invalid { reason, .. } | Self::Outage { reason, .. } => Some(*reason),
            Self::Exhausted { .. } => Some(Reason::BackoffLimitExceeded),
            Self::Stopped | Self::Failed(_) => None,
        }
    }
}

impl From<longstrap_storage::Error> for StepError {
    fn from(error: longstrap_storage::Error) -> Self {
        let message = error.to_string();
        let reason = match error.kind() {
            ErrorKind::Away => return Self::outage(Reason::StorageUnavailable, message),
            ErrorKind::Denied => Reason::AccessDenied,
            ErrorKind::BucketNotFound => Reason::BucketNotFound,
            ErrorKind::Unsupported | ErrorKind::Invalid => Reason::StorageUnsupported,
            ErrorKind::InUse => Reason::StorageInUse,
            ErrorKind::FormatTooNew => Reason::FormatTooNew,
            ErrorKind::Conflict => Reason::FingerprintMismatch,
            ErrorKind::Torn | ErrorKind::Malformed => Reason::DataChanged,
            // A human must make room; what is committed stays.
            ErrorKind::NoSpace => Reason::DoesNotFit,
            ErrorKind::NotFound | ErrorKind::Other => return Self::Failed(error.into()),
        };
        Self::Invalid { reason, message }
    }
}

impl From<std::io::Error> for StepError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::invalid(Reason::DoesNotFit, format!("no space is left on the disk: {error}"))
            }
            _ => Self::Failed(error.into()),
        }
    }
}
