//! Which samples make which row of which step: an immutable list that knows no world size.
//!
//! Invariant: pieces are whole samples; a row never exceeds the stage's length; the plan is a
//! function of sample lengths, seed and the stage's numbers alone. Shares are counted in tokens.

mod draw;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::draw::{Draw, Item};

/// Steps whose samples are drawn together: their long samples are dealt evenly over them.
const WINDOW: usize = 16;

/// A source as the plan sees it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name: part of the seed.
    pub name: String,
    /// Share of the tokens.
    pub weight: u32,
    /// Length and number of targets of every sample.
    pub samples: Vec<SampleSize>,
}

/// What the plan knows of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSize {
    /// Rendered tokens.
    pub tokens: u32,
    /// Tokens with a loss.
    pub targets: u32,
}

/// What decides a stage's rows.
#[derive(Clone, Debug)]
pub struct StageRows {
    /// Its name: part of the seed.
    pub name: String,
    /// Longest row.
    pub length: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// A step takes rows until it has so many tokens; `None`: one row.
    pub tokens_per_step: Option<u64>,
    /// Epochs of a source beyond which the stage is refused.
    pub max_epochs: u32,
}

/// A whole sample in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// Index of the source.
    pub source: u16,
    /// Index of the sample in its source.
    pub sample: u32,
}

/// Samples that share a row, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The samples.
    pub pieces: Vec<Piece>,
    /// Their tokens in all.
    pub tokens: u64,
    /// Their targets in all.
    pub targets: u64,
}

/// The rows of one optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRows {
    /// At least one.
    pub rows: Vec<Row>,
}

/// What a source gives to a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceUse {
    /// Name of the source.
    pub name: String,
    /// Samples that a row of the stage can hold.
    pub usable: u64,
    /// Samples that are longer: they wait for their stage.
    pub too_long: u64,
    /// Samples without any target: they would cost time and teach nothing.
    pub without_loss: u64,
    /// Samples drawn, repetitions counted.
    pub drawn: u64,
    /// Their tokens.
    pub tokens: u64,
    /// How often the source is gone through.
    pub epochs: f64,
}

/// The plan of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RowPlan {
    /// One entry for each optimizer step.
    pub steps: Vec<StepRows>,
    /// One entry for each source.
    pub sources: Vec<SourceUse>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A source has nothing for this stage.
    #[error(
        "data source {name} has no sample that stage {stage} could take: {too_long} of {samples} are longer than {length} tokens, {without_loss} have no token with a loss"
    )]
    NothingUsable {
        /// The source.
        name: String,
        /// The stage.
        stage: String,
        /// The stage's length.
        length: usize,
        /// Samples of the source.
        samples: u64,
        /// Longer ones.
        too_long: u64,
        /// Without loss.
        without_loss: u64,
    },
    /// A source would repeat too often.
    #[error(
        "stage {stage} would go {epochs:.1} times through data source {name}, more than training.maxEpochs = {max}: take fewer steps, lower its weight or add data"
    )]
    TooManyEpochs {
        /// The source.
        name: String,
        /// The stage.
        stage: String,
        /// As often.
        epochs: f64,
        /// As often as allowed.
        max: u32,
    },
}

impl RowPlan {
    /// Plans a stage.
    ///
    /// # Errors
    /// A source without a usable sample, or one that would repeat too often.
    pub fn new(seed: u64, stage: &StageRows, sources: &[Source]) -> Result<Self, PlanError> {
        let mut draw = Draw::new(seed, stage, sources)?;
        let mut steps = Vec::with_capacity(stage.steps);
        match stage.tokens_per_step {
            None => {
                for _ in 0..stage.steps {
                    let items = draw.fill(stage.length as u64);
                    steps.push(StepRows { rows: pack(items, stage.length as u64) });
                    draw.check_epochs(stage)?;
                }
            }
            Some(budget) => {
                while steps.len() < stage.steps {
                    let count = WINDOW.min(stage.steps - steps.len());
                    steps.extend(draw.window(count, budget, stage.length as u64));
                    draw.check_epochs(stage)?;
                }
            }
        }
        Ok(Self { steps, sources: draw.finish() })
    }

    /// Tokens of all rows.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.steps.iter().flat_map(|s| &s.rows).map(|r| r.tokens).sum()
    }
}

/// Best fit, the longest first: a sample goes to the row that it fills most.
fn pack(mut items: Vec<Item>, length: u64) -> Vec<Row> {
    items.sort_by_key(|i| std::cmp::Reverse(i.size.tokens));
    let mut rows: Vec<Row> = Vec::new();
    for item in items {
        let tokens = u64::from(item.size.tokens);
        let fullest = rows.iter_mut().filter(|r| r.tokens + tokens <= length).max_by_key(|r| r.tokens);
        let row = match fullest {
            Some(row) => row,
            None => {
                rows.push(Row::default());
                rows.last_mut().expect("one was pushed")
            }
        };
        row.pieces.push(item.piece);
        row.tokens += tokens;
        row.targets += u64::from(item.size.targets);
    }
    rows
}
