//! Checkpoints: weights and both moments in f32 after a finished step, in a layout that knows no
//! number of ranks.
//!
//! Invariant: a checkpoint exists when its manifest does, and the manifest is written last. Weights
//! change only at the end of a step, so shards are staged one by one while the next step computes;
//! the update waits for the last of them.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_engine::{Backend, Stream, View};
use longstrap_memory_plan::Group;
use longstrap_runtime::rank::AgentLink;
use longstrap_runtime::{Progress, StepError, StepResult};
use longstrap_storage::{AttemptId, CheckpointId, Commit, Digest, ObjectRef, Store, keys};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

/// Format of the manifest.
const FORMAT_VERSION: u32 = 1;
/// Elements that cross to the file system at once.
const PIECE: usize = 128 << 10;
/// Tensors of a shard: weights, first and second moment.
const PARTS: [&str; 3] = ["w", "m", "v"];

/// `ckpt/{generation}/{step}/checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckpointManifest {
    /// Format of this file.
    pub format_version: u32,
    /// Who wrote it.
    pub attempt_id: AttemptId,
    /// Generation of the gang.
    pub generation: u64,
    /// sha256 of `run.json`.
    pub fingerprint: Digest,
    /// Stage that is being trained.
    pub stage: String,
    /// Finished steps of the stage: also the position in its row plan.
    pub stage_step: u64,
    /// Finished steps of all stages.
    pub step: u64,
    /// Steps of the stage that were skipped because a gradient was not finite.
    pub skipped: u64,
    /// Ranks that wrote it; any number can read it.
    pub world_size: u32,
    /// Instructions that it was computed with.
    pub instruction_set: String,
    /// The state.
    pub shards: Vec<StateShard>,
}

/// A part of one flat buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateShard {
    /// The buffer.
    pub group: Group,
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub elements: usize,
    /// Safetensors with `w`, `m` and `v`.
    pub object: ObjectRef,
}

/// Where a run stands, without its numbers.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) generation: u64,
    pub(crate) fingerprint: Digest,
    pub(crate) stage: String,
    pub(crate) stage_step: u64,
    pub(crate) step: u64,
    pub(crate) skipped: u64,
    pub(crate) world_size: u32,
    pub(crate) instruction_set: String,
}

/// Writes checkpoints of one rank's arena.
#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) backend: Arc<dyn Backend>,
    /// Weights and moments of every group.
    pub(crate) state: Vec<(Group, [View; 3])>,
    /// 3 × n in host memory.
    pub(crate) staging: View,
    pub(crate) store: Store,
    pub(crate) attempt_id: AttemptId,
    pub(crate) scratch: PathBuf,
    pub(crate) runtime: Handle,
    pub(crate) progress: Progress,
    pub(crate) link: AgentLink,
    pub(crate) keep_last: usize,
}

/// A checkpoint that is being written.
pub(crate) struct Running(std::thread::JoinHandle<StepResult>);

impl Running {
    /// Waits for its end.
    pub(crate) fn wait(self) -> StepResult {
        self.0.join().map_err(|_| anyhow::anyhow!("writing a checkpoint panicked"))?
    }
}

impl Writer {
    /// Starts to write in the background.
    pub(crate) fn start(&self, position: Position) -> StepResult<Running> {
        let writer = self.clone();
        let thread = std::thread::Builder::new().name("checkpoint".to_owned());
        Ok(Running(thread.spawn(move || writer.write(&position))?))
    }

