//! The model in f64, built of the engine's scalar references: what finite differences and the
//! trainer are held against.
//!
//! Invariant: same operations in the same order as `model/forward.rs` and `model/backward.rs`,
//! without tiles, ranks and fused matrices.

use std::collections::BTreeMap;

use longstrap_engine::reference::{self, Positions};
use longstrap_engine::{Heads, Transpose};
use longstrap_memory_plan::Shape;

use crate::data::shard::{NONE, Shard};

/// Weights or gradients by their Hugging Face names; matrices are `out × in`.
pub(super) type Tensors = BTreeMap<String, Vec<f64>>;

/// A planted breakage of the backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    RopeTurnsOn,
    RopeLeftOut,
    OneQueryHeadForKeys,
    OneQueryHeadForValues,
    SamplesSeeOneAnother,
    ResidualLost,
    NormTakenForTheInput,
    GateTakenForUp,
    LossWeightsLost,
    LookupLost,
    LookupTwice,
    HeadLost,
}

pub(super) const FAULTS: [Fault; 12] = [
    Fault::RopeTurnsOn,
    Fault::RopeLeftOut,
    Fault::OneQueryHeadForKeys,
    Fault::OneQueryHeadForValues,
    Fault::SamplesSeeOneAnother,
    Fault::ResidualLost,
    Fault::NormTakenForTheInput,
    Fault::GateTakenForUp,
    Fault::LossWeightsLost,
    Fault::LookupLost,
    Fault::LookupTwice,
    Fault::HeadLost,
];

/// A model over one row on one rank.
pub(super) struct ScalarModel {
    pub(super) shape: Shape,
    eps: f64,
    row: Shard,
    loss_weights: Vec<f64>,
    total_weight: f64,
    cos: Vec<f64>,
    sin: Vec<f64>,
}

/// A layer's attention: `out` is the stream behind it.
struct Attended {
    normed: Vec<f64>,
    rstd: Vec<f64>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    o: Vec<f64>,
    out: Vec<f64>,
}

/// A layer's MLP: `out` is the stream behind it.
struct Mlp {
    normed: Vec<f64>,
    rstd: Vec<f64>,
    gate: Vec<f64>,
    up: Vec<f64>,
    activated: Vec<f64>,
    out: Vec<f64>,
}

/// The row's end: logits and their gradient are those of the mean over the weights.
struct Head {
    normed: Vec<f64>,
    rstd: Vec<f64>,
    loss: f64,
    d_logits: Vec<f64>,
}

impl ScalarModel {
    pub(super) fn new(shape: Shape, eps: f32, frequencies: &[f32], row: Shard, total_weight: f64) -> Self {
        // The angle is the f32 product, as everywhere.
        let angles: Vec<f64> =
            row.rope_pos.iter().flat_map(|p| frequencies.iter().map(|f| f64::from(*p as f32 * f))).collect();
        Self {
            shape,
            eps: f64::from(eps),
            loss_weights: row.weights.iter().map(|w| f64::from(*w)).collect(),
            row,
            total_weight,
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
        }
    }

    pub(super) fn tokens(&self) -> usize {
        self.row.tokens()
    }

    /// Σ wₛ·nllᵢ / Σ wₛ.
    pub(super) fn loss(&self, w: &Tensors) -> f64 {
        let inputs = self.streams(w);
        self.head(w, &inputs[self.shape.layers], &self.loss_weights).loss
    }

    /// The gradient of the loss by every tensor.
    pub(super) fn gradients(&self, w: &Tensors, fault: Fault) -> Tensors {
        let mut g = zeros(w);
        let streams = self.streams(w);
        let x = &streams[self.shape.layers];
        let ones = self.row.targets.iter().map(|t| f64::from(u8::from(*t != NONE))).collect();
        let weights = if fault == Fault::LossWeightsLost { &ones } else { &self.loss_weights };
        let head = self.head(w, x, weights);
        let d_normed = self.linear_grad(w, self.head_name(), &head.normed, &head.d_logits, &mut g);
        if fault == Fault::HeadLost {
            g.insert(self.head_name().into(), vec![0.0; w[self.head_name()].len()]);
        }
        let mut d_x = norm_grad(w, "model.norm.weight", x, &head.rstd, &d_normed, &mut g);
        for layer in (0..self.shape.layers).rev() {
            d_x = self.layer_grad(w, layer, &streams[layer], &d_x, fault, &mut g);
        }
        let lookup = reference::embed_grad(&self.row.ids, &d_x, (self.shape.vocab, self.shape.hidden));
        let times = match fault {
            Fault::LookupLost => 0,
            Fault::LookupTwice => 2,
            _ => 1,
        };
        (0..times).for_each(|_| add(&mut g, "model.embed_tokens.weight", &lookup));
        g
    }

