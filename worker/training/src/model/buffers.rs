//! The memory plan's table as views: what the model code calls its buffers.
//!
//! Invariant: every view is a line of the plan; nothing is placed anywhere else.

use std::ops::Range;

use longstrap_engine::{Dtype, Space, View};
use longstrap_memory_plan::{self as plan, Group, Name, Plan, Shape};

/// The view of a line of the plan.
///
/// # Panics
/// When the plan has no such line: a bug of the caller.
pub fn view(plan: &Plan, name: Name) -> View {
    let buffer = plan.buffer(name).unwrap_or_else(|| panic!("the plan has no {name:?}"));
    let space = match buffer.space {
        plan::Space::Device => Space::Device,
        plan::Space::Host => Space::Host,
        plan::Space::Process => panic!("{name:?} lies outside the arenas"),
    };
    let dtype = match buffer.dtype {
        plan::Dtype::F32 => Dtype::F32,
        plan::Dtype::Bf16 => Dtype::Bf16,
        plan::Dtype::F64 => Dtype::F64,
        plan::Dtype::U32 | plan::Dtype::Bytes => Dtype::U32,
    };
    View::dense(space, buffer.offset, buffer.rows, buffer.cols, dtype)
}

/// The matrices of a layer in its flat buffer; weights and gradients alike.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// (h + 2g)·D × d.
    pub qkv: View,
    /// d × h·D.
    pub o: View,
    /// 2f × d.
    pub gate_up: View,
    /// d × f.
    pub down: View,
    /// 1 × d.
    pub input_norm: View,
    /// 1 × d.
    pub mlp_norm: View,
}

/// Weights or gradients of a whole model.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// One for each layer.
    pub layers: Vec<Layer>,
    /// V × d.
    pub embedding: View,
    /// 1 × d.
    pub final_norm: View,
    /// V × d; the embedding itself when tied.
    pub head: View,
    /// Every group's flat buffer, 1 × n.
    pub groups: Vec<(Group, View)>,
}

impl Parameters {
    /// The views of one kind ([`Name::Weights`], [`Name::Gradients`], …).
    pub fn new(plan: &Plan, kind: fn(Group) -> Name) -> Self {
        let shape = &plan.shape;
        let flat = |group| view(plan, kind(group));
        let embedding = flat(Group::Embedding).reshape(shape.vocab, shape.hidden);
        Self {
            layers: (0..shape.layers).map(|l| layer(shape, flat(Group::Layer(l)))).collect(),
            embedding,
            final_norm: flat(Group::FinalNorm),
            head: if shape.tied { embedding } else { flat(Group::Head).reshape(shape.vocab, shape.hidden) },
            groups: shape.groups().map(|g| (g, flat(g))).collect(),
        }
    }
}

fn layer(shape: &Shape, flat: View) -> Layer {
    let (d, f) = (shape.hidden, shape.intermediate);
    let mut start = 0;
    let mut next = |rows, cols| {
        let tensor = flat.tensor(start, rows, cols);
        start += rows * cols;
        tensor
    };
    Layer {
        qkv: next(shape.qkv_cols(), d),
        o: next(d, shape.q_cols()),
        gate_up: next(2 * f, d),
        down: next(d, f),
        input_norm: next(1, d),
        mlp_norm: next(1, d),
    }
}

/// What describes the row that is being computed, cut to its tokens.
#[derive(Clone, Copy, Debug)]
pub struct RowViews {
    /// Tokens of this rank, a multiple of 2 when there are several ranks.
    pub tokens: usize,
    /// t × 1.
    pub ids: View,
    /// t × 1; `u32::MAX`: none.
    pub targets: View,
    /// t × 1, f32.
    pub loss_weights: View,
    /// t × 1, f32: 1 where the token belongs to the source that is being summed.
    pub source_mask: View,
    /// t × 1, f32.
    pub nll: View,
    /// t × 1, within the sample.
    pub rope_pos: View,
    /// t × 1, within the row.
    pub query_pos: View,
    /// t × 1, within the row: start of the sample.
    pub first_key: View,
    /// (ranks·t) × 1, within the row: those of all ranks, in rank order.
    pub key_pos: View,
    /// t × D/2.
    pub cos: View,
    /// t × D/2.
    pub sin: View,
}

/// Activations and scratch, cut to a row's tokens.
#[derive(Clone, Debug)]
pub struct Activations {
    /// Inputs of the layers as they are kept, t × d, f32 or bf16.
    pub inputs: Vec<View>,
    /// t × h·D: one for each layer, or one for all.
    pub attention: Vec<View>,
    /// t × h, likewise.
    pub lse: Vec<View>,
    /// t × d.
    pub hidden: View,
    /// t × d.
    pub residual: View,
    /// t × d.
    pub normed: View,
    /// t × 1.
    pub rstd: View,
    /// t × (h + 2g)·D.
    pub qkv: View,
    /// t × d.
    pub d_hidden: View,
    /// t × d.
    pub d_normed: View,
    /// t × h·D.
    pub d_attention: View,
    /// t × (h + 2g)·D.
    pub d_qkv: View,
    /// t × h.
    pub delta: View,
}

