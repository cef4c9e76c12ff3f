//! A sample and where it comes from. Nothing here holds a time, host, path or attempt of a pod:
//! the same answers give the same bytes.

use std::ops::Range;

pub use longstrap_dataset::Dropped;
use longstrap_model::Message;
use serde::{Deserialize, Serialize};

use crate::llm::Usage;
use crate::slots::{Kind, Slot};
use crate::variety::Place;

/// What a document is to its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Read and found to bear on the instruction.
    Relevant,
    /// Read, and it does not.
    Irrelevant,
    /// Not read: it fills the length.
    Distractor,
    /// The document is the answer.
    Target,
}

/// A document of a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentRef {
    /// Id in the corpus.
    pub id: String,
    /// Rank of the retriever from 1; none for a document that it did not find.
    pub rank: Option<u32>,
    /// Score of the retriever.
    pub score: Option<f64>,
    /// Best relevance of its chunks (likelihood scoring).
    pub relevance: Option<f64>,
    /// What it is to the sample.
    pub role: Role,
    /// Whether its end was cut off.
    pub cut: bool,
    /// Place in the user's turn (of a long output: in the assistant's), in characters.
    pub span: Range<usize>,
}

/// Where a sample comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// Which try at its slot it is, from 0.
    pub r#try: u32,
    /// Seed of that try, as hex: all its choices derive from it and the step's name.
    pub seed: String,
    /// Length that was drawn; none for a long output.
    pub length: Option<u64>,
    /// Model that wrote instruction and response.
    pub model: String,
    /// Digest of the prompts.
    pub prompts: String,
    /// Digest of the target tokenizer.
    pub tokenizer: String,
    /// Digest of the target chat template.
    pub template: String,
    /// The instruction alone.
    pub instruction: String,
    /// Task that was asked for.
    pub task: String,
    /// Tone that was asked for.
    pub tone: String,
    /// Where the instruction stands.
    pub place: Option<Place>,
    /// The documents, as they stand in the sample.
    pub documents: Vec<DocumentRef>,
    /// What was read: notes from which the response was written. Not part of the sample.
    pub notes: Vec<Note>,
    /// What its calls cost.
    pub usage: Usage,
}

/// A summary of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Note {
    /// Title of the document.
    pub title: String,
    /// The summary.
    pub text: String,
}

/// A finished sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its slot.
    pub slot: Slot,
    /// The conversation: user, assistant.
    pub messages: Vec<Message>,
    /// Tokens, rendered for the target model.
    pub tokens: u32,
    /// Where it comes from.
    pub provenance: Provenance,
}

impl Sample {
    /// Kind of the sample.
    pub fn kind(&self) -> Kind {
        self.slot.kind
    }

    /// Its id in the dataset.
    pub fn id(&self) -> String {
        self.slot.to_string()
    }
}

/// What became of a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Filled {
    /// The slot.
    pub slot: Slot,
    /// The kept sample; none: the slot is reported short.
    pub sample: Option<Sample>,
    /// Why earlier candidates were dropped, in order of tries.
    pub dropped: Vec<Dropped>,
    /// What all its calls cost.
    pub usage: Usage,
}
