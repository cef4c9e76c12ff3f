//! The row that a model is evaluated on: held-out text with needles and passages inserted, and the
//! branches that go on from it. Pure: held-out tokens, window and seed decide every token.
//!
//! Invariant: row and each branch together never exceed the window, and every position belongs
//! either to running text or to exactly one insertion.

use std::ops::Range;

use longstrap_random::Draw;
use serde::{Deserialize, Serialize};

use crate::error::{EvaluationError, Result};
use crate::needles::{self, Encode};

/// Passages that are shown and asked for again.
pub(crate) const PASSAGES: usize = 8;

/// Which of the three measurements are wanted. What is not wanted is not inserted, scored or shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Measurements {
    /// Mean loss of running text by position.
    pub loss_by_position: bool,
    /// Loss of passages that are shown twice, by distance.
    pub recall: bool,
    /// Facts hidden in the text.
    pub needle: bool,
}

/// What a layout is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The window under test, in tokens.
    pub window: usize,
    /// Window of the model as it came: what lies within and beyond it is told apart.
    pub old_window: usize,
    /// What is measured.
    pub measure: Measurements,
    /// Of the order of passages and answers.
    pub seed: u64,
}

/// Lengths in tokens, all from the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// The window under test.
    pub window: usize,
    /// Tokens before the branches: 29/32 of the window.
    pub prefill: usize,
    /// Tokens of one passage; a branch has room for [`PASSAGES`] of them.
    pub passage: usize,
    /// Passages that are shown twice.
    pub passages: usize,
    /// First tokens of a passage that are not counted: they tell which passage it is.
    pub skip: usize,
    /// Needles.
    pub needles: usize,
}

impl Sizes {
    /// The lengths for a window, and the counts of what is measured.
    ///
    /// # Errors
    /// A window below 256 tokens.
    pub fn of(window: usize, measure: Measurements) -> Result<Self> {
        if window < 256 {
            return Err(EvaluationError::WindowTooSmall { window, why: "the least is 256".into() });
        }
        let passage = 3 * window / 256;
        Ok(Self {
            window,
            prefill: window - PASSAGES * passage,
            passage,
            passages: if measure.recall { PASSAGES } else { 0 },
            skip: passage / 6,
            needles: if measure.needle { (window / 128).clamp(1, PASSAGES) } else { 0 },
        })
    }

    /// Tokens of a branch.
    #[must_use]
    pub fn branch(&self) -> usize {
        PASSAGES * self.passage
    }
}

/// What was inserted into the running text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The passage of this index.
    Passage(usize),
    /// The needle of this index.
    Needle(usize),
}

/// One insertion, by positions in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inserted {
    /// What it is.
    pub kind: Kind,
    /// All of it, with the blank lines around: left out of the loss by position.
    pub span: Range<usize>,
    /// The passage or sentence itself.
    pub body: Range<usize>,
}

/// A question to a needle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needle {
    /// Position of the hidden sentence.
    pub at: usize,
    /// The branch: a blank line and the sentence up to its answer.
    pub question: Vec<u32>,
    /// First tokens of the answers to choose from, all different.
    pub candidates: Vec<u32>,
    /// Index of the right one.
    pub answer: usize,
}

/// One evaluation row and its branches, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What it was made for.
    pub request: Request,
    /// The lengths it was made by.
    pub sizes: Sizes,
    /// The shared beginning.
    pub prefill: Vec<u32>,
    /// Insertions in the order of their positions.
    pub inserted: Vec<Inserted>,
    /// Branch (a): the text goes on; empty when loss by position is not wanted.
    pub continuation: Vec<u32>,
    /// Branch (b): the passages again, one after the other; empty when recall is not wanted.
    pub copies: Vec<u32>,
    /// Where passage i was shown first.
    pub shown: Vec<Range<usize>>,
    /// Branches (c); none when needles are not wanted.
    pub needles: Vec<Needle>,
}