    /// The residual stream before every layer, and before the head.
    fn streams(&self, w: &Tensors) -> Vec<Vec<f64>> {
        let table = &w["model.embed_tokens.weight"];
        let mut streams = vec![reference::embed(&self.row.ids, table, self.shape.hidden)];
        for layer in 0..self.shape.layers {
            streams.push(self.layer(w, layer, &streams[layer]));
        }
        streams
    }

    pub(super) fn layer(&self, w: &Tensors, layer: usize, x: &[f64]) -> Vec<f64> {
        self.mlp(w, layer, &self.attend(w, layer, x).out).out
    }

    /// The gradient of a layer's input from that of its output; from the input alone.
    pub(super) fn layer_grad(
        &self,
        w: &Tensors,
        layer: usize,
        x: &[f64],
        d_y: &[f64],
        fault: Fault,
        g: &mut Tensors,
    ) -> Vec<f64> {
        let name = |part| name(layer, part);
        let a = self.attend(w, layer, x);
        let m = self.mlp(w, layer, &a.out);

        let d_activated = self.linear_grad(w, &name("mlp.down_proj"), &m.activated, d_y, g);
        let (mut d_gate, mut d_up) = reference::swiglu_grad(&m.gate, &m.up, &d_activated);
        if fault == Fault::GateTakenForUp {
            std::mem::swap(&mut d_gate, &mut d_up);
        }
        let d_normed = sum(
            &self.linear_grad(w, &name("mlp.gate_proj"), &m.normed, &d_gate, g),
            &self.linear_grad(w, &name("mlp.up_proj"), &m.normed, &d_up, g),
        );
        let d_branch = norm_grad(w, &name("post_attention_layernorm"), &a.out, &m.rstd, &d_normed, g);
        let d_mid = if fault == Fault::ResidualLost { d_branch } else { sum(d_y, &d_branch) };

        let d_o = self.linear_grad(w, &name("self_attn.o_proj"), &a.o, &d_mid, g);
        let (d_q, d_k, d_v) = self.attention_grad(&a, &d_o, fault);
        let turn = |d: Vec<f64>| match fault {
            Fault::RopeLeftOut => d,
            _ => self.rope(&d, fault != Fault::RopeTurnsOn),
        };
        let (d_q, d_k) = (turn(d_q), turn(d_k));
        let mut d_normed = self.linear_grad(w, &name("self_attn.q_proj"), &a.normed, &d_q, g);
        d_normed = sum(&d_normed, &self.linear_grad(w, &name("self_attn.k_proj"), &a.normed, &d_k, g));
        d_normed = sum(&d_normed, &self.linear_grad(w, &name("self_attn.v_proj"), &a.normed, &d_v, g));
        let input = if fault == Fault::NormTakenForTheInput { &a.normed } else { x };
        sum(&d_mid, &norm_grad(w, &name("input_layernorm"), input, &a.rstd, &d_normed, g))
    }

    fn attend(&self, w: &Tensors, layer: usize, x: &[f64]) -> Attended {
        let weight = |part| &w[&name(layer, part)];
        let (normed, rstd) = reference::rms_norm(x, weight("input_layernorm"), self.eps);
        let q = self.rope(&self.project(&normed, weight("self_attn.q_proj")), false);
        let k = self.rope(&self.project(&normed, weight("self_attn.k_proj")), false);
        let v = self.project(&normed, weight("self_attn.v_proj"));
        let positions = self.positions(&self.row.first_key);
        let (o, _) = reference::attn(&q, &k, &v, positions, self.heads(), self.scale());
        let out = sum(x, &self.project(&o, weight("self_attn.o_proj")));
        Attended { normed, rstd, q, k, v, o, out }
    }

