//! Rendering of conversations by a model's own chat template, with the token ranges that carry the
//! loss. Only the template's own markers become control tokens: control strings in a message are
//! hidden from the template's markers while it runs and restored as ordinary text afterwards.

mod assemble;
mod signs;

use std::ops::Range;
use std::path::Path;

use minijinja::value::Value;
use serde::{Deserialize, Serialize};

use self::assemble::Assembled;
use self::signs::{Hidden, Signs};
use crate::error::{ModelError, Result};
use crate::jinja::Jinja;
use crate::special::{SpecialTokens, read_json};
use crate::tokenizer::{Tokenizer, sha256};

/// For models without a template: the texts one after another, as in a document.
const PLAIN: &str = "{% if begins %}{{ bos_token }}{% endif %}\
{% for message in messages %}{{ message['content'] }}\
{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}\
{% endfor %}";

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing orders.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A tool's answer.
    Tool,
}

impl Role {
    /// The name in templates and data.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said: text, never markup.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Which tokens of a sample are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LossOn {
    /// Every token but the first.
    All,
    /// Text and end token of each assistant turn.
    Response,
}

/// Where a message ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// Byte range of its content in [`Rendered::text`].
    pub text: Range<usize>,
    /// Tokens of its content; of an assistant turn, its end token too.
    pub tokens: Range<usize>,
}

/// A conversation as text and tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text, markers included.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Byte range in `text` of each token.
    pub offsets: Vec<Range<usize>>,
    /// The messages that the template printed, in order.
    pub turns: Vec<Turn>,
}

impl Rendered {
    /// Token ranges that carry the loss: ascending, disjoint, never the first token (nothing
    /// predicts it).
    pub fn spans(&self, loss: LossOn) -> Vec<Range<usize>> {
        let learned: Vec<Range<usize>> = match loss {
            LossOn::All => std::iter::once(0..self.ids.len()).collect(),
            LossOn::Response => {
                self.turns.iter().filter(|t| t.role == Role::Assistant).map(|t| t.tokens.clone()).collect()
            }
        };
        learned.into_iter().map(|r| r.start.max(1)..r.end).filter(|r| !r.is_empty()).collect()
    }
}

/// A model's chat template with the special tokens that it prints.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    jinja: Jinja,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (of several, the one named `default`), else a plain one.
    ///
    /// # Errors
    /// Malformed files; a template that does not parse.
    pub fn load(dir: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let special = SpecialTokens::load(dir, tokenizer)?;
        let file = dir.join("chat_template.jinja");
        let source = match std::fs::read_to_string(&file) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let config = dir.join("tokenizer_config.json");
                template_of(&read_json(&config)?["chat_template"])
                    .map_err(|message| ModelError::malformed(&config, message))?
            }
            Err(e) => return Err(ModelError::io(&file)(e)),
        };
        Self::new(source.as_deref().unwrap_or(PLAIN), special)
    }

    /// Parses a template.
    ///
    /// # Errors
    /// Jinja's, with the line.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self> {
        Ok(Self { source: source.to_owned(), jinja: Jinja::parse(source)?, special })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special tokens of the model.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// `sha256:` and the hex digest of the template's text.
    pub fn digest(&self) -> String {
        sha256(self.source.as_bytes())
    }

    /// Renders a finished conversation.
    ///
    /// # Errors
    /// The template's own refusal (`raise_exception`); a template that changes an assistant's text,
    /// so that its loss span cannot be found.
    pub fn render(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Rendered> {
        self.run(tokenizer, messages, None)
    }

    /// Renders a conversation up to the point where the model answers; its answer is made to begin
    /// with `answer_prefix` (may be empty).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        answer_prefix: &str,
    ) -> Result<Rendered> {
        self.run(tokenizer, messages, Some(answer_prefix))
    }

    fn run(&self, tokenizer: &Tokenizer, messages: &[Message], answer: Option<&str>) -> Result<Rendered> {
        let texts = messages.iter().map(|m| m.content.as_str()).chain(answer);
        let mut signs = Signs::avoiding(texts.chain([self.source.as_str()]));
        let hidden: Vec<Hidden> =
            messages.iter().map(|m| signs.hide_message(tokenizer, &m.content)).collect();
        let answer = answer.map(|text| signs.hide(tokenizer, text));
        let list: Vec<Value> = messages
            .iter()
            .zip(&hidden)
            .map(|(m, h)| minijinja::context! { role => m.role.name(), content => &h.content })
            .collect();
        let mut raw = self.jinja.render(minijinja::context! {
            messages => list,
            add_generation_prompt => answer.is_some(),
            begins => !tokenizer.prefix().is_empty(),
            tools => (),
            documents => (),
            bos_token => self.special.bos.as_deref().unwrap_or(""),
            eos_token => self.special.eos.as_deref().unwrap_or(""),
            pad_token => self.special.pad.as_deref().unwrap_or(""),
            unk_token => self.special.unk.as_deref().unwrap_or(""),
        })?;
        raw.push_str(answer.as_deref().unwrap_or(""));
        let out = Assembled::new(tokenizer, &signs, &raw)?;
        let mut turns = Vec::new();
        for (message, marks) in messages.iter().zip(&hidden) {
            match out.turn(message, marks) {
                Some(turn) => turns.push(turn),
                None if message.role == Role::Assistant && !message.content.trim().is_empty() => {
                    return Err(ModelError::Template(
                        "it drops or rewrites an assistant's message, so the tokens to learn cannot be found in it".into(),
                    ));
                }
                None => {}
            }
        }
        Ok(Rendered { text: out.text, ids: out.ids, offsets: out.offsets, turns })
    }
}

fn template_of(value: &serde_json::Value) -> Result<Option<String>, String> {
    match value {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) => Ok(Some(text.clone())),
        serde_json::Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default");
            let text = default.and_then(|t| t["template"].as_str());
            text.map(|t| Some(t.to_owned()))
                .ok_or_else(|| "chat_template is a list without one named default".into())
        }
        other => Err(format!("chat_template must be a string or a list, not {other}")),
    }
}