/// Everything of a plan, at full length.
#[derive(Clone, Debug)]
pub struct Buffers {
    row: RowViews,
    activations: Activations,
    /// 1 × D/2.
    pub inv_freq: View,
    /// Tile × 2f.
    pub gate_up: View,
    /// Tile × f.
    pub activated: View,
    /// Tile × f.
    pub d_activated: View,
    /// Tile × V.
    pub logits: View,
    /// K over V as they come from the ring; empty for one rank.
    pub ring_kv: Vec<View>,
    /// Their gradients on their way.
    pub ring_d_kv: Vec<View>,
    /// (1 + sources) × 1, f64.
    pub loss_sums: View,
    /// 1 × 1, f64.
    pub norm_sum: View,
    /// 1 × 1, f32.
    pub clip_factor: View,
    /// 1 × 1, u32.
    pub finite: View,
}

impl Buffers {
    /// The views of a plan.
    pub fn new(plan: &Plan) -> Self {
        let of = |name| view(plan, name);
        let all = |name: fn(usize) -> Name| {
            (0..).map_while(|i| plan.buffer(name(i)).map(|_| of(name(i)))).collect::<Vec<_>>()
        };
        Self {
            row: RowViews {
                tokens: plan.tokens,
                ids: of(Name::Ids),
                targets: of(Name::Targets),
                loss_weights: of(Name::LossWeights),
                source_mask: of(Name::SourceMask),
                nll: of(Name::Nll),
                rope_pos: of(Name::RopePos),
                query_pos: of(Name::QueryPos),
                first_key: of(Name::FirstKey),
                key_pos: of(Name::KeyPos),
                cos: of(Name::Cos),
                sin: of(Name::Sin),
            },
            activations: Activations {
                inputs: all(Name::LayerInput),
                attention: all(Name::AttentionOutput),
                lse: all(Name::Lse),
                hidden: of(Name::Hidden),
                residual: of(Name::Residual),
                normed: of(Name::Normed),
                rstd: of(Name::Rstd),
                qkv: of(Name::Qkv),
                d_hidden: of(Name::DHidden),
                d_normed: of(Name::DNormed),
                d_attention: of(Name::DAttention),
                d_qkv: of(Name::DQkv),
                delta: of(Name::Delta),
            },
            inv_freq: of(Name::InvFreq),
            gate_up: of(Name::GateUp),
            activated: of(Name::Activated),
            d_activated: of(Name::DActivated),
            logits: of(Name::Logits),
            ring_kv: all(Name::RingKv),
            ring_d_kv: all(Name::RingDKv),
            loss_sums: of(Name::LossSums),
            norm_sum: of(Name::NormSum),
            clip_factor: of(Name::ClipFactor),
            finite: of(Name::Finite),
        }
    }

    /// The row's views for a rank's `tokens` of a row.
    pub fn row(&self, tokens: usize, ranks: usize) -> RowViews {
        let r = &self.row;
        let cut = |v: View| v.row_range(0..tokens);
        RowViews {
            tokens,
            ids: cut(r.ids),
            targets: cut(r.targets),
            loss_weights: cut(r.loss_weights),
            source_mask: cut(r.source_mask),
            nll: cut(r.nll),
            rope_pos: cut(r.rope_pos),
            query_pos: cut(r.query_pos),
            first_key: cut(r.first_key),
            key_pos: r.key_pos.row_range(0..tokens * ranks),
            cos: cut(r.cos),
            sin: cut(r.sin),
        }
    }

    /// The activations for `tokens`.
    pub fn activations(&self, tokens: usize) -> Activations {
        let a = &self.activations;
        let cut = |v: View| v.row_range(0..tokens);
        let all = |v: &[View]| v.iter().map(|v| cut(*v)).collect();
        Activations {
            inputs: all(&a.inputs),
            attention: all(&a.attention),
            lse: all(&a.lse),
            hidden: cut(a.hidden),
            residual: cut(a.residual),
            normed: cut(a.normed),
            rstd: cut(a.rstd),
            qkv: cut(a.qkv),
            d_hidden: cut(a.d_hidden),
            d_normed: cut(a.d_normed),
            d_attention: cut(a.d_attention),
            d_qkv: cut(a.d_qkv),
            delta: cut(a.delta),
        }
    }
}

/// `0..rows` in pieces of at most `tile`.
pub fn tiles(rows: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(tile.max(1)).map(move |start| start..(start + tile).min(rows))
}