    fn attention_grad(&self, a: &Attended, d_o: &[f64], fault: Fault) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let all: Vec<u32> = self.row.first_key.iter().map(|f| if *f == NONE { NONE } else { 0 }).collect();
        let first_key = if fault == Fault::SamplesSeeOneAnother { &all } else { &self.row.first_key };
        let grad = |d_o: &[f64]| {
            let qkv = (&a.q[..], &a.k[..], &a.v[..]);
            reference::attn_grad(qkv, self.positions(first_key), self.heads(), self.scale(), d_o)
        };
        let (d_q, d_k, d_v) = grad(d_o);
        // What the first query head of every key head owes, the others left out.
        let Heads { query, kv, dim } = self.heads();
        let first = |(i, d): (usize, &f64)| if (i / dim) % (query / kv) == 0 { *d } else { 0.0 };
        let first: Vec<f64> = d_o.iter().enumerate().map(first).collect();
        match fault {
            Fault::OneQueryHeadForKeys => (d_q, grad(&first).1, d_v),
            Fault::OneQueryHeadForValues => (d_q, d_k, grad(&first).2),
            _ => (d_q, d_k, d_v),
        }
    }

    fn mlp(&self, w: &Tensors, layer: usize, x: &[f64]) -> Mlp {
        let weight = |part| &w[&name(layer, part)];
        let (normed, rstd) = reference::rms_norm(x, weight("post_attention_layernorm"), self.eps);
        let (gate, up) =
            (self.project(&normed, weight("mlp.gate_proj")), self.project(&normed, weight("mlp.up_proj")));
        let activated = reference::swiglu(&gate, &up);
        let out = sum(x, &self.project(&activated, weight("mlp.down_proj")));
        Mlp { normed, rstd, gate, up, activated, out }
    }

    fn head(&self, w: &Tensors, x: &[f64], weights: &[f64]) -> Head {
        let (normed, rstd) = reference::rms_norm(x, &w["model.norm.weight"], self.eps);
        let logits = self.project(&normed, &w[self.head_name()]);
        let scale = 1.0 / self.total_weight;
        let (nll, d_logits) = reference::cross_entropy(&logits, &self.row.targets, weights, scale);
        let loss = nll.iter().zip(weights).map(|(n, w)| n * w).sum::<f64>() * scale;
        Head { normed, rstd, loss, d_logits }
    }

    fn head_name(&self) -> &'static str {
        if self.shape.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    fn heads(&self) -> Heads {
        Heads { query: self.shape.heads, kv: self.shape.kv_heads, dim: self.shape.head_dim }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.shape.head_dim as f64).sqrt()
    }

    fn positions<'p>(&'p self, first_key: &'p [u32]) -> Positions<'p> {
        Positions { q_pos: &self.row.query_pos, first_key, k_pos: &self.row.key_pos }
    }

    fn rope(&self, x: &[f64], inverse: bool) -> Vec<f64> {
        let cols = x.len() / self.tokens();
        reference::rope(x, &self.cos, &self.sin, self.shape.head_dim / 2, cols, inverse)
    }

    /// a·wᵀ.
    fn project(&self, a: &[f64], w: &[f64]) -> Vec<f64> {
        let (t, cols) = (self.tokens(), a.len() / self.tokens());
        reference::gemm(a, Transpose::No, w, Transpose::Yes, (t, w.len() / cols, cols))
    }

    /// Adds dᵀ·a to the gradient of the projection `name`; gives d·w, the gradient of a.
    fn linear_grad(&self, w: &Tensors, name: &str, a: &[f64], d: &[f64], g: &mut Tensors) -> Vec<f64> {
        let t = self.tokens();
        let (rows, cols) = (d.len() / t, a.len() / t);
        add(g, name, &reference::gemm(d, Transpose::Yes, a, Transpose::No, (rows, cols, t)));
        reference::gemm(d, Transpose::No, &w[name], Transpose::No, (t, cols, rows))
    }
}

pub(super) fn zeros(w: &Tensors) -> Tensors {
    w.iter().map(|(name, w)| (name.clone(), vec![0.0; w.len()])).collect()
}

fn name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

fn norm_grad(w: &Tensors, name: &str, x: &[f64], rstd: &[f64], d: &[f64], g: &mut Tensors) -> Vec<f64> {
    let (d_x, d_w) = reference::rms_norm_grad(x, &w[name], rstd, d);
    add(g, name, &d_w);
    d_x
}

fn add(g: &mut Tensors, name: &str, d: &[f64]) {
    let gradient = g.get_mut(name).expect("a gradient for every weight");
    *gradient = sum(gradient, d);
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
