//! Which samples make which row of which step: an immutable list that knows no world size.
//!
//! Invariant: pieces are whole samples; a row never exceeds the stage's length; the plan is a
//! function of sample lengths, seed and the stage's numbers alone. Shares are counted in tokens.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::seed;

/// Steps whose samples are drawn together: their long samples are dealt evenly over them.
const WINDOW: usize = 16;
/// How far a source looks ahead for a sample that fits what is left.
const LOOK_AHEAD: usize = 1024;

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
        Ok(Self { steps, sources: draw.queues.into_iter().map(Queue::finish).collect() })
    }

    /// Tokens of all rows.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.steps.iter().flat_map(|s| &s.rows).map(|r| r.tokens).sum()
    }
}

/// A drawn sample.
#[derive(Clone, Copy, Debug)]
struct Item {
    piece: Piece,
    size: SampleSize,
}

/// A source with the rest of its current epoch.
struct Queue<'a> {
    source: &'a Source,
    index: u16,
    usable: Vec<u32>,
    rest: VecDeque<u32>,
    epoch: u64,
    found: SourceUse,
}

impl Queue<'_> {
    fn refill(&mut self, seed: u64, stage: &str) {
        let mut order = self.usable.clone();
        let epoch = self.epoch.to_string();
        seed::shuffle(&mut order, &mut seed::stream(seed, &["order", stage, &self.source.name, &epoch]));
        self.rest = order.into();
        self.epoch += 1;
    }

    fn size(&self, sample: u32) -> SampleSize {
        self.source.samples[sample as usize]
    }

    /// Place of the first sample of the epoch's rest that has at most `room` tokens.
    fn first_fit(&self, room: u64) -> Option<usize> {
        let fits = |s: &u32| u64::from(self.size(*s).tokens) <= room;
        self.rest.iter().take(LOOK_AHEAD).position(fits)
    }

    /// Place of the shortest of the next samples.
    fn shortest(&self) -> Option<(u32, usize)> {
        let next = self.rest.iter().take(LOOK_AHEAD).enumerate();
        next.map(|(i, s)| (self.size(*s).tokens, i)).min()
    }

    fn take(&mut self, place: usize) -> Option<Item> {
        let sample = self.rest.remove(place)?;
        let size = self.size(sample);
        self.found.drawn += 1;
        self.found.tokens += u64::from(size.tokens);
        Some(Item { piece: Piece { source: self.index, sample }, size })
    }

    fn epochs(&self) -> f64 {
        self.found.drawn as f64 / self.usable.len() as f64
    }

    fn finish(mut self) -> SourceUse {
        self.found.epochs = self.epochs();
        self.found
    }
}

/// Draws samples so that each source comes closest to its share of the tokens.
struct Draw<'a> {
    seed: u64,
    stage: String,
    queues: Vec<Queue<'a>>,
    weights: f64,
}

