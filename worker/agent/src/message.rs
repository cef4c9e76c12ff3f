//! What pods and coordinator tell each other, as checked types.

use longstrap_crds::{ExitCode, Reason};
use longstrap_runtime::StepError;

/// How the ranks of one pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every rank has done all its work.
    Done,
    /// They were told to stop.
    Stopped,
    /// A rank crashed or hung; says which and how.
    Failed(String),
    /// A rank says that the step cannot go on (exit codes 10 and 12).
    Hopeless(Exit),
}

/// How an agent ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: ExitCode,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: String,
}

impl Exit {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, reason: None, message: message.into() }
    }

    pub(crate) fn of_error(error: &StepError) -> Self {
        Self { code: error.exit_code(), reason: error.reason(), message: error.to_string() }
    }

    pub(crate) fn into_result(self) -> Result<(), StepError> {
        let Self { code, reason, message } = self;
        match (code, reason) {
            (ExitCode::Committed, _) => Ok(()),
            (ExitCode::Stopped, _) => Err(StepError::Stopped),
            (ExitCode::Exhausted, _) => Err(StepError::Exhausted { message }),
            (ExitCode::Invalid, Some(reason)) => Err(StepError::Invalid { reason, message }),
            (ExitCode::Outage, Some(reason)) => Err(StepError::Outage { reason, message }),
            _ => Err(StepError::Failed(anyhow::Error::msg(message))),
        }
    }
}

/// Where one pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodState {
    /// No rank runs; these addresses listen for the next ones.
    Joining { addresses: Vec<String> },
    /// Ranks of this generation run.
    Running { generation: u64 },
    /// All ranks of this generation are gone.
    Stopped { generation: u64, outcome: Outcome },
}

/// One pod's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodReport {
    pub(crate) index: u32,
    pub(crate) pod_uid: String,
    pub(crate) state: PodState,
    /// The pod was told to stop and leaves when its ranks are gone.
    pub(crate) leaving: bool,
}

/// A formed gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gang {
    pub(crate) generation: u64,
    /// host:port by rank.
    pub(crate) peers: Vec<String>,
    pub(crate) token: String,
    /// Key of the checkpoint to go on from.
    pub(crate) resume: Option<String>,
}

/// The coordinator's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    Wait,
    Start(Gang),
    Stop { generation: u64, save: bool },
    Exit(Exit),
}
