//! Which Hugging Face tensor lies where in the flat buffers.
//!
//! Invariant: every element of every group belongs to exactly one tensor; checkpoints, import
//! and export all go through this table.

use longstrap_memory_plan::{Group, Shape};

/// A tensor of the Hugging Face layout inside a group's flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name in the safetensors file.
    pub name: String,
    /// The flat buffer.
    pub group: Group,
    /// First element in it.
    pub start: usize,
    /// Rows (`out` of a matrix; 1 for a norm).
    pub rows: usize,
    /// Columns (`in` of a matrix).
    pub cols: usize,
}

impl Tensor {
    /// Number of elements.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// All tensors of a model, in the order of the groups.
#[must_use]
pub fn tensors(shape: &Shape) -> Vec<Tensor> {
    shape
        .groups()
        .flat_map(|group| match group {
            Group::Layer(layer) => layer_tensors(shape, layer),
            Group::Embedding => vec![whole("model.embed_tokens.weight", group, shape.vocab, shape.hidden)],
            Group::FinalNorm => vec![whole("model.norm.weight", group, 1, shape.hidden)],
            Group::Head => vec![whole("lm_head.weight", group, shape.vocab, shape.hidden)],
        })
        .collect()
}

fn whole(name: &str, group: Group, rows: usize, cols: usize) -> Tensor {
    Tensor { name: name.to_owned(), group, start: 0, rows, cols }
}

fn layer_tensors(shape: &Shape, layer: usize) -> Vec<Tensor> {
    let (d, f, q, kv) = (shape.hidden, shape.intermediate, shape.q_cols(), shape.kv_cols());
    let order = [
        ("self_attn.q_proj", q, d),
        ("self_attn.k_proj", kv, d),
        ("self_attn.v_proj", kv, d),
        ("self_attn.o_proj", d, q),
        ("mlp.gate_proj", f, d),
        ("mlp.up_proj", f, d),
        ("mlp.down_proj", d, f),
        ("input_layernorm", 1, d),
        ("post_attention_layernorm", 1, d),
    ];
    let mut start = 0;
    let place = |(part, rows, cols): (&str, usize, usize)| {
        let tensor = Tensor {
            name: format!("model.layers.{layer}.{part}.weight"),
            group: Group::Layer(layer),
            start,
            rows,
            cols,
        };
        start += rows * cols;
        tensor
    };
    order.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use longstrap_model::ModelConfig;

    use super::*;

    #[test]
    fn tensors_tile_their_groups_and_are_those_of_the_config() {
        let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/fixtures/data");
        for model in ["llama3", "smollm2"] {
            let config = ModelConfig::load(&base.join(model)).unwrap();
            let shape = config.shape();
            let ours = tensors(&shape);
            for group in shape.groups() {
                let mut end = 0;
                for t in ours.iter().filter(|t| t.group == group) {
                    assert_eq!(t.start, end);
                    end += t.elements();
                }
                assert_eq!(end, shape.elements(group));
            }
            let key = |name: &str, elements: usize| format!("{name} {elements}");
            let mut a: Vec<_> = ours.iter().map(|t| key(&t.name, t.elements())).collect();
            let mut b: Vec<_> = config.tensors().iter().map(|t| key(&t.name, t.elements())).collect();
            a.sort();
            b.sort();
            assert_eq!(a, b);
        }
    }
}
