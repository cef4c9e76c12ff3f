//! Private characters that stand for what a template must not see: control strings in a message,
//! and marks at the borders of messages.
//!
//! Invariant: a sign occurs in none of the texts, so taking it out or back restores them exactly.

use std::collections::{HashMap, HashSet};

use crate::tokenizer::{Piece, Tokenizer};

/// Private-use characters that occur in none of the texts: marks for the borders of messages, and
/// one for each control string that a message contains.
pub(super) struct Signs {
    used: HashSet<char>,
    next: u32,
    pub(super) restored: HashMap<char, String>,
    by_text: HashMap<String, char>,
    pub(super) marks: HashSet<char>,
}

/// A message as the template sees it.
pub(super) struct Hidden {
    pub(super) content: String,
    pub(super) begin: char,
    pub(super) end: char,
}

impl Signs {
    pub(super) fn avoiding<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
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
    pub(super) fn hide(&mut self, tokenizer: &Tokenizer, text: &str) -> String {
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
    pub(super) fn hide_message(&mut self, tokenizer: &Tokenizer, text: &str) -> Hidden {
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
