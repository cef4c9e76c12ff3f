//! What every step of one run works with: the corpus, the target model, prompts and generator.

use longstrap_corpus::{Corpus, Document, Phrases};
use longstrap_model::{Message, Role};

use crate::error::{Result, SynthError};
use crate::llm::{Answer, Call, Finish, Llm, LlmError, Params, Usage};
use crate::prompts::Prompts;
use crate::run::SynthesisRun;
use crate::seed::{Draw, RunSeed};
use crate::target::Target;
use crate::text::border;

/// Inputs of all steps, the same in every worker of a run.
#[derive(Debug)]
pub struct Bench {
    /// What decides content.
    pub run: SynthesisRun,
    /// Documents and index.
    pub corpus: Corpus,
    /// Phrases of the held-out text.
    pub phrases: Phrases,
    /// Tokenizer and chat template of the target model.
    pub target: Target,
    /// Parsed prompts.
    pub prompts: Prompts,
    /// Length of each long-input slot.
    pub lengths: Vec<u64>,
    /// Documents that can be long outputs, in the order in which slots take them.
    pub outputs: Vec<usize>,
    /// Digest of all prompts, for provenance.
    pub prompts_digest: String,
}

impl Bench {
    /// Puts a bench together; what can be derived from the run is derived here.
    ///
    /// # Errors
    /// Prompts that do not parse.
    pub fn new(run: SynthesisRun, corpus: Corpus, phrases: Phrases, target: Target) -> Result<Bench> {
        let texts = crate::prompts::PromptTexts::from_texts(run.prompts.clone());
        let mut all = longstrap_storage::Hasher::default();
        for (name, text) in texts.texts() {
            all.update(format!("{name}\0{text}\0"));
        }
        let seed = RunSeed(run.seed);
        let lengths = match run.samples.lengths.is_empty() {
            true => Vec::new(),
            false => crate::slots::lengths(&run.samples.lengths, run.plan.long_input, seed),
        };
        let mut outputs: Vec<usize> = match run.samples.long_output {
            None => Vec::new(),
            Some((min, max)) => (0..corpus.documents.len())
                .filter(|&n| (min..=max).contains(&u64::from(corpus.documents.tokens()[n])))
                .collect(),
        };
        seed.draw("long-output documents").shuffle(&mut outputs);
        Ok(Bench {
            prompts: Prompts::new(texts)?,
            prompts_digest: all.finish().to_string(),
            lengths,
            outputs,
            run,
            corpus,
            phrases,
            target,
        })
    }

    /// Seed of the run.
    pub fn seed(&self) -> RunSeed {
        RunSeed(self.run.seed)
    }

    /// A document by number.
    ///
    /// # Errors
    /// The local working file's.
    pub fn document(&self, number: usize) -> Result<Document> {
        Ok(self.corpus.documents.get(number)?)
    }

    /// The beginning of a text, of at most `tokens` tokens, up to a border.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn head<'t>(&self, text: &'t str, tokens: usize) -> Result<&'t str> {
        // No token of a usable tokenizer stands for more bytes on average over so long a text, so
        // nothing beyond has to be encoded.
        let text = &text[..text.floor_char_boundary(tokens.saturating_mul(64))];
        let encoded = self.target.encode(text)?;
        let Some(limit) = encoded.offsets.get(tokens) else { return Ok(text) };
        let half = encoded.offsets.get(tokens / 2).map_or(0, |range| range.start);
        Ok(text[..border(text, half, limit.start)].trim_end())
    }

    /// A random piece of a random document: it goes in front of calls, for diversity.
    ///
    /// # Errors
    /// The tokenizer's, the working file's.
    pub fn random_piece(&self, draw: &mut Draw) -> Result<String> {
        let text = self.document(draw.below(self.corpus.documents.len()))?.text;
        let start = text.floor_char_boundary(draw.below(text.len() / 2 + 1));
        let start = text[start..].find('\n').map_or(start, |at| start + at);
        let piece = self.head(text[start..].trim_start(), self.run.limits.context_tokens as usize)?;
        Ok(piece.to_owned())
    }
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing, or only white space.
    Empty,
    /// The limit cut it off.
    CutOff,
    /// Not in the form that was asked for.
    Unparsable,
    /// The generator did not take the request.
    Rejected,
}

/// Told the tokens of each finished call.
pub(crate) type OnTokens<'a> = dyn Fn(u64) + Sync + 'a;

/// One candidate's dealings with the generator: counts what they cost.
pub(crate) struct Asker<'a> {
    llm: &'a dyn Llm,
    on_tokens: &'a OnTokens<'a>,
    answers: u32,
    usage: std::sync::Mutex<Usage>,
}

impl<'a> Asker<'a> {
    /// `answers`: how often one call may be asked again with another seed.
    pub(crate) fn new(llm: &'a dyn Llm, on_tokens: &'a OnTokens<'a>, answers: u32) -> Asker<'a> {
        Asker { llm, on_tokens, answers: answers.max(1), usage: std::sync::Mutex::default() }
    }

    /// What the calls so far cost.
    pub(crate) fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Calls that are worth having in flight at once.
    pub(crate) fn concurrency(&self) -> usize {
        self.llm.concurrency().max(1)
    }

    fn spent(&self, usage: Usage) {
        (self.on_tokens)(usage.prompt_tokens + usage.completion_tokens);
        *self.usage.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += usage;
    }

    /// Asks until an answer can be used; with another seed each time, a few times.
    ///
    /// # Errors
    /// What ends the step; a bad answer is a [`Fault`].
    pub(crate) async fn ask<T>(
        &self,
        draw: &mut Draw,
        messages: Vec<Message>,
        mut params: Params,
        read: impl Fn(&Answer) -> Result<T, Fault>,
    ) -> Result<Result<T, Fault>> {
        let mut fault = Fault::Empty;
        for _ in 0..self.answers {
            params.seed = draw.bits();
            let call = Call { messages: messages.clone(), params: params.clone() };
            let answer = match self.llm.chat(&call).await {
                Ok(answer) => answer,
                Err(LlmError::Rejected(why)) => {
                    tracing::warn!(%why, "a request was rejected");
                    return Ok(Err(Fault::Rejected));
                }
                Err(error) => return Err(error.into()),
            };
            self.spent(answer.usage);
            if answer.text.trim().is_empty() {
                fault = if answer.finish == Finish::Length { Fault::CutOff } else { Fault::Empty };
                continue;
            }
            match read(&answer) {
                Ok(value) => return Ok(Ok(value)),
                Err(found) => fault = found,
            }
            if params.temperature == 0.0 {
                // A greedy answer does not change with the seed.
                break;
            }
        }
        Ok(Err(fault))
    }

    /// Mean log-probability of an answer; `None` when it cannot be scored (too long).
    ///
    /// # Errors
    /// What ends the step.
    pub(crate) async fn score(&self, messages: Vec<Message>, answer: &str) -> Result<Option<f64>> {
        let call = crate::llm::ScoreCall { messages, answer: answer.to_owned() };
        match self.llm.score(&call).await {
            Ok(likelihood) => {
                self.spent(likelihood.usage);
                Ok(Some(likelihood.mean_logprob))
            }
            Err(LlmError::Rejected(why)) => {
                tracing::warn!(%why, "a text was not scored");
                Ok(None)
            }
            Err(error) => Err(SynthError::from(error)),
        }
    }
}

/// A conversation of one user turn.
pub(crate) fn user(text: String) -> Vec<Message> {
    vec![Message::new(Role::User, text)]
}
