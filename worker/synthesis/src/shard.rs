//! A shard in storage: its slots' outcome as JSON lines, committed by a working manifest; while it
//! is unfinished, the log of its calls beside it.

use std::collections::BTreeMap;

use longstrap_storage::{AttemptId, Commit, CommitOutcome, Digest, ObjectRef, Store, keys};
use serde::{Deserialize, Serialize};

use crate::error::{Result, SynthError};
use crate::llm::Usage;
use crate::sample::{Dropped, Filled};

const FORMAT_VERSION: u32 = 1;

/// What stands in `shards/{i}.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardManifest {
    /// Version of this layout.
    pub format_version: u32,
    /// The writer: it knows its own manifest again by it.
    pub attempt_id: AttemptId,
    /// Fingerprint of the run.
    pub fingerprint: Digest,
    /// One line per slot.
    pub data: ObjectRef,
    /// Kept samples.
    pub kept: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Dropped candidates by reason.
    pub dropped: BTreeMap<Dropped, u64>,
    /// What the calls cost.
    pub usage: Usage,
}

/// Folder of the call log of a shard.
pub fn call_log(shard: u32) -> String {
    format!("calls/{shard}")
}

/// The manifest of a shard, when it is committed.
///
/// # Errors
/// Storage; a manifest that is not of this run.
pub async fn manifest(store: &Store, shard: u32, fingerprint: Digest) -> Result<Option<ShardManifest>> {
    match store.try_get(&keys::shard(shard)).await? {
        None => Ok(None),
        Some(bytes) => parse(shard, &bytes, fingerprint).map(Some),
    }
}

fn parse(shard: u32, bytes: &[u8], fingerprint: Digest) -> Result<ShardManifest> {
    let key = keys::shard(shard);
    let manifest: ShardManifest = serde_json::from_slice(bytes).map_err(|e| {
        SynthError::invalid(longstrap_crds::Reason::DataChanged, format!("{key} cannot be read: {e}"))
    })?;
    if manifest.fingerprint != fingerprint {
        return Err(SynthError::invalid(
            longstrap_crds::Reason::FingerprintMismatch,
            format!("{key} belongs to another run ({}): this one is {fingerprint}", manifest.fingerprint),
        ));
    }
    Ok(manifest)
}

/// Writes the outcome of a shard's slots and commits it; returns the manifest that stands.
///
/// # Errors
/// Storage.
pub async fn commit(
    store: &Store,
    attempt: &AttemptId,
    shard: u32,
    fingerprint: Digest,
    filled: &[Filled],
) -> Result<ShardManifest> {
    let mut bytes = Vec::new();
    let mut manifest_of = Totals::default();
    for one in filled {
        serde_json::to_writer(&mut bytes, one).map_err(anyhow::Error::from)?;
        bytes.push(b'\n');
        manifest_of.add(one);
    }
    let key = keys::working("shards", attempt, &format!("{shard}.jsonl"));
    let data = store.put_ref(&key, bytes).await?;
    let manifest = ShardManifest {
        format_version: FORMAT_VERSION,
        attempt_id: attempt.clone(),
        fingerprint,
        data,
        kept: manifest_of.kept,
        tokens: manifest_of.tokens,
        dropped: manifest_of.dropped,
        usage: manifest_of.usage,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(anyhow::Error::from)?;
    let how = Commit::Working { attempt_id: attempt.clone() };
    match store.commit(&keys::shard(shard), bytes, &how).await? {
        CommitOutcome::Won => Ok(manifest),
        CommitOutcome::Lost(theirs) => {
            // A pod that committed and was restarted under the same name has the same key.
            let winner = parse(shard, &theirs, fingerprint)?;
            if winner.data.key != manifest.data.key {
                store.delete(&manifest.data.key).await?;
            }
            Ok(winner)
        }
    }
}

/// Sums over slots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Kept samples.
    pub kept: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Dropped candidates by reason.
    pub dropped: BTreeMap<Dropped, u64>,
    /// What the calls cost.
    pub usage: Usage,
}

impl Totals {
    /// Counts a slot in.
    pub fn add(&mut self, filled: &Filled) {
        if let Some(sample) = &filled.sample {
            self.kept += 1;
            self.tokens += u64::from(sample.tokens);
        }
        for reason in &filled.dropped {
            *self.dropped.entry(*reason).or_default() += 1;
        }
        self.usage += filled.usage;
    }
}

/// What a run is told whose generator gives nothing that can be kept.
pub(crate) fn nothing_kept(slots: u64, dropped: &BTreeMap<Dropped, u64>) -> SynthError {
    let reasons: Vec<String> = dropped.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    SynthError::invalid(
        longstrap_crds::Reason::InvalidModel,
        format!(
            "no sample was kept in {slots} slots; candidates were dropped for: {}. Look at the generator's \
             answers: is it the right model, does it follow instructions, is contextLength true?",
            reasons.join(", ")
        ),
    )
}

/// The slots of a committed shard, in order.
///
/// # Errors
/// Storage; data that are not what the manifest says.
pub async fn read(store: &Store, manifest: &ShardManifest) -> Result<Vec<Filled>> {
    let bytes = store.get_verified(&manifest.data).await?;
    bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line).map_err(|e| {
                SynthError::invalid(
                    longstrap_crds::Reason::DataChanged,
                    format!("{} cannot be read: {e}", manifest.data.key),
                )
            })
        })
        .collect()
}
