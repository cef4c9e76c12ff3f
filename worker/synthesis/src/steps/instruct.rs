//! Step 1: an instruction that can only be answered from several documents.
//!
//! It starts from one random document, with a random piece of the corpus in front of the call.

use minijinja::context;

use crate::bench::{Asker, Bench, Fault, user};
use crate::error::Result;
use crate::llm::{Answer, Params};
use crate::seed::Draw;
use crate::variety::choose;

/// Longest instruction in words: more is an answer or a monologue.
const MAX_WORDS: usize = 300;

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// As the sample's user says it.
    pub text: String,
    /// What is looked for with it: the retriever's query and what relevance is judged against.
    pub query: String,
    /// Task that was asked for.
    pub task: String,
    /// Tone that was asked for.
    pub tone: String,
    /// Number of the document that it started from.
    pub document: usize,
}

/// Writes an instruction.
///
/// # Errors
/// What ends the step; a bad answer is a [`Fault`].
pub(crate) async fn instruct(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
) -> Result<Result<Instruction, Fault>> {
    let document = draw.below(bench.corpus.documents.len());
    match bench.run.generator.is_embedded() {
        true => embedded(bench, asker, draw, document).await,
        false => endpoint(bench, asker, draw, document).await,
    }
}

async fn endpoint(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    document: usize,
) -> Result<Result<Instruction, Fault>> {
    let variety = &bench.run.variety;
    let task = choose(draw, &variety.tasks).unwrap_or_default();
    let tone = choose(draw, &variety.tones).unwrap_or_default();
    let seed = bench.document(document)?;
    let prompt = bench.prompts.render(
        "instruct",
        context! {
            context => bench.random_piece(draw)?,
            text => bench.head(&seed.text, bench.run.limits.chunk_tokens as usize)?,
            task => task.as_str(),
            tone => tone.as_str(),
        },
    )?;
    let text = asker.ask(draw, user(prompt), creative(1024), tagged).await?;
    Ok(text.map(|text| Instruction { query: text.clone(), text, task, tone, document }))
}

/// A forced beginning ("How does Tokio …") is what a small model completes well; the template
/// around its question makes several documents needed.
async fn embedded(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    document: usize,
) -> Result<Result<Instruction, Fault>> {
    let seed = bench.document(document)?;
    let prompt = bench.prompts.render(
        "embedded_instruct",
        context! {
            context => bench.random_piece(draw)?,
            text => bench.head(&seed.text, bench.run.limits.chunk_tokens as usize)?,
        },
    )?;
    let params = Params {
        max_tokens: 32,
        temperature: 0.7,
        top_p: 0.9,
        seed: 0,
        stop: vec!["\n".to_owned(), "?".to_owned()],
        answer_prefix: format!("How does {}", subject(&seed.title)),
        no_repeat_ngram: 6,
    };
    let prefix_words = params.answer_prefix.split_whitespace().count();
    let question = asker
        .ask(draw, user(prompt), params, |answer| {
            let text = answer.text.split_whitespace().collect::<Vec<_>>().join(" ");
            let text = text.trim_end_matches(['?', '.', ' ']);
            // At least a verb and an object beyond what was forced.
            match text.split(' ').count() {
                n if n < prefix_words + 2 => Err(Fault::Unparsable),
                _ => Ok(format!("{text}?")),
            }
        })
        .await?;
    let task = choose(draw, &bench.run.variety.requests).unwrap_or_default();
    Ok(match question {
        Err(fault) => Err(fault),
        Ok(question) => {
            let text = bench.prompts.render(
                "embedded_request",
                context! { question => question.as_str(), task => task.as_str() },
            )?;
            Ok(Instruction { text, query: question, task, tone: "plain".to_owned(), document })
        }
    })
}

/// Words that begin titles and are no part of their subject.
const LEADING: &[&str] =
    &["a", "an", "the", "about", "getting", "how", "introduction", "of", "to", "using", "what", "why"];

/// What a document is about, from its title: a few words before a colon or dash.
fn subject(title: &str) -> String {
    let first = title.split([':', '–', '—', '|']).next().unwrap_or(title);
    let first = [" - ", " ("].iter().fold(first, |text, mark| text.split(mark).next().unwrap_or(text));
    let words: Vec<&str> = first
        .split_whitespace()
        .map(|word| word.trim_matches(['[', ']', '#', '"', '\'', '.', ',']))
        .filter(|word| !word.is_empty())
        .skip_while(|word| LEADING.contains(&word.to_lowercase().as_str()))
        .take(4)
        .collect();
    match words.is_empty() {
        true => "this".to_owned(),
        false => words.join(" "),
    }
}

/// Sampling for text that shall vary.
pub(crate) fn creative(max_tokens: u32) -> Params {
    Params {
        max_tokens,
        temperature: 0.8,
        top_p: 0.95,
        seed: 0,
        stop: Vec::new(),
        answer_prefix: String::new(),
        no_repeat_ngram: 0,
    }
}

/// The instruction of an answer: what stands between the tags, leniently (an unclosed or missing
/// tag is forgiven, an answer that is cut off or far too long is not).
pub(crate) fn tagged(answer: &Answer) -> Result<String, Fault> {
    let text = answer.text.as_str();
    let (text, closed) = match text.split_once("<instruction>") {
        Some((_, rest)) => match rest.split_once("</instruction>") {
            Some((inside, _)) => (inside, true),
            None => (rest, false),
        },
        None => (text, false),
    };
    if answer.finish == crate::llm::Finish::Length && !closed {
        return Err(Fault::CutOff);
    }
    let text = text.trim().trim_matches('"').trim();
    match text.split_whitespace().count() {
        0 => Err(Fault::Empty),
        // One word is an answer like "Sure"; a script without spaces is one word however long.
        n if n > MAX_WORDS || (n < 3 && text.chars().count() < 12) => Err(Fault::Unparsable),
        _ if text.contains("<instruction>") => Err(Fault::Unparsable),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Finish, Usage};

    #[test]
    fn instructions_are_read_leniently() {
        let read =
            |text: &str, finish| tagged(&Answer { text: text.into(), finish, usage: Usage::default() });
        let long = "word ".repeat(400);
        for (text, finish, want) in [
            ("Sure!\n<instruction> Compare A and B. </instruction> ok", Finish::Stop, Ok("Compare A and B.")),
            ("<instruction>Compare A and B.", Finish::Stop, Ok("Compare A and B.")),
            ("\"Compare A and B.\"", Finish::Stop, Ok("Compare A and B.")),
            ("<instruction>Compare A and B.</instruction> and then", Finish::Length, Ok("Compare A and B.")),
            ("比较这两种方法在不同条件下的表现", Finish::Stop, Ok("比较这两种方法在不同条件下的表现")),
            ("<instruction>Compare A and", Finish::Length, Err(Fault::CutOff)),
            ("<instruction></instruction>", Finish::Stop, Err(Fault::Empty)),
            ("Sure", Finish::Stop, Err(Fault::Unparsable)),
            (&long, Finish::Stop, Err(Fault::Unparsable)),
        ] {
            assert_eq!(read(text, finish), want.map(str::to_owned), "{text:.40}");
        }
        for (title, want) in [
            ("Tokio: a runtime", "Tokio"),
            ("http - types for HTTP", "http"),
            ("The Rust async book of all", "Rust async book of"),
            ("What #[derive(Sum)] generates", "derive(Sum) generates"),
            ("Getting started (again)", "started"),
            (": x", "this"),
        ] {
            assert_eq!(subject(title), want);
        }
    }
}
