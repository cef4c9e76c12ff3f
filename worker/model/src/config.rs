//! `config.json` of a Llama-family model: read strictly (what we would compute wrongly is refused
//! by name), written back with every field that we do not know left as it was.

use std::path::Path;

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

    /// Reads a configuration; `file` is its name in error messages.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn from_json(value: Value, file: &str) -> Result<Self> {
        let Value::Object(source) = value else {
            return Err(unsupported(file, "is not a JSON object"));
        };
        let r = Reader { source: &source, file };
        r.refuse_what_is_not_llama()?;
        let hidden_size = r.size("hidden_size")?;
        let heads = r.size("num_attention_heads")?;
        let kv_heads = r.optional_size("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = match r.optional_size("head_dim")? {
            Some(d) => d,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(r.bad(
                    "head_dim",
                    "is missing, and hidden_size is not a multiple of num_attention_heads",
                ));
            }
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(r.bad(
                "num_key_value_heads",
                &format!("{kv_heads} does not divide num_attention_heads {heads}"),
            ));
        }
        if head_dim % 2 != 0 {
            return Err(r.bad("head_dim", &format!("{head_dim} is odd, so it has no rotary pairs")));
        }
        let eps = r.number("rms_norm_eps")?.unwrap_or(1e-6);
        Ok(Self {
            hidden_size,
            layers: r.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: r.size("intermediate_size")?,
            vocab_size: r.size("vocab_size")?,
            rms_norm_eps: eps as f32,
            tie_word_embeddings: r.flag("tie_word_embeddings")?,
            rope: r.rope()?,
            max_position_embeddings: r.size("max_position_embeddings")?,
            dtype: r.dtype()?,
            source: source.clone(),
        })
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

fn unsupported(file: &str, message: impl Into<String>) -> ModelError {
    ModelError::Unsupported { file: file.to_owned(), message: message.into() }
}

/// Field access with errors that name file and field.
struct Reader<'a> {
    source: &'a Map<String, Value>,
    file: &'a str,
}

impl Reader<'_> {
    fn bad(&self, field: &str, message: &str) -> ModelError {
        unsupported(self.file, format!("{field} {message}"))
    }

    /// The field, when it is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.source.get(field).filter(|v| !v.is_null())
    }

    fn optional_size(&self, field: &str) -> Result<Option<usize>> {
        match self.get(field) {
            None => Ok(None),
            Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n > 0 => Ok(Some(n)),
                _ => Err(self.bad(field, &format!("must be a positive whole number, not {v}"))),
            },
        }
    }

    fn size(&self, field: &str) -> Result<usize> {
        self.optional_size(field)?.ok_or_else(|| self.bad(field, "is missing"))
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(v) => positive(v)
                .map(Some)
                .ok_or_else(|| self.bad(field, &format!("must be a positive number, not {v}"))),
        }
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(field, &format!("must be true or false, not {v}"))),
        }
    }

    fn refuse_what_is_not_llama(&self) -> Result<()> {
        let architecture = self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        let model_type = self.get("model_type").and_then(Value::as_str);
        match (architecture, model_type) {
            (Some("LlamaForCausalLM") | None, Some("llama")) | (Some("LlamaForCausalLM"), None) => {}
            (a, t) => {
                let name = a.or(t).unwrap_or("(none)");
                return Err(unsupported(
                    self.file,
                    format!(
                        "architecture {name} is not supported; Llama models (LlamaForCausalLM, model_type llama) are"
                    ),
                ));
            }
        }
        for bias in ["attention_bias", "mlp_bias"] {
            if self.flag(bias)? {
                return Err(self.bad(bias, "is true; models with biases are not supported"));
            }
        }
        if let Some(window) = self.get("sliding_window") {
            return Err(self
                .bad("sliding_window", &format!("is {window}; sliding-window attention is not supported")));
        }
        match self.get("hidden_act").map(|v| v.as_str().unwrap_or("?")) {
            None | Some("silu") => {}
            Some(other) => return Err(self.bad("hidden_act", &format!("is {other}; only silu is supported"))),
        }
        if let Some(factor) = self.get("partial_rotary_factor")
            && factor.as_f64() != Some(1.0)
        {
            return Err(self.bad("partial_rotary_factor", &format!("is {factor}; only 1 is supported")));
        }
        if self.get("quantization_config").is_some() {
            return Err(self.bad(
                "quantization_config",
                "is set; quantised weights are not supported, use the model in bfloat16 or float32",
            ));
        }
        Ok(())
    }

    fn dtype(&self) -> Result<Dtype> {
        let Some(value) = self.get("dtype").or_else(|| self.get("torch_dtype")) else {
            return Ok(Dtype::F32);
        };
        serde_json::from_value(value.clone()).map_err(|_| {
            self.bad("dtype", &format!("is {value}; float32, bfloat16 and float16 are supported"))
        })
    }

    /// `rope_parameters` wins over `rope_theta` and `rope_scaling`, as in transformers.
    fn rope(&self) -> Result<Rope> {
        let parameters = self.object("rope_parameters")?;
        let scaling = match parameters {
            Some(p) => Some(("rope_parameters", p)),
            None => self.object("rope_scaling")?.map(|s| ("rope_scaling", s)),
        };
        let theta = match parameters.and_then(|p| p.get("rope_theta")) {
            Some(v) => positive(v).ok_or_else(|| {
                self.bad("rope_parameters.rope_theta", &format!("must be a positive number, not {v}"))
            })?,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        };
        let scaling = match scaling {
            None => RopeScaling::Default,
            Some((field, block)) => self.scaling(field, block)?,
        };
        Ok(Rope { theta, scaling })
    }

    fn scaling(&self, field: &str, block: &Map<String, Value>) -> Result<RopeScaling> {
        // Older files call the type `type`.
        let kind = block.get("rope_type").or_else(|| block.get("type"));
        match kind.and_then(Value::as_str) {
            Some("default") => Ok(RopeScaling::Default),
            None if field == "rope_parameters" => Ok(RopeScaling::Default),
            Some("llama3") => {
                let need = |key: &str| {
                    block.get(key).and_then(positive).ok_or_else(|| {
                        self.bad(&format!("{field}.{key}"), "is missing or not a positive number")
                    })
                };
                let scaling = Llama3Scaling {
                    factor: need("factor")?,
                    low_freq_factor: need("low_freq_factor")?,
                    high_freq_factor: need("high_freq_factor")?,
                    original_max_position_embeddings: need("original_max_position_embeddings")? as u64,
                };
                if scaling.high_freq_factor <= scaling.low_freq_factor {
                    return Err(
                        self.bad(&format!("{field}.high_freq_factor"), "must be larger than low_freq_factor")
                    );
                }
                Ok(RopeScaling::Llama3(scaling))
            }
            Some(other) => {
                Err(self.bad(field, &format!("has type {other}; default and llama3 are supported")))
            }
            None => Err(self.bad(field, "has no rope_type")),
        }
    }

    fn object(&self, field: &str) -> Result<Option<&Map<String, Value>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(m)) => Ok(Some(m)),
            Some(v) => Err(self.bad(field, &format!("must be an object, not {v}"))),
        }
    }
}

fn positive(v: &Value) -> Option<f64> {
    v.as_f64().filter(|n| n.is_finite() && *n > 0.0)
}
