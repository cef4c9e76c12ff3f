//! Step 3: every document is read, chunk by chunk, with the instruction in mind. What does not bear
//! on it is dropped; what does leaves a note.
//!
//! Two strategies. A capable model answers with a sentinel when a chunk is irrelevant, and its
//! summaries are summarised again until they fit its window. A small one never obeys a sentinel;
//! there the likelihood of the question after the chunk, against the question alone, decides, and
//! only the best chunks are summarised.

use std::ops::Range;

use futures::{StreamExt, TryStreamExt, stream};
use longstrap_model::{Message, Role as Speaker};
use minijinja::context;

use crate::bench::{Asker, Bench, Fault, user};
use crate::error::Result;
use crate::llm::{Answer, Finish, Params};
use crate::sample::{Note, Role};
use crate::seed::Draw;
use crate::steps::retrieve::Picked;
use crate::text;

/// What a capable model answers when a chunk does not help.
const SENTINEL: &str = "IRRELEVANT";
/// Words of a summary that are asked for.
const SUMMARY_WORDS: usize = 150;
/// Tokens of a summary before it counts as cut off.
const SUMMARY_TOKENS: u32 = 512;
/// Tokens of the prompt around a chunk or around the notes, generously.
const PROMPT_TOKENS: usize = 256;

/// A chunk that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    /// Index of its document in the sample.
    pub document: usize,
    /// Bytes of the document's text.
    pub range: Range<usize>,
    /// log p(question | chunk) − log p(question), per token; `None` with a sentinel, or when the
    /// chunk could not be scored.
    pub relevance: Option<f64>,
    /// Whether it bears on the instruction.
    pub relevant: bool,
    /// Its summary.
    pub note: Option<String>,
}

/// Reads all documents; sets their roles and relevance.
///
/// # Errors
/// What ends the step.
pub(crate) async fn read(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    query: &str,
    picked: &mut [Picked],
) -> Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for (document, one) in picked.iter().enumerate() {
        let encoded = bench.target.encode(&one.document.text)?;
        // One token less than the limit: a chunk encoded alone can have one more.
        let size = (bench.run.limits.chunk_tokens as usize).saturating_sub(1);
        chunks.extend(text::chunks(&one.document.text, &encoded, size).into_iter().map(|range| Chunk {
            document,
            range,
            relevance: None,
            relevant: false,
            note: None,
        }));
    }
    match bench.run.generator.is_embedded() {
        true => by_likelihood(bench, asker, draw, query, picked, &mut chunks).await?,
        false => by_sentinel(bench, asker, draw, query, picked, &mut chunks).await?,
    }
    for chunk in &chunks {
        let one = &mut picked[chunk.document];
        if chunk.relevant {
            one.role = Role::Relevant;
        }
        if let Some(relevance) = chunk.relevance {
            let rounded = (relevance * 1e4).round() / 1e4;
            one.relevance = Some(one.relevance.map_or(rounded, |best| best.max(rounded)));
        }
    }
    Ok(chunks)
}

/// The text of a chunk.
fn text_of<'p>(picked: &'p [Picked], chunk: &Chunk) -> &'p str {
    picked[chunk.document].document.text[chunk.range.clone()].trim()
}

async fn by_sentinel(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    query: &str,
    picked: &[Picked],
    chunks: &mut [Chunk],
) -> Result<()> {
    let mut work = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let title = picked[chunk.document].document.title.as_str();
        work.push((i, title, text_of(picked, chunk), draw.fork()));
    }
    let notes: Vec<(usize, Option<String>)> = stream::iter(work)
        .map(|(i, title, text, mut draw)| async move {
            summarise(bench, asker, &mut draw, query, title, text).await.map(|note| (i, note))
        })
        .buffered(asker.concurrency())
        .try_collect()
        .await?;
    for (i, note) in notes {
        chunks[i].relevant = note.is_some();
        chunks[i].note = note;
    }
    Ok(())
}

/// A summary for the instruction; `None`: irrelevant, or no usable answer.
async fn summarise(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    query: &str,
    title: &str,
    text: &str,
) -> Result<Option<String>> {
    let prompt = bench.prompts.render(
        "summarise",
        context! {
            instruction => query,
            title => title,
            text => text,
            words => SUMMARY_WORDS,
            sentinel => SENTINEL,
        },
    )?;
    let prompt = format!("{}\n\n---\n{prompt}", bench.random_piece(draw)?);
    let params = Params {
        max_tokens: SUMMARY_TOKENS.min((bench.run.context_length / 4).max(1) as u32),
        temperature: 0.2,
        top_p: 0.95,
        seed: 0,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 0,
    };
    let answer = asker.ask(draw, user(prompt), params, read_summary).await?;
    Ok(answer.unwrap_or(None))
}

/// The sentinel counts wherever a short answer holds it: models like to add a word of excuse.
fn read_summary(answer: &Answer) -> Result<Option<String>, Fault> {
    if answer.finish == Finish::Length {
        return Err(Fault::CutOff);
    }
    let text = answer.text.trim();
    let short = text.split_whitespace().count() <= 20;
    if text.starts_with(SENTINEL) || (short && text.to_uppercase().contains(SENTINEL)) {
        return Ok(None);
    }
    Ok(Some(text.to_owned()))
}

