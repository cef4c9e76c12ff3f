//! The embedded generator: calls are read one by one and decoded together, eight at a time; a slot
//! that becomes free takes the next call. What a call answers depends on the call alone.

use std::ops::Range;
use std::path::Path;

use longstrap_model::{ChatTemplate, Message, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::error::{InferenceError, Result};
use crate::memory::SLOTS;
use crate::model::{Model, ModelOptions};
use crate::sample::{Sampler, Sampling};

/// Positions that are read at once: of a short prompt little is padding.
const BLOCK: usize = 128;

/// The cache behind the slots', for scoring.
const SCORING: usize = SLOTS;

/// How a generator is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// Threads of the device.
    pub threads: usize,
    /// Most tokens of prompt and answer together; at most the model's window is sensible.
    pub context: usize,
}

/// A conversation to be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// The conversation.
    pub messages: Vec<Message>,
    /// What the answer is made to begin with; may be empty.
    pub answer_prefix: String,
    /// How the answer is sampled.
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Finish {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Its text: the forced beginning, then what was generated, up to a stop string.
    pub text: String,
    /// The generated tokens, the end token not counted.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens that were read, the forced beginning among them.
    pub prompt_tokens: usize,
}

/// A call that is being answered.
#[derive(Debug)]
struct Running {
    ticket: usize,
    sampling: Sampling,
    answer_prefix: String,
    sampler: Sampler,
    prompt_tokens: usize,
    /// Prompt and answer so far; the last one is not in the cache yet.
    tokens: Vec<u32>,
}

/// A model with its tokenizer and chat template, answering calls.
pub struct Generator {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    slots: [Option<Running>; SLOTS],
    /// Logits of a step, kept to be filled again.
    logits: Vec<f32>,
}

impl Generator {
    /// Loads a model folder.
    ///
    /// # Errors
    /// A folder that is not a sound model; too little memory.
    pub fn new(dir: &Path, options: GeneratorOptions) -> Result<Self> {
        let tokenizer = Tokenizer::load(dir)?;
        let template = ChatTemplate::load(dir, &tokenizer)?;
        let options = ModelOptions {
            threads: options.threads,
            context: options.context,
            caches: SLOTS + 1,
            block: BLOCK,
            rope: None,
        };
        Ok(Self::from_parts(Model::open(dir, options)?, tokenizer, template))
    }

