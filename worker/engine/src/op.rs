//! One operation as plain data: what it reads, what it writes, and whether its views fit together.
//!
//! Invariant: every backend checks an operation here before it enqueues it, so a wrong shape is
//! the same error on every device and never reaches a kernel.

mod check;

use crate::{AdamW, Attention, AttentionGrad, Beta, CrossEntropy, Error, Gemm, Result, Transpose, View};

/// A kernel call; the fields are those of the methods of [`crate::Backend`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Copy { src: View, dst: View },
    Fill { dst: View, value: f32 },
    Add { x: View, y: View },
    Gemm(Gemm),
    Embed { ids: View, table: View, out: View },
    EmbedGrad { ids: View, d_out: View, d_table: View },
    RmsNorm { x: View, w: View, eps: f32, y: View, rstd: View },
    RmsNormGrad { x: View, w: View, rstd: View, dy: View, dx: View, beta: Beta, dw: View },
    RopeTable { pos: View, inv_freq: View, cos: View, sin: View },
    Rope { x: View, cos: View, sin: View, inverse: bool },
    Attn(Attention),
    AttnDelta { o: View, d_o: View, delta: View },
    AttnGrad(AttentionGrad),
    Swiglu { gate: View, up: View, out: View },
    SwigluGrad { gate: View, up: View, d_out: View },
    CrossEntropy(CrossEntropy),
    WeightedSum { x: View, w: View, sum: View },
    SumSquares { x: View, sum: View },
    ClipFactor { sum: View, max_norm: f64, factor: View, finite: View },
    AdamW(AdamW),
}

/// Refuses bytes that are not as many as a view has.
pub(crate) fn check_bytes(op: &'static str, view: View, bytes: usize) -> Result<()> {
    let want = view.len() * view.dtype.size();
    if bytes == want {
        Ok(())
    } else {
        Err(Error::shape(op, format!("{bytes} bytes for a view of {want} bytes")))
    }
}

impl Op {
    /// Name of the operation, as in the table of `docs/engine.md`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Copy { .. } => "copy",
            Self::Fill { .. } => "fill",
            Self::Add { .. } => "add",
            Self::Gemm(_) => "gemm",
            Self::Embed { .. } => "embed",
            Self::EmbedGrad { .. } => "embed_grad",
            Self::RmsNorm { .. } => "rms_norm",
            Self::RmsNormGrad { .. } => "rms_norm_grad",
            Self::RopeTable { .. } => "rope_table",
            Self::Rope { .. } => "rope",
            Self::Attn(_) => "attn",
            Self::AttnDelta { .. } => "attn_delta",
            Self::AttnGrad(_) => "attn_grad",
            Self::Swiglu { .. } => "swiglu",
            Self::SwigluGrad { .. } => "swiglu_grad",
            Self::CrossEntropy(_) => "cross_entropy",
            Self::WeightedSum { .. } => "weighted_sum",
            Self::SumSquares { .. } => "sum_squares",
            Self::ClipFactor { .. } => "clip_factor",
            Self::AdamW(_) => "adamw",
        }
    }

    /// Views that are only read.
    #[must_use]
    pub fn reads(&self) -> Vec<View> {
        match *self {
            Self::Copy { src, .. } => vec![src],
            Self::Fill { .. } => vec![],
            Self::Add { x, .. } => vec![x],
            Self::Gemm(g) => vec![g.a, g.b],
            Self::Embed { ids, table, .. } => vec![ids, table],
            Self::EmbedGrad { ids, d_out, .. } => vec![ids, d_out],
            Self::RmsNorm { x, w, .. } => vec![x, w],
            Self::RmsNormGrad { x, w, rstd, dy, .. } => vec![x, w, rstd, dy],
            Self::RopeTable { pos, inv_freq, .. } => vec![pos, inv_freq],
            Self::Rope { cos, sin, .. } => vec![cos, sin],
            Self::Attn(a) => vec![a.q, a.k, a.v, a.mask.q_pos, a.mask.first_key, a.mask.k_pos],
            Self::AttnDelta { o, d_o, .. } => vec![o, d_o],
            Self::AttnGrad(a) => {
                vec![a.q, a.k, a.v, a.mask.q_pos, a.mask.first_key, a.mask.k_pos, a.lse, a.delta, a.d_o]
            }
            Self::Swiglu { gate, up, .. } => vec![gate, up],
            Self::SwigluGrad { d_out, .. } => vec![d_out],
            Self::CrossEntropy(c) => vec![c.targets, c.weights],
            Self::WeightedSum { x, w, .. } => vec![x, w],
            Self::SumSquares { x, .. } => vec![x],
            Self::ClipFactor { sum, .. } => vec![sum],
            Self::AdamW(a) => vec![a.g, a.factor, a.finite],
        }
    }

    /// Views that are written, also those that are read and written.
    #[must_use]
    pub fn writes(&self) -> Vec<View> {
        match *self {
            Self::Copy { dst, .. } | Self::Fill { dst, .. } => vec![dst],
            Self::Add { y, .. } => vec![y],
            Self::Gemm(g) => vec![g.c],
            Self::Embed { out, .. } | Self::Swiglu { out, .. } => vec![out],
            Self::EmbedGrad { d_table, .. } => vec![d_table],
            Self::RmsNorm { y, rstd, .. } => vec![y, rstd],
            Self::RmsNormGrad { dx, dw, .. } => vec![dx, dw],
            Self::RopeTable { cos, sin, .. } => vec![cos, sin],
            Self::Rope { x, .. } => vec![x],
            Self::Attn(a) => vec![a.o, a.lse],
            Self::AttnDelta { delta, .. } => vec![delta],
            Self::AttnGrad(a) => vec![a.dq, a.dk, a.dv],
            Self::SwigluGrad { gate, up, .. } => vec![gate, up],
            Self::CrossEntropy(c) => vec![c.logits, c.nll],
            Self::WeightedSum { sum, .. } | Self::SumSquares { sum, .. } => vec![sum],
            Self::ClipFactor { factor, finite, .. } => vec![factor, finite],
            Self::AdamW(a) => vec![a.w, a.m, a.v],
        }
    }

    /// Multiplications and additions of the matrix part, for rates; attention counts every pair,
    /// seen or not.
    #[must_use]
    pub fn flops(&self) -> u64 {
        match self {
            Self::Gemm(g) => {
                let k = if g.ta == Transpose::No { g.a.cols } else { g.a.rows };
                2 * (g.c.rows * g.c.cols * k) as u64
            }
            Self::Attn(a) => 4 * (a.q.rows * a.k.rows * a.heads.query * a.heads.dim) as u64,
            Self::AttnGrad(a) => 10 * (a.q.rows * a.k.rows * a.heads.query * a.heads.dim) as u64,
            _ => 0,
        }
    }
}

