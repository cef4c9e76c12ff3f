//! The device memory of a loaded model: weights, caches and the buffers of one block, laid out
//! before anything runs.

use longstrap_engine::{ArenaLayout, Dtype, KEY_TILE, Space, View};
use longstrap_model::{ModelConfig, TensorSpec};

use crate::model::ModelOptions;

/// Rows of a decoding step: one a slot, whether it is taken or not, so that a product's shape (and
/// with it every bit of a row) never depends on how many calls run.
pub(crate) const SLOTS: usize = 8;

/// Rows of a tile of logits; the only buffer as wide as the vocabulary has this many.
pub(crate) const TILE: usize = 128;

/// Weights of one layer, in the order of its flat buffer: qkv and gate+up are one product each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub(crate) qkv: View,
    pub(crate) o: View,
    pub(crate) gate_up: View,
    pub(crate) down: View,
    pub(crate) input_norm: View,
    pub(crate) post_norm: View,
}

/// All weights.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: View,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: View,
    /// The embedding itself when tied.
    pub(crate) head: View,
}

/// Buffers of one block of positions (or of one decoding step, in their first rows).
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) ids: View,
    /// Of each token in its text.
    pub(crate) positions: View,
    /// Of each token's key in the caches.
    pub(crate) q_pos: View,
    pub(crate) first_key: View,
    pub(crate) cos: View,
    pub(crate) sin: View,
    pub(crate) x: View,
    pub(crate) normed: View,
    pub(crate) rstd: View,
    pub(crate) qkv: View,
    pub(crate) o: View,
    pub(crate) lse: View,
    pub(crate) gate_up: View,
    pub(crate) mlp: View,
    pub(crate) logits: View,
    pub(crate) targets: View,
    pub(crate) ones: View,
    pub(crate) nll: View,
}

/// Everything in the device arena.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: usize,
    pub(crate) weights: Weights,
    /// Keys and values side by side (`caches·capacity × 2·kv`) of each layer, the caches below each
    /// other: one operation attends to all of them, each query to the rows of its own.
    pub(crate) caches: Vec<View>,
    /// Rows of a cache: a multiple of attention's tile of keys, so that all are cut alike.
    pub(crate) capacity: usize,
    /// 0, 1, 2, …: a key's position is its row in the caches.
    pub(crate) k_pos: View,
    pub(crate) inv_freq: View,
    pub(crate) buffers: Buffers,
}

impl Memory {
    pub(crate) fn new(config: &ModelConfig, options: &ModelOptions) -> Self {
        let mut arena = ArenaLayout::new(Space::Device);
        let weights = weights(&mut arena, config);
        let buffers = buffers(&mut arena, config, options.block);
        let inv_freq = arena.push("inv_freq", 1, config.head_dim / 2, Dtype::F32);
        let capacity = options.context.next_multiple_of(KEY_TILE);
        let (rows, kv) = (options.caches * capacity, 2 * config.kv_heads * config.head_dim);
        let k_pos = arena.push("k_pos", rows, 1, Dtype::U32);
        let cache = |l| arena.push(format!("caches.{l}"), rows, kv, Dtype::F32);
        let caches = (0..config.layers).map(cache).collect();
        Self { bytes: arena.bytes(), weights, caches, capacity, k_pos, inv_freq, buffers }
    }

    /// Where a tensor of the Hugging Face layout goes.
    pub(crate) fn place(&self, config: &ModelConfig, spec: &TensorSpec) -> Option<View> {
        let w = &self.weights;
        match spec.name.as_str() {
            "model.embed_tokens.weight" => return Some(w.embedding),
            "model.norm.weight" => return Some(w.norm),
            "lm_head.weight" => return Some(w.head),
            _ => {}
        }
        let (layer, part) = spec.name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = w.layers.get(layer.parse::<usize>().ok()?)?;
        let (q, kv, f) =
            (config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate_size);
        Some(match part {
            "self_attn.q_proj.weight" => layer.qkv.row_range(0..q),
            "self_attn.k_proj.weight" => layer.qkv.row_range(q..q + kv),
            "self_attn.v_proj.weight" => layer.qkv.row_range(q + kv..q + 2 * kv),
            "self_attn.o_proj.weight" => layer.o,
            "mlp.gate_proj.weight" => layer.gate_up.row_range(0..f),
            "mlp.up_proj.weight" => layer.gate_up.row_range(f..2 * f),
            "mlp.down_proj.weight" => layer.down,
            "input_layernorm.weight" => layer.input_norm,
            "post_attention_layernorm.weight" => layer.post_norm,
            _ => return None,
        })
    }
}

fn weights(arena: &mut ArenaLayout, config: &ModelConfig) -> Weights {
    let (d, f, q) = (config.hidden_size, config.intermediate_size, config.heads * config.head_dim);
    let qkv = q + 2 * config.kv_heads * config.head_dim;
    let layers = (0..config.layers)
        .map(|l| {
            let flat = arena.push(format!("layer.{l}"), 1, d * (qkv + q + 3 * f + 2), Dtype::F32);
            let mut start = 0;
            let mut next = |rows: usize, cols: usize| {
                start += rows * cols;
                flat.tensor(start - rows * cols, rows, cols)
            };
            Layer {
                qkv: next(qkv, d),
                o: next(d, q),
                gate_up: next(2 * f, d),
                down: next(d, f),
                input_norm: next(1, d),
                post_norm: next(1, d),
            }
        })
        .collect();
    let embedding = arena.push("embedding", config.vocab_size, d, Dtype::F32);
    let norm = arena.push("norm", 1, d, Dtype::F32);
    let head = match config.tie_word_embeddings {
        true => embedding,
        false => arena.push("head", config.vocab_size, d, Dtype::F32),
    };
    Weights { embedding, layers, norm, head }
}

fn buffers(arena: &mut ArenaLayout, config: &ModelConfig, rows: usize) -> Buffers {
    let (d, f, q) = (config.hidden_size, config.intermediate_size, config.heads * config.head_dim);
    let mut f32 = |name: &str, rows: usize, cols: usize| arena.push(name, rows, cols, Dtype::F32);
    let half = config.head_dim / 2;
    let (cos, sin) = (f32("cos", rows, half), f32("sin", rows, half));
    let (x, normed, rstd) = (f32("x", rows, d), f32("normed", rows, d), f32("rstd", rows, 1));
    let qkv = f32("qkv", rows, q + 2 * config.kv_heads * config.head_dim);
    let (o, lse) = (f32("o", rows, q), f32("lse", rows, config.heads));
    let (gate_up, mlp) = (f32("gate_up", rows, 2 * f), f32("mlp", rows, f));
    let logits = f32("logits", TILE, config.vocab_size);
    let (ones, nll) = (f32("ones", TILE, 1), f32("nll", TILE, 1));
    let mut u32 = |name: &str, rows: usize| arena.push(name, rows, 1, Dtype::U32);
    let (ids, positions) = (u32("ids", rows), u32("positions", rows));
    let (q_pos, first_key) = (u32("q_pos", rows), u32("first_key", rows));
    let targets = u32("targets", TILE);
    Buffers {
        ids,
        positions,
        q_pos,
        first_key,
        cos,
        sin,
        x,
        normed,
        rstd,
        qkv,
        o,
        lse,
        gate_up,
        mlp,
        logits,
        targets,
        ones,
        nll,
    }
}
