//! Step 4: the response, written from the notes alone.

use minijinja::{Value, context};

use crate::bench::{Asker, Bench, Fault, user};
use crate::error::Result;
use crate::llm::Finish;
use crate::sample::Note;
use crate::seed::Draw;
use crate::steps::instruct::{Instruction, creative};
use crate::variety::choose;

/// Writes the response.
///
/// # Errors
/// What ends the step; a bad answer is a [`Fault`].
pub(crate) async fn respond(
    bench: &Bench,
    asker: &Asker<'_>,
    draw: &mut Draw,
    instruction: &Instruction,
    notes: &[Note],
) -> Result<Result<String, Fault>> {
    let length = choose(draw, &bench.run.variety.answers).unwrap_or_default();
    let shown: Vec<Value> = notes
        .iter()
        .map(|note| context! { title => note.title.as_str(), text => note.text.as_str() })
        .collect();
    let prompt = bench.prompts.render(
        "respond",
        context! {
            notes => shown,
            instruction => instruction.text.as_str(),
            tone => instruction.tone.as_str(),
            length => length,
        },
    )?;
    let prompt = format!("{}\n\n---\n{prompt}", bench.random_piece(draw)?);
    let params = creative(bench.run.limits.response_tokens as u32);
    asker
        .ask(draw, user(prompt), params, |answer| match answer.finish {
            Finish::Length => Err(Fault::CutOff),
            Finish::Stop => Ok(answer.text.trim().to_owned()),
        })
        .await
}
