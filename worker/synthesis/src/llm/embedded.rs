//! The embedded generator behind the same trait: one thread owns the model; calls that wait at the
//! same time are decoded together. What a call answers never depends on its batch mates.

use std::path::Path;

use async_trait::async_trait;
use longstrap_inference::{Generator, GeneratorOptions, InferenceError, Sampling};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Call, Finish, Likelihood, Llm, LlmError, ScoreCall, Usage};

/// Calls decoded together.
const BATCH: usize = 8;

/// Told the tokens that were read and written since the last time.
pub type OnTokens = Box<dyn Fn(u64) + Send>;

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, LlmError>>;

enum Job {
    Chat(Box<Call>, Reply<Answer>),
    Score(Box<ScoreCall>, Reply<Likelihood>),
}

/// A model of ours that answers calls.
pub struct Embedded {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Embedded {
    /// Loads the model folder in a thread of its own, which ends when this is dropped.
    ///
    /// # Errors
    /// The folder's.
    pub async fn open(
        dir: &Path,
        options: GeneratorOptions,
        on_tokens: OnTokens,
    ) -> Result<Embedded, InferenceError> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (ready, opened) = oneshot::channel();
        let dir = dir.to_owned();
        std::thread::spawn(move || match Generator::new(&dir, options) {
            Ok(generator) => {
                // The opener may be gone already; then so is the sender of jobs.
                let _ = ready.send(Ok(()));
                Server { generator, context: options.context, on_tokens }.serve(inbox);
            }
            Err(error) => drop(ready.send(Err(error))),
        });
        // The thread answers in either case, unless it panicked while loading.
        opened.await.unwrap_or(Err(InferenceError::NotFinite))?;
        Ok(Embedded { jobs })
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, LlmError> {
        let gone = || LlmError::Unsupported("the embedded generator has ended (see its error above)".into());
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Llm for Embedded {
    async fn chat(&self, call: &Call) -> Result<Answer, LlmError> {
        self.ask(|reply| Job::Chat(Box::new(call.clone()), reply)).await
    }

    async fn score(&self, call: &ScoreCall) -> Result<Likelihood, LlmError> {
        self.ask(|reply| Job::Score(Box::new(call.clone()), reply)).await
    }

    fn concurrency(&self) -> usize {
        BATCH
    }
}

struct Server {
    generator: Generator,
    context: usize,
    on_tokens: OnTokens,
}

impl Server {
    fn serve(mut self, mut inbox: mpsc::UnboundedReceiver<Job>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut waiting = vec![first];
            while waiting.len() < BATCH
                && let Ok(next) = inbox.try_recv()
            {
                waiting.push(next);
            }
            let mut chats = Vec::new();
            for job in waiting {
                match job {
                    // Whoever asked may be gone (a cancelled shard): then nothing is computed.
                    Job::Score(call, reply) if !reply.is_closed() => drop(reply.send(self.score(&call))),
                    Job::Chat(call, reply) if !reply.is_closed() => chats.push((call, reply)),
                    _ => {}
                }
            }
            self.chat(chats);
        }
    }

    fn score(&mut self, call: &ScoreCall) -> Result<Likelihood, LlmError> {
        let logprobs = self.generator.score(&call.messages, &call.answer).map_err(refused)?;
        if logprobs.is_empty() {
            return Err(LlmError::Rejected("an empty text has no likelihood".into()));
        }
        let sum: f64 = logprobs.iter().map(|&p| f64::from(p)).sum();
        let read = longstrap_inference::Call {
            messages: call.messages.clone(),
            answer_prefix: call.answer.clone(),
            sampling: Sampling::default(),
        };
        let prompt_tokens = self.generator.prompt_tokens(&read).map_err(refused)? as u64;
        let usage = Usage { calls: 1, prompt_tokens, completion_tokens: 0 };
        (self.on_tokens)(usage.prompt_tokens);
        Ok(Likelihood { mean_logprob: (sum / logprobs.len() as f64 * 1e6).round() / 1e6, usage })
    }

    fn chat(&mut self, chats: Vec<(Box<Call>, Reply<Answer>)>) {
        let mut calls = Vec::new();
        let mut replies = Vec::new();
        for (call, reply) in chats {
            let call = native(&call);
            match self.generator.prompt_tokens(&call) {
                Ok(tokens) if tokens + call.sampling.max_tokens <= self.context => {
                    calls.push(call);
                    replies.push(reply);
                }
                Ok(tokens) => drop(reply.send(Err(LlmError::Rejected(format!(
                    "{tokens} tokens of prompt and {} of answer exceed contextLength {}",
                    call.sampling.max_tokens, self.context
                ))))),
                Err(error) => drop(reply.send(Err(refused(error)))),
            }
        }
        if calls.is_empty() {
            return;
        }
        let mut told = 0;
        let on_tokens = &self.on_tokens;
        let answers = self.generator.generate_batch(&calls, &mut |_, generated| {
            on_tokens((generated - told) as u64);
            told = generated;
        });
        match answers {
            Ok(answers) => {
                for (answer, reply) in answers.into_iter().zip(replies) {
                    on_tokens(answer.prompt_tokens as u64);
                    drop(reply.send(Ok(foreign(answer))));
                }
            }
            Err(error) => {
                let error = refused(error);
                for reply in replies {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }
}

fn refused(error: InferenceError) -> LlmError {
    match error {
        InferenceError::TooLong { .. } | InferenceError::Empty => LlmError::Rejected(error.to_string()),
        error => LlmError::Refused(format!("embedded generator: {error}")),
    }
}

fn native(call: &Call) -> longstrap_inference::Call {
    let params = &call.params;
    longstrap_inference::Call {
        messages: call.messages.clone(),
        answer_prefix: params.answer_prefix.clone(),
        sampling: Sampling {
            max_tokens: params.max_tokens as usize,
            temperature: params.temperature,
            top_p: params.top_p,
            seed: params.seed,
            no_repeat_ngram: params.no_repeat_ngram as usize,
            repetition_penalty: 1.0,
            stop: params.stop.clone(),
        },
    }
}

fn foreign(answer: longstrap_inference::Answer) -> Answer {
    Answer {
        text: answer.text,
        finish: match answer.finish {
            longstrap_inference::Finish::Stop => Finish::Stop,
            longstrap_inference::Finish::Length => Finish::Length,
        },
        usage: Usage {
            calls: 1,
            prompt_tokens: answer.prompt_tokens as u64,
            completion_tokens: answer.ids.len() as u64,
        },
    }
}
