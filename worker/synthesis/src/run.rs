//! `run.json` of a synthesis: everything that decides content, resolved once. Its digest is the
//! fingerprint; no address, worker count or name of a pod is in it.

use std::collections::BTreeMap;

use longstrap_crds::SynthesisJobSpec;
use longstrap_crds::synthesis_job::CorpusFormat;
use longstrap_storage::Digest;
use serde::{Deserialize, Serialize};

use crate::slots::{LengthShare, Plan};
use crate::variety::Variety;

/// Rises only when equal input would give other bytes.
pub const FORMAT_VERSION: u32 = 1;

/// Content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SynthesisRun {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Seed of the run.
    pub seed: u64,
    /// The target model's tokenizer and template.
    pub target: TargetRef,
    /// The normalised corpus.
    pub corpus: CorpusRun,
    /// Who writes.
    pub generator: GeneratorRun,
    /// Context window of the generator in tokens.
    pub context_length: u64,
    /// How documents are found.
    pub retriever: RetrieverRun,
    /// What is asked for.
    pub samples: SamplesRun,
    /// Fixed limits of the steps.
    pub limits: Limits,
    /// Weighted lists.
    pub variety: Variety,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// Slots and shards.
    pub plan: Plan,
}

/// The target model's tokenizer and template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Digest of `tokenizer.json`.
    pub tokenizer: String,
    /// Digest of the chat template.
    pub template: String,
}

/// The normalised corpus and what made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorpusRun {
    /// How the sources are read, by name.
    pub sources: Vec<SourceRun>,
    /// Tokens to hold out.
    pub held_out_tokens: u64,
    /// Digest of the normalised documents and the held-out text.
    pub digest: Digest,
    /// Documents for synthesis.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// How a source is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceRun {
    /// Name in the spec.
    pub name: String,
    /// Format of its files.
    pub format: CorpusFormat,
    /// Field with the text.
    pub text_field: String,
    /// Field with the group.
    pub group_field: Option<String>,
}

/// Who writes, and how relevance is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum GeneratorRun {
    /// A chat server: relevance by a sentinel in the summary.
    Endpoint {
        /// Its model.
        model: String,
    },
    /// The engine: relevance by likelihood, extractive responses.
    #[serde(rename_all = "camelCase")]
    Embedded {
        /// Digest of the model's files.
        model: Digest,
        /// Instruction set: bits depend on it.
        instruction_set: String,
    },
}

impl GeneratorRun {
    /// What stands for the model in keys of calls and in provenance.
    pub fn identity(&self) -> String {
        match self {
            GeneratorRun::Endpoint { model } => model.clone(),
            GeneratorRun::Embedded { model, instruction_set } => format!("{model} ({instruction_set})"),
        }
    }

    /// Takes the instruction set of an earlier run with the same model: another one is worth a
    /// warning, but no other run.
    pub fn keep_instruction_set(&mut self, then: &GeneratorRun) {
        if let GeneratorRun::Embedded { model, instruction_set } = self
            && let GeneratorRun::Embedded { model: pinned, instruction_set: then } = then
            && model == pinned
            && instruction_set != then
        {
            tracing::warn!(%then, now = %instruction_set, "another instruction set: answers may differ in bits");
            instruction_set.clone_from(then);
        }
    }

    /// Whether the embedded generator writes.
    pub fn is_embedded(&self) -> bool {
        matches!(self, GeneratorRun::Embedded { .. })
    }
}

/// How documents are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrieverRun {
    /// `bm25`: k1 = 1.2, b = 0.75.
    pub method: String,
    /// Most documents of one sample.
    pub max_documents: u32,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SamplesRun {
    /// Lengths of long-input samples, by name; empty: none are asked for.
    pub lengths: Vec<LengthShare>,
    /// Long-output samples: shortest and longest document; none are asked for: absent.
    pub long_output: Option<(u64, u64)>,
}

/// Fixed limits. They decide content, so they are written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Candidates for one slot.
    pub tries: u32,
    /// Answers that may be asked for again with another seed, in one step of one candidate.
    pub answers: u32,
    /// Longest chunk that is read at once, in tokens.
    pub chunk_tokens: u64,
    /// Chunks that are summarised for one sample; 0: all.
    pub summaries: u32,
    /// Longest random piece of corpus in front of a call, in tokens.
    pub context_tokens: u64,
    /// Longest response, in tokens.
    pub response_tokens: u64,
}

impl Limits {
    /// Limits for a generator with this window.
    pub fn new(embedded: bool, context_length: u64) -> Limits {
        // A quarter of the window is left for the answer and the prompt around the chunk.
        let chunk = if embedded { 512 } else { 4096 };
        Limits {
            tries: 8,
            answers: 3,
            chunk_tokens: chunk.min(context_length / 2),
            summaries: if embedded { 4 } else { 0 },
            context_tokens: 256.min(context_length / 8),
            response_tokens: if embedded { 1200 } else { 2048.min(context_length / 4) },
        }
    }
}

/// The length shares of a spec, sorted by name, defaults resolved.
pub fn length_shares(spec: &SynthesisJobSpec) -> Vec<LengthShare> {
    let mut shares: Vec<LengthShare> = spec
        .samples
        .long_input
        .iter()
        .flat_map(|long_input| &long_input.lengths)
        .filter_map(|length| {
            let (from, to) = length.bounds()?;
            Some(LengthShare {
                name: length.name.clone(),
                from: from.get(),
                to: to.get(),
                weight: length.weight(),
            })
        })
        .collect();
    shares.sort_by(|a, b| a.name.cmp(&b.name));
    shares
}

/// How the sources of a spec are read, sorted by name.
pub fn sources(spec: &SynthesisJobSpec) -> Vec<SourceRun> {
    let mut sources: Vec<SourceRun> = spec
        .corpus
        .iter()
        .map(|source| SourceRun {
            name: source.name.clone(),
            format: source.format,
            text_field: source.text_field().to_owned(),
            group_field: source.group_field.clone(),
        })
        .collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}
