//! The kernels that a trainer needs, as one trait: the work list of every device.
//!
//! Invariant: an operation enqueues and returns no number. [`Backend::write`] and
//! [`Backend::read`] are the only ways across; no number computed in a step steers the host
//! inside the step. Results depend on shapes and inputs, never on threads, timing or addresses.

use crate::{Result, View};

/// Where an operation is enqueued. Operations of one stream run in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Arithmetic. On the CPU it runs inline.
    Compute,
    /// Copies between the arenas, beside the arithmetic.
    Copy,
    /// Collectives, beside both.
    Comm,
}

/// A point in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// What becomes of the destination's old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beta {
    /// It is overwritten (and need not be initialised).
    Zero,
    /// The result is added.
    One,
}

/// Whether an operand of a matrix product is read transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transpose {
    /// As stored.
    No,
    /// Transposed.
    Yes,
}

/// `c ← β·c + op(a)·op(b)`; `op(a)`: m × k, `op(b)`: k × n, `c`: m × n; f32 or bf16 operands,
/// f32 accumulation.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Left operand.
    pub a: View,
    /// Of the left operand.
    pub ta: Transpose,
    /// Right operand.
    pub b: View,
    /// Of the right operand.
    pub tb: Transpose,
    /// Destination.
    pub c: View,
    /// Of the destination.
    pub beta: Beta,
}

/// Heads of grouped-query attention: query head `h` reads KV head `h / (query / kv)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; divides `query`.
    pub kv: usize,
    /// Columns of one head.
    pub dim: usize,
}

/// Which keys a query sees: `first_key[i] ≤ k_pos[j] ≤ q_pos[i]`.
///
/// Positions count within the row, so one rule serves causality, packed samples (`first_key` is
/// the start of the query's sample) and sequence shards in any order. `u32::MAX` as a key's
/// position hides it from all; as `first_key` it makes a query see nothing: that is padding.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// S_q × 1, u32.
    pub q_pos: View,
    /// S_q × 1, u32.
    pub first_key: View,
    /// S_k × 1, u32.
    pub k_pos: View,
}

/// Attention of one block of queries to one block of keys, merged into what earlier blocks left.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// S_q × (query·dim).
    pub q: View,
    /// S_k × (kv·dim).
    pub k: View,
    /// S_k × (kv·dim).
    pub v: View,
    /// Which pairs count.
    pub mask: Mask,
    /// Shape of the heads.
    pub heads: Heads,
    /// Factor on q·k, usually 1/√dim.
    pub scale: f32,
    /// S_q × (query·dim), f32: the normalised output so far; zeros before the first block.
    pub o: View,
    /// S_q × query, f32: log of the sum of exponentials so far; −∞ before the first block. A
    /// block without a visible key leaves `o` and `lse` as they are.
    pub lse: View,
}

/// Gradients of [`Attention`] for the final `lse`; each call adds one block's part.
#[derive(Clone, Copy, Debug)]
pub struct AttentionGrad {
    /// S_q × (query·dim).
    pub q: View,
    /// S_k × (kv·dim).
    pub k: View,
    /// S_k × (kv·dim).
    pub v: View,
    /// Which pairs count.
    pub mask: Mask,
    /// Shape of the heads.
    pub heads: Heads,
    /// Factor on q·k.
    pub scale: f32,
    /// S_q × query, f32: final.
    pub lse: View,
    /// S_q × query, f32: from [`Backend::attn_delta`].
    pub delta: View,
    /// S_q × (query·dim): gradient of the output.
    pub d_o: View,
    /// S_q × (query·dim), f32, added to.
    pub dq: View,
    /// S_k × (kv·dim), f32, added to; summed over the query heads of a KV head.
    pub dk: View,
    /// S_k × (kv·dim), f32, added to; likewise.
    pub dv: View,
}

/// Negative log-likelihood of targets, and its gradient in place of the logits.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// T × V, f32; becomes `weight · scale · (softmax − onehot)` when `grad` is set.
    pub logits: View,
    /// T × 1, u32; `u32::MAX`: no target (nll 0, gradient 0).
    pub targets: View,
    /// T × 1, f32: loss weight of each target.
    pub weights: View,
    /// 1 / Σ of the weights over the whole global batch: known before the step.
    pub scale: f32,
    /// T × 1, f32: plain nll per token, in nats.
    pub nll: View,
    /// Whether the logits are replaced by their gradient; else they are left as they are.
    pub grad: bool,
}

/// One AdamW update of a flat buffer (decoupled decay, bias correction in f64, ε outside the
/// root): left untouched when the `finite` flag is 0.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// 1 × n, f32: weights.
    pub w: View,
    /// 1 × n, f32: gradient.
    pub g: View,
    /// 1 × n, f32: first moment.
    pub m: View,
    /// 1 × n, f32: second moment.
    pub v: View,
    /// 1 × 1, f32: from [`Backend::clip_factor`].
    pub factor: View,
    /// 1 × 1, u32: from [`Backend::clip_factor`].
    pub finite: View,
    /// Step number, from 1.
    pub step: u64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 for norms.
    pub weight_decay: f64,
}

