//! Single steps on a real bench: filling to a length, and notes that do not fit.

use std::collections::HashSet;
use std::sync::Mutex;

use async_trait::async_trait;
use longstrap_crds::Step;

use super::*;
use crate::Bench;
use crate::bench::Asker;
use crate::llm::{Answer, Call, Finish, Likelihood, Llm, LlmError, ScoreCall, Usage};
use crate::sample::{Dropped, Role};
use crate::seed::RunSeed;
use crate::steps::assemble::{Frame, assemble, least};
use crate::steps::read::{Chunk, notes};
use crate::steps::retrieve::{Picked, distractor, retrieve};
use crate::variety::Place;

async fn bench(tmp: &Path, context_length: u64) -> Bench {
    let server = Scripted::start().await;
    let mut spec = spec(&tmp.join("s"), &server.url());
    spec.generator.context_length = longstrap_crds::Length::new(context_length).unwrap();
    prepare(&spec, tmp).await.unwrap();
    let ctx = pod(&spec, Step::Generate, 1, 0, tmp).await;
    let run = crate::open::run(&ctx).await.unwrap();
    crate::open::bench(&ctx, &spec, run.content).await.unwrap()
}

fn total(picked: &[Picked]) -> usize {
    picked.iter().map(|one| one.tokens).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_filled_to_their_length_and_keep_what_is_quoted() {
    let tmp = tempfile::tempdir().unwrap();
    let bench = bench(tmp.path(), 4096).await;
    let query = "Which tower of the valley is made of larch and who repaired its garden?";
    let response = "The tower of Gaigan, and the ferry master repaired it, as the papers say.";
    let frame = Frame { instruction: query, place: Place::After, response };

    let all = retrieve(&bench, query, 900).unwrap();
    assert!(total(&all) >= 900 && total(&all[..all.len() - 1]) < 900);
    assert!(all.iter().map(|one| one.rank.unwrap()).eq(1..=all.len() as u32));
    assert!(all.windows(2).all(|pair| pair[0].score >= pair[1].score));
    // The last one is cut before it is read, some more than is needed stays.
    assert!(total(&all) <= 900 + 900 / 50 + 64 + 40, "{}", total(&all));

    for (round, length) in (300..1400).step_by(43).enumerate() {
        let mut draw = RunSeed(round as u64).draw("test");
        let mut picked = retrieve(&bench, query, [length / 2, length, 2 * length][round % 3]).unwrap();
        draw.shuffle(&mut picked);
        for one in &mut picked {
            one.role = [Role::Relevant, Role::Irrelevant][draw.below(2)];
            // The response quotes from the first half of every third document.
            let quoted = one.document.text.len() / 4;
            one.keep = if draw.below(3) == 0 { one.document.text.floor_char_boundary(quoted) } else { 0 };
        }
        let kept: Vec<(usize, String)> = picked
            .iter()
            .filter(|one| one.keep > 0)
            .map(|one| (one.number, one.document.text[..one.keep].to_owned()))
            .collect();
        let before: Vec<Role> = picked.iter().map(|one| one.role).collect();
        let mut used: HashSet<usize> = picked.iter().map(|one| one.number).collect();
        let mut filler = |missing| distractor(&bench, &mut draw, &mut used, missing);
        let assembled = match assemble(&bench, frame, picked, length, &mut filler).unwrap() {
            Ok(assembled) => assembled,
            Err(Dropped::TooLong) if kept.iter().map(|(_, text)| text.len()).sum::<usize>() > length => {
                continue;
            }
            Err(reason) => panic!("{length}: {reason}, {before:?}"),
        };
        assert_eq!(assembled.tokens, bench.target.rendered(&assembled.messages).unwrap());
        assert!((least(length)..=length).contains(&assembled.tokens), "{} of {length}", assembled.tokens);
        let context = &assembled.messages[0].content;
        for (number, quoted) in &kept {
            let there = assembled.documents.iter().find(|one| one.number == *number).unwrap();
            assert!(there.document.text.starts_with(quoted.as_str()) && context.contains(quoted.as_str()));
        }
        let numbers: HashSet<usize> = assembled.documents.iter().map(|one| one.number).collect();
        assert_eq!(numbers.len(), assembled.documents.len(), "a document stands there twice");
    }

    let short = assemble(&bench, frame, retrieve(&bench, query, 200).unwrap(), 900, &mut |_| Ok(None));
    assert_eq!(short.unwrap().unwrap_err(), Dropped::TooShort);
    let mut fixed = retrieve(&bench, query, 300).unwrap();
    for one in &mut fixed {
        one.keep = one.document.text.len();
    }
    let long = assemble(&bench, frame, fixed, 200, &mut |_| Ok(None));
    assert_eq!(long.unwrap().unwrap_err(), Dropped::TooLong);
}

/// Summarises to the first words of the text, or not at all; keeps what it was asked.
struct Summariser {
    shortens: bool,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Llm for Summariser {
    async fn chat(&self, call: &Call) -> Result<Answer, LlmError> {
        let prompt = call.messages[0].content.clone();
        let (_, text) = prompt.split_once("Text from").unwrap();
        let text = text.split("\n---\n").next().unwrap().trim();
        let text = match self.shortens {
            true => text.split_whitespace().skip(1).take(12).collect::<Vec<_>>().join(" "),
            false => text.to_owned(),
        };
        self.asked.lock().unwrap().push(prompt);
        Ok(Answer { text, finish: Finish::Stop, usage: Usage::default() })
    }

    async fn score(&self, _: &ScoreCall) -> Result<Likelihood, LlmError> {
        Err(LlmError::Unsupported("a test".into()))
    }

    fn concurrency(&self) -> usize {
        3
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notes_are_summarised_again_until_they_fit_the_window() {
    let tmp = tempfile::tempdir().unwrap();
    let bench = bench(tmp.path(), 1400).await;
    let picked = retrieve(&bench, "tower garden winter valley people", 3000).unwrap();
    let chunks: Vec<Chunk> = picked
        .iter()
        .enumerate()
        .map(|(document, one)| Chunk {
            document,
            range: 0..one.document.text.len(),
            relevance: None,
            relevant: document % 4 != 3,
            note: (document % 4 != 3).then(|| one.document.text.clone()),
        })
        .collect();
    // Window less response, instruction and prompt, a tenth less for another tokenizer.
    let room = (1400 - 350 - bench.target.tokens("why?").unwrap() - 256) * 9 / 10;
    for shortens in [true, false] {
        let llm = Summariser { shortens, asked: Mutex::default() };
        let asker = Asker::new(&llm, &|_| (), 3);
        let mut draw = RunSeed(1).draw("test");
        let notes = notes(&bench, &asker, &mut draw, "why?", &picked, &chunks).await.unwrap();
        let size: usize = notes.iter().map(|note| bench.target.tokens(&note.text).unwrap()).sum();
        assert!(!notes.is_empty() && size <= room, "{size} of {room}");
        let asked = llm.asked.lock().unwrap();
        assert!(!asked.is_empty() && asked.iter().all(|prompt| prompt.contains("Instruction: why?")));
        if shortens {
            // Nothing was left out: the last document's title is still there.
            let last = &picked[chunks.iter().rposition(|chunk| chunk.relevant).unwrap()].document.title;
            assert!(notes.last().unwrap().title.contains(last.as_str()), "{notes:?}");
        }
    }
}
