//! The extractive response of the embedded generator: a template around passages quoted word for
//! word from all over the documents. It is faithful by construction, and looking up what stands far
//! back is exactly what a model with a longer window has to learn.

use std::collections::HashSet;
use std::ops::Range;

use longstrap_corpus::words;
use minijinja::context;

use crate::bench::Bench;
use crate::error::Result;
use crate::steps::read::Chunk;
use crate::steps::retrieve::Picked;
use crate::text::sentences;

/// Most passages.
const MAX_QUOTES: usize = 12;
/// Tokens of a passage that are aimed at.
const QUOTE_TOKENS: usize = 90;
/// Tokens of the line that names a passage's document.
const LINE_TOKENS: usize = 12;
/// What a word shared with the question or the chunk's summary is worth against relevance (nats).
const SHARED_WORD: f64 = 0.02;

/// A passage: bytes of a document's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quote {
    /// Index of the document in the sample.
    pub document: usize,
    /// Bytes of its text.
    pub range: Range<usize>,
}

/// Chooses passages of about `budget` tokens together: the documents in their order are cut into
/// as many equal regions, and each region gives its best passage.
pub(crate) fn choose_quotes(
    question: &str,
    picked: &[Picked],
    chunks: &[Chunk],
    budget: usize,
) -> Vec<Quote> {
    let whole = QUOTE_TOKENS + LINE_TOKENS;
    let count = ((budget + whole / 2) / whole).clamp(1, MAX_QUOTES);
    let size = (budget / count).saturating_sub(LINE_TOKENS).clamp(8, QUOTE_TOKENS);
    let total: usize = picked.iter().map(|one| one.document.text.len()).sum();
    let asked: HashSet<u64> = words(question).into_iter().collect();

    let mut best: Vec<Option<(f64, Quote)>> = vec![None; count];
    let mut before = 0;
    for (document, one) in picked.iter().enumerate() {
        let text = &one.document.text;
        let spans = sentences(text);
        for first in 0..spans.len() {
            let Some(range) = passage(one, &spans[first..], size) else { continue };
            let region = (before + range.start) * count / total.max(1);
            let value = value(&text[range.clone()], &range, document, chunks, &asked);
            let slot = &mut best[region.min(count - 1)];
            // Of equal ones the first stays.
            if slot.as_ref().is_none_or(|(found, _)| value > *found) {
                *slot = Some((value, Quote { document, range }));
            }
        }
        before += text.len();
    }
    let mut quotes: Vec<Quote> = best.into_iter().flatten().map(|(_, quote)| quote).collect();
    // A passage may reach into the next region: what overlaps is left out.
    quotes.dedup_by(|next, last| next.document == last.document && next.range.start < last.range.end);
    quotes
}

/// Consecutive sentences of about `size` tokens; `None`: too short, or no prose.
fn passage(one: &Picked, spans: &[Range<usize>], size: usize) -> Option<Range<usize>> {
    let text = &one.document.text;
    let first = spans.first()?;
    let head = &text[first.clone()];
    let letters = head.chars().filter(|c| c.is_alphabetic() || c.is_whitespace()).count();
    if head.starts_with(['|', '#', '`', '<', '[', '-', '*', '>']) || letters * 10 < head.chars().count() * 7 {
        return None;
    }
    // Bytes for tokens, by the document's own ratio: exact counts are not needed here.
    let tokens = one.document.tokens.max(1) as usize;
    let whole = text.len().max(1);
    let limit = size * whole / tokens.max(1);
    let mut end = first.start;
    for span in spans {
        // A heading or table after enough text begins something else.
        let other = text[span.clone()].starts_with(['#', '|', '`']) && end - first.start >= limit / 2;
        if span.end - first.start > limit || other {
            break;
        }
        end = span.end;
    }
    (end - first.start >= limit / 2).then_some(first.start..end)
}

fn value(text: &str, range: &Range<usize>, document: usize, chunks: &[Chunk], asked: &HashSet<u64>) -> f64 {
    let chunk = chunks.iter().find(|c| c.document == document && c.range.contains(&range.start));
    let noted: HashSet<u64> = chunk
        .and_then(|c| c.note.as_deref())
        .map(|note| words(note).into_iter().collect())
        .unwrap_or_default();
    let own: HashSet<u64> = words(text).into_iter().collect();
    let shared = own.iter().filter(|word| asked.contains(word) || noted.contains(word)).count();
    chunk.and_then(|c| c.relevance).unwrap_or(0.0) + SHARED_WORD * shared as f64
}

/// The response around the passages; marks what must stay of each document.
///
/// # Errors
/// The template's.
pub(crate) fn quoting_response(
    bench: &Bench,
    question: &str,
    picked: &mut [Picked],
    quotes: &[Quote],
) -> Result<String> {
    let shown: Vec<minijinja::Value> = quotes
        .iter()
        .map(|quote| {
            let document = &picked[quote.document].document;
            context! { title => document.title.as_str(), text => &document.text[quote.range.clone()] }
        })
        .collect();
    for quote in quotes {
        let keep = &mut picked[quote.document].keep;
        *keep = (*keep).max(quote.range.end);
    }
    Ok(bench.prompts.render("embedded_respond", context! { question => question, quotes => shown })?)
}

#[cfg(test)]
mod tests {
    use longstrap_corpus::Document;

    use super::*;
    use crate::sample::Role;

    fn picked(text: String) -> Picked {
        let tokens = text.split_whitespace().count();
        Picked {
            document: Document {
                id: "d".into(),
                group: "g".into(),
                source: "s".into(),
                title: "T".into(),
                tokens: tokens as u32,
                text,
            },
            number: 0,
            tokens,
            rank: Some(1),
            score: Some(1.0),
            relevance: None,
            role: Role::Irrelevant,
            keep: 0,
            cut: false,
        }
    }

    #[test]
    fn passages_come_from_all_over_and_prefer_what_is_relevant() {
        let prose = |n: usize, salt: &str| -> String {
            (0..n).map(|i| format!("The {salt} part number {i} of it does what it says here. ")).collect()
        };
        let documents =
            [picked(prose(100, "first")), picked(format!("| a | b |\n# head\n{}", prose(60, "second")))];
        let quotes = choose_quotes("What is it?", &documents, &[], 1200);
        assert!(quotes.len() >= 10, "{}", quotes.len());
        for quote in &quotes {
            let text = &documents[quote.document].document.text[quote.range.clone()];
            let words = text.split_whitespace().count();
            assert!(text.starts_with("The ") && text.ends_with('.'), "{text}");
            assert!((40..=90).contains(&words), "{words}");
        }
        let places: Vec<usize> = quotes.iter().map(|q| q.document * 10_000 + q.range.start).collect();
        assert!(places.is_sorted() && quotes[0].document == 0 && quotes[quotes.len() - 1].document == 1);

        let chunk = |range, relevance| Chunk {
            document: 0,
            range,
            relevance: Some(relevance),
            relevant: true,
            note: None,
        };
        let end = documents[0].document.text.len();
        let chunks = [chunk(0..end / 2, -1.0), chunk(end / 2..end, 1.0)];
        let one = choose_quotes("What is it?", &documents[..1], &chunks, 100);
        assert_eq!(one.len(), 1);
        assert!(one[0].range.start >= end / 2, "{one:?}");
        assert_eq!(choose_quotes("part number 70?", &documents[..1], &[], 100).len(), 1);
    }
}
