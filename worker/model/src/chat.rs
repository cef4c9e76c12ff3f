//! Rendering of conversations by a model's own chat template, with the token ranges that carry the
//! loss. Only the template's own markers become control tokens: control strings in a message are
//! hidden from the template's markers while it runs and restored as ordinary text afterwards.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use minijinja::value::Value;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::jinja::Jinja;
use crate::special::{SpecialTokens, read_json};
use crate::tokenizer::{Piece, Tokenizer, sha256};

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

/// Private-use characters that occur in none of the texts: marks for the borders of messages, and
/// one for each control string that a message contains.
struct Signs {
    used: HashSet<char>,
    next: u32,
    restored: HashMap<char, String>,
    by_text: HashMap<String, char>,
    marks: HashSet<char>,
}

/// A message as the template sees it.
struct Hidden {
    content: String,
    begin: char,
    end: char,
}

impl Signs {
    fn avoiding<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        Self {
            used: texts.flat_map(str::chars).filter(|c| *c >= '\u{F0000}').collect(),
            next: 0xF0000,
            restored: HashMap::new(),
            by_text: HashMap::new(),
            marks: HashSet::new(),
        }
    }

    fn fresh(&mut self) -> char {
        loop {
            // Two planes of 65,534 private characters; a conversation has far fewer messages.
            let c = char::from_u32(self.next).expect("private-use planes are not exhausted");
            self.next += 1;
            if !self.used.contains(&c) {
                return c;
            }
        }
    }

    /// The text with each control string in it replaced by one private character.
    fn hide(&mut self, tokenizer: &Tokenizer, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for piece in tokenizer.split_at_controls(text) {
            match piece {
                Piece::Text(range) => out.push_str(&text[range]),
                Piece::Control(_, range) => {
                    let control = &text[range];
                    let sign = match self.by_text.get(control) {
                        Some(&sign) => sign,
                        None => {
                            let sign = self.fresh();
                            self.by_text.insert(control.to_owned(), sign);
                            self.restored.insert(sign, control.to_owned());
                            sign
                        }
                    };
                    out.push(sign);
                }
            }
        }
        out
    }

    /// Also marks where the text begins and ends. The marks stand inside outer white space, so a
    /// template that trims does what it always does.
    fn hide_message(&mut self, tokenizer: &Tokenizer, text: &str) -> Hidden {
        let (begin, end) = (self.fresh(), self.fresh());
        self.marks.extend([begin, end]);
        let text = self.hide(tokenizer, text);
        let core = text.trim();
        if core.is_empty() {
            return Hidden { content: text, begin, end };
        }
        let lead = text.len() - text.trim_start().len();
        let content = format!("{}{begin}{core}{end}{}", &text[..lead], &text[lead + core.len()..]);
        Hidden { content, begin, end }
    }
}

/// The rendered text with marks taken out and control strings restored, and its tokens.
struct Assembled {
    text: String,
    ids: Vec<u32>,
    offsets: Vec<Range<usize>>,
    /// Where each mark stood (its first occurrence).
    marks: HashMap<char, usize>,
    /// Byte position and token index of each of the template's own markers.
    markers: Vec<(usize, usize)>,
}

impl Assembled {
    fn new(tokenizer: &Tokenizer, signs: &Signs, raw: &str) -> Result<Self> {
        let bare: String = raw.chars().filter(|c| !signs.marks.contains(c)).collect();
        // Cut where only the template's own markers are visible …
        let pieces = tokenizer.split_at_controls(&bare);
        // … then walk the raw text along with them, restoring what was hidden.
        let mut out = Self {
            text: String::with_capacity(raw.len()),
            ids: Vec::new(),
            offsets: Vec::new(),
            marks: HashMap::new(),
            markers: Vec::new(),
        };
        let mut rest = raw.chars();
        for piece in pieces {
            let (Piece::Text(range) | Piece::Control(_, range)) = &piece;
            let start = out.text.len();
            let mut left = range.len();
            while left > 0 {
                let Some(c) = rest.next() else { break };
                if out.take_mark(signs, c) {
                    continue;
                }
                left -= c.len_utf8();
                match signs.restored.get(&c) {
                    Some(control) => out.text.push_str(control),
                    None => out.text.push(c),
                }
            }
            match piece {
                Piece::Control(id, _) => {
                    out.markers.push((start, out.ids.len()));
                    out.ids.push(id);
                    out.offsets.push(start..out.text.len());
                }
                Piece::Text(_) => {
                    let encoded = tokenizer.encode_with_offsets(&out.text[start..])?;
                    out.ids.extend(encoded.ids);
                    out.offsets.extend(encoded.offsets.into_iter().map(|r| r.start + start..r.end + start));
                }
            }
        }
        for c in rest {
            out.take_mark(signs, c);
        }
        Ok(out)
    }

    fn take_mark(&mut self, signs: &Signs, c: char) -> bool {
        let mark = signs.marks.contains(&c);
        if mark {
            self.marks.entry(c).or_insert(self.text.len());
        }
        mark
    }

    fn turn(&self, message: &Message, marks: &Hidden) -> Option<Turn> {
        let (begin, end) = (*self.marks.get(&marks.begin)?, *self.marks.get(&marks.end)?);
        if end < begin {
            return None;
        }
        // White space around the text that the template kept belongs to it.
        let outer = &message.content;
        let lead = &outer[..outer.len() - outer.trim_start().len()];
        let tail = &outer[outer.trim_end().len()..];
        let begin = if self.text[..begin].ends_with(lead) { begin - lead.len() } else { begin };
        let end = if self.text[end..].starts_with(tail) { end + tail.len() } else { end };
        // A token that holds the template's space and the first letter (Llama 2) is the message's.
        let first = self.offsets.partition_point(|r| r.end <= begin);
        let mut last = self.offsets.partition_point(|r| r.start < end);
        if message.role == Role::Assistant {
            let next = self.markers.iter().find(|(at, _)| *at >= end);
            if let Some(&(_, token)) = next.filter(|(at, _)| self.text[end..*at].trim().is_empty()) {
                last = token + 1;
            }
        }
        Some(Turn { role: message.role, text: begin..end, tokens: first..last })
    }
}
