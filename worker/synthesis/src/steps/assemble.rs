//! FILL: the sample is brought to its length. The invariant: rendered for the target model it is
//! never longer than its length and at least 99 % of it, and no text that the response quotes is
//! lost.

use std::cmp::Reverse;
use std::ops::Range;

use longstrap_model::{Message, Role as Speaker};

use crate::bench::Bench;
use crate::error::Result;
use crate::prompts::Shown;
use crate::sample::{Dropped, Role};
use crate::steps::retrieve::Picked;
use crate::text::border;
use crate::variety::Place;

/// Rounds of cutting and filling before the candidate is given up; each gets nearer.
const ROUNDS: usize = 64;

/// A sample of the right length.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// User turn and response.
    pub messages: Vec<Message>,
    /// Tokens, rendered.
    pub tokens: usize,
    /// The documents as they stand in it.
    pub documents: Vec<Picked>,
    /// Their places in the user turn, in characters.
    pub spans: Vec<Range<usize>>,
}

/// The fixed parts of a sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// The instruction.
    pub instruction: &'a str,
    /// Where it stands.
    pub place: Place,
    /// The response.
    pub response: &'a str,
}

/// The fewest tokens of a sample of this length.
pub(crate) fn least(length: usize) -> usize {
    length - length / 100
}

/// Brings a sample to `length` tokens: lowest-ranked documents that do not matter are dropped, the
/// last one is cut, and what is missing is filled with documents that `filler` gives (told how many
/// tokens are missing).
///
/// # Errors
/// What ends the step; a length that cannot be reached is a [`Dropped`].
pub(crate) fn assemble(
    bench: &Bench,
    frame: Frame<'_>,
    mut documents: Vec<Picked>,
    length: usize,
    filler: &mut dyn FnMut(usize) -> Result<Option<Picked>>,
) -> Result<Result<Assembled, Dropped>> {
    for _ in 0..ROUNDS {
        let (messages, spans) = build(bench, frame, &documents)?;
        let tokens = bench.target.rendered(&messages)?;
        if tokens <= length && tokens >= least(length) {
            return Ok(Ok(Assembled { messages, tokens, documents, spans }));
        }
        if tokens < length {
            match filler(length - tokens)? {
                Some(picked) => documents.push(picked),
                None => return Ok(Err(Dropped::TooShort)),
            }
        } else if !shorten(bench, &mut documents, tokens - length, length)? {
            return Ok(Err(Dropped::TooLong));
        }
    }
    Ok(Err(Dropped::TooShort))
}

fn build(bench: &Bench, frame: Frame<'_>, documents: &[Picked]) -> Result<(Vec<Message>, Vec<Range<usize>>)> {
    let shown: Vec<Shown<'_>> =
        documents.iter().map(|one| Shown { title: &one.document.title, text: &one.document.text }).collect();
    let input = bench.prompts.input(frame.instruction, frame.place, &shown)?;
    let messages =
        vec![Message::new(Speaker::User, input.text), Message::new(Speaker::Assistant, frame.response)];
    Ok((messages, input.spans))
}

/// Takes away `excess` tokens, or as many as one document can give. False: nothing can go.
fn shorten(bench: &Bench, documents: &mut Vec<Picked>, excess: usize, length: usize) -> Result<bool> {
    // What goes first: what was not read, then what did not matter, then the lowest rank.
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|&i| {
        let one = &documents[i];
        let worth = match one.role {
            Role::Distractor => 0,
            Role::Irrelevant => 1,
            Role::Relevant | Role::Target => 2,
        };
        (worth, Reverse(one.rank.unwrap_or(u32::MAX)), Reverse(i))
    });
    for i in order {
        let one = &mut documents[i];
        if one.keep == 0 && one.tokens <= excess {
            documents.remove(i);
            return Ok(true);
        }
        if cut(bench, one, excess, length)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Cuts the end of a document, at the coarsest border that leaves the sample 99 % full.
fn cut(bench: &Bench, one: &mut Picked, excess: usize, length: usize) -> Result<bool> {
    let text = &one.document.text;
    let encoded = bench.target.encode(text)?;
    let have = encoded.ids.len();
    let stay = have.saturating_sub(excess);
    // Half of the slack: the count of a shorter text is not exactly the shorter count.
    let fewest = stay.saturating_sub(length / 200);
    let at = |token: usize| encoded.offsets.get(token).map_or(text.len(), |range| range.start);
    let limit = at(stay).max(one.keep);
    let floor = at(fewest).max(one.keep).min(limit);
    let mut end = if limit == 0 { 0 } else { border(text, floor, limit).max(one.keep) };
    if end >= text.len() {
        // The excess is less than a token's worth of text.
        match one.keep < text.len() && have > 1 {
            true => end = at(have - 1).max(one.keep),
            false => return Ok(false),
        }
    }
    if end >= text.len() {
        return Ok(false);
    }
    one.document.text.truncate(end);
    let trimmed = one.document.text.trim_end().len().max(one.keep);
    one.document.text.truncate(trimmed);
    one.cut = true;
    one.tokens = Picked::weigh(bench, &one.document.title, bench.target.tokens(&one.document.text)?)?;
    Ok(true)
}