/// Lays out the row for a request: the documents in their order as running text, then from what is
/// left of them the passages.
///
/// # Errors
/// A window that cannot hold the insertions, too little held-out text, or a tokenizer that does not
/// tell the needles' answers apart; what `encode` gives.
pub fn plan(documents: &[Vec<u32>], request: Request, encode: Encode<'_>) -> Result<Layout> {
    let Request { window, measure, .. } = request;
    let sizes = Sizes::of(window, measure)?;
    let blank = encode("\n\n")?;
    let texts = if measure.needle { needles::texts(sizes.needles, encode)? } else { Vec::new() };
    let mut draw = Draw::new(&request.seed.to_le_bytes(), &[b"evaluation"]);
    let mut answers: Vec<usize> = (0..needles::ANSWERS).collect();
    draw.shuffle(&mut answers);

    let sentences: Vec<&[u32]> =
        texts.iter().zip(&answers).map(|(t, &a)| t.sentences[a].as_slice()).collect();
    let shown_twice = sizes.passages * sizes.passage;
    let inserted_tokens = shown_twice
        + sentences.iter().map(|s| s.len()).sum::<usize>()
        + (sizes.passages + sizes.needles) * 2 * blank.len();
    if inserted_tokens > sizes.prefill * 3 / 4 {
        return Err(EvaluationError::WindowTooSmall {
            window,
            why: format!("the insertions take {inserted_tokens} of {} tokens", sizes.prefill),
        });
    }

    let running = documents.join(&blank[..]);
    let continuation = if measure.loss_by_position { sizes.branch() } else { 0 };
    let text = sizes.prefill - inserted_tokens + continuation;
    let need = text + shown_twice;
    if running.len() < need {
        return Err(EvaluationError::TooLittleText { have: running.len(), need, window });
    }
    let (text, rest) = running.split_at(text);
    let mut passages: Vec<&[u32]> = rest.chunks_exact(sizes.passage).take(sizes.passages).collect();
    draw.shuffle(&mut passages);

    let (row, inserted, used) = weave(&sizes, text, &passages, &sentences, &blank);
    let mut shown = vec![0..0; sizes.passages];
    let mut needles = Vec::new();
    for item in &inserted {
        match item.kind {
            Kind::Passage(i) => shown[i] = item.body.clone(),
            Kind::Needle(i) => needles.push(Needle {
                at: item.body.start,
                question: [&blank[..], &texts[i].question[..]].concat(),
                candidates: texts[i].candidates.clone(),
                answer: answers[i],
            }),
        }
    }
    let longest = needles.iter().map(|n| n.question.len() + 1).max().unwrap_or(0);
    if longest > sizes.branch() {
        return Err(EvaluationError::WindowTooSmall {
            window,
            why: format!("a question takes {longest} tokens, a branch has {}", sizes.branch()),
        });
    }
    Ok(Layout {
        request,
        sizes,
        prefill: row,
        inserted,
        continuation: text[used..].to_vec(),
        copies: passages.concat(),
        shown,
        needles,
    })
}

/// Puts the insertions at their depths; returns the row, the insertions and how much text it took.
fn weave(
    sizes: &Sizes,
    text: &[u32],
    passages: &[&[u32]],
    sentences: &[&[u32]],
    blank: &[u32],
) -> (Vec<u32>, Vec<Inserted>, usize) {
    let depth = |numerator: usize, denominator: usize| sizes.prefill * numerator / denominator;
    let mut items: Vec<(usize, Kind, &[u32])> = Vec::new();
    for (i, &body) in passages.iter().enumerate() {
        // From 2.4 % on in steps of 11.8 %: copies follow each other, so the distances come out
        // evenly between 0.24 and 0.98 of the row.
        items.push((depth(24 + 118 * i, 1000), Kind::Passage(i), body));
    }
    for (i, &body) in sentences.iter().enumerate() {
        items.push((depth(2 * i + 1, 2 * sentences.len()), Kind::Needle(i), body));
    }
    items.sort_by_key(|(at, ..)| *at);

    let mut row = Vec::with_capacity(sizes.prefill);
    let mut inserted = Vec::with_capacity(items.len());
    let mut used = 0;
    for (at, kind, body) in items {
        let more = at.saturating_sub(row.len());
        row.extend_from_slice(&text[used..used + more]);
        used += more;
        let start = row.len();
        row.extend_from_slice(blank);
        let body_start = row.len();
        row.extend_from_slice(body);
        let body_end = row.len();
        row.extend_from_slice(blank);
        inserted.push(Inserted { kind, span: start..row.len(), body: body_start..body_end });
    }
    let more = sizes.prefill - row.len();
    row.extend_from_slice(&text[used..used + more]);
    (row, inserted, used + more)
}
