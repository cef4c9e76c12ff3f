//! Condition types and the one list of reasons that conditions, events, metrics and docs share.
//!
//! Invariant: a reason has one meaning and one consequence ([`Reason::effect`]); names never change.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The run will not go on.
    Failed,
    /// The result is there.
    Complete,
    /// kstatus: a human must mend something.
    Stalled,
    /// kstatus: the object is as wanted.
    Ready,
    /// Stopped by spec.suspend.
    Suspended,
    /// All data that the run names is there and pinned.
    DataReady,
    /// No pod of the current Job runs.
    Queued,
    /// All pods of the current Job have a node.
    PodsScheduled,
    /// Pods run.
    Running,
    /// Work was committed from which a next attempt goes on.
    CheckpointAvailable,
    /// The running Job was made from the present spec.
    UpToDate,
}

impl ConditionType {
    /// All types, in the order in which a status lists them.
    pub const ALL: [Self; 11] = [
        Self::Ready,
        Self::Stalled,
        Self::Complete,
        Self::Failed,
        Self::Suspended,
        Self::DataReady,
        Self::Queued,
        Self::PodsScheduled,
        Self::Running,
        Self::CheckpointAvailable,
        Self::UpToDate,
    ];

    /// The `type` of the condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "Failed",
            Self::Complete => "Complete",
            Self::Stalled => "Stalled",
            Self::Ready => "Ready",
            Self::Suspended => "Suspended",
            Self::DataReady => "DataReady",
            Self::Queued => "Queued",
            Self::PodsScheduled => "PodsScheduled",
            Self::Running => "Running",
            Self::CheckpointAvailable => "CheckpointAvailable",
            Self::UpToDate => "UpToDate",
        }
    }
}

/// What a reason does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Blocked until the object is edited or `longstrap restart` is called.
    BlockedUntilEdit,
    /// Blocked; tried again by itself with a back-off of 1 to 15 minutes, and on an edit.
    BlockedRetried,
    /// Something outside is away: tried again with a back-off of 1 to 30 minutes.
    Outage,
    /// Waits for data.
    WaitsForData,
    /// Waits for pods.
    WaitsForPods,
    /// The run has failed.
    Failed,
    /// Tells how things are; nothing is wrong.
    Informs,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $effect:ident,)+) => {
        /// Why a condition has its status, an event was written, a pod ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word in conditions, events and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What the reason does to a run.
            pub fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)+ }
            }

            /// One sentence for the documentation.
            pub fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The plan needs more memory or disk than there is.
    DoesNotFit => BlockedUntilEdit,
    /// The first stage is not longer than the model's window; allowWindowNotExtended permits it.
    WindowNotExtended => BlockedUntilEdit,
    /// The model cannot be read or is of a kind that is not supported.
    InvalidModel => BlockedUntilEdit,
    /// Corpus or training data cannot be used.
    InvalidData => BlockedUntilEdit,
    /// Tokenizer or chat template cannot be used.
    InvalidTokenizer => BlockedUntilEdit,
    /// The API server refuses the pods that podTemplate makes.
    InvalidPodTemplate => BlockedUntilEdit,
    /// The store lacks what the protocol needs.
    StorageUnsupported => BlockedUntilEdit,
    /// A file: URI does not lie under a durable mount of the pods.
    StorageNotDurable => BlockedUntilEdit,
    /// Data changed after it was pinned.
    DataChanged => BlockedUntilEdit,
    /// The storage holds a run of another specification.
    FingerprintMismatch => BlockedUntilEdit,
    /// The storage was written by a newer version.
    FormatTooNew => BlockedUntilEdit,
    /// A Kueue label or annotation on the object that would change the Jobs behind the operator.
    KueueKeyNotSupported => BlockedUntilEdit,
    /// Kueue would move the Job to another cluster.
    MultiKueueUnsupported => BlockedUntilEdit,
    /// The storage belongs to another object.
    StorageInUse => BlockedRetried,
    /// An object that is not ours has the name of one of our Jobs, Services or ConfigMaps.
    NameConflict => BlockedRetried,
    /// Storage or endpoint refuses the credentials.
    AccessDenied => BlockedRetried,
    /// The bucket does not exist.
    BucketNotFound => BlockedRetried,
    /// The generator's endpoint does not answer usefully.
    EndpointUnavailable => Outage,
    /// The storage does not answer.
    StorageUnavailable => Outage,
    /// The SynthesisJob that the run names does not exist.
    SynthesisNotFound => WaitsForData,
    /// The SynthesisJob that the run names is not complete.
    SynthesisNotComplete => WaitsForData,
    /// The SynthesisJob that the run names has failed.
    SynthesisFailed => WaitsForData,
    /// No node has room for a pod.
    Unschedulable => WaitsForPods,
    /// A quota refuses a pod.
    QuotaExceeded => WaitsForPods,
    /// Admission refuses a pod.
    PodRejected => WaitsForPods,
    /// A pod's image cannot be pulled.
    ImagePull => WaitsForPods,
    /// A Secret that a pod mounts does not exist.
    SecretNotFound => WaitsForPods,
    /// Kueue holds the Job in its queue.
    KueueSuspended => WaitsForPods,
    /// A pod's node does not answer, and recovery.lostNode is Wait.
    NodeLost => WaitsForPods,
    /// Too many consecutive failures without progress.
    BackoffLimitExceeded => Failed,
    /// activeDeadlineSeconds have passed.
    DeadlineExceeded => Failed,
    /// The pods did not all run within startupDeadlineSeconds.
    StartupDeadlineExceeded => Failed,
    /// The result is there.
    Completed => Informs,
    /// spec.suspend is true.
    SuspendRequested => Informs,
    /// All data is there and pinned.
    DataAvailable => Informs,
    /// The Job's pods have not been started yet.
    WaitingForPods => Informs,
    /// All pods have a node.
    PodsHaveNodes => Informs,
    /// Pods run.
    PodsRunning => Informs,
    /// The next attempt waits for its time.
    BackingOff => Informs,
    /// Work was committed from which a next attempt goes on.
    Committed => Informs,
    /// A Job was created.
    JobCreated => Informs,
    /// A Job was deleted.
    JobDeleted => Informs,
    /// A step was finished.
    StepComplete => Informs,
    /// A pod failed and was counted.
    PodFailed => Informs,
    /// The running Job was made from the present spec.
    SpecApplied => Informs,
    /// The spec was edited; the next attempt takes it up.
    SpecEdited => Informs,
    /// A restart was asked for.
    RestartRequested => Informs,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a known reason")]
pub struct UnknownReason(String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|r| r.as_str() == word).ok_or_else(|| UnknownReason(word.to_owned()))
    }
}
