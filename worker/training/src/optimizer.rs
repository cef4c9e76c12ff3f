//! Learning rates and the constants of AdamW.
//!
//! Invariant: a stage's rate is a function of the step within the stage alone; every stage has its
//! own warm-up and its own end.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// The peak to the end.
    Constant,
    /// Half a cosine from the peak to a tenth of it.
    Cosine,
    /// A straight line from the peak towards zero, which it would reach one step after the last.
    Linear,
}

/// Learning rate of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LearningRate {
    /// Highest rate.
    pub peak: f64,
    /// After the warm-up.
    pub schedule: Schedule,
    /// Steps that rise linearly to the peak; 0: none.
    pub warmup_steps: u64,
    /// Steps of the stage.
    pub steps: u64,
}

impl LearningRate {
    /// The rate of step `step`, counted from 1.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let length = (self.steps.max(self.warmup_steps + 1) - self.warmup_steps) as f64;
        let done = ((step - 1 - self.warmup_steps) as f64 / length).min(1.0);
        match self.schedule {
            Schedule::Constant => self.peak,
            Schedule::Cosine => {
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                self.peak * (0.1 + 0.9 * cosine)
            }
            Schedule::Linear => self.peak * (1.0 - done),
        }
    }
}

/// Constants of AdamW and of clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled decay of matrices; norms have none.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub max_norm: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, max_norm: 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let of = |schedule, warmup_steps, steps| {
            let rate = LearningRate { peak: 1.0, schedule, warmup_steps, steps };
            (1..=steps).map(|s| (rate.at(s) * 1e3).round() / 1e3).collect::<Vec<_>>()
        };
        assert_eq!(of(Schedule::Constant, 0, 3), [1.0, 1.0, 1.0]);
        assert_eq!(of(Schedule::Constant, 2, 3), [0.5, 1.0, 1.0]);
        assert_eq!(of(Schedule::Cosine, 0, 2), [1.0, 0.55]);
        assert_eq!(of(Schedule::Cosine, 2, 6), [0.5, 1.0, 1.0, 0.868, 0.55, 0.232]);
        assert_eq!(of(Schedule::Cosine, 10, 3), [0.1, 0.2, 0.3]);
        // As `get_linear_schedule_with_warmup` of transformers after its warm-up.
        assert_eq!(of(Schedule::Linear, 0, 4), [1.0, 0.75, 0.5, 0.25]);
        assert_eq!(of(Schedule::Linear, 2, 7), [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]);
    }
}
