//! From a template's output to text, tokens and the places of the messages in them.
//!
//! Invariant: only the template's own markers become control tokens; the text between two markers
//! is encoded as one string.

use std::collections::HashMap;
use std::ops::Range;

use super::signs::{Hidden, Signs};
use super::{Message, Role, Turn};
use crate::error::Result;
use crate::tokenizer::{Piece, Tokenizer};

/// The rendered text with marks taken out and control strings restored, and its tokens.
pub(super) struct Assembled {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
    pub(super) offsets: Vec<Range<usize>>,
    /// Where each mark stood (its first occurrence).
    marks: HashMap<char, usize>,
    /// Byte position and token index of each of the template's own markers.
    markers: Vec<(usize, usize)>,
}

impl Assembled {
    pub(super) fn new(tokenizer: &Tokenizer, signs: &Signs, raw: &str) -> Result<Self> {
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

    pub(super) fn turn(&self, message: &Message, marks: &Hidden) -> Option<Turn> {
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
