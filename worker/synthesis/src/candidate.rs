//! From a slot to a sample: the steps in their order, up to the limit of tries. Each try has seeds
//! of its own, so which try succeeds is a function of the answers alone.

use std::collections::HashSet;

use crate::bench::{Asker, Bench, Fault, OnTokens};
use crate::error::Result;
use crate::llm::{Llm, Usage};
use crate::sample::{DocumentRef, Dropped, Filled, Provenance, Role, Sample};
use crate::seed::Draw;
use crate::slots::{Kind, Slot};
use crate::steps::assemble::{Assembled, Frame, assemble};
use crate::steps::filter::filter;
use crate::steps::instruct::{Instruction, instruct};
use crate::steps::long_output::{back_translate, document_of};
use crate::steps::quote::{choose_quotes, quoting_response};
use crate::steps::read::{notes, read};
use crate::steps::respond::respond;
use crate::steps::retrieve::{distractor, retrieve};
use crate::variety::{Place, choose};

/// Fills a slot, beginning with try `first`; `dropped` are the reasons of the tries before.
///
/// # Errors
/// What ends the step; a slot that stays empty is none.
pub(crate) async fn fill(
    bench: &Bench,
    llm: &dyn Llm,
    on_tokens: &OnTokens<'_>,
    slot: Slot,
    first: u32,
    mut dropped: Vec<Dropped>,
) -> Result<Filled> {
    let mut usage = Usage::default();
    for attempt in first..bench.run.limits.tries {
        let asker = Asker::new(llm, on_tokens, bench.run.limits.answers);
        let candidate = match slot.kind {
            Kind::LongInput => long_input(bench, &asker, slot, attempt).await?,
            Kind::LongOutput => long_output(bench, &asker, slot, attempt).await?,
        };
        usage += asker.usage();
        match candidate {
            Ok(sample) => return Ok(Filled { slot, sample: Some(sample), dropped, usage }),
            Err(reason) => {
                tracing::debug!(%slot, attempt, %reason, "candidate dropped");
                dropped.push(reason);
                if reason == Dropped::NoDocument {
                    break;
                }
            }
        }
    }
    Ok(Filled { slot, sample: None, dropped, usage })
}

/// One try at a slot: hands out a generator of choices per step.
struct Try {
    slot: Slot,
    attempt: u32,
    seed: u64,
}

impl Try {
    fn new(bench: &Bench, slot: Slot, attempt: u32) -> Try {
        Try { slot, attempt, seed: bench.seed().draw_for("try", slot, attempt).bits() }
    }

    fn draw(&self, bench: &Bench, step: &str) -> Draw {
        bench.seed().draw_for(step, self.slot, self.attempt)
    }

    fn provenance(&self, bench: &Bench, usage: Usage) -> Provenance {
        Provenance {
            r#try: self.attempt,
            seed: format!("{:016x}", self.seed),
            length: None,
            model: bench.run.generator.identity(),
            prompts: bench.prompts_digest.clone(),
            tokenizer: bench.run.target.tokenizer.clone(),
            template: bench.run.target.template.clone(),
            instruction: String::new(),
            task: String::new(),
            tone: String::new(),
            place: None,
            documents: Vec::new(),
            notes: Vec::new(),
            usage,
        }
    }
}

