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
