//! The steps of a run, their order and names.
//!
//! Invariant: `Display` and `FromStr` are inverse; the names stand in Jobs, task files and status.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One step of a run: one Job at a time works on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Step {
    /// Probe storage, read inputs, resolve the spec into `run.json`.
    Prepare,
    /// Write samples, shard by shard.
    Generate,
    /// Publish the dataset.
    Finalize,
    /// Train consecutive stages that ask for the same pods, from the stage of this index on. (Their
    /// index and not a count: it stays when an edit puts stages together or apart.)
    Train(u32),
    /// Publish the model.
    Export,
}

impl Step {
    /// The command of `longstrap-worker` that does the step.
    pub fn command(self) -> &'static str {
        match self {
            Step::Prepare => "prepare",
            Step::Generate => "generate",
            Step::Finalize => "finalize",
            Step::Train(_) => "agent",
            Step::Export => "export",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Train(k) => write!(f, "train-{k}"),
            other => f.write_str(other.command()),
        }
    }
}

/// A text that is no step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a step: prepare, generate, finalize, train-0, train-1, … or export")]
pub struct UnknownStep(String);

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(text: &str) -> Result<Self, UnknownStep> {
        let train = || text.strip_prefix("train-")?.parse().ok().map(Step::Train);
        match text {
            "prepare" => Some(Step::Prepare),
            "generate" => Some(Step::Generate),
            "finalize" => Some(Step::Finalize),
            "export" => Some(Step::Export),
            _ => train(),
        }
        .filter(|step| step.to_string() == text)
        .ok_or_else(|| UnknownStep(text.to_owned()))
    }
}

impl TryFrom<String> for Step {
    type Error = UnknownStep;

    fn try_from(text: String) -> Result<Self, UnknownStep> {
        text.parse()
    }
}

impl From<Step> for String {
    fn from(step: Step) -> Self {
        step.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for step in
            [Step::Prepare, Step::Generate, Step::Finalize, Step::Train(0), Step::Train(12), Step::Export]
        {
            assert_eq!(step.to_string().parse(), Ok(step));
        }
        for bad in ["", "agent", "train", "train-", "train-+1", "train-01", "Prepare"] {
            assert!(bad.parse::<Step>().is_err(), "{bad}");
        }
    }
}