async fn long_input(
    bench: &Bench,
    asker: &Asker<'_>,
    slot: Slot,
    attempt: u32,
) -> Result<Result<Sample, Dropped>> {
    let this = Try::new(bench, slot, attempt);
    let length = bench.lengths[slot.index as usize] as usize;
    let embedded = bench.run.generator.is_embedded();

    let instruction = match instruct(bench, asker, &mut this.draw(bench, "instruct")).await? {
        Ok(instruction) => instruction,
        Err(_) => return Ok(Err(Dropped::BadInstruction)),
    };

    // Room for the answer: quotes have a budget, a written answer is not known yet and mostly
    // short; what it leaves is filled afterwards.
    let budget = (length / 13).clamp(24, bench.run.limits.response_tokens as usize);
    let reserve = if embedded { budget } else { budget / 2 };
    let instruction_tokens = bench.target.tokens(&instruction.text)?;
    let Some(room) = length.checked_sub(reserve + instruction_tokens) else {
        return Ok(Err(Dropped::TooLong));
    };
    let mut picked = retrieve(bench, &instruction.query, room)?;
    if picked.is_empty() {
        return Ok(Err(Dropped::NothingRelevant));
    }
    // Rank says nothing about place: what matters shall stand anywhere in the window.
    let mut order = this.draw(bench, "order");
    order.shuffle(&mut picked);

    let mut draw = this.draw(bench, "read");
    let chunks = read(bench, asker, &mut draw, &instruction.query, &mut picked).await?;
    if !chunks.iter().any(|chunk| chunk.relevant) {
        return Ok(Err(Dropped::NothingRelevant));
    }

    let mut used: HashSet<usize> = picked.iter().map(|one| one.number).collect();
    let mut fillers = this.draw(bench, "fill");
    let (response, notes) = match embedded {
        true => {
            let quotes = choose_quotes(&instruction.query, &picked, &chunks, budget);
            if quotes.is_empty() {
                return Ok(Err(Dropped::BadResponse));
            }
            let response = quoting_response(bench, &instruction.query, &mut picked, &quotes)?;
            let notes = chunks
                .iter()
                .filter_map(|chunk| {
                    let title = picked[chunk.document].document.title.clone();
                    Some(crate::sample::Note { title, text: chunk.note.clone()? })
                })
                .collect();
            (response, notes)
        }
        false => {
            let mut draw = this.draw(bench, "notes");
            let notes = notes(bench, asker, &mut draw, &instruction.query, &picked, &chunks).await?;
            if notes.is_empty() {
                return Ok(Err(Dropped::NothingRelevant));
            }
            let mut draw = this.draw(bench, "respond");
            match respond(bench, asker, &mut draw, &instruction, &notes).await? {
                Ok(response) => (response, notes),
                Err(Fault::Empty | Fault::CutOff | Fault::Unparsable | Fault::Rejected) => {
                    return Ok(Err(Dropped::BadResponse));
                }
            }
        }
    };
    if let Err(reason) = filter(&instruction.text, &response, embedded, &bench.phrases) {
        return Ok(Err(reason));
    }

    let place = choose(&mut this.draw(bench, "place"), &bench.run.variety.places).unwrap_or(Place::After);
    let frame = Frame { instruction: &instruction.text, place, response: &response };
    let assembled = assemble(bench, frame, picked, length, &mut |missing| {
        distractor(bench, &mut fillers, &mut used, missing)
    })?;
    Ok(assembled.map(|assembled| {
        let mut provenance = this.provenance(bench, asker.usage());
        provenance.length = Some(length as u64);
        provenance.place = Some(place);
        provenance.notes = notes;
        describe(&mut provenance, &instruction, &assembled);
        Sample { slot, tokens: assembled.tokens as u32, messages: assembled.messages, provenance }
    }))
}

fn describe(provenance: &mut Provenance, instruction: &Instruction, assembled: &Assembled) {
    provenance.instruction.clone_from(&instruction.text);
    provenance.task.clone_from(&instruction.task);
    provenance.tone.clone_from(&instruction.tone);
    provenance.documents = assembled
        .documents
        .iter()
        .zip(&assembled.spans)
        .map(|(one, span)| DocumentRef {
            id: one.document.id.clone(),
            rank: one.rank,
            score: one.score,
            relevance: one.relevance,
            role: one.role,
            cut: one.cut,
            span: span.clone(),
        })
        .collect();
}

async fn long_output(
    bench: &Bench,
    asker: &Asker<'_>,
    slot: Slot,
    attempt: u32,
) -> Result<Result<Sample, Dropped>> {
    use longstrap_model::{Message, Role as Speaker};

    let this = Try::new(bench, slot, attempt);
    let Some(number) = document_of(bench, slot, attempt) else {
        return Ok(Err(Dropped::NoDocument));
    };
    let document = bench.document(number)?;
    let mut draw = this.draw(bench, "back-translate");
    let request = match back_translate(bench, asker, &mut draw, &document).await? {
        Ok(request) => request,
        Err(_) => return Ok(Err(Dropped::BadInstruction)),
    };
    if bench.phrases.hits(&request.text) > 0 {
        return Ok(Err(Dropped::HeldOutOverlap));
    }
    // Templates cut white space off a turn: so does the sample, or its span would be wrong.
    let text = document.text.trim();
    let messages =
        vec![Message::new(Speaker::User, request.text.as_str()), Message::new(Speaker::Assistant, text)];
    let tokens = bench.target.rendered(&messages)? as u32;
    let mut provenance = this.provenance(bench, asker.usage());
    provenance.instruction = request.text;
    provenance.tone = request.tone;
    provenance.documents = vec![DocumentRef {
        id: document.id.clone(),
        rank: None,
        score: None,
        relevance: None,
        role: Role::Target,
        cut: false,
        span: 0..text.chars().count(),
    }];
    Ok(Ok(Sample { slot, messages, tokens, provenance }))
}
