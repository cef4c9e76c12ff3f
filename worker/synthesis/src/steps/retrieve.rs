//! Step 2: documents for an instruction, by rank, until the sample's room is full.

use std::collections::HashSet;

use longstrap_corpus::Document;

use crate::bench::Bench;
use crate::error::Result;
use crate::sample::Role;
use crate::seed::Draw;
use crate::text::border;

/// Tokens that a document costs besides its text: title, index, blank lines.
const FRAME_TOKENS: usize = 8;

/// A document that was chosen for a sample.
#[derive(Debug, Clone)]
pub(crate) struct Picked {
    /// The document; its text may have been cut already.
    pub document: Document,
    /// Number in the corpus.
    pub number: usize,
    /// Tokens of its text and its frame.
    pub tokens: usize,
    /// Rank of the retriever from 1; none: not found by it.
    pub rank: Option<u32>,
    /// Score of the retriever.
    pub score: Option<f64>,
    /// Best relevance of its chunks.
    pub relevance: Option<f64>,
    /// What it is to the sample.
    pub role: Role,
    /// Bytes of its text that must stay: the response quotes from them.
    pub keep: usize,
    /// Whether its end was cut off.
    pub cut: bool,
}

impl Picked {
    /// Tokens with the title and the frame around it.
    ///
    /// # Errors
    /// The tokenizer's.
    pub(crate) fn weigh(bench: &Bench, title: &str, text_tokens: usize) -> Result<usize> {
        Ok(text_tokens + bench.target.tokens(title)? + FRAME_TOKENS)
    }
}

/// Chooses documents by rank until at least `room` tokens are full; the last one is cut to what
/// is needed, and some, before it is read.
///
/// # Errors
/// The index's, the working file's, the tokenizer's.
pub(crate) fn retrieve(bench: &Bench, query: &str, room: usize) -> Result<Vec<Picked>> {
    let hits = bench.corpus.index.search(query, bench.run.retriever.max_documents as usize)?;
    let mut picked = Vec::new();
    let mut full = 0;
    for (rank, hit) in hits.into_iter().enumerate() {
        if full >= room {
            break;
        }
        let mut one = pick(bench, hit.number, Some((rank as u32 + 1, hit.score)), room - full)?;
        one.role = Role::Irrelevant;
        full += one.tokens;
        picked.push(one);
    }
    Ok(picked)
}

/// A random document that is not in the sample yet, to fill what is left; none: the corpus is used
/// up.
///
/// # Errors
/// As [`retrieve`].
pub(crate) fn distractor(
    bench: &Bench,
    draw: &mut Draw,
    used: &mut HashSet<usize>,
    room: usize,
) -> Result<Option<Picked>> {
    let n = bench.corpus.documents.len();
    if used.len() >= n {
        return Ok(None);
    }
    // From a random place on, the first that is free: ends even when few are left.
    let start = draw.below(n);
    let free = (0..n).map(|i| (start + i) % n).find(|number| !used.contains(number));
    free.map(|number| {
        used.insert(number);
        pick(bench, number, None, room)
    })
    .transpose()
}

fn pick(bench: &Bench, number: usize, found: Option<(u32, f64)>, room: usize) -> Result<Picked> {
    let mut document = bench.document(number)?;
    let mut text_tokens = document.tokens as usize;
    let mut cut = false;
    // Some more than is needed, so that the final cut can choose a border.
    let enough = room + room / 50 + 64;
    if text_tokens > enough {
        let encoded = bench.target.encode(&document.text)?;
        if let Some(limit) = encoded.offsets.get(enough) {
            let floor = encoded.offsets[room.min(enough)].start;
            document.text.truncate(border(&document.text, floor, limit.start));
            text_tokens = bench.target.tokens(&document.text)?;
            document.tokens = text_tokens as u32;
            cut = true;
        }
    }
    Ok(Picked {
        tokens: Picked::weigh(bench, &document.title, text_tokens)?,
        document,
        number,
        rank: found.map(|(rank, _)| rank),
        score: found.map(|(_, score)| score),
        relevance: None,
        role: Role::Distractor,
        keep: 0,
        cut,
    })
}