    fn from_parts(model: Model, tokenizer: Tokenizer, template: ChatTemplate) -> Self {
        Self { model, tokenizer, template, slots: [const { None }; SLOTS], logits: Vec::new() }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Tokens that a call's prompt has; an answer needs one more at least.
    ///
    /// # Errors
    /// The template's refusal.
    pub fn prompt_tokens(&self, call: &Call) -> Result<usize> {
        Ok(self.prompt(call)?.len())
    }

    /// Answers calls, in their order. `progress` hears (answers finished, tokens generated) after
    /// each step.
    ///
    /// # Errors
    /// Before anything runs: a prompt that does not fit the context or that the template refuses.
    /// Later: the device's.
    pub fn generate_batch(
        &mut self,
        calls: &[Call],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Answer>> {
        let prompts = calls.iter().map(|c| self.prompt(c)).collect::<Result<Vec<_>>>()?;
        // An error may have left calls of an earlier batch behind.
        self.slots = [const { None }; SLOTS];
        let mut answers: Vec<Option<Answer>> = calls.iter().map(|_| None).collect();
        let mut waiting = calls.iter().zip(prompts).enumerate();
        let (mut finished, mut generated) = (0, 0);
        while finished < calls.len() {
            let mut ended = Vec::new();
            while let Some(slot) = self.slots.iter().position(Option::is_none) {
                let Some((ticket, (call, prompt))) = waiting.next() else { break };
                ended.extend(self.admit(slot, ticket, call, prompt)?);
                generated += 1;
            }
            let running = self.slots.iter().flatten().count();
            if running > 0 {
                ended.extend(self.step()?);
                generated += running;
            }
            for (ticket, answer) in ended {
                answers[ticket] = Some(answer);
                finished += 1;
            }
            progress(finished, generated);
        }
        Ok(answers.into_iter().map(|a| a.expect("the loop ends when every call has its answer")).collect())
    }

    /// log p of each token of `answer` as the model's answer to a conversation, its end token not
    /// counted.
    ///
    /// # Errors
    /// The template's refusal; more tokens than the context.
    pub fn score(&mut self, messages: &[Message], answer: &str) -> Result<Vec<f32>> {
        let asked = self.template.prompt(&self.tokenizer, messages, "")?;
        let whole = self.template.prompt(&self.tokenizer, messages, answer)?;
        // Header and answer are one text to the tokenizer: the answer's tokens are those that hold
        // any of it.
        let from = whole.offsets.partition_point(|r| r.end <= asked.text.len());
        self.score_from(&whole.ids, from)
    }

    /// log p of each token from index `from` on, given all before it.
    pub(crate) fn score_from(&mut self, tokens: &[u32], from: usize) -> Result<Vec<f32>> {
        if from == 0 {
            return Err(InferenceError::Empty);
        }
        let losses = self.model.read_and_score(SCORING, 0, tokens, from, &mut |_| {})?;
        Ok(losses.into_iter().map(|l| -l).collect())
    }

    fn prompt(&self, call: &Call) -> Result<Vec<u32>> {
        let ids = self.template.prompt(&self.tokenizer, &call.messages, &call.answer_prefix)?.ids;
        let limit = self.model.context();
        if ids.is_empty() {
            return Err(InferenceError::Empty);
        }
        if ids.len() >= limit {
            return Err(InferenceError::TooLong { tokens: ids.len() + 1, limit });
        }
        self.model.check_tokens(&ids)?;
        Ok(ids)
    }

    /// Reads a call's prompt into a free slot and draws its first token.
    fn admit(
        &mut self,
        slot: usize,
        ticket: usize,
        call: &Call,
        prompt: Vec<u32>,
    ) -> Result<Option<(usize, Answer)>> {
        for (i, block) in prompt.chunks(BLOCK).enumerate() {
            self.model.read_block(slot, i * BLOCK, block)?;
        }
        self.model.row_logits((prompt.len() - 1) % BLOCK, &mut self.logits)?;
        let mut running = Running {
            ticket,
            sampling: call.sampling.clone(),
            answer_prefix: call.answer_prefix.clone(),
            sampler: Sampler::new(&call.sampling),
            prompt_tokens: prompt.len(),
            tokens: prompt,
        };
        let ended = self.advance(&mut running, 0..self.model.config().vocab_size)?;
        if ended.is_none() {
            self.slots[slot] = Some(running);
        }
        Ok(ended.map(|answer| (ticket, answer)))
    }

    /// One token for every running call.
    fn step(&mut self) -> Result<Vec<(usize, Answer)>> {
        let next = std::array::from_fn(|i| {
            let running = self.slots[i].as_ref()?;
            Some((running.tokens.len() - 1, *running.tokens.last()?))
        });
        self.model.decode(&next, &mut self.logits)?;
        let vocab = self.model.config().vocab_size;
        let mut ended = Vec::new();
        for slot in 0..SLOTS {
            let Some(mut running) = self.slots[slot].take() else { continue };
            match self.advance(&mut running, slot * vocab..(slot + 1) * vocab)? {
                Some(answer) => ended.push((running.ticket, answer)),
                None => self.slots[slot] = Some(running),
            }
        }
        Ok(ended)
    }

    /// Draws a call's next token from its part of the logits; gives the answer when it has ended.
    fn advance(&mut self, running: &mut Running, logits: Range<usize>) -> Result<Option<Answer>> {
        let sampling = &running.sampling;
        if sampling.max_tokens == 0 {
            return self.answer(running, Finish::Length, None).map(Some);
        }
        let id = running.sampler.next(sampling, &running.tokens, &mut self.logits[logits])?;
        if self.template.special().stop_ids.contains(&id) {
            return self.answer(running, Finish::Stop, None).map(Some);
        }
        running.tokens.push(id);
        let generated = running.tokens.len() - running.prompt_tokens;
        if let Some(end) = self.stop_string(running)? {
            return self.answer(running, Finish::Stop, Some(end)).map(Some);
        }
        if generated >= sampling.max_tokens || running.tokens.len() >= self.model.context() {
            return self.answer(running, Finish::Length, None).map(Some);
        }
        Ok(None)
    }

    /// Where the first stop string begins in the generated text.
    fn stop_string(&self, running: &Running) -> Result<Option<usize>> {
        if running.sampling.stop.is_empty() {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&running.tokens[running.prompt_tokens..])?;
        Ok(running.sampling.stop.iter().filter_map(|s| text.find(s.as_str())).min())
    }

    fn answer(&self, running: &Running, finish: Finish, end: Option<usize>) -> Result<Answer> {
        let ids = running.tokens[running.prompt_tokens..].to_vec();
        let mut text = self.tokenizer.decode(&ids)?;
        if let Some(end) = end {
            text.truncate(end);
        }
        if finish == Finish::Length {
            // A character that was cut in the middle of its bytes.
            text.truncate(text.trim_end_matches('\u{FFFD}').len());
        }
        text.insert_str(0, &running.answer_prefix);
        Ok(Answer { text, ids, finish, prompt_tokens: running.prompt_tokens })
    }
}
