//! The buffers of one rank: the arena is this table, to the byte.
//!
//! Invariant: everything that a step needs has its line here; offsets are multiples of 64.

use serde::Serialize;

use crate::{Group, Shape};

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
        self.rows * self.cols
    }

    /// Bytes without the alignment behind it.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// Ranks that share one row.
    pub ranks: usize,
    /// Threads of a rank: each has its own kernel scratch.
    pub threads: usize,
    /// Keep attention output and log-sum-exp of every layer, instead of computing attention twice.
    pub keep_attention: bool,
    /// Keep layer inputs as bf16 instead of f32 (gradients then carry its rounding).
    pub bf16_inputs: bool,
    /// Whether checkpoints are written, which need a staging buffer.
    pub checkpoints: bool,
    /// Number of data sources: each has its own loss sum.
    pub sources: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ranks: 1, threads: 1, keep_attention: true, bf16_inputs: false, checkpoints: true, sources: 1 }
    }
}

/// Largest number of elements of a checkpoint shard: groups are cut, so staging stays small.
pub const SHARD_ELEMENTS: usize = 4 << 20;

/// Start of every buffer.
const ALIGN: usize = 64;
/// A matrix product is cut so that its packing stays below this, per thread; measured.
const GEMM_SCRATCH: usize = 4 << 20;
/// Tiles of attention and converted operands, per thread of each stream and once to share.
const TILE_SCRATCH: usize = 12 << 20;
/// Code, runtime, clients, thread stacks; measured at start-up.
const RUNTIME: usize = 64 << 20;

/// The memory of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The model.
    pub shape: Shape,
    /// Longest row, padded to a multiple of twice the ranks.
    pub row: usize,
    /// Tokens of a row on one rank.
    pub tokens: usize,
    /// Rows of an MLP tile.
    pub mlp_tile: usize,
    /// Rows of a logits tile.
    pub logits_tile: usize,
    /// The choices.
    pub options: Options,
    /// Every buffer.
    pub buffers: Vec<Buffer>,
    /// Size of the device arena.
    pub device_bytes: usize,
    /// Size of the host arena.
    pub host_bytes: usize,
}

/// `length` rounded up so that each of `ranks` gets two chunks of equal size (zigzag).
#[must_use]
pub const fn padded(length: usize, ranks: usize) -> usize {
    length.div_ceil(2 * ranks) * 2 * ranks
}

impl Plan {
    /// The table for rows up to `length` tokens.
    #[must_use]
    pub fn new(shape: Shape, length: usize, options: Options) -> Self {
        let row = padded(length.max(1), options.ranks);
        let tokens = row / options.ranks;
        // Tiles shrink with the shard: neither S × V nor a constant may dominate the activations.
        let mut plan = Self {
            shape,
            row,
            tokens,
            mlp_tile: tokens.div_ceil(2).min(1024),
            logits_tile: tokens.div_ceil(8).min(512),
            options,
            buffers: Vec::new(),
            device_bytes: 0,
            host_bytes: 0,
        };
        plan.add_parameters();
        plan.add_row();
        plan.add_kept();
        plan.add_scratch();
        plan.add_outside();
        plan
    }

    fn add(&mut self, name: Name, space: Space, rows: usize, cols: usize, dtype: Dtype) {
        let end = match space {
            Space::Device => &mut self.device_bytes,
            Space::Host => &mut self.host_bytes,
            Space::Process => &mut 0,
        };
        let buffer = Buffer { name, space, rows, cols, dtype, offset: *end };
        *end += buffer.bytes().next_multiple_of(ALIGN);
        self.buffers.push(buffer);
    }

    fn device(&mut self, name: Name, rows: usize, cols: usize, dtype: Dtype) {
        self.add(name, Space::Device, rows, cols, dtype);
    }

    fn add_parameters(&mut self) {
        for name in [Name::Weights, Name::Gradients, Name::FirstMoment, Name::SecondMoment] {
            for group in self.shape.groups() {
                self.device(name(group), 1, self.shape.elements(group), Dtype::F32);
            }
        }
    }

    /// What describes a row: made on the host, written before its forward.
    fn add_row(&mut self) {
        let (t, half) = (self.tokens, self.shape.head_dim / 2);
        for name in [Name::Ids, Name::Targets, Name::RopePos, Name::QueryPos, Name::FirstKey] {
            self.device(name, t, 1, Dtype::U32);
        }
        for name in [Name::LossWeights, Name::SourceMask, Name::Nll] {
            self.device(name, t, 1, Dtype::F32);
        }
        self.device(Name::KeyPos, self.row, 1, Dtype::U32);
        self.device(Name::InvFreq, 1, half, Dtype::F32);
        self.device(Name::Cos, t, half, Dtype::F32);
        self.device(Name::Sin, t, half, Dtype::F32);
    }

