//! What a longer window is worth: loss by position, recall by distance, needles, and the report.
//!
//! Invariant: [`plan`] is a pure function of held-out text, window and seed, and [`Results`] holds no
//! time and no path, so the same model on the same text gives the same bytes.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chart;
mod error;
mod layout;
mod measure;
mod model;
mod needles;
mod report;
mod results;

pub use error::{EvaluationError, Result};
pub use layout::{Inserted, Kind, Layout, Measurements, Needle, Request, Sizes, plan};
pub use measure::{NeedleScore, Phase, PositionLoss, Recall, Scorer, Scores, measure};
pub use model::{check_texts, plan_texts};
pub use needles::Encode;
pub use report::{PhaseTime, html};
pub use results::{Comparison, FORMAT_VERSION, HeldOut, ModelKind, ModelResult, Results};
