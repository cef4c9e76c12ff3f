//! The tokenizer of a GGUF file as `tokenizer.json`, and the small files beside it.
//!
//! Invariant: the ids are the file's; a pre-tokenizer that we do not know is refused by name.

use std::path::Path;

use serde_json::{Value, json};

use super::header::Header;
use crate::config::{Dtype, ModelConfig};
use crate::error::{ModelError, Result};
use crate::export::{write_bytes, write_json};
use crate::gguf::{Gguf, Meta};

/// Writes configuration, tokenizer, chat template and the names of special tokens.
pub(super) fn write_small_files(gguf: &Gguf, config: &ModelConfig, dtype: Dtype, out: &Path) -> Result<()> {
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