impl<'a> Draw<'a> {
    fn new(seed: u64, stage: &StageRows, sources: &'a [Source]) -> Result<Self, PlanError> {
        let mut queues = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            let mut found = SourceUse { name: source.name.clone(), ..SourceUse::default() };
            let mut usable = Vec::new();
            for (i, size) in source.samples.iter().enumerate() {
                if size.tokens as usize > stage.length {
                    found.too_long += 1;
                } else if size.targets == 0 {
                    found.without_loss += 1;
                } else {
                    usable.push(i as u32);
                }
            }
            found.usable = usable.len() as u64;
            if usable.is_empty() {
                return Err(PlanError::NothingUsable {
                    name: source.name.clone(),
                    stage: stage.name.clone(),
                    length: stage.length,
                    samples: source.samples.len() as u64,
                    too_long: found.too_long,
                    without_loss: found.without_loss,
                });
            }
            let mut queue =
                Queue { source, index: index as u16, usable, rest: VecDeque::new(), epoch: 0, found };
            queue.refill(seed, &stage.name);
            queues.push(queue);
        }
        let weights = sources.iter().map(|s| f64::from(s.weight)).sum();
        Ok(Self { seed, stage: stage.name.clone(), queues, weights })
    }

    fn check_epochs(&self, stage: &StageRows) -> Result<(), PlanError> {
        for queue in &self.queues {
            let epochs = queue.epochs();
            if epochs > f64::from(stage.max_epochs) {
                return Err(PlanError::TooManyEpochs {
                    name: queue.source.name.clone(),
                    stage: self.stage.clone(),
                    epochs,
                    max: stage.max_epochs,
                });
            }
        }
        Ok(())
    }

    /// Sources, the one farthest behind its share first; ties by index.
    fn by_need(&self) -> Vec<(f64, usize)> {
        let total: u64 = self.queues.iter().map(|q| q.found.tokens).sum();
        let behind =
            |q: &Queue<'_>| total as f64 * f64::from(q.source.weight) / self.weights - q.found.tokens as f64;
        let mut order: Vec<_> = self.queues.iter().enumerate().map(|(i, q)| (behind(q), i)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        order
    }

    /// The next sample with at most `room` tokens, from the source that needs it most.
    fn fitting(&mut self, room: u64, first: bool) -> Option<Item> {
        for (behind, i) in self.by_need() {
            // A source starts over only where its share asks for it, never to fill a gap.
            if self.queues[i].rest.is_empty() && (behind > 0.0 || first) {
                self.queues[i].refill(self.seed, &self.stage);
            }
            if let Some(place) = self.queues[i].first_fit(room) {
                return self.queues[i].take(place);
            }
        }
        None
    }

    /// The next sample of a source that brings it closer to `quota` tokens.
    fn towards(&mut self, i: usize, quota: u64) -> Option<Item> {
        let queue = &mut self.queues[i];
        let missing = quota.saturating_sub(queue.found.tokens);
        if missing > 0 && queue.rest.is_empty() {
            queue.refill(self.seed, &self.stage);
        }
        queue.first_fit(2 * missing).and_then(|place| queue.take(place))
    }

    /// The shortest sample at hand.
    fn shortest(&mut self) -> Option<Item> {
        for queue in &mut self.queues {
            if queue.rest.is_empty() {
                queue.refill(self.seed, &self.stage);
            }
        }
        let shortest = self.queues.iter().enumerate().filter_map(|(i, q)| q.shortest().map(|s| (s, i)));
        let ((_, place), i) = shortest.min()?;
        self.queues[i].take(place)
    }

    /// Samples for one row: until nothing at hand fits any more.
    fn fill(&mut self, length: u64) -> Vec<Item> {
        let (mut items, mut room) = (Vec::new(), length);
        while let Some(item) = self.fitting(room, items.is_empty()) {
            room -= u64::from(item.size.tokens);
            items.push(item);
        }
        items
    }

    /// The rows of `count` steps of at least `budget` tokens each.
    fn window(&mut self, count: usize, budget: u64, length: u64) -> Vec<StepRows> {
        let demand = budget * count as u64;
        let total = demand + self.queues.iter().map(|q| q.found.tokens).sum::<u64>();
        let mut items = Vec::new();
        for i in 0..self.queues.len() {
            let share = f64::from(self.queues[i].source.weight) / self.weights;
            while let Some(item) = self.towards(i, (share * total as f64).round() as u64) {
                items.push(item);
            }
        }
        // The longest first, each to the step that has least.
        items.sort_by_key(|i| std::cmp::Reverse(i.size.tokens));
        let mut steps: Vec<(u64, Vec<Item>)> = vec![(0, Vec::new()); count];
        for item in items {
            if let Some(step) = steps.iter_mut().min_by_key(|s| s.0) {
                step.0 += u64::from(item.size.tokens);
                step.1.push(item);
            }
        }
        for (tokens, items) in &mut steps {
            while *tokens < budget {
                let Some(item) = self.fitting(budget - *tokens, false).or_else(|| self.shortest()) else {
                    break;
                };
                *tokens += u64::from(item.size.tokens);
                items.push(item);
            }
        }
        steps.into_iter().map(|(_, items)| StepRows { rows: pack(items, length) }).collect()
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
