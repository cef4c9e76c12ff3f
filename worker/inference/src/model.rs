//! A loaded model and its forward pass over a key-value cache, written as operations of the
//! compute contract. Products have whole tiles of rows when reading and one row a slot when
//! decoding, so no bit depends on what other calls there are.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use longstrap_engine::{
    Attention, Backend, Beta, CpuBackend, CpuOptions, CrossEntropy, Gemm, Heads, Mask, Stream, Transpose,
    View,
};
use longstrap_model::{ModelConfig, ModelError, Rope, TensorSpec};

use crate::error::{InferenceError, Result};
use crate::memory::{Memory, SLOTS, TILE};

/// No target; as a query's first key: sees nothing.
const NONE: u32 = u32::MAX;

/// How a model is held in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelOptions {
    /// Threads of the device.
    pub threads: usize,
    /// Positions that a cache holds. Pages of a cache that is never filled cost nothing.
    pub context: usize,
    /// Number of caches.
    pub caches: usize,
    /// Positions that are read at once, a multiple of 128.
    pub block: usize,
    /// Rotary embedding instead of the configuration's: the same weights seen with another base.
    pub rope: Option<Rope>,
}

/// A model in device memory.
pub struct Model {
    backend: Arc<dyn Backend>,
    config: ModelConfig,
    options: ModelOptions,
    memory: Memory,
}

/// Tokens that go through the layers together, one a row of the buffers.
#[derive(Debug)]
struct Rows<'a> {
    ids: &'a [u32],
    /// Of each in its text.
    positions: &'a [u32],
    /// The row of the caches that takes its key, and the first that it looks at.
    keys: &'a [u32],
    first_keys: &'a [u32],
    /// Rows that are tokens, in runs, and the row of the caches that takes the first of each.
    new: &'a [(Range<usize>, usize)],
    /// Rows of the caches among which all look.
    seen: Range<usize>,
}

impl Model {
    /// Loads a model folder onto the CPU.
    ///
    /// # Errors
    /// A folder that is not a sound model; too little memory.
    pub fn open(dir: &Path, options: ModelOptions) -> Result<Self> {
        let config = ModelConfig::load(dir)?;
        let weights = longstrap_model::Weights::open(dir)?;
        weights.check(&config)?;
        Self::load(config, options, |spec, out| weights.copy_f32(&spec.name, out))
    }

    /// Loads a model whose tensors `read` gives, one at a time.
    ///
    /// # Errors
    /// The reader's; too little memory.
    pub fn load(
        config: ModelConfig,
        options: ModelOptions,
        mut read: impl FnMut(&TensorSpec, &mut [f32]) -> Result<(), ModelError>,
    ) -> Result<Self> {
        let options = ModelOptions {
            block: options.block.max(1).next_multiple_of(TILE),
            caches: options.caches.max(1),
            ..options
        };
        let memory = Memory::new(&config, &options);
        let backend = CpuBackend::new(CpuOptions {
            device_bytes: memory.bytes,
            host_bytes: 0,
            threads: options.threads,
        })?;
        let rope = options.rope.unwrap_or(config.rope);
        let mut model = Self { backend, config, options, memory };
        let mut values = Vec::new();
        for spec in model.config.tensors() {
            let view =
                model.memory.place(&model.config, &spec).expect("every tensor of the layout has a place");
            values.clear();
            values.resize(spec.elements(), 0.0);
            read(&spec, &mut values)?;
            model.write_f32(view, &values)?;
        }
        let keys: Vec<u32> = (0..model.memory.k_pos.rows as u32).collect();
        model.write_u32(model.memory.k_pos, &keys)?;
        model.backend.fill(Stream::Compute, model.memory.buffers.ones, 1.0)?;
        model.set_rope(rope)?;
        Ok(model)
    }

    /// Its configuration, as read from the folder.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Positions of a cache.
    pub fn context(&self) -> usize {
        self.options.context
    }

    /// Positions that are read at once.
    pub(crate) fn block(&self) -> usize {
        self.options.block
    }

    /// Sees the weights with another rotary embedding from now on; what is in the caches was made
    /// with the old one.
    ///
    /// # Errors
    /// The device's.
    pub fn set_rope(&mut self, rope: Rope) -> Result<()> {
        let frequencies = rope.inverse_frequencies(self.config.head_dim);
        self.write_f32(self.memory.inv_freq, &frequencies)
    }

