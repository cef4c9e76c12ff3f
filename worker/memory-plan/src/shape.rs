//! The numbers of a Llama-family model that decide sizes, and how its weights are grouped.
//!
//! Invariant: the groups of a shape hold every weight exactly once (a tied head is the embedding).

use serde::{Deserialize, Serialize};

/// Shape of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Columns of one head (read from the config, not derived).
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// One flat buffer of weights; gradients, moments and checkpoints are grouped alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Group {
    /// A layer: q,k,v | o | gate,up | down | norms.
    Layer(usize),
    /// vocab × hidden.
    Embedding,
    /// 1 × hidden.
    FinalNorm,
    /// vocab × hidden; absent when tied.
    Head,
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layer(l) => write!(f, "layer-{l:05}"),
            Self::Embedding => f.write_str("embedding"),
            Self::FinalNorm => f.write_str("final-norm"),
            Self::Head => f.write_str("head"),
        }
    }
}

impl Shape {
    /// Columns of all query heads.
    #[must_use]
    pub const fn q_cols(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of all key heads (values have as many).
    #[must_use]
    pub const fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of q, k and v together.
    #[must_use]
    pub const fn qkv_cols(&self) -> usize {
        self.q_cols() + 2 * self.kv_cols()
    }

    /// Elements of a layer's matrices: what is decayed.
    #[must_use]
    pub const fn layer_matrices(&self) -> usize {
        (self.qkv_cols() + self.q_cols() + 3 * self.intermediate) * self.hidden
    }

    /// Elements of one group.
    #[must_use]
    pub const fn elements(&self, group: Group) -> usize {
        match group {
            Group::Layer(_) => self.layer_matrices() + 2 * self.hidden,
            Group::Embedding | Group::Head => self.vocab * self.hidden,
            Group::FinalNorm => self.hidden,
        }
    }

    /// All groups in the order of their buffers.
    pub fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        (0..self.layers)
            .map(Group::Layer)
            .chain([Group::Embedding, Group::FinalNorm])
            .chain((!self.tied).then_some(Group::Head))
    }

    /// Number of parameters; a tied embedding counts once.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.groups().map(|g| self.elements(g)).sum()
    }

    /// FLOPs that a training step executes on `tokens` tokens whose samples see `pairs`
    /// (query, key) pairs in all: forward, backward and what the backward recomputes.
    #[must_use]
    pub fn step_flops(&self, tokens: u64, pairs: u64, keep_attention: bool) -> f64 {
        let (tokens, pairs, layers) = (tokens as f64, pairs as f64, self.layers as f64);
        let layer = self.layer_matrices() as f64;
        let recomputed = layer - (self.intermediate * self.hidden) as f64;
        let head = (self.vocab * self.hidden) as f64;
        // A pair costs 2 products forward and 5 backward (scores again, dP, dV, dQ, dK).
        let products = if keep_attention { 7.0 } else { 9.0 };
        let attention = 2.0 * products * self.q_cols() as f64 * pairs;
        layers * (2.0 * tokens * (3.0 * layer + recomputed) + attention) + 6.0 * tokens * head
    }
}
