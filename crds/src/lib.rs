//! The API of Longstrap: types, rules, defaults, reasons, exit codes and the task file of a pod. No client, no I/O.
//!
//! Invariant: what the generated CRDs accept, these types read; strictness (unknown fields, rules)
//! lives in [`validate`], never in serde, so that an older program can read a newer object.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod common;
pub mod context_extension_run;
pub mod crd;
pub mod decimal;
pub mod exit;
pub mod length;
pub mod names;
pub mod object;
pub mod pod_template;
pub mod reason;
pub mod rules;
pub mod schema;
pub mod status;
pub mod step;
pub mod synthesis_job;
pub mod task;
pub mod validate;

pub use common::{CommonSpec, LocalRef, ModelRef, Recovery, Storage};
pub use context_extension_run::{ContextExtensionRun, ContextExtensionRunSpec, ContextExtensionRunStatus};
pub use decimal::Decimal;
pub use exit::{ExitCode, TerminationMessage};
pub use length::Length;
pub use object::Object;
pub use reason::{ConditionType, Reason};
pub use status::{CommonStatus, DatasetRef, Phase};
pub use step::Step;
pub use synthesis_job::{SynthesisJob, SynthesisJobSpec, SynthesisJobStatus};
pub use task::TaskFile;
pub use validate::{FieldError, parse, validate};

/// The API group of both kinds.
pub const GROUP: &str = "longstrap.io";
/// `apiVersion` of both kinds.
pub const API_VERSION: &str = "longstrap.io/v1alpha1";
