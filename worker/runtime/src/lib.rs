//! What every pod process has: task file, termination message, exit codes, progress, signals.
//!
//! A step is `async fn run(ctx: &StepContext) -> StepResult`; [`main_step`] gives it its context
//! and turns its end into exit code and termination message.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod context;
pub mod env;
mod error;
mod fetch;
mod logging;
pub mod machine;
mod main_step;
mod metrics;
mod outage;
mod progress;
pub mod rank;
mod serve;
mod signals;
mod termination;

pub use context::{StepContext, Surroundings};
pub use error::{StepError, StepResult};
pub use logging::init as init_logging;
pub use longstrap_proto::v1alpha1::{Dropped, ProgressReport};
pub use longstrap_storage::AttemptId;
pub use main_step::{main_rank, main_step};
pub use outage::Outage;
pub use progress::Progress;
pub use serve::serve;
pub use termination::Termination;