    /// Writes the state as it lies in the arena.
    pub(crate) fn write(&self, position: &Position) -> StepResult {
        let id = CheckpointId { generation: position.generation, step: position.step };
        std::fs::create_dir_all(&self.scratch)
            .with_context(|| format!("cannot make {}", self.scratch.display()))?;
        let cuts: Vec<_> = self.state.iter().flat_map(|(group, views)| self.cuts(*group, views)).collect();
        let mut shards = Vec::with_capacity(cuts.len());
        for (i, (group, start, views)) in cuts.iter().enumerate() {
            let name = format!("{group}-{start:010}.safetensors");
            let path = self.scratch.join(&name);
            self.stage(views, &path)?;
            let key = format!("{}/{name}", id.key());
            let object = self.runtime.block_on(self.store.put_file(&key, &path, &|_| {}))?;
            std::fs::remove_file(&path)?;
            shards.push(StateShard { group: *group, start: *start, elements: views[0].cols, object });
            self.progress.update(|_| ());
            tracing::debug!(shard = i + 1, of = cuts.len(), "checkpoint");
        }
        let manifest = CheckpointManifest {
            format_version: FORMAT_VERSION,
            attempt_id: self.attempt_id.clone(),
            generation: position.generation,
            fingerprint: position.fingerprint,
            stage: position.stage.clone(),
            stage_step: position.stage_step,
            step: position.step,
            skipped: position.skipped,
            world_size: position.world_size,
            instruction_set: position.instruction_set.clone(),
            shards,
        };
        let bytes = serde_json::to_vec_pretty(&manifest).context("checkpoint.json")?;
        self.runtime.block_on(self.publish(id, bytes))
    }

    async fn publish(&self, id: CheckpointId, manifest: Vec<u8>) -> StepResult {
        let commit = Commit::Working { attempt_id: self.attempt_id.clone() };
        // A generation has one first rank, so nobody else can have written this one.
        let _ = self.store.commit(&id.manifest_key(), manifest, &commit).await?;
        self.link.committed(id.step, &id.key());
        tracing::info!(checkpoint = %id, "committed");
        forget(&self.store, id, self.keep_last).await
    }

    /// The shards of a group: start, and views of w, m, v.
    fn cuts(&self, group: Group, views: &[View; 3]) -> Vec<(Group, usize, [View; 3])> {
        let cut = |start: usize| {
            let end = (start + self.staging.cols).min(views[0].cols);
            (group, start, views.map(|v| v.col_range(start..end)))
        };
        (0..views[0].cols).step_by(self.staging.cols).map(cut).collect()
    }

    /// Copies a shard to staging, beside the arithmetic, and from there to a file.
    fn stage(&self, views: &[View; 3], path: &Path) -> StepResult {
        let elements = views[0].cols;
        let staged: Vec<View> =
            (0..3).map(|i| self.staging.row_range(i..i + 1).col_range(0..elements)).collect();
        for (view, staged) in views.iter().zip(&staged) {
            self.backend.copy(Stream::Copy, *view, *staged).map_err(anyhow::Error::from)?;
        }
        self.backend.synchronize(Stream::Copy).map_err(anyhow::Error::from)?;
        let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut file = BufWriter::with_capacity(PIECE, file);
        let header = header(elements);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut piece = vec![0u8; 4 * PIECE.min(elements)];
        for staged in staged {
            for start in (0..elements).step_by(PIECE) {
                let part = staged.col_range(start..(start + PIECE).min(elements));
                let bytes = &mut piece[..4 * part.cols];
                self.backend.read(part, bytes).map_err(anyhow::Error::from)?;
                file.write_all(bytes)?;
            }
        }
        Ok(file.flush()?)
    }
}

/// The header of a shard, padded to 8 bytes as the format wants.
fn header(elements: usize) -> String {
    let tensor = |(i, name): (usize, &&str)| {
        let (start, end) = (4 * elements * i, 4 * elements * (i + 1));
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{elements}],\"data_offsets\":[{start},{end}]}}")
    };
    let tensors: Vec<String> = PARTS.iter().enumerate().map(tensor).collect();
    let text = format!("{{{}}}", tensors.join(","));
    let padded = text.len().next_multiple_of(8);
    format!("{text:padded$}")
}

