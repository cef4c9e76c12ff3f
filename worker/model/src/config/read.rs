//! Reading `config.json`: every field by its name, and what is not a plain Llama refused.
//!
//! Invariant: an error names file and field; nothing that would change the arithmetic is passed over.

use serde_json::{Map, Value};

use super::{Dtype, ModelConfig};
use crate::error::{ModelError, Result};
use crate::rope::{Llama3Scaling, Rope, RopeScaling};

impl ModelConfig {
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
