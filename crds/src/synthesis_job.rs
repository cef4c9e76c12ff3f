//! `SynthesisJob`: a document collection and a generator in, a long-context dataset out.
//!
//! Invariant: the spec alone decides which samples are asked for; defaults of list items are
//! methods here, so that every reader resolves them alike.
#![allow(
    clippy::duplicated_attributes,
    reason = "the arguments of several printer columns are no duplicates"
)]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    common::{CommonSpec, LocalRef, ModelRef, SecretKeyRef},
    length::Length,
    schema,
    status::{CommonStatus, DatasetRef},
};

/// What to synthesise, from which documents, with which model.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "longstrap.io",
    version = "v1alpha1",
    kind = "SynthesisJob",
    namespaced,
    status = "SynthesisJobStatus",
    derive = "PartialEq",
    shortname = "synth",
    category = "longstrap",
    doc = "Writes long-context training data from a document collection with a short-context model.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "string", json_path = ".status.step"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress.percent"),
    printcolumn(name = "Tokens/s", type_ = "integer", json_path = ".status.progress.tokensPerSecond"),
    printcolumn(name = "Remaining", type_ = "string", json_path = ".status.progress.remaining"),
    printcolumn(name = "Rows", type_ = "integer", json_path = ".status.dataset.rows", priority = 1),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SynthesisJobSpec {
    /// Fields that both kinds have.
    #[serde(flatten)]
    pub common: CommonSpec,
    /// Tokenizer and chat template of the model that is to be trained: lengths are counted with it.
    pub tokenizer: ModelRef,
    /// Documents to synthesise from.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub corpus: Vec<CorpusSource>,
    /// Documents split off by group before synthesis, for evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
    /// The short-context model that writes.
    pub generator: Generator,
    /// How documents are found for an instruction.
    #[serde(default)]
    pub retriever: Retriever,
    /// Prompts of your own instead of the built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
    /// How many samples of which kind and length.
    pub samples: Samples,
    /// Every random choice is derived from it.
    #[serde(default)]
    #[schemars(schema_with = "schema::seed")]
    pub seed: u64,
    /// Number of pods that share the work.
    #[serde(default = "one")]
    #[schemars(schema_with = "schema::processes")]
    pub workers: u32,
}

/// One source of documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CorpusSource {
    /// Name of the source, unique in the list.
    #[schemars(schema_with = "schema::label")]
    pub name: String,
    /// A file or a folder.
    #[schemars(schema_with = "schema::uri")]
    pub uri: String,
    /// How documents are stored.
    pub format: CorpusFormat,
    /// Field with the text of a document; "text" by default. Not used by Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub text_field: Option<String>,
    /// Field whose value keeps documents together in the split (a repository, a site); by default every document is a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group_field: Option<String>,
}

impl CorpusSource {
    /// The field with a document's text.
    pub fn text_field(&self) -> &str {
        self.text_field.as_deref().unwrap_or("text")
    }
}

/// How documents are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CorpusFormat {
    /// Parquet files with one document a row.
    Parquet,
    /// One JSON object a line; .gz and .zst are read too.
    JsonLines,
    /// Text and markdown files, one document each.
    Text,
}

/// The part of the corpus that synthesis never sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldOut {
    /// At least so many tokens are held out.
    pub tokens: Length,
}

/// The model that writes: exactly one of endpoints and embedded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    /// A server with an OpenAI-compatible API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub endpoints: Option<Vec<Endpoint>>,
    /// A small model that runs inside the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
    /// Context window of the generator in tokens: no prompt plus answer is longer.
    pub context_length: Length,
}

/// A server with an OpenAI-compatible API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name of the endpoint, unique in the list.
    #[schemars(schema_with = "schema::label")]
    pub name: String,
    /// Base address, for example http://vllm:8000/v1.
    #[schemars(schema_with = "schema::url")]
    pub url: String,
    /// Name of the model at the server.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// Key of a Secret with the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// Calls in flight at once and worker; 16 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::processes")]
    pub max_concurrency: Option<u32>,
}

impl Endpoint {
    /// Calls in flight at once.
    pub fn max_concurrency(&self) -> u32 {
        self.max_concurrency.unwrap_or(16)
    }
}

/// A small model that runs inside the workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embedded {
    /// The model's folder.
    pub model: ModelRef,
}

/// How documents are found for an instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retriever {
    /// Lexical search; the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bm25: Option<Bm25>,
    /// Documents that are considered for one sample at most.
    #[schemars(range(min = 1, max = 4096))]
    pub max_documents: u32,
}

impl Default for Retriever {
    fn default() -> Self {
        Self { bm25: Some(Bm25 {}), max_documents: 64 }
    }
}

/// Lexical search; no options yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bm25 {}

/// Prompts of your own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Prompts {
    /// ConfigMap with prompt files (minijinja); a name that is missing keeps the built-in prompt.
    pub config_map_ref: LocalRef,
}

/// How many samples of which kind: at least one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Samples {
    /// An instruction over many documents, answered from all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_input: Option<LongInput>,
    /// A long document as the answer to an instruction written for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_output: Option<LongOutput>,
}

impl Samples {
    /// Samples to keep, of both kinds.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.long_input.as_ref().map_or(0, |l| l.count) + self.long_output.as_ref().map_or(0, |l| l.count)
    }
}

/// Long-input samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LongInput {
    /// Samples to keep.
    #[schemars(schema_with = "schema::positive")]
    pub count: u64,
    /// Lengths to draw from; weights are shares of the tokens.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub lengths: Vec<SampleLength>,
}

/// An exact length, or a range from which lengths are drawn log-uniformly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SampleLength {
    /// Name of the length, unique in the list.
    #[schemars(schema_with = "schema::label")]
    pub name: String,
    /// Exactly so many tokens (at least 99 % full, never more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Length>,
    /// Shortest length of the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Length>,
    /// Longest length of the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Length>,
    /// Share of the tokens; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::weight")]
    pub weight: Option<u32>,
}

impl SampleLength {
    /// The shortest and the longest length; equal for an exact one. `None` when neither form is
    /// given, which [`crate::validate`] refuses.
    pub fn bounds(&self) -> Option<(Length, Length)> {
        match (self.tokens, self.from, self.to) {
            (Some(exact), None, None) => Some((exact, exact)),
            (None, Some(from), Some(to)) => Some((from, to)),
            _ => None,
        }
    }

    /// Share of the tokens.
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }
}

/// Long-output samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LongOutput {
    /// Samples to keep.
    #[schemars(schema_with = "schema::positive")]
    pub count: u64,
    /// Shortest document that is used, in tokens.
    #[serde(default = "min_output")]
    pub min_tokens: Length,
    /// Longest document that is used, in tokens.
    #[serde(default = "max_output")]
    pub max_tokens: Length,
}

/// What is known about the job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SynthesisJobStatus {
    /// Fields that both kinds have.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// The finished dataset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<DatasetRef>,
}

fn one() -> u32 {
    1
}

fn min_output() -> Length {
    Length::new(2 << 10).expect("a constant within the bounds")
}

fn max_output() -> Length {
    Length::new(32 << 10).expect("a constant within the bounds")
}
