//! What a buffer is: its purpose, place, shape and element type.
//!
//! Invariant: every purpose has one line of the printed table.

use serde::Serialize;

use crate::Group;

/// Which arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Space {
    /// Next to the arithmetic.
    Device,
    /// Staging.
    Host,
    /// Outside the arenas: bounded scratch of the kernels and of the process itself.
    Process,
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Dtype {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
    /// 8 bytes.
    F64,
    /// 4 bytes.
    U32,
    /// 1 byte: what is counted in bytes only.
    Bytes,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 => 2,
            Self::F64 => 8,
            Self::Bytes => 1,
        }
    }
}

/// What a buffer is for. T: tokens of a rank, S: padded length of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs, reason = "the table's words are in `describe`")]
pub enum Name {
    Weights(Group),
    Gradients(Group),
    FirstMoment(Group),
    SecondMoment(Group),
    Ids,
    Targets,
    LossWeights,
    SourceMask,
    RopePos,
    QueryPos,
    FirstKey,
    KeyPos,
    InvFreq,
    Cos,
    Sin,
    LayerInput(usize),
    AttentionOutput(usize),
    Lse(usize),
    Hidden,
    Residual,
    Normed,
    Rstd,
    Qkv,
    GateUp,
    Activated,
    DHidden,
    DNormed,
    DAttention,
    DQkv,
    Delta,
    DActivated,
    Logits,
    Nll,
    RingKv(usize),
    RingDKv(usize),
    LossSums,
    NormSum,
    ClipFactor,
    Finite,
    CheckpointStaging,
    KernelScratch,
    CommScratch,
    Runtime,
}

impl Name {
    /// The line of the table that this buffer is part of.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Weights(_) => "weights",
            Self::Gradients(_) => "gradients",
            Self::FirstMoment(_) => "AdamW first moment",
            Self::SecondMoment(_) => "AdamW second moment",
            Self::Ids | Self::Targets | Self::LossWeights | Self::SourceMask => {
                "row: ids, targets, loss weights"
            }
            Self::RopePos | Self::QueryPos | Self::FirstKey | Self::KeyPos => "row: positions and mask",
            Self::InvFreq | Self::Cos | Self::Sin => "RoPE angles",
            Self::LayerInput(_) => "layer inputs, kept",
            Self::AttentionOutput(_) => "attention output",
            Self::Lse(_) => "attention log-sum-exp",
            Self::Hidden => "residual stream",
            Self::Residual => "residual stream, recomputed",
            Self::Normed | Self::Rstd => "normalised input",
            Self::Qkv => "q, k, v",
            Self::GateUp | Self::Activated | Self::DActivated => "MLP tile",
            Self::DHidden | Self::DNormed => "gradient of the residual stream",
            Self::DAttention | Self::Delta => "gradient of the attention output",
            Self::DQkv => "gradient of q, k, v",
            Self::Logits | Self::Nll => "logits tile, loss",
            Self::RingKv(_) | Self::RingDKv(_) => "ring: K, V and their gradients",
            Self::LossSums | Self::NormSum | Self::ClipFactor | Self::Finite => "sums and flags",
            Self::CheckpointStaging => "checkpoint staging",
            Self::KernelScratch => "kernels' packing and score tiles",
            Self::CommScratch => "network frames",
            Self::Runtime => "program and runtime",
        }
    }

    /// True for what grows with the row and shrinks with the ranks.
    #[must_use]
    pub const fn is_activation(self) -> bool {
        !matches!(
            self,
            Self::Weights(_)
                | Self::Gradients(_)
                | Self::FirstMoment(_)
                | Self::SecondMoment(_)
                | Self::CheckpointStaging
                | Self::KernelScratch
                | Self::CommScratch
                | Self::Runtime
        )
    }
}

/// One buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Buffer {
    /// What for.
    pub name: Name,
    /// Where.
    pub space: Space,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Bytes from the start of its arena (0 outside the arenas).
    pub offset: usize,
}

impl Buffer {
    /// Number of elements.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows.saturating_mul(self.cols)
    }

    /// Bytes without the alignment behind it.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.size())
    }
}