    /// What the forward leaves for the backward.
    fn add_kept(&mut self) {
        let (t, shape) = (self.tokens, self.shape);
        let dtype = if self.options.bf16_inputs { Dtype::Bf16 } else { Dtype::F32 };
        for layer in 0..shape.layers {
            self.device(Name::LayerInput(layer), t, shape.hidden, dtype);
        }
        let kept = if self.options.keep_attention { shape.layers } else { 1 };
        for layer in 0..kept {
            self.device(Name::AttentionOutput(layer), t, shape.q_cols(), Dtype::F32);
            self.device(Name::Lse(layer), t, shape.heads, Dtype::F32);
        }
    }

    fn add_scratch(&mut self) {
        let (t, s, mlp) = (self.tokens, self.shape, self.mlp_tile);
        for name in [Name::Hidden, Name::Residual, Name::Normed, Name::DHidden, Name::DNormed] {
            self.device(name, t, s.hidden, Dtype::F32);
        }
        self.device(Name::Rstd, t, 1, Dtype::F32);
        self.device(Name::Qkv, t, s.qkv_cols(), Dtype::F32);
        self.device(Name::DQkv, t, s.qkv_cols(), Dtype::F32);
        self.device(Name::DAttention, t, s.q_cols(), Dtype::F32);
        self.device(Name::Delta, t, s.heads, Dtype::F32);
        self.device(Name::GateUp, mlp, 2 * s.intermediate, Dtype::F32);
        self.device(Name::Activated, mlp, s.intermediate, Dtype::F32);
        self.device(Name::DActivated, mlp, s.intermediate, Dtype::F32);
        self.device(Name::Logits, self.logits_tile, s.vocab, Dtype::F32);
        if self.options.ranks > 1 {
            for i in 0..2 {
                // K over V, so that each is dense and a hop sends two plain blocks.
                self.device(Name::RingKv(i), 2 * t, s.kv_cols(), Dtype::F32);
                self.device(Name::RingDKv(i), 2 * t, s.kv_cols(), Dtype::F32);
            }
        }
        self.device(Name::LossSums, 1 + self.options.sources, 1, Dtype::F64);
        self.device(Name::NormSum, 1, 1, Dtype::F64);
        self.device(Name::ClipFactor, 1, 1, Dtype::F32);
        self.device(Name::Finite, 1, 1, Dtype::U32);
        if self.options.checkpoints {
            self.add(Name::CheckpointStaging, Space::Host, 3, self.shard_elements(), Dtype::F32);
        }
    }

    fn add_outside(&mut self) {
        // Compute: its threads and one to share; Copy and Comm: one thread and one to share each.
        let kernels = self.options.threads * GEMM_SCRATCH + (self.options.threads + 5) * TILE_SCRATCH;
        self.add(Name::KernelScratch, Space::Process, 1, kernels, Dtype::Bytes);
        if self.options.ranks > 1 {
            // Frames of a hop in both directions; a reduction travels in pieces no longer.
            let hop = self.tokens * 2 * self.shape.kv_cols() * 4;
            self.add(Name::CommScratch, Space::Process, 2, hop.max(GEMM_SCRATCH), Dtype::Bytes);
        }
        self.add(Name::Runtime, Space::Process, 1, RUNTIME, Dtype::Bytes);
    }

    /// Elements of the longest checkpoint shard.
    #[must_use]
    pub fn shard_elements(&self) -> usize {
        self.shape.groups().map(|g| self.shape.elements(g)).max().unwrap_or(0).min(SHARD_ELEMENTS)
    }

    /// The buffer of a name.
    #[must_use]
    pub fn buffer(&self, name: Name) -> Option<&Buffer> {
        self.buffers.iter().find(|b| b.name == name)
    }

    /// Bytes outside the arenas.
    #[must_use]
    pub fn process_bytes(&self) -> usize {
        self.buffers.iter().filter(|b| b.space == Space::Process).map(Buffer::bytes).sum()
    }

    /// Everything that one rank takes from the machine when both arenas are plain memory.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.device_bytes + self.host_bytes + self.process_bytes()
    }

    /// Bytes of what grows with the row.
    #[must_use]
    pub fn activation_bytes(&self) -> usize {
        self.buffers.iter().filter(|b| b.name.is_activation()).map(Buffer::bytes).sum()
    }
}
