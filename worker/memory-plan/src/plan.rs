//! The buffers of one rank: the arena is this table, to the byte.
//!
//! Invariant: everything that a step needs has its line here; offsets are multiples of 64. Sizes
//! saturate: a length that no memory holds is one that does not fit.

use serde::Serialize;

use crate::{Buffer, Dtype, Name, Shape, Space};

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
    /// Keep layer inputs as bf16 instead of f32 (gradients then carry its rounding); no field of the
    /// API asks for it, measurements do.
    pub bf16_inputs: bool,
    /// Keep layer inputs in host memory and fetch each before its backward: for devices with a memory
    /// of their own. The bits are the same.
    pub host_inputs: bool,
    /// Whether checkpoints are written, which need a staging buffer: by every run, not by every
    /// measurement.
    pub checkpoints: bool,
    /// Number of data sources: each has its own loss sum.
    pub sources: usize,
}

impl Options {
    /// Whether a layer can work on its kept input where it lies.
    #[must_use]
    pub const fn inputs_in_place(&self) -> bool {
        !self.bf16_inputs && !self.host_inputs
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ranks: 1,
            threads: 1,
            keep_attention: true,
            bf16_inputs: false,
            host_inputs: false,
            checkpoints: true,
            sources: 1,
        }
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
/// What ranks exchange crosses the network in pieces of this size, whatever the length of a row.
const COMM_PIECE: usize = 256 << 10;
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
    length.div_ceil(2 * ranks).saturating_mul(2 * ranks)
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

    /// The table that the trainer takes: attention's output is kept when that fits into `memory`,
    /// else computed twice. The bits are the same; the messages between ranks are not, so all ranks
    /// must choose by the same number.
    #[must_use]
    pub fn within(shape: Shape, length: usize, options: Options, memory: Option<u64>) -> Self {
        let plan = Self::new(shape, length, options);
        match memory {
            Some(memory) if !plan.fits(memory) => {
                Self::new(shape, length, Options { keep_attention: false, ..options })
            }
            _ => plan,
        }
    }

    /// Whether a rank with `memory` bytes is enough.
    #[must_use]
    pub fn fits(&self, memory: u64) -> bool {
        self.total_bytes() as u64 <= memory
    }

    fn add(&mut self, name: Name, space: Space, rows: usize, cols: usize, dtype: Dtype) {
        let end = match space {
            Space::Device => &mut self.device_bytes,
            Space::Host => &mut self.host_bytes,
            Space::Process => &mut 0,
        };
        let buffer = Buffer { name, space, rows, cols, dtype, offset: *end };
        *end = end.saturating_add(buffer.bytes().checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX));
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
        let space = if self.options.host_inputs { Space::Host } else { Space::Device };
        for layer in 0..shape.layers {
            self.add(Name::LayerInput(layer), space, t, shape.hidden, dtype);
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
                let rows = t.saturating_mul(2);
                self.device(Name::RingKv(i), rows, s.kv_cols(), Dtype::F32);
                self.device(Name::RingDKv(i), rows, s.kv_cols(), Dtype::F32);
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
        let threads = self.options.threads;
        let tiles = threads.saturating_add(5).saturating_mul(TILE_SCRATCH);
        let kernels = threads.saturating_mul(GEMM_SCRATCH).saturating_add(tiles);
        self.add(Name::KernelScratch, Space::Process, 1, kernels, Dtype::Bytes);
        if self.options.ranks > 1 {
            // A piece from every rank when sums are formed, and one that is written and read meanwhile.
            let pieces = self.options.ranks + 1;
            self.add(Name::CommScratch, Space::Process, pieces, COMM_PIECE, Dtype::Bytes);
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
        sum(self.buffers.iter().filter(|b| b.space == Space::Process).map(Buffer::bytes))
    }

    /// Everything that one rank takes from the machine when both arenas are plain memory.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        sum([self.device_bytes, self.host_bytes, self.process_bytes()])
    }

    /// Bytes of what grows with the row.
    #[must_use]
    pub fn activation_bytes(&self) -> usize {
        sum(self.buffers.iter().filter(|b| b.name.is_activation()).map(Buffer::bytes))
    }
}

/// A sum that saturates.
pub(crate) fn sum(bytes: impl IntoIterator<Item = usize>) -> usize {
    bytes.into_iter().fold(0, usize::saturating_add)
}
