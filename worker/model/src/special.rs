//! Which tokens begin, end and pad a text, as the model folder's small files say.

use std::path::Path;

use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;

/// Special tokens of a model folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of a text.
    pub bos: Option<String>,
    /// End of a text or of a turn.
    pub eos: Option<String>,
    /// Padding.
    pub pad: Option<String>,
    /// Unknown text.
    pub unk: Option<String>,
    /// Ids that end generation, ascending.
    pub stop_ids: Vec<u32>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`;
    /// each may be absent.
    ///
    /// # Errors
    /// A file that is there but is not JSON; a named token that the tokenizer does not have.
    pub fn load(dir: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        let generation = read_json(&dir.join("generation_config.json"))?;
        let token = |name: &str| token_text(&config[name]).or_else(|| token_text(&map[name]));
        let mut tokens = Self {
            bos: token("bos_token"),
            eos: token("eos_token"),
            pad: token("pad_token"),
            unk: token("unk_token"),
            stop_ids: Vec::new(),
        };
        for text in [&tokens.bos, &tokens.eos].into_iter().flatten() {
            if tokenizer.token_to_id(text).is_none() {
                return Err(ModelError::Tokenizer(format!(
                    "tokenizer_config.json names the token {text:?}, which tokenizer.json does not have"
                )));
            }
        }
        let eos = tokens.eos.as_deref().and_then(|t| tokenizer.token_to_id(t));
        let listed = match &generation["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => Vec::from_iter(id(one)),
        };
        tokens.stop_ids.extend(eos.into_iter().chain(listed));
        tokens.stop_ids.sort_unstable();
        tokens.stop_ids.dedup();
        Ok(tokens)
    }
}

/// A token is written as a string, or as an object with its string in `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A JSON file, or null when there is none.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| ModelError::malformed(path, e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(ModelError::io(path)(e)),
    }
}