/// Deletes what is older than the newest `keep_last` checkpoints, manifests first, and what older
/// generations left unfinished. Newer generations are never touched: this rank may be a zombie.
async fn forget(store: &Store, newest: CheckpointId, keep_last: usize) -> StepResult {
    let listed = store.list(keys::CHECKPOINTS).await?;
    let id_of = |key: &str| key.rsplit_once('/').and_then(|(folder, _)| folder.parse::<CheckpointId>().ok());
    let complete: BTreeSet<CheckpointId> =
        listed.iter().filter_map(|m| id_of(&m.key).filter(|id| id.manifest_key() == m.key)).collect();
    let kept: BTreeSet<CheckpointId> = complete.iter().rev().take(keep_last.max(1)).copied().collect();
    let dead = |id: &CheckpointId| *id < newest && !kept.contains(id);
    for id in complete.iter().filter(|id| dead(id)) {
        store.delete(&id.manifest_key()).await?;
    }
    for meta in listed.iter().filter(|m| id_of(&m.key).is_some_and(|id| dead(&id))) {
        store.delete(&meta.key).await?;
    }
    store.sweep_staging(keys::CHECKPOINTS, |key| id_of(key).is_some_and(|id| id < newest))?;
    Ok(())
}

/// Reads the manifest of a checkpoint and checks that it belongs to the run.
///
/// # Errors
/// As the store answers; `FingerprintMismatch` for another run's; `FormatTooNew`.
pub(crate) async fn load_manifest(
    store: &Store,
    id: CheckpointId,
    fingerprint: &Digest,
) -> StepResult<CheckpointManifest> {
    let key = id.manifest_key();
    let manifest: CheckpointManifest = crate::tokens::json(store, &key, &store.get(&key).await?)?;
    if manifest.format_version > FORMAT_VERSION {
        let message = format!("{} has format {}", store.uri_of(&key), manifest.format_version);
        return Err(StepError::invalid(Reason::FormatTooNew, message));
    }
    if manifest.fingerprint != *fingerprint {
        let message = format!("{} belongs to another run.json", store.uri_of(&key));
        return Err(StepError::invalid(Reason::FingerprintMismatch, message));
    }
    Ok(manifest)
}

/// Writes a checkpoint's state into the arena.
///
/// # Errors
/// As the store answers; torn or foreign shards.
pub(crate) async fn restore(
    store: &Store,
    manifest: &CheckpointManifest,
    backend: &dyn Backend,
    state: &[(Group, [View; 3])],
) -> StepResult {
    let groups = state.iter().map(|(group, views)| (*group, views[0].cols));
    check_cover(&manifest.shards, groups).map_err(|why| {
        let message = format!("the checkpoint of step {} is not whole: {why}", manifest.step);
        StepError::invalid(Reason::DataChanged, message)
    })?;
    for shard in &manifest.shards {
        let bytes = store.get_verified(&shard.object).await?;
        let foreign = |why: &str| {
            let uri = store.uri_of(&shard.object.key);
            StepError::invalid(Reason::DataChanged, format!("{uri} is no part of this model's state: {why}"))
        };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| foreign(&e.to_string()))?;
        let (_, views) =
            state.iter().find(|(g, _)| *g == shard.group).ok_or_else(|| foreign("unknown group"))?;
        for (name, view) in PARTS.iter().zip(views) {
            let tensor = file.tensor(name).map_err(|e| foreign(&e.to_string()))?;
            let part = view.col_range(shard.start..shard.start + shard.elements);
            backend.write(part, tensor.data()).map_err(|e| foreign(&e.to_string()))?;
        }
    }
    Ok(())
}

