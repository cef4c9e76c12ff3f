//! GGUF → Hugging Face folder: dequantised weights with llama.cpp's permutation undone, tokenizer,
//! chat template and the small files. The folder appears whole or not at all, by a rename.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{Dtype, ModelConfig, TensorSpec};
use crate::error::{ModelError, Result};
use crate::export::{MAX_SHARD_BYTES, write_bytes, write_json, write_weights};
use crate::gguf::{Gguf, Meta};
use crate::special::read_json;
use crate::tokenizer::hex_digest;

/// Says which file a folder was made from; written last, so it also says that the folder is whole.
const RECORD: &str = "longstrap-import.json";

/// Rises when an import of the same file would give other bytes.
const FORMAT_VERSION: u64 = 1;

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The folder held this very import already; nothing was written.
    pub reused: bool,
    /// Digest of the GGUF file, `sha256:` and hex.
    pub source_digest: String,
    /// Number of parameters.
    pub parameters: u64,
}

/// Imports a GGUF file into the folder `out`, which must be absent, empty, or an earlier import of
/// the same file (then there is nothing to do). `progress` hears (tensors written, tensors in all).
///
/// # Errors
/// A file that is truncated or not GGUF v3; K-quants, other architectures, `rope_freqs.weight` and
/// tokenizers that we do not read, by name; a tensor of the wrong shape; a folder with other content.
pub fn import_gguf(
    file: &Path,
    out: &Path,
    dtype: Dtype,
    mut progress: impl FnMut(usize, usize),
) -> Result<Imported> {
    let gguf = Gguf::open(file)?;
    let config = config(&gguf)?;
    let source_digest = hex_digest(Sha256::digest(gguf.bytes()).as_slice());
    let record =
        json!({"formatVersion": FORMAT_VERSION, "source": source_digest, "dtype": dtype.config_name()});
    let done =
        |reused| Imported { reused, source_digest: source_digest.clone(), parameters: config.parameters() };
    if holds_import(out, &record)? {
        return Ok(done(true));
    }
    let partial = partial_folder(out)?;
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(ModelError::io(&partial))?;
    }
    let written = write_folder(&gguf, &config, dtype, &partial, &mut progress)
        .and_then(|()| write_json(&partial, RECORD, &record).map(drop))
        .and_then(|()| publish(&partial, out));
    if let Err(error) = written {
        // A full disk is not kept full; the error is what counts.
        let _ = std::fs::remove_dir_all(&partial);
        return Err(error);
    }
    Ok(done(false))
}

fn write_folder(
    gguf: &Gguf,
    config: &ModelConfig,
    dtype: Dtype,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    write_small_files(gguf, config, dtype, folder)?;
    let total = config.tensors().len();
    let mut written = 0;
    write_weights(config, dtype, MAX_SHARD_BYTES, folder, &mut |spec, values| {
        read_tensor(gguf, config, spec, values)?;
        written += 1;
        progress(written, total);
        Ok(())
    })?;
    Ok(())
}

fn holds_import(out: &Path, record: &Value) -> Result<bool> {
    let mut entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(ModelError::io(out)(e)),
    };
    if entries.next().is_none() {
        return Ok(false);
    }
    if read_json(&out.join(RECORD))? == *record {
        return Ok(true);
    }
    let taken = std::io::Error::new(
        std::io::ErrorKind::AlreadyExists,
        "holds something else than an import of this file with these options; name another folder, or remove it",
    );
    Err(ModelError::io(out)(taken))
}

fn partial_folder(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| ModelError::malformed(out, "is not the name of a folder to be made"))?;
    Ok(out.with_file_name(format!(".{name}.partial")))
}

fn publish(partial: &Path, out: &Path) -> Result<()> {
    std::fs::rename(partial, out).map_err(ModelError::io(out))?;
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // The rename itself must survive a power cut.
    File::open(parent).and_then(|d| d.sync_all()).map_err(ModelError::io(parent))
}

/// The GGUF name of a tensor of the Hugging Face layout.
fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    name.replace("model.layers.", "blk.")
        .replace("self_attn.q_proj", "attn_q")
        .replace("self_attn.k_proj", "attn_k")
        .replace("self_attn.v_proj", "attn_v")
        .replace("self_attn.o_proj", "attn_output")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
}

fn read_tensor(gguf: &Gguf, config: &ModelConfig, spec: &TensorSpec, out: &mut [f32]) -> Result<()> {
    gguf.read(&gguf_name(&spec.name), &spec.shape, out)?;
    let columns = config.hidden_size;
    if spec.name.ends_with("q_proj.weight") || spec.name.ends_with("k_proj.weight") {
        unpermute(out, config.head_dim, columns);
    }
    Ok(())
}

/// llama.cpp stores the rows of Q and K with the two halves of each head interleaved (its rotary
/// embedding turns neighbours); the Hugging Face layout has the halves one after the other.
fn unpermute(weight: &mut [f32], head_dim: usize, columns: usize) {
    let mut head = vec![0.0; head_dim * columns];
    for rows in weight.chunks_exact_mut(head_dim * columns) {
        for (i, pair) in rows.chunks_exact(2 * columns).enumerate() {
            let (first, second) = pair.split_at(columns);
            head[i * columns..][..columns].copy_from_slice(first);
            head[(head_dim / 2 + i) * columns..][..columns].copy_from_slice(second);
        }
        rows.copy_from_slice(&head);
    }
}