async fn by_likelihood(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    query: &str,
    picked: &[Picked],
    chunks: &mut [Chunk],
) -> Result<()> {
    let prior = bench.prompts.render("embedded_score_prior", context! {})?;
    let Some(prior) = asker.score(user(prior), query).await? else {
        return Ok(());
    };
    let mut work = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        work.push((i, bench.prompts.render("embedded_score", context! { text => text_of(picked, chunk) })?));
    }
    let scores: Vec<(usize, Option<f64>)> = stream::iter(work)
        .map(|(i, prompt)| async move { asker.score(user(prompt), query).await.map(|score| (i, score)) })
        .buffered(asker.concurrency())
        .try_collect()
        .await?;
    for (i, score) in scores {
        chunks[i].relevance = score.map(|score| score - prior);
        chunks[i].relevant = chunks[i].relevance.is_some_and(|relevance| relevance > 0.0);
    }
    let mut best: Vec<usize> = (0..chunks.len()).filter(|&i| chunks[i].relevant).collect();
    best.sort_by(|&a, &b| {
        let value = |i: usize| chunks[i].relevance.unwrap_or(f64::NEG_INFINITY);
        value(b).total_cmp(&value(a)).then(a.cmp(&b))
    });
    best.truncate(bench.run.limits.summaries as usize);
    let system = bench.prompts.render("embedded_summarise", context! {})?;
    let mut work = Vec::new();
    for &i in &best {
        let messages = vec![
            Message::new(Speaker::System, system.clone()),
            Message::new(Speaker::User, text_of(picked, &chunks[i])),
        ];
        work.push((i, messages, draw.fork()));
    }
    let params = Params {
        max_tokens: 80,
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 6,
    };
    let notes: Vec<(usize, Result<String, Fault>)> = stream::iter(work)
        .map(|(i, messages, mut draw)| {
            let params = params.clone();
            async move {
                // Cut off or not: a small model's summary is a hint, not an answer.
                let note = asker.ask(&mut draw, messages, params, |a| Ok(a.text.trim().to_owned())).await?;
                Ok::<_, crate::error::SynthError>((i, note))
            }
        })
        .buffered(asker.concurrency())
        .try_collect()
        .await?;
    for (i, note) in notes {
        chunks[i].note = note.ok();
    }
    Ok(())
}

/// The notes of all relevant chunks, in the order of the documents, made to fit the generator's
/// window: while they do not, neighbours are summarised together, for the same instruction.
///
/// # Errors
/// What ends the step.
pub(crate) async fn notes(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    query: &str,
    picked: &[Picked],
    chunks: &[Chunk],
) -> Result<Vec<Note>> {
    let mut notes: Vec<Note> = chunks
        .iter()
        .filter_map(|chunk| {
            let title = picked[chunk.document].document.title.clone();
            Some(Note { title, text: chunk.note.clone()? })
        })
        .collect();
    let limits = &bench.run.limits;
    let used = limits.response_tokens as usize + bench.target.tokens(query)? + PROMPT_TOKENS;
    // The generator counts with a tokenizer of its own: a tenth is left for the difference.
    let room = (bench.run.context_length as usize).saturating_sub(used) * 9 / 10;
    let mut size = weigh(bench, &notes)?;
    while size > room {
        let mut groups: Vec<Vec<Note>> = Vec::new();
        let mut full = usize::MAX;
        for note in notes {
            let tokens = weigh(bench, std::slice::from_ref(&note))?;
            if full.saturating_add(tokens) > limits.chunk_tokens as usize {
                groups.push(Vec::new());
                full = 0;
            }
            full += tokens;
            // A group was pushed for the first note.
            groups.last_mut().expect("not empty").push(note);
        }
        let work: Vec<(Vec<Note>, Draw)> = groups.into_iter().map(|group| (group, draw.fork())).collect();
        let shorter: Vec<Option<Note>> = stream::iter(work)
            .map(|(group, mut draw)| async move {
                let mut titles: Vec<&str> = group.iter().map(|note| note.title.as_str()).collect();
                titles.dedup();
                titles.truncate(4);
                let title = titles.join("; ");
                let text: Vec<&str> = group.iter().map(|note| note.text.as_str()).collect();
                let text = text.join("\n\n");
                let note = summarise(bench, asker, &mut draw, query, &title, &text).await?;
                Ok::<_, crate::error::SynthError>(note.map(|text| Note { title, text }))
            })
            .buffered(asker.concurrency())
            .try_collect()
            .await?;
        notes = shorter.into_iter().flatten().collect();
        let now = weigh(bench, &notes)?;
        if now * 10 > size * 9 {
            // It does not get shorter that way: what does not fit is left out, from the end.
            while weigh(bench, &notes)? > room {
                notes.pop();
            }
            break;
        }
        size = now;
    }
    Ok(notes)
}

fn weigh(bench: &Bench, notes: &[Note]) -> Result<usize> {
    let mut tokens = 0;
    for note in notes {
        tokens += bench.target.tokens(&note.text)? + bench.target.tokens(&note.title)? + 4;
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::Usage;

    #[test]
    fn the_sentinel_is_found_and_a_cut_answer_is_no_summary() {
        let read =
            |text: &str, finish| read_summary(&Answer { text: text.into(), finish, usage: Usage::default() });
        assert_eq!(read(" IRRELEVANT.", Finish::Stop), Ok(None));
        assert_eq!(read("This chunk is irrelevant, sorry.", Finish::Stop), Ok(None));
        let long = format!("The word irrelevant occurs in it. {}", "fact ".repeat(30));
        assert_eq!(read(&long, Finish::Stop), Ok(Some(long.trim().to_owned())));
        assert_eq!(read("It says", Finish::Length), Err(Fault::CutOff));
    }
}
