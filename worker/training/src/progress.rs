//! How far a stage is, told from inside a step.
//!
//! Invariant: telemetry only; it counts what was enqueued and decides nothing.

use longstrap_memory_plan::Shape;
use longstrap_runtime::Progress;

use crate::data::row_plan::RowPlan;
use crate::model::Place;

/// Work of a layer's backward, in forwards: it computes the forward again and two gradients.
const BACKWARD: f64 = 2.7;

/// Progress inside one step.
pub(crate) struct StageProgress<'a> {
    progress: &'a Progress,
    layers: usize,
    /// Work of the head and its gradient, in forwards of a layer.
    head: f64,
    /// Tokens of the stage, and of the steps before this one.
    total: u64,
    before: u64,
    /// Tokens of each row of the step.
    rows: Vec<u64>,
    step: u64,
    steps: usize,
}

impl<'a> StageProgress<'a> {
    /// Of the step after `done` finished ones.
    pub(crate) fn new(progress: &'a Progress, shape: &Shape, plan: &RowPlan, done: u64) -> Self {
        let tokens = |step: &crate::data::row_plan::StepRows| step.rows.iter().map(|r| r.tokens).sum::<u64>();
        let head = (3 * shape.vocab * shape.hidden) as f64 / shape.layer_matrices() as f64;
        Self {
            progress,
            layers: shape.layers,
            head,
            total: plan.tokens(),
            before: plan.steps[..done as usize].iter().map(tokens).sum(),
            rows: plan.steps[done as usize].rows.iter().map(|r| r.tokens).collect(),
            step: done + 1,
            steps: plan.steps.len(),
        }
    }

    /// Tells that a part of the step is about to run.
    pub(crate) fn at(&self, place: Place) {
        let layers = self.layers as f64;
        let all = layers * (1.0 + BACKWARD) + self.head;
        let (row, done, what) = match place {
            Place::Forward { row, layer } => {
                (row, layer as f64, format!("forward, layer {} of {}", layer + 1, self.layers))
            }
            Place::Head { row } => (row, layers, "loss".to_owned()),
            Place::Backward { row, layer } => {
                let behind = self.layers - 1 - layer;
                let done = layers + self.head + behind as f64 * BACKWARD;
                (row, done, format!("backward, layer {} of {}", behind + 1, self.layers))
            }
            Place::Reduce => (self.rows.len(), 0.0, "summing gradients".to_owned()),
            Place::Update => (self.rows.len(), 0.0, "updating weights".to_owned()),
        };
        let rows_before: u64 = self.rows[..row].iter().sum();
        let tokens = self.rows.get(row).copied().unwrap_or_default() as f64;
        let done = (self.before + rows_before) as f64 + tokens * done / all;
        let row = (row + 1).min(self.rows.len());
        self.progress.activity(format!(
            "step {} of {}, row {row} of {}, {what}",
            self.step,
            self.steps,
            self.rows.len()
        ));
        self.progress.work(done, self.total as f64, "tokens");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::row_plan::{Row, StepRows};

    #[test]
    fn a_step_moves_forward_all_the_time_and_ends_where_the_next_begins() {
        let row = |tokens| Row { tokens, ..Row::default() };
        let steps = vec![StepRows { rows: vec![row(100), row(20)] }, StepRows { rows: vec![row(80)] }];
        let plan = RowPlan { steps, sources: Vec::new() };
        let shape = Shape {
            layers: 3,
            hidden: 8,
            intermediate: 16,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            vocab: 50,
            tied: true,
        };
        let progress = Progress::new("u", "train-0");
        let mut before = -1.0;
        for (done, rows) in [(0, 2), (1, 1)] {
            let step = StageProgress::new(&progress, &shape, &plan, done);
            let of_row = |row| {
                let forward = (0..3).map(move |layer| Place::Forward { row, layer });
                let backward = (0..3).rev().map(move |layer| Place::Backward { row, layer });
                forward.chain([Place::Head { row }]).chain(backward)
            };
            for place in (0..rows).flat_map(of_row) {
                step.at(place);
                let report = progress.report();
                assert!(report.done > before, "{place:?}");
                before = report.done;
            }
            step.at(Place::Update);
            assert_eq!(
                (progress.report().done, progress.report().total),
                ([120.0, 200.0][done as usize], 200.0)
            );
        }
        assert!(progress.report().activity.starts_with("step 2 of 2"));
    }
}
