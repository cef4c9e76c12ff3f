//! `dataset.json`: what a published dataset says of itself.
//!
//! Invariant: synthesis writes it and training and people's tools read it by this one definition;
//! it names every file with its digest, and holds no time, host or attempt.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::BTreeMap;
use std::fmt;

use longstrap_storage::Digest;
use serde::{Deserialize, Serialize};

/// Name of the manifest in the dataset's folder.
pub const MANIFEST: &str = "dataset.json";
/// Version of its layout.
pub const FORMAT_VERSION: u32 = 1;

/// What stands in `dataset.json`. Names of files are relative to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetManifest {
    /// Version of this layout.
    pub format_version: u32,
    /// Fingerprint of the run that made it.
    pub fingerprint: Digest,
    /// Parquet parts in order.
    pub files: Vec<DatasetFile>,
    /// The same samples as JSON Lines, messages only.
    pub export: Vec<DatasetFile>,
    /// Samples.
    pub rows: u64,
    /// Their tokens, rendered for the target model.
    pub tokens: u64,
    /// Documents that synthesis never saw.
    pub held_out: Option<HeldOutFile>,
    /// The dataset card.
    pub card: DatasetFile,
    /// Digest of the target tokenizer.
    pub tokenizer_digest: String,
    /// Digest of the target chat template.
    pub template_digest: String,
    /// Model that wrote.
    pub generator: String,
    /// Dropped candidates by reason.
    pub dropped: BTreeMap<Dropped, u64>,
    /// Slots that stayed empty.
    pub short: u64,
    /// What all calls cost.
    pub usage: Usage,
}

/// A published file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetFile {
    /// Relative to the manifest.
    pub name: String,
    /// sha256 of the file.
    pub digest: Digest,
    /// Samples in it.
    pub rows: u64,
    /// Tokens of them.
    pub tokens: u64,
}

/// The held-out documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldOutFile {
    /// Relative to the manifest.
    pub name: String,
    /// sha256 of the file.
    pub digest: Digest,
    /// Documents in it.
    pub documents: u64,
    /// Tokens of them.
    pub tokens: u64,
    /// Phrases of the evaluation that the samples repeat: 0, or something is wrong.
    pub leaks: u64,
    /// What other training data is compared with.
    pub phrases: PhrasesFile,
}

/// The 12-word phrases of the held-out documents but those that are boilerplate of the corpus, as
/// little-endian 8-byte hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PhrasesFile {
    /// Relative to the manifest.
    pub name: String,
    /// sha256 of the file.
    pub digest: Digest,
}

/// Why a candidate for a slot was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Dropped {
    /// No document is left that could be used.
    NoDocument,
    /// The generator gave no usable instruction.
    BadInstruction,
    /// No document says anything on the instruction.
    NothingRelevant,
    /// The generator gave no usable response.
    BadResponse,
    /// The generator refused to answer.
    Refusal,
    /// The response repeats itself.
    Repetitive,
    /// The documents do not fill the length.
    TooShort,
    /// Instruction and response alone exceed the length.
    TooLong,
    /// Instruction or response repeats a phrase of the held-out text or of the evaluation's needles.
    HeldOutOverlap,
    /// Nearly the instruction of an earlier sample.
    NearDuplicateInstruction,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Tokens of calls, as the server counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Calls.
    pub calls: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.calls += other.calls;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// From a newer program.
    #[error(
        "its formatVersion is {0}, this program knows {FORMAT_VERSION}: use the version that made the dataset, or a newer one"
    )]
    TooNew(u32),
    /// Not ours, or damaged.
    #[error("{0}")]
    Malformed(#[from] serde_json::Error),
}

impl DatasetManifest {
    /// Reads `dataset.json`.
    ///
    /// # Errors
    /// Another version, unknown or missing fields; the file's name is the caller's to add.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            format_version: u32,
        }
        let version: Version = serde_json::from_slice(bytes)?;
        if version.format_version > FORMAT_VERSION {
            return Err(ManifestError::TooNew(version.format_version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The bytes of `dataset.json`.
    ///
    /// # Errors
    /// None in practice: every key is a string.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> DatasetManifest {
        let file =
            |name: &str| DatasetFile { name: name.into(), digest: Digest::of(name), rows: 2, tokens: 9 };
        DatasetManifest {
            format_version: FORMAT_VERSION,
            fingerprint: Digest::of("run"),
            files: vec![file("part-00000.parquet")],
            export: vec![file("jsonl/part-00000.jsonl")],
            rows: 2,
            tokens: 9,
            held_out: None,
            card: file("README.md"),
            tokenizer_digest: "t".into(),
            template_digest: "c".into(),
            generator: "g".into(),
            dropped: [(Dropped::TooShort, 3), (Dropped::BadResponse, 1)].into(),
            short: 0,
            usage: Usage { calls: 1, prompt_tokens: 2, completion_tokens: 3 },
        }
    }

    #[test]
    fn it_comes_back_and_its_reasons_stand_in_the_order_of_the_steps() {
        let bytes = manifest().to_json().unwrap();
        assert_eq!(DatasetManifest::from_json(&bytes).unwrap(), manifest());
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.find("BadResponse") < text.find("TooShort"), "{text}");
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn what_is_newer_or_another_file_is_refused() {
        let text = String::from_utf8(manifest().to_json().unwrap()).unwrap();
        let error = |text: &str| DatasetManifest::from_json(text.as_bytes()).unwrap_err().to_string();
        let newer = text.replacen(": 1,", ": 2, \"more\": {},", 1);
        assert!(error(&newer).starts_with("its formatVersion is 2, this program knows 1"));
        assert!(error(&text.replacen("\"rows\"", "\"lines\"", 1)).contains("unknown field `lines`"));
        assert!(error("{\"name\": \"other\"}").contains("missing field `formatVersion`"));
    }
}
