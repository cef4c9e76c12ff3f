//! `config.json` of a Llama-family model: read strictly (what we would compute wrongly is refused
//! by name), written back with every field that we do not know left as it was.

mod read;

use std::path::Path;

use longstrap_memory_plan::Shape;
use serde_json::{Map, Value, json};

use crate::error::{ModelError, Result};
use crate::rope::{Llama3Scaling, Rope, RopeScaling};

/// Element type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Dtype {
    /// IEEE single precision.
    #[serde(rename = "float32")]
    F32,
    /// bfloat16.
    #[serde(rename = "bfloat16")]
    BF16,
    /// IEEE half precision.
    #[serde(rename = "float16")]
    F16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
        }
    }

    /// The name in `config.json`.
    pub fn config_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// The name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
        }
    }
}

/// Shape and constants of a Llama-family model, with the file that they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// Key and value heads per layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; read from the file when it is there, never assumed to be hidden / heads.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Rotary embedding.
    pub rope: Rope,
    /// The window that the model was trained for.
    pub max_position_embeddings: usize,
    /// Element type of the weights on disk, as far as the configuration says.
    pub dtype: Dtype,
    /// The file as read: fields that we do not know survive an export.
    source: Map<String, Value>,
}

/// Name and shape (row-major, `[out, in]` for matrices) of one tensor of the Hugging Face layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the safetensors file.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing or malformed file; an architecture or feature that is not Llama's, by its name.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        let value = serde_json::from_slice(&text).map_err(|e| ModelError::malformed(&path, e))?;
        Self::from_json(value, &path.display().to_string())
    }

    /// The same model with another window and RoPE base, as it is exported after a stage.
    pub fn extended(&self, max_position_embeddings: usize, theta: f64) -> Self {
        let mut config = self.clone();
        config.max_position_embeddings = max_position_embeddings;
        config.rope.theta = theta;
        config
    }

    /// The configuration as `config.json`, with `dtype` as the type of the weights beside it.
    ///
    /// Rotary parameters are written in both forms with equal values: readers that know
    /// `rope_parameters` (transformers 5 and later) prefer it silently, older ones ignore it.
    pub fn to_json(&self, dtype: Dtype) -> Value {
        let mut out = self.source.clone();
        out.insert("max_position_embeddings".into(), json!(self.max_position_embeddings));
        let theta = number(self.rope.theta);
        let mut parameters = match out.get("rope_parameters") {
            Some(Value::Object(m)) => m.clone(),
            _ => Map::new(),
        };
        parameters.insert("rope_theta".into(), theta.clone());
        let scaling = match &self.rope.scaling {
            RopeScaling::Default => {
                parameters.insert("rope_type".into(), json!("default"));
                Value::Null
            }
            RopeScaling::Llama3(s) => {
                let block = scaling_block(s);
                parameters.extend(block.clone());
                Value::Object(block)
            }
        };
        out.insert("rope_theta".into(), theta);
        out.insert("rope_scaling".into(), scaling);
        out.insert("rope_parameters".into(), Value::Object(parameters));
        let mut named = false;
        for key in ["dtype", "torch_dtype"] {
            if let Some(v) = out.get_mut(key) {
                *v = json!(dtype.config_name());
                named = true;
            }
        }
        if !named {
            out.insert("torch_dtype".into(), json!(dtype.config_name()));
        }
        Value::Object(out)
    }

    /// Every tensor of the model, in the order in which they are written: embedding, layers, final
    /// norm, and the output layer when it is not tied.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let (d, m, q, kv) = (
            self.hidden_size,
            self.intermediate_size,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        );
        let mut all = vec![spec("model.embed_tokens.weight".into(), &[self.vocab_size, d])];
        for i in 0..self.layers {
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            all.extend([
                spec(name("self_attn.q_proj"), &[q, d]),
                spec(name("self_attn.k_proj"), &[kv, d]),
                spec(name("self_attn.v_proj"), &[kv, d]),
                spec(name("self_attn.o_proj"), &[d, q]),
                spec(name("mlp.gate_proj"), &[m, d]),
                spec(name("mlp.up_proj"), &[m, d]),
                spec(name("mlp.down_proj"), &[d, m]),
                spec(name("input_layernorm"), &[d]),
                spec(name("post_attention_layernorm"), &[d]),
            ]);
        }
        all.push(spec("model.norm.weight".into(), &[d]));
        if !self.tie_word_embeddings {
            all.push(spec("lm_head.weight".into(), &[self.vocab_size, d]));
        }
        all
    }

    /// Number of parameters; a tied output layer counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.elements() as u64).sum()
    }

    /// The numbers that decide memory.
    pub fn shape(&self) -> Shape {
        Shape {
            layers: self.layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab_size,
            tied: self.tie_word_embeddings,
        }
    }
}

fn spec(name: String, shape: &[usize]) -> TensorSpec {
    TensorSpec { name, shape: shape.to_vec() }
}

fn scaling_block(s: &Llama3Scaling) -> Map<String, Value> {
    let mut block = Map::new();
    block.insert("factor".into(), number(s.factor));
    block.insert("low_freq_factor".into(), number(s.low_freq_factor));
    block.insert("high_freq_factor".into(), number(s.high_freq_factor));
    block.insert("original_max_position_embeddings".into(), json!(s.original_max_position_embeddings));
    block.insert("rope_type".into(), json!("llama3"));
    block
}

/// A float as Python's json writes it: whole numbers keep their `.0`.
fn number(v: f64) -> Value {
    json!(v)
}