    /// Reads one block of at most [`Model::block`] tokens into a cache from position `start` on;
    /// their hidden states are in `x` afterwards.
    pub(crate) fn read_block(&self, cache: usize, start: usize, tokens: &[u32]) -> Result<()> {
        let end = start + tokens.len();
        if end > self.context() {
            return Err(InferenceError::TooLong { tokens: end, limit: self.context() });
        }
        let rows = tokens.len().next_multiple_of(TILE);
        let base = cache * self.memory.capacity;
        let first = base + start;
        // Behind the tokens comes padding, which sees nothing.
        let padded = |of: &dyn Fn(usize) -> u32, padding: u32| -> Vec<u32> {
            (0..rows).map(|i| if i < tokens.len() { of(i) } else { padding }).collect()
        };
        self.layers(&Rows {
            ids: &padded(&|i| tokens[i], 0),
            positions: &padded(&|i| (start + i) as u32, 0),
            keys: &padded(&|i| (first + i) as u32, 0),
            first_keys: &padded(&|_| base as u32, NONE),
            new: &[(0..tokens.len(), first)],
            seen: base..base + end,
        })
    }

    /// One decoding step: slot i continues cache i with its token at its position. The logits of
    /// all slots are read into `logits` (slots × vocabulary); those of empty slots mean nothing.
    pub(crate) fn decode(&self, slots: &[Option<(usize, u32)>; SLOTS], logits: &mut Vec<f32>) -> Result<()> {
        let capacity = self.memory.capacity;
        if let Some((p, _)) = slots.iter().flatten().find(|(p, _)| *p >= self.context()) {
            return Err(InferenceError::TooLong { tokens: p + 1, limit: self.context() });
        }
        let of = |empty: u32, taken: &dyn Fn(usize, usize, u32) -> u32| -> [u32; SLOTS] {
            std::array::from_fn(|i| slots[i].map_or(empty, |(position, id)| taken(i, position, id)))
        };
        let keys = of(0, &|i, position, _| (i * capacity + position) as u32);
        let taken = (0..SLOTS).filter(|i| slots[*i].is_some());
        self.layers(&Rows {
            ids: &of(0, &|_, _, id| id),
            positions: &of(0, &|_, position, _| position as u32),
            keys: &keys,
            first_keys: &of(NONE, &|i, _, _| (i * capacity) as u32),
            new: &taken.map(|i| (i..i + 1, keys[i] as usize)).collect::<Vec<_>>(),
            seen: 0..SLOTS * capacity,
        })?;
        self.logits(0..SLOTS)?;
        self.read_logits(SLOTS, logits)
    }

    /// Logits of one row of the block that was read last.
    pub(crate) fn row_logits(&self, row: usize, logits: &mut Vec<f32>) -> Result<()> {
        // As many rows as in decoding: a first token is drawn from the same arithmetic as the rest.
        let first = row / SLOTS * SLOTS;
        self.logits(first..first + SLOTS)?;
        self.read_logits(SLOTS, logits)?;
        let v = self.config.vocab_size;
        logits.copy_within((row - first) * v..(row - first + 1) * v, 0);
        logits.truncate(v);
        Ok(())
    }

    /// −log p of a target for each row of the block that was read last; 0 where there is none.
    pub(crate) fn losses(&self, targets: &[Option<u32>]) -> Result<Vec<f32>> {
        let b = &self.memory.buffers;
        let mut losses = Vec::with_capacity(targets.len());
        for (tile, targets) in targets.chunks(TILE).enumerate() {
            if targets.iter().all(Option::is_none) {
                losses.resize(losses.len() + targets.len(), 0.0);
                continue;
            }
            let mut wanted = [NONE; TILE];
            for (w, t) in wanted.iter_mut().zip(targets) {
                *w = t.unwrap_or(NONE);
            }
            self.write_u32(b.targets, &wanted)?;
            self.logits(tile * TILE..(tile + 1) * TILE)?;
            let op = CrossEntropy {
                logits: b.logits,
                targets: b.targets,
                weights: b.ones,
                scale: 1.0,
                nll: b.nll,
                grad: false,
            };
            self.backend.cross_entropy(Stream::Compute, op)?;
            let mut nll = [0.0f32; TILE];
            self.backend.read(b.nll, bytemuck::cast_slice_mut(&mut nll))?;
            losses.extend(&nll[..targets.len()]);
        }
        if losses.iter().all(|l| l.is_finite()) { Ok(losses) } else { Err(InferenceError::NotFinite) }
    }

