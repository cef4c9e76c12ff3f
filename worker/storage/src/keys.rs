//! Every key of a run's storage, computed here and nowhere else.
//!
//! Working data carry the attempt id of their writer; manifests and published files have fixed
//! names. Checkpoints carry the gang generation, which one gang alone ever has.

use crate::attempt::AttemptId;

/// What decides the content of the run; its digest is the fingerprint.
pub const RUN: &str = "run.json";
/// Manifest of the published dataset.
pub const DATASET: &str = "dataset/dataset.json";
/// The dataset's card.
pub const DATASET_CARD: &str = "dataset/README.md";
/// Held-out documents of the dataset.
pub const HELD_OUT: &str = "dataset/heldout.parquet";
/// Folder of checkpoints.
pub const CHECKPOINTS: &str = "ckpt";
/// Folder of the exported model.
pub const MODEL: &str = "model";
/// Manifest of the exported model.
pub const MODEL_MANIFEST: &str = "model/model.json";
/// Results of all evaluations.
pub const RESULTS: &str = "results.json";
/// Timings and restarts: the one file that is not a function of the inputs.
pub const RUN_LOG: &str = "run-log.jsonl";
/// Folder of the normalised corpus.
pub const CORPUS: &str = "corpus";
/// Manifest of the normalised corpus.
pub const CORPUS_MANIFEST: &str = "corpus/corpus.json";
/// Folder of token shards and row plan.
pub const TOKENS: &str = "tokens";
/// Manifest of the tokenised training data.
pub const TOKENS_MANIFEST: &str = "tokens/tokens.json";
/// Folder of ownership claims.
pub const OWNERS: &str = "owner";
/// Records of unfinished multipart uploads.
pub const UPLOADS: &str = "uploads";

/// The `n`-th claim of ownership.
pub fn owner(n: u32) -> String {
    format!("{OWNERS}/{n}.json")
}

/// The claim of gang generation `n`.
pub fn gang(n: u64) -> String {
    format!("gang/{n}.json")
}

/// Manifest of shard `i` of the synthesis.
pub fn shard(i: u32) -> String {
    format!("shards/{i}.json")
}

/// Data object `name` of one writer, below `folder` (`shards`, `tokens`, `corpus`, …).
pub fn working(folder: &str, attempt: &AttemptId, name: &str) -> String {
    format!("{folder}/{attempt}/{name}")
}

/// Folder of a checkpoint.
pub fn checkpoint(generation: u64, step: u64) -> String {
    format!("{CHECKPOINTS}/{generation}/{step}")
}

/// Manifest of a checkpoint.
pub fn checkpoint_manifest(generation: u64, step: u64) -> String {
    format!("{CHECKPOINTS}/{generation}/{step}/checkpoint.json")
}

/// Folder of a finished stage (weights, evaluation).
pub fn stage(name: &str) -> String {
    format!("stages/{name}")
}

/// Manifest of a finished stage.
pub fn stage_manifest(name: &str) -> String {
    format!("stages/{name}/stage.json")
}

/// Prefix of the `k`-th restart; the first run (`k` = 0) has none.
pub fn restart(k: u32) -> String {
    match k {
        0 => String::new(),
        k => format!("r{k}"),
    }
}

/// The record that makes restart `k` exist, relative to the storage's root.
pub fn restart_record(k: u32) -> String {
    format!("r{k}/restart.json")
}

/// The record of an unfinished upload in parts; `name` is unique.
pub(crate) fn upload(attempt: &AttemptId, name: &str) -> String {
    format!("{UPLOADS}/{attempt}/{name}.json")
}

/// Exists when a training Job has reached its end (`train-0`, …).
pub fn step_end(step: &str) -> String {
    format!("steps/{step}.json")
}