/// The kernel methods of [`crate::Backend`] for a type with `submit(stream, op)`.
macro_rules! forward_to_submit {
    () => {
        $crate::op::forward_to_submit! {
            copy(src: View, dst: View) = Copy;
            fill(dst: View, value: f32) = Fill;
            add(x: View, y: View) = Add;
            embed(ids: View, table: View, out: View) = Embed;
            embed_grad(ids: View, d_out: View, d_table: View) = EmbedGrad;
            rms_norm(x: View, w: View, eps: f32, y: View, rstd: View) = RmsNorm;
            rms_norm_grad(x: View, w: View, rstd: View, dy: View, dx: View, beta: $crate::Beta, dw: View) = RmsNormGrad;
            rope_table(pos: View, inv_freq: View, cos: View, sin: View) = RopeTable;
            rope(x: View, cos: View, sin: View, inverse: bool) = Rope;
            attn_delta(o: View, d_o: View, delta: View) = AttnDelta;
            swiglu(gate: View, up: View, out: View) = Swiglu;
            swiglu_grad(gate: View, up: View, d_out: View) = SwigluGrad;
            weighted_sum(x: View, w: View, sum: View) = WeightedSum;
            sum_squares(x: View, sum: View) = SumSquares;
            clip_factor(sum: View, max_norm: f64, factor: View, finite: View) = ClipFactor;
        }
        fn gemm(&self, stream: Stream, op: $crate::Gemm) -> Result<()> {
            self.submit(stream, Op::Gemm(op))
        }
        fn attn(&self, stream: Stream, op: $crate::Attention) -> Result<()> {
            self.submit(stream, Op::Attn(op))
        }
        fn attn_grad(&self, stream: Stream, op: $crate::AttentionGrad) -> Result<()> {
            self.submit(stream, Op::AttnGrad(op))
        }
        fn cross_entropy(&self, stream: Stream, op: $crate::CrossEntropy) -> Result<()> {
            self.submit(stream, Op::CrossEntropy(op))
        }
        fn adamw(&self, stream: Stream, op: $crate::AdamW) -> Result<()> {
            self.submit(stream, Op::AdamW(op))
        }
    };
    ($($method:ident($($arg:ident: $ty:ty),*) = $variant:ident;)*) => {
        $(fn $method(&self, stream: Stream, $($arg: $ty),*) -> Result<()> {
            self.submit(stream, Op::$variant { $($arg),* })
        })*
    };
}
pub(crate) use forward_to_submit;
