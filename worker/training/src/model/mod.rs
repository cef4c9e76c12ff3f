//! A Llama model written out as operations on views: readable from top to bottom, no graph.
//!
//! Invariant: nothing here knows how a row is spread over ranks ([`Ring`] does), and no number
//! that is computed comes back to the host. The backward recomputes a layer from its input; what
//! attention gave (output and log-sum-exp) is kept when the plan says so.

mod backward;
mod buffers;
mod forward;
mod ring;

use longstrap_engine::{Backend, Beta, Comm, Gemm, Heads, Result, Stream, Transpose, View};
use longstrap_memory_plan::{Name, Plan};

pub use buffers::{Activations, Buffers, Layer, Parameters, RowViews, tiles, view};
pub use ring::{At, Qkv, Ring};

const COMPUTE: Stream = Stream::Compute;

/// A point inside a step, for progress and for an early stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A layer of a row's forward is about to run.
    Forward {
        /// Row within the step.
        row: usize,
        /// The layer.
        layer: usize,
    },
    /// The head and its gradient.
    Head {
        /// Row within the step.
        row: usize,
    },
    /// A layer of a row's backward.
    Backward {
        /// Row within the step.
        row: usize,
        /// The layer.
        layer: usize,
    },
    /// Gradients are summed over the ranks.
    Reduce,
    /// The update, which is never interrupted.
    Update,
}

/// Why a step did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Someone asked to stop; nothing of the step was applied.
    #[error("stopped inside a step")]
    Interrupted,
    /// A kernel or a peer failed.
    #[error(transparent)]
    Engine(#[from] longstrap_engine::Error),
}

/// Result of what may be interrupted.
pub type StepResult<T = ()> = std::result::Result<T, StepError>;

/// Asked at every place of a step: go on?
pub type Watch<'w> = dyn Fn(Place) -> bool + 'w;

pub(crate) fn visit(watch: &Watch<'_>, place: Place) -> StepResult {
    if watch(place) { Ok(()) } else { Err(StepError::Interrupted) }
}

/// The model on one rank.
pub struct Model<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) plan: &'a Plan,
    pub(crate) weights: Parameters,
    pub(crate) gradients: Parameters,
    pub(crate) buffers: Buffers,
    ring: Ring<'a>,
    heads: Heads,
    eps: f32,
}

impl<'a> Model<'a> {
    /// A model in the arenas of `plan`; weights are whatever lies there.
    pub fn new(backend: &'a dyn Backend, comm: &'a dyn Comm, plan: &'a Plan, eps: f32) -> Self {
        let shape = &plan.shape;
        let heads = Heads { query: shape.heads, kv: shape.kv_heads, dim: shape.head_dim };
        let buffers = Buffers::new(plan);
        Self {
            backend,
            plan,
            weights: Parameters::new(plan, Name::Weights),
            gradients: Parameters::new(plan, Name::Gradients),
            ring: Ring::new(backend, comm, heads, &buffers),
            buffers,
            heads,
            eps,
        }
    }

    /// Sets the inverse frequencies of RoPE, D/2 numbers.
    ///
    /// # Errors
    /// When their number is wrong.
    pub fn set_inverse_frequencies(&self, frequencies: &[f32]) -> Result<()> {
        self.backend.write(self.buffers.inv_freq, bytemuck::cast_slice(frequencies))
    }

    /// c ← β·c + a·bᵀ: a projection by weights `[out, in]`.
    fn project(&self, a: View, b: View, c: View, beta: Beta) -> Result<()> {
        self.gemm(a, Transpose::No, b, Transpose::Yes, c, beta)
    }

    /// c ← β·c + a·b: the gradient of a projection's input.
    fn project_back(&self, a: View, b: View, c: View, beta: Beta) -> Result<()> {
        self.gemm(a, Transpose::No, b, Transpose::No, c, beta)
    }

    /// c ← c + aᵀ·b: the gradient of a projection's weights.
    fn add_outer(&self, a: View, b: View, c: View) -> Result<()> {
        self.gemm(a, Transpose::Yes, b, Transpose::No, c, Beta::One)
    }

    fn gemm(&self, a: View, ta: Transpose, b: View, tb: Transpose, c: View, beta: Beta) -> Result<()> {
        self.backend.gemm(COMPUTE, Gemm { a, ta, b, tb, c, beta })
    }

    fn keeps_attention(&self) -> bool {
        self.plan.options.keep_attention
    }

    /// Where layer `l` finds its input while the forward runs, in f32; layer `L` is the head.
    fn stream(&self, acts: &Activations, l: usize) -> View {
        match acts.inputs.get(l) {
            Some(slot) if self.plan.options.inputs_in_place() => *slot,
            _ => acts.hidden,
        }
    }

    fn attention_slot(&self, acts: &Activations, l: usize) -> (View, View) {
        let slot = if self.keeps_attention() { l } else { 0 };
        (acts.attention[slot], acts.lse[slot])
    }
}