/// Typed access to the metadata, with errors that name file and key.
struct Header<'a>(&'a Gguf);

impl Header<'_> {
    fn refuse(&self, message: String) -> ModelError {
        ModelError::Unsupported { file: self.0.path().display().to_string(), message }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.0.meta(key) {
            Some(Meta::Text(t)) => Some(t),
            _ => None,
        }
    }

    fn count(&self, key: &str) -> Option<u64> {
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

    fn flag(&self, key: &str) -> bool {
        matches!(self.0.meta(key), Some(Meta::Bool(true)))
    }

    fn texts(&self, key: &str) -> Result<&[String]> {
        match self.0.meta(key) {
            Some(Meta::Texts(t)) => Ok(t),
            _ => Err(self.refuse(format!("metadata {key} is missing or not a list of strings"))),
        }
    }
}

/// The model's configuration from the metadata; refuses what the Hugging Face layout of a Llama
/// cannot say.
fn config(gguf: &Gguf) -> Result<ModelConfig> {
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

fn write_small_files(gguf: &Gguf, config: &ModelConfig, dtype: Dtype, out: &Path) -> Result<()> {
    let h = Header(gguf);
    let tokens = h.texts("tokenizer.ggml.tokens")?;
    write_json(out, "config.json", &config.to_json(dtype))?;
    let tokenizer = serde_json::to_vec(&tokenizer_json(&h)?).map_err(|e| ModelError::malformed(out, e))?;
    write_bytes(out, "tokenizer.json", &tokenizer)?;
    let special = |key: &str| -> Result<Option<(u64, &String)>> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let Some(id) = h.count(&key) else { return Ok(None) };
        match tokens.get(id as usize) {
            Some(text) => Ok(Some((id, text))),
            None => Err(h.refuse(format!("{key} is {id}, the vocabulary has {} tokens", tokens.len()))),
        }
    };
    let mut names = serde_json::Map::new();
    let mut generation = serde_json::Map::new();
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")] {
        let Some((id, text)) = special(key)? else { continue };
        names.insert(format!("{name}_token"), json!(text));
        if name != "unk" {
            generation.insert(format!("{name}_token_id"), json!(id));
        }
    }
    write_json(out, "special_tokens_map.json", &Value::Object(names.clone()))?;
    write_json(out, "generation_config.json", &Value::Object(generation))?;
    let mut tokenizer_config = serde_json::Map::new();
    tokenizer_config.insert("add_bos_token".into(), json!(h.flag("tokenizer.ggml.add_bos_token")));
    tokenizer_config.insert("add_prefix_space".into(), json!(false));
    tokenizer_config.extend(names);
    if let Some(template) = h.text("tokenizer.chat_template") {
        tokenizer_config.insert("chat_template".into(), json!(template));
    }
    tokenizer_config.insert("clean_up_tokenization_spaces".into(), json!(false));
    tokenizer_config.insert("model_max_length".into(), json!(config.max_position_embeddings));
    tokenizer_config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    write_json(out, "tokenizer_config.json", &Value::Object(tokenizer_config))?;
    Ok(())
}

/// `tokenizer.json` from vocabulary, merges and the name of the pre-tokenizer.
fn tokenizer_json(h: &Header<'_>) -> Result<Value> {
    match h.text("tokenizer.ggml.model") {
        Some("gpt2") => {}
        other => {
            let name = other.unwrap_or("(none)");
            return Err(h.refuse(format!("tokenizer.ggml.model is {name}; only gpt2 (byte-level BPE) is read from GGUF: use the model's Hugging Face folder")));
        }
    }
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let pre_tokenizer = match h.text("tokenizer.ggml.pre") {
        // llama.cpp: digits one by one (`\p{N}`), then GPT-2's pattern.
        Some("smollm") => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]})
        }
        Some("gpt-2") => byte_level.clone(),
        other => {
            let name = other.unwrap_or("(none)");
            return Err(h.refuse(format!("tokenizer.ggml.pre is {name}; smollm and gpt-2 are read from GGUF: use the model's Hugging Face folder")));
        }
    };
    if h.flag("tokenizer.ggml.add_bos_token") {
        return Err(h.refuse("tokenizer.ggml.add_bos_token is true, which is not read from GGUF: use the model's Hugging Face folder".into()));
    }
    let tokens = h.texts("tokenizer.ggml.tokens")?;
    let kinds = match h.0.meta("tokenizer.ggml.token_type") {
        Some(Meta::Numbers(kinds)) if kinds.len() == tokens.len() => kinds,
        _ => {
            return Err(h.refuse(
                "metadata tokenizer.ggml.token_type is missing or has another length than the vocabulary"
                    .into(),
            ));
        }
    };
    let mut vocab = serde_json::Map::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), json!(id)).is_some() {
            return Err(h.refuse(format!("tokenizer.ggml.tokens has {token:?} twice")));
        }
    }
    let mut merges = Vec::new();
    for (i, merge) in h.texts("tokenizer.ggml.merges")?.iter().enumerate() {
        match merge.split_once(' ') {
            Some((a, b)) if !b.contains(' ') => merges.push(json!([a, b])),
            _ => return Err(h.refuse(format!("tokenizer.ggml.merges[{i}] is {merge:?}, not two symbols"))),
        }
    }
    let added: Vec<Value> = (tokens.iter().zip(kinds).enumerate())
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (text, kind))| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}

/// ggml's token types that are matched as whole strings.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
