//! Long-output samples by back-translation: the target is a real document of 2K–32K tokens; the
//! generator writes the request that it answers.

use minijinja::context;

use crate::bench::{Asker, Bench, Fault, user};
use crate::error::Result;
use crate::seed::Draw;
use crate::slots::Slot;
use crate::steps::instruct::{creative, tagged};
use crate::variety::choose;

use longstrap_corpus::Document;
use longstrap_model::{Message, Role as Speaker};

use crate::llm::Params;

/// Headings that are named in an instruction.
const MAX_HEADINGS: usize = 12;

/// A request with its tone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The instruction.
    pub text: String,
    /// Tone that was asked for.
    pub tone: String,
}

/// The document of a slot at a try: every pair has one of its own, so none is used twice.
pub(crate) fn document_of(bench: &Bench, slot: Slot, attempt: u32) -> Option<usize> {
    let at = slot.index + u64::from(attempt) * bench.run.plan.long_output;
    bench.outputs.get(usize::try_from(at).ok()?).copied()
}

/// Writes the request that the document answers.
///
/// # Errors
/// What ends the step; a bad answer is a [`Fault`].
pub(crate) async fn back_translate(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    document: &Document,
) -> Result<Result<Request, Fault>> {
    let words = round(document.text.split_whitespace().count());
    match bench.run.generator.is_embedded() {
        true => embedded(bench, asker, draw, document, words).await,
        false => endpoint(bench, asker, draw, document, words).await,
    }
}

async fn endpoint(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    document: &Document,
    words: usize,
) -> Result<Result<Request, Fault>> {
    let tone = choose(draw, &bench.run.variety.tones).unwrap_or_default();
    // Half of the window: the rest is for the piece in front, the answer, and another tokenizer.
    let text = bench.head(&document.text, (bench.run.context_length / 2) as usize)?;
    let prompt = bench.prompts.render(
        "back_translate",
        context! {
            context => bench.random_piece(draw)?,
            text => text,
            partial => text.len() < document.text.trim_end().len(),
            words => words,
            tone => tone.as_str(),
        },
    )?;
    let text = asker.ask(draw, user(prompt), creative(1024), tagged).await?;
    Ok(text.map(|text| Request { text, tone }))
}

/// A small model summarises the beginning; title, sections and size are read off the document.
async fn embedded(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    document: &Document,
    words: usize,
) -> Result<Result<Request, Fault>> {
    let text = bench.head(&document.text, bench.run.limits.chunk_tokens as usize)?;
    let messages = vec![
        Message::new(Speaker::System, bench.prompts.render("embedded_summarise", context! {})?),
        Message::new(Speaker::User, text),
    ];
    let params = Params {
        max_tokens: 80,
        temperature: 0.2,
        top_p: 0.9,
        seed: 0,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 6,
    };
    let summary = asker.ask(draw, messages, params, |answer| Ok(one_line(&answer.text))).await?;
    let request = |summary: String| {
        bench.prompts.render(
            "embedded_write",
            context! {
                title => document.title.as_str(),
                summary => summary,
                headings => headings(&document.text),
                words => words,
            },
        )
    };
    Ok(match summary {
        Err(fault) => Err(fault),
        Ok(summary) => Ok(Request { text: request(summary)?, tone: "plain".to_owned() }),
    })
}

/// The prose of a small model's summary, up to its last whole sentence (it may have been cut off);
/// headings that it copied are left out. Empty: there is none, and the request does without.
fn one_line(text: &str) -> String {
    let prose: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', '|', '-', '*', '`']) && line.split_whitespace().count() >= 4)
        .collect();
    let text = prose.join(" ");
    text.rfind(['.', '!', '?']).map_or(String::new(), |end| text[..=end].to_owned())
}

/// Two significant digits: nobody asks for 1,237 words.
fn round(words: usize) -> usize {
    let mut unit = 1;
    while words / unit >= 100 {
        unit *= 10;
    }
    ((words + unit / 2) / unit * unit).max(1)
}

/// Markdown headings of a document, without the first (its title).
fn headings(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with("##") && line.len() < 80)
        .map(|line| line.trim_matches(['#', ' ', '*', '`']).to_owned())
        .filter(|heading| !heading.is_empty())
        .take(MAX_HEADINGS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_sections() {
        for (words, want) in [(0, 1), (7, 7), (99, 99), (104, 100), (1237, 1200), (15_650, 16_000)] {
            assert_eq!(round(words), want);
        }
        assert_eq!(one_line("# X\nRust\n\nIt reads files on disk. It also wr"), "It reads files on disk.");
        assert_eq!(one_line("Python\n\n## A. B."), "");
        assert_eq!(headings("# T\n## `A` b\ntext\n### C ###\n##\n"), ["A` b", "C"]);
    }
}