/// A device. Views are checked against the arenas before anything is enqueued.
pub trait Backend: Send + Sync {
    /// Copies bytes into a view (row by row, elements little-endian) after all that was enqueued
    /// on Compute; returns when the bytes may be re-used.
    ///
    /// # Errors
    /// When `bytes` is not the view's size.
    fn write(&self, dst: View, bytes: &[u8]) -> Result<()>;
    /// Waits for Compute and copies a view out.
    ///
    /// # Errors
    /// When `bytes` is not the view's size, or an operation enqueued before has failed.
    fn read(&self, src: View, bytes: &mut [u8]) -> Result<()>;

    /// Marks the end of what is enqueued on a stream.
    fn record(&self, stream: Stream) -> Result<Event>;
    /// Makes a stream wait for an event.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;
    /// Whether an event was reached. Feeds progress; decides nothing.
    fn query(&self, event: Event) -> Result<bool>;
    /// Blocks the caller until a stream is empty; reports what failed there, and after that the
    /// failure is over.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// dst ← src, between any arenas, f32 ↔ bf16 (round to nearest, ties to even).
    fn copy(&self, stream: Stream, src: View, dst: View) -> Result<()>;
    /// dst ← value (f32; f64 and u32 views: converted).
    fn fill(&self, stream: Stream, dst: View, value: f32) -> Result<()>;
    /// y ← y + x.
    fn add(&self, stream: Stream, x: View, y: View) -> Result<()>;
    /// Matrix product.
    fn gemm(&self, stream: Stream, op: Gemm) -> Result<()>;

    /// out[t] ← table[ids[t]]; ids: T × 1 u32, table: V × d, out: T × d.
    fn embed(&self, stream: Stream, ids: View, table: View, out: View) -> Result<()>;
    /// d_table[ids[t]] += d_out[t], in the order of t for each row.
    fn embed_grad(&self, stream: Stream, ids: View, d_out: View, d_table: View) -> Result<()>;

    /// y ← x · rstd · w; rstd = 1/√(mean x² + ε): T × 1, f32; w: 1 × d.
    fn rms_norm(&self, stream: Stream, x: View, w: View, eps: f32, y: View, rstd: View) -> Result<()>;
    /// dx ← β·dx + …, dw += …, from the same x, w and rstd.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_grad(
        &self,
        stream: Stream,
        x: View,
        w: View,
        rstd: View,
        dy: View,
        dx: View,
        beta: Beta,
        dw: View,
    ) -> Result<()>;

    /// cos, sin (T × dim/2, f32) of pos · inv_freq; pos: T × 1 u32 within the sample, inv_freq:
    /// 1 × dim/2. The product is formed in f32, as `transformers` does.
    fn rope_table(&self, stream: Stream, pos: View, inv_freq: View, cos: View, sin: View) -> Result<()>;
    /// Rotates the halves of every head of x (T × heads·dim) in place; `inverse` turns back, which
    /// is the gradient.
    fn rope(&self, stream: Stream, x: View, cos: View, sin: View, inverse: bool) -> Result<()>;

    /// See [`Attention`].
    fn attn(&self, stream: Stream, op: Attention) -> Result<()>;
    /// delta[t, h] ← Σ d_o · o over the columns of head h; T × query.
    fn attn_delta(&self, stream: Stream, o: View, d_o: View, delta: View) -> Result<()>;
    /// See [`AttentionGrad`].
    fn attn_grad(&self, stream: Stream, op: AttentionGrad) -> Result<()>;

    /// out ← silu(gate) · up.
    fn swiglu(&self, stream: Stream, gate: View, up: View, out: View) -> Result<()>;
    /// gate, up ← their gradients (in place), from d_out.
    fn swiglu_grad(&self, stream: Stream, gate: View, up: View, d_out: View) -> Result<()>;

    /// See [`CrossEntropy`].
    fn cross_entropy(&self, stream: Stream, op: CrossEntropy) -> Result<()>;

    /// sum (1 × 1, f64) += Σ x·w, in f64; x, w: T × 1.
    fn weighted_sum(&self, stream: Stream, x: View, w: View, sum: View) -> Result<()>;
    /// sum (1 × 1, f64) += Σ x², in f64.
    fn sum_squares(&self, stream: Stream, x: View, sum: View) -> Result<()>;
    /// factor (f32) ← min(1, max_norm / (√sum + 1e-6)), finite (u32) ← whether √sum is finite.
    fn clip_factor(&self, stream: Stream, sum: View, max_norm: f64, factor: View, finite: View)
    -> Result<()>;
    /// See [`AdamW`].
    fn adamw(&self, stream: Stream, op: AdamW) -> Result<()>;
}
