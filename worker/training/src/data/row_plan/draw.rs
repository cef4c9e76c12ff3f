//! Which samples come next: each source in a new seeded order per epoch, the one farthest behind its
//! share of the tokens first.
//!
//! Invariant: an epoch gives every usable sample once before any comes again.

use std::collections::VecDeque;

use super::{Piece, PlanError, SampleSize, Source, SourceUse, StageRows, StepRows, pack};

/// How far a source looks ahead for a sample that fits what is left.
const LOOK_AHEAD: usize = 1024;

/// A drawn sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) piece: Piece,
    pub(super) size: SampleSize,
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
        let purpose = ["order", stage, &self.source.name, &epoch];
        longstrap_random::Draw::new(&seed.to_le_bytes(), &purpose.map(str::as_bytes)).shuffle(&mut order);
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
pub(super) struct Draw<'a> {
    seed: u64,
    stage: String,
    queues: Vec<Queue<'a>>,
    weights: f64,
}

impl<'a> Draw<'a> {
    pub(super) fn new(seed: u64, stage: &StageRows, sources: &'a [Source]) -> Result<Self, PlanError> {
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

    pub(super) fn check_epochs(&self, stage: &StageRows) -> Result<(), PlanError> {
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
    pub(super) fn fill(&mut self, length: u64) -> Vec<Item> {
        let (mut items, mut room) = (Vec::new(), length);
        while let Some(item) = self.fitting(room, items.is_empty()) {
            room -= u64::from(item.size.tokens);
            items.push(item);
        }
        items
    }

    /// The rows of `count` steps of at least `budget` tokens each.
    pub(super) fn window(&mut self, count: usize, budget: u64, length: u64) -> Vec<StepRows> {
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

    /// What each source gave.
    pub(super) fn finish(self) -> Vec<SourceUse> {
        self.queues.into_iter().map(Queue::finish).collect()
    }
}
