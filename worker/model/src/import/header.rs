//! The metadata of a GGUF file, and the model's configuration from it.
//!
//! Invariant: what the Hugging Face layout of a Llama cannot say is refused by file and key.

use serde_json::json;

use super::gguf_name;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::gguf::{Gguf, Meta};

/// Typed access to the metadata, with errors that name file and key.
pub(super) struct Header<'a>(pub(super) &'a Gguf);

impl Header<'_> {
    pub(super) fn refuse(&self, message: String) -> ModelError {
        ModelError::Unsupported { file: self.0.path().display().to_string(), message }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.0.meta(key) {
            Some(Meta::Text(t)) => Some(t),
            _ => None,
        }
    }

    pub(super) fn count(&self, key: &str) -> Option<u64> {
        match self.0.meta(key) {
            Some(Meta::Unsigned(n)) => Some(*n),
            Some(Meta::Signed(n)) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    fn need_count(&self, key: &str) -> Result<u64> {
        self.count(key).ok_or_else(|| self.refuse(format!("metadata {key} is missing or not a number")))
    }

    /// A float as the shortest decimal that names it: 1e-5, not 9.999999747378752e-06.
    fn float(&self, key: &str) -> Option<f64> {
        match self.0.meta(key) {
            Some(Meta::Float(v)) => format!("{v}").parse().ok(),
            Some(Meta::Double(v)) => Some(*v),
            _ => None,
        }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.0.meta(key), Some(Meta::Bool(true)))
    }

    pub(super) fn texts(&self, key: &str) -> Result<&[String]> {
        match self.0.meta(key) {
            Some(Meta::Texts(t)) => Ok(t),
            _ => Err(self.refuse(format!("metadata {key} is missing or not a list of strings"))),
        }
    }
}

/// The model's configuration from the metadata; refuses what the Hugging Face layout of a Llama
/// cannot say.
pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig> {
    let h = Header(gguf);
    match h.text("general.architecture") {
        Some("llama") => {}
        other => {
            let name = other.unwrap_or("(none)");
            return Err(h.refuse(format!("general.architecture is {name}; only llama is supported")));
        }
    }
    if let Some(kind) = h.text("llama.rope.scaling.type").filter(|&k| k != "none") {
        return Err(h.refuse(format!("llama.rope.scaling.type is {kind}, which is not supported in GGUF; use the model's Hugging Face folder")));
    }
    if h.count("llama.expert_count").is_some_and(|n| n > 0) {
        return Err(h.refuse("llama.expert_count: mixtures of experts are not supported".into()));
    }
    let (hidden, heads) =
        (h.need_count("llama.embedding_length")?, h.need_count("llama.attention.head_count")?);
    if heads == 0 {
        return Err(h.refuse("llama.attention.head_count is 0".into()));
    }
    let head_dim = h.count("llama.attention.key_length").unwrap_or(hidden / heads);
    if let Some(n) = h.count("llama.rope.dimension_count").filter(|&n| n != head_dim) {
        return Err(h.refuse(format!(
            "llama.rope.dimension_count is {n}, heads have {head_dim}: partial rotation is not supported"
        )));
    }
    let theta = h.float("llama.rope.freq_base").unwrap_or(10_000.0);
    let eps = h.float("llama.attention.layer_norm_rms_epsilon");
    let eps =
        eps.ok_or_else(|| h.refuse("metadata llama.attention.layer_norm_rms_epsilon is missing".into()))?;
    let id = |key: &str| h.count(&format!("tokenizer.ggml.{key}_token_id"));
    let value = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "bos_token_id": id("bos"),
        "eos_token_id": id("eos"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": h.need_count("llama.feed_forward_length")?,
        "max_position_embeddings": h.need_count("llama.context_length")?,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": h.need_count("llama.block_count")?,
        "num_key_value_heads": h.count("llama.attention.head_count_kv").unwrap_or(heads),
        "pad_token_id": id("padding"),
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "tie_word_embeddings": !gguf.tensor_names().any(|n| n == "output.weight"),
        "vocab_size": h.texts("tokenizer.ggml.tokens")?.len(),
    });
    let config = ModelConfig::from_json(value, &gguf.path().display().to_string())?;
    refuse_other_tensors(gguf, &config)?;
    Ok(config)
}

fn refuse_other_tensors(gguf: &Gguf, config: &ModelConfig) -> Result<()> {
    let known: std::collections::HashSet<String> =
        config.tensors().iter().map(|t| gguf_name(&t.name)).collect();
    for name in gguf.tensor_names() {
        if name == "rope_freqs.weight" {
            let message = "scales the rotary frequencies (Llama 3.1 and later) and is not read from GGUF; use the model's Hugging Face folder";
            return Err(ModelError::tensor(gguf.path(), name, message));
        }
        if !known.contains(name) {
            return Err(ModelError::tensor(
                gguf.path(),
                name,
                "does not belong to a Llama model without biases",
            ));
        }
    }
    Ok(())
}
