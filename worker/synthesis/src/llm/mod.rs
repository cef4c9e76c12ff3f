//! What a step may ask of a language model, whoever serves it: a chat answer, or the likelihood of
//! a given answer. A call is data: its hash is the key under which the answer is kept.

pub mod embedded;
pub mod openai;
pub mod recorded;

use async_trait::async_trait;
pub use longstrap_dataset::Usage;
use longstrap_model::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How an answer is sampled. Everything is explicit, because it decides the key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Params {
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// 0: greedy.
    pub temperature: f32,
    /// Nucleus; 1: off.
    pub top_p: f32,
    /// Seed of this call.
    pub seed: u64,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What the answer is made to begin with (embedded generator only); it is part of the answer.
    pub answer_prefix: String,
    /// No sequence of so many tokens twice; 0: off (embedded generator only).
    pub no_repeat_ngram: u32,
}

/// One chat call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// The conversation; the model answers its last turn.
    pub messages: Vec<Message>,
    /// How to sample.
    pub params: Params,
}

/// The likelihood of a given answer to a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreCall {
    /// The conversation.
    pub messages: Vec<Message>,
    /// The assistant's text that is scored.
    pub answer: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model ended it, or a stop string.
    Stop,
    /// It reached the limit: it is cut off.
    Length,
}

/// An answer as it came: judging it is the step's business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The text, forced prefix included.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// What it cost.
    pub usage: Usage,
}

/// The likelihood of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Likelihood {
    /// Mean log-probability per token (nats), rounded to 1e-6.
    pub mean_logprob: f64,
    /// What it cost.
    pub usage: Usage,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlmError {
    /// The generator does not answer and may do so later.
    #[error("{0}")]
    Away(String),
    /// It answers, but never as a chat server does.
    #[error("{0}")]
    Rubbish(String),
    /// It refuses for a reason that will not go away: address or name of the model.
    #[error("{0}")]
    Refused(String),
    /// It refuses the credentials.
    #[error("{0}")]
    Denied(String),
    /// It does not take this one request.
    #[error("{0}")]
    Rejected(String),
    /// It cannot do what is asked (scores from a chat server).
    #[error("{0}")]
    Unsupported(String),
    /// The answer could not be written to the call log.
    #[error("call log: {0}")]
    Log(longstrap_storage::Error),
}

/// A language model.
#[async_trait]
pub trait Llm: Send + Sync {
    /// Answers a conversation.
    async fn chat(&self, call: &Call) -> Result<Answer, LlmError>;

    /// Scores a given answer.
    async fn score(&self, call: &ScoreCall) -> Result<Likelihood, LlmError>;

    /// Calls that are worth having in flight at once.
    fn concurrency(&self) -> usize;
}

/// The key of a call: model, messages and parameters, nothing else.
pub fn call_key(model: &str, what: &str, call: &impl Serialize) -> String {
    let mut hasher = Sha256::new();
    hasher.update(model.as_bytes());
    hasher.update([0]);
    hasher.update(what.as_bytes());
    hasher.update([0]);
    // A type of ours without maps or non-string keys: serialising it cannot fail.
    hasher.update(serde_json::to_vec(call).expect("a call is plain data"));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
