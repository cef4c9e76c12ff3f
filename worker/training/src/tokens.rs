//! Tokenised training data in storage: one file of ids and one index for each source, one row plan
//! for each stage.
//!
//! Invariant: the manifest names every object with its digest, and one digest over the content
//! alone stands in `run.json`; a rank reads only the bytes of its part of a row.

use std::ops::Range;

use longstrap_crds::Reason;
use longstrap_model::LossOn;
use longstrap_runtime::{StepError, StepResult};
use longstrap_storage::{AttemptId, Digest, ObjectRef, Store, keys};
use serde::{Deserialize, Serialize};

use crate::data::row_plan::{Row, RowPlan, SampleSize};
use crate::data::shard::{Placed, Shard, needs, shard};

/// `tokens/tokens.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokensManifest {
    /// Who wrote it.
    pub attempt_id: AttemptId,
    /// Digest of all that decides the content: the same inputs need not be tokenised again.
    pub inputs: Digest,
    /// Digest of the phrases of the evaluation that the samples were compared with.
    pub phrases: Digest,
    /// How many of them the samples of all sources repeat.
    pub leaks: u64,
    /// In the order of the run's sources.
    pub sources: Vec<SourceObjects>,
    /// In the order of the run's stages.
    pub plans: Vec<ObjectRef>,
}

/// The objects of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceObjects {
    /// Its name.
    pub name: String,
    /// Token ids, u32 little-endian, sample after sample.
    pub ids: ObjectRef,
    /// [`SourceIndex`].
    pub index: ObjectRef,
}

impl TokensManifest {
    /// Digest of the content, whoever wrote it.
    #[must_use]
    pub fn content(&self) -> Digest {
        let objects = self.sources.iter().flat_map(|s| [&s.ids, &s.index]).chain(&self.plans);
        Digest::of(objects.map(|o| format!("{}\n", o.digest)).collect::<String>())
    }

    /// The manifest of a run, when it is there.
    ///
    /// # Errors
    /// As the store answers; a malformed manifest.
    pub async fn load(store: &Store) -> StepResult<Option<Self>> {
        match store.try_get(keys::TOKENS_MANIFEST).await? {
            None => Ok(None),
            Some(bytes) => Ok(Some(json(store, keys::TOKENS_MANIFEST, &bytes)?)),
        }
    }
}

/// Samples of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceIndex {
    /// In the order of the source's files.
    pub samples: Vec<IndexedSample>,
    /// Phrases of the evaluation that the samples repeat.
    pub leaks: u64,
}

/// Tokens of a sample and the token ranges that are targets; `None`: all but the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexedSample(
    pub u32,
    #[serde(skip_serializing_if = "Option::is_none", default)] pub Option<Vec<(u32, u32)>>,
);

impl IndexedSample {
    /// Target ranges.
    #[must_use]
    pub fn targets(&self) -> Vec<Range<u32>> {
        match &self.1 {
            None if self.0 > 1 => vec![1..self.0],
            None => vec![],
            Some(spans) => spans.iter().map(|&(a, b)| a..b).collect(),
        }
    }

    /// What the row plan needs.
    #[must_use]
    pub fn size(&self) -> SampleSize {
        SampleSize { tokens: self.0, targets: self.targets().iter().map(|t| t.end - t.start).sum() }
    }

    /// Of a rendered sample.
    #[must_use]
    pub fn new(tokens: usize, loss: LossOn, spans: &[Range<usize>]) -> Self {
        let spans = spans.iter().map(|s| (s.start as u32, s.end as u32)).collect();
        Self(tokens as u32, (loss == LossOn::Response).then_some(spans))
    }
}

/// A source that rows are read from.
struct OpenSource {
    ids: ObjectRef,
    samples: Vec<IndexedSample>,
    /// First token of each sample in the file.
    starts: Vec<u64>,
}

/// Rows of one stage.
pub struct Rows {
    store: Store,
    sources: Vec<OpenSource>,
    /// The plan.
    pub plan: RowPlan,
}

impl Rows {
    /// Opens the rows of stage `stage`.
    ///
    /// # Errors
    /// As the store answers; torn or malformed objects.
    pub async fn open(store: &Store, manifest: &TokensManifest, stage: usize) -> StepResult<Self> {
        let plan = &manifest.plans[stage];
        let plan = json(store, &plan.key, &store.get_verified(plan).await?)?;
        let mut sources = Vec::with_capacity(manifest.sources.len());
        for source in &manifest.sources {
            let bytes = store.get_verified(&source.index).await?;
            let index: SourceIndex = json(store, &source.index.key, &bytes)?;
            let mut end = 0;
            let mut starts = Vec::with_capacity(index.samples.len());
            for sample in &index.samples {
                starts.push(end);
                end += u64::from(sample.0);
            }
            sources.push(OpenSource { ids: source.ids.clone(), samples: index.samples, starts });
        }
        Ok(Self { store: store.clone(), sources, plan })
    }

    /// The samples of a row.
    #[must_use]
    pub fn placed(&self, row: &Row) -> Vec<Placed> {
        let place = |piece: &crate::data::row_plan::Piece| {
            let sample = &self.sources[piece.source as usize].samples[piece.sample as usize];
            Placed { source: piece.source, tokens: sample.0 as usize, targets: sample.targets(), weight: 1.0 }
        };
        row.pieces.iter().map(place).collect()
    }

    /// Reads a rank's part of a row.
    ///
    /// # Errors
    /// As the store answers.
    pub async fn read(&self, row: &Row, rank: usize, world: usize) -> StepResult<Shard> {
        let placed = self.placed(row);
        let mut read = Vec::new();
        for need in needs(&placed, rank, world) {
            let piece = row.pieces[need.piece];
            let source = &self.sources[piece.source as usize];
            let start = source.starts[piece.sample as usize];
            let bytes = 4 * (start + need.range.start as u64)..4 * (start + need.range.end as u64);
            let bytes = self.store.get_range(&source.ids.key, bytes).await?;
            read.push(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        Ok(shard(&placed, rank, world, &read))
    }
}

/// Parses an object that we wrote.
pub(crate) fn json<T: serde::de::DeserializeOwned>(store: &Store, key: &str, bytes: &[u8]) -> StepResult<T> {
    serde_json::from_slice(bytes).map_err(|e| {
        let message = format!("{} is not what this version writes: {e}", store.uri_of(key));
        StepError::invalid(Reason::DataChanged, message)
    })
}