/// Each group's shards must lie end to end from its first element to its last.
fn check_cover(shards: &[StateShard], groups: impl Iterator<Item = (Group, usize)>) -> Result<(), String> {
    for (group, elements) in groups {
        let mut ranges: Vec<_> =
            shards.iter().filter(|s| s.group == group).map(|s| (s.start, s.elements)).collect();
        ranges.sort_unstable();
        let mut end = 0usize;
        for (start, length) in ranges {
            if start != end {
                return Err(format!("{group}: after element {end} comes a shard that starts at {start}"));
            }
            end = end.saturating_add(length);
        }
        if end != elements {
            return Err(format!("{group}: its shards hold {end} elements, the model has {elements}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What is left of these objects when `newest` has just been committed.
    async fn left(objects: &[&str], newest: (u64, u64), keep_last: usize) -> Vec<String> {
        let store = Store::open("memory:///run", &BTreeMap::new()).unwrap();
        for object in objects {
            store.put(&format!("ckpt/{object}"), "x").await.unwrap();
        }
        let (generation, step) = newest;
        forget(&store, CheckpointId { generation, step }, keep_last).await.unwrap();
        let listed = store.list("ckpt").await.unwrap();
        listed.into_iter().map(|m| m.key.replace("ckpt/", "").replace("checkpoint.json", "*")).collect()
    }

    #[tokio::test]
    async fn the_newest_are_kept_and_what_older_gangs_left_goes() {
        let old = ["1/1/a", "1/1/checkpoint.json", "1/2/a", "1/2/checkpoint.json", "1/3/a"];
        let ours = ["2/3/a", "2/3/checkpoint.json", "2/4/a", "2/4/checkpoint.json"];
        let all: Vec<&str> = old.iter().chain(&ours).copied().collect();
        assert_eq!(left(&all, (2, 4), 2).await, ["2/3/a", "2/3/*", "2/4/a", "2/4/*"]);
        assert_eq!(left(&all, (2, 4), 3).await.len(), 6);
        // A rank of generation 1 that does not know that it is dead: what generation 2 has, and what
        // it is writing, stays.
        let zombie = left(&all, (1, 2), 2).await;
        assert!(ours.iter().all(|o| zombie.contains(&o.replace("checkpoint.json", "*"))), "{zombie:?}");
        assert!(zombie.contains(&"1/3/a".to_owned()), "{zombie:?}");
    }

    #[test]
    fn a_state_with_a_gap_or_an_overlap_is_not_whole() {
        let groups = [(Group::Embedding, 10), (Group::FinalNorm, 2)];
        let whole = [(Group::Embedding, 0, 6), (Group::FinalNorm, 0, 2), (Group::Embedding, 6, 4)];
        type Change = fn(&mut Vec<(Group, usize, usize)>);
        let cases: [(&str, Change); 7] = [
            ("", |_| {}),
            ("", |all| all.swap(0, 2)),
            ("embedding", |all| all.truncate(2)),
            ("final", |all| all[1].2 = 1),
            // The sum of the elements is right.
            ("embedding", |all| all[2] = (Group::Embedding, 0, 4)),
            ("embedding", |all| all[2] = (Group::Embedding, 6, 5)),
            ("embedding", |all| all.push((Group::Embedding, 10, usize::MAX))),
        ];
        let key = "ckpt/1/1/x".to_owned();
        let object = ObjectRef { key, bytes: 1, digest: Digest::of("x") };
        for (what, change) in cases {
            let mut shards = whole.to_vec();
            change(&mut shards);
            let shards: Vec<_> = (shards.into_iter())
                .map(|(group, start, elements)| StateShard { group, start, elements, object: object.clone() })
                .collect();
            let answer = check_cover(&shards, groups.into_iter());
            assert_eq!(answer.is_ok(), what.is_empty(), "{what}: {answer:?}");
        }
    }

    #[test]
    fn the_header_is_safetensors() {
        let mut file = Vec::new();
        let header = header(5);
        file.extend((header.len() as u64).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend((0..15).flat_map(|i| (i as f32).to_le_bytes()));
        let parsed = SafeTensors::deserialize(&file).unwrap();
        for (i, name) in PARTS.iter().enumerate() {
            assert_eq!(parsed.tensor(name).unwrap().data()[..4], (5.0 * i as f32).to_le_bytes());
        }
    }
}
