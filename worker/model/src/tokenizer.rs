//! The tokenizer of a model folder. Text of users, documents and models is encoded so that a
//! control string in it stays text; only a chat template's own markup makes control tokens.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{ModelError, Result};

/// A token that is matched as a whole string before the text is split: `<|im_end|>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Its string.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// White space before it belongs to it.
    pub lstrip: bool,
    /// White space after it belongs to it.
    pub rstrip: bool,
}

/// Encodes and decodes; loaded from `tokenizer.json`. Cheap to share by reference.
#[derive(Debug)]
pub struct Tokenizer {
    /// Every control token is special here and matched by nobody: ordinary text only.
    ordinary: tokenizers::Tokenizer,
    /// The file as it is written into a model folder.
    json: Vec<u8>,
    controls: Vec<Control>,
    /// First bytes of the control strings.
    starts: Vec<u8>,
    prefix: Vec<u32>,
    dropped: Vec<u8>,
}

/// Token ids with the byte range of the text that each stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte ranges in the text, one a token. Tokens that share a character share its range.
    pub offsets: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// A missing or malformed file.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(ModelError::io(&path))?;
        Self::from_json(json).map_err(|e| ModelError::malformed(&path, e))
    }

    /// Builds a tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that the `tokenizers` library cannot read.
    pub fn from_json(json: Vec<u8>) -> Result<Self> {
        let mut value: Value = serde_json::from_slice(&json).map_err(tokenizer_error)?;
        let mut controls = Vec::new();
        // Truncation and padding are a caller's choice, never a file's.
        value["truncation"] = Value::Null;
        value["padding"] = Value::Null;
        for token in value["added_tokens"].as_array_mut().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default().to_owned();
            // A run of spaces as an added token (GPT-NeoX) is text, not control.
            if text.trim().is_empty() {
                continue;
            }
            // Those that are not `special` (tool calls, thinking) steer a model just as much.
            token["special"] = Value::Bool(true);
            controls.push(Control {
                id: token["id"]
                    .as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| ModelError::Tokenizer(format!("added token {text:?} has no valid id")))?,
                lstrip: token["lstrip"].as_bool().unwrap_or(false),
                rstrip: token["rstrip"].as_bool().unwrap_or(false),
                text,
            });
        }
        // The longest match wins, as in the library.
        controls.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
        let bytes = serde_json::to_vec(&value).map_err(tokenizer_error)?;
        let mut ordinary = tokenizers::Tokenizer::from_bytes(bytes).map_err(tokenizer_error)?;
        ordinary.set_encode_special_tokens(true);
        let prefix = ordinary.encode_fast("", true).map_err(tokenizer_error)?.get_ids().to_vec();
        let dropped = dropped_bytes(&value);
        let mut starts: Vec<u8> = controls.iter().map(|c| c.text.as_bytes()[0]).collect();
        starts.sort_unstable();
        starts.dedup();
        Ok(Self { ordinary, json, controls, starts, prefix, dropped })
    }

    /// The bytes of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// `sha256:` and the hex digest of `tokenizer.json`.
    pub fn digest(&self) -> String {
        sha256(&self.json)
    }

    /// Encodes text in which control strings are just text. No BOS is added.
    ///
    /// # Errors
    /// Only what the library cannot encode at all.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.ordinary.encode_fast(text, false).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode_ordinary`], with the byte range of each token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded> {
        let encoding = self.ordinary.encode(text, false).map_err(tokenizer_error)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().iter().map(|&(a, b)| a..b).collect(),
        })
    }

    /// Cuts text at the control strings in it (leftmost, longest first).
    pub(crate) fn split_at_controls(&self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut from = 0;
        let mut at = 0;
        let bytes = text.as_bytes();
        while let Some(skip) = bytes[at..].iter().position(|b| self.starts.contains(b)) {
            at += skip;
            let Some(c) = self.controls.iter().find(|c| bytes[at..].starts_with(c.text.as_bytes())) else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + c.text.len());
            if c.lstrip {
                start = from + text[from..at].trim_end().len();
            }
            if c.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if start > from {
                pieces.push(Piece::Text(from..start));
            }
            pieces.push(Piece::Control(c.id, start..end));
            (from, at) = (end, end);
        }
        if from < text.len() {
            pieces.push(Piece::Text(from..text.len()));
        }
        pieces
    }

    /// Text of the tokens; control tokens are left out.
    ///
    /// # Errors
    /// Only what the library cannot decode at all.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.ordinary.decode(ids, true).map_err(tokenizer_error)
    }

    /// Id of a token by its string.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ordinary.token_to_id(token)
    }

    /// The control tokens, longest string first.
    pub fn controls(&self) -> &[Control] {
        &self.controls
    }

    /// Ids that the tokenizer itself puts before every text (a BOS, or nothing).
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// One more than the highest id.
    pub fn id_bound(&self) -> usize {
        self.ordinary.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Bytes that have no symbol in the vocabulary: the library leaves them out silently.
    pub fn dropped_bytes(&self) -> &[u8] {
        &self.dropped
    }

    /// Writes `tokenizer.json` into a folder, byte for byte as it was loaded.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join("tokenizer.json");
        std::fs::write(&path, &self.json).map_err(ModelError::io(&path))
    }
}

/// A part of a text: between control strings, or one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(Range<usize>),
    Control(u32, Range<usize>),
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex_digest(Sha256::digest(bytes).as_slice())
}

pub(crate) fn hex_digest(digest: &[u8]) -> String {
    digest.iter().fold(String::from("sha256:"), |s, b| s + &format!("{b:02x}"))
}

fn tokenizer_error(e: impl ToString) -> ModelError {
    ModelError::Tokenizer(e.to_string())
}

/// For a byte-level model, the bytes whose symbol the vocabulary lacks.
fn dropped_bytes(tokenizer: &Value) -> Vec<u8> {
    let byte_level = tokenizer["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
    let Some(vocab) = tokenizer["model"]["vocab"].as_object().filter(|_| byte_level) else {
        return Vec::new();
    };
    let known: HashSet<char> = vocab.keys().filter_map(|k| single(k)).collect();
    (0..=255).filter(|&b| !known.contains(&byte_symbol(b))).collect()
}

fn single(s: &str) -> Option<char> {
    let mut chars = s.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's table): printable
/// Latin-1 stands for itself, the others follow from U+0100 on in order.
pub(crate) fn byte_symbol(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{100}')
}