    /// Checks that the model knows the tokens.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            None => Ok(()),
            Some(&id) => Err(InferenceError::UnknownToken { id, vocab }),
        }
    }

    fn layers(&self, run: &Rows<'_>) -> Result<()> {
        let (s, b, c) = (Stream::Compute, &self.memory.buffers, &self.config);
        let of = |view: View| view.row_range(0..run.ids.len());
        self.write_u32(of(b.ids), run.ids)?;
        self.write_u32(of(b.positions), run.positions)?;
        self.write_u32(of(b.q_pos), run.keys)?;
        self.write_u32(of(b.first_key), run.first_keys)?;
        let (cos, sin, x, normed, rstd) = (of(b.cos), of(b.sin), of(b.x), of(b.normed), of(b.rstd));
        let (qkv, o, lse, gate_up, mlp) = (of(b.qkv), of(b.o), of(b.lse), of(b.gate_up), of(b.mlp));
        let (q, kv, f) = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.intermediate_size);
        let mask = Mask {
            q_pos: of(b.q_pos),
            first_key: of(b.first_key),
            k_pos: self.memory.k_pos.row_range(run.seen.clone()),
        };
        let heads = Heads { query: c.heads, kv: c.kv_heads, dim: c.head_dim };
        let scale = (c.head_dim as f32).sqrt().recip();
        self.backend.rope_table(s, of(b.positions), self.memory.inv_freq, cos, sin)?;
        self.backend.embed(s, of(b.ids), self.memory.weights.embedding, x)?;
        for (w, cache) in self.memory.weights.layers.iter().zip(&self.memory.caches) {
            self.backend.rms_norm(s, x, w.input_norm, c.rms_norm_eps, normed, rstd)?;
            self.product(normed, w.qkv, qkv, Beta::Zero)?;
            // Queries and keys turn alike: they are neighbours.
            self.backend.rope(s, qkv.col_range(0..q + kv), cos, sin, false)?;
            for (rows, first) in run.new {
                let new = qkv.row_range(rows.clone()).col_range(q..q + 2 * kv);
                self.backend.copy(s, new, cache.row_range(*first..first + rows.len()))?;
            }
            self.backend.fill(s, o, 0.0)?;
            self.backend.fill(s, lse, f32::NEG_INFINITY)?;
            let seen = cache.row_range(run.seen.clone());
            let (k, v) = (seen.col_range(0..kv), seen.col_range(kv..2 * kv));
            let op = Attention { q: qkv.col_range(0..q), k, v, mask, heads, scale, o, lse };
            self.backend.attn(s, op)?;
            self.product(o, w.o, x, Beta::One)?;
            self.backend.rms_norm(s, x, w.post_norm, c.rms_norm_eps, normed, rstd)?;
            self.product(normed, w.gate_up, gate_up, Beta::Zero)?;
            self.backend.swiglu(s, gate_up.col_range(0..f), gate_up.col_range(f..2 * f), mlp)?;
            self.product(mlp, w.down, x, Beta::One)?;
        }
        Ok(())
    }

    /// Logits of some rows of `x`, into the first rows of the tile.
    fn logits(&self, rows: Range<usize>) -> Result<()> {
        let (b, w) = (&self.memory.buffers, &self.memory.weights);
        let of = |view: View| view.row_range(rows.clone());
        let (x, normed) = (of(b.x), of(b.normed));
        self.backend.rms_norm(Stream::Compute, x, w.norm, self.config.rms_norm_eps, normed, of(b.rstd))?;
        self.product(normed, w.head, b.logits.row_range(0..rows.len()), Beta::Zero)
    }

    fn read_logits(&self, rows: usize, logits: &mut Vec<f32>) -> Result<()> {
        logits.resize(rows * self.config.vocab_size, 0.0);
        let view = self.memory.buffers.logits.row_range(0..rows);
        Ok(self.backend.read(view, bytemuck::cast_slice_mut(logits))?)
    }

    /// c ← [c +] a · wᵀ.
    fn product(&self, a: View, w: View, c: View, beta: Beta) -> Result<()> {
        let op = Gemm { a, ta: Transpose::No, b: w, tb: Transpose::Yes, c, beta };
        Ok(self.backend.gemm(Stream::Compute, op)?)
    }

    fn write_f32(&self, view: View, values: &[f32]) -> Result<()> {
        Ok(self.backend.write(view, bytemuck::cast_slice(values))?)
    }

    fn write_u32(&self, view: View, values: &[u32]) -> Result<()> {
        Ok(self.backend.write(view, bytemuck::cast_slice(values))?)
    }
}
