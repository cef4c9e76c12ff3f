//! The end of a stage: its weights in the layout of an export, named by a manifest.
//!
//! Invariant: what the manifest names is what the next stage starts from, whoever wrote it.

use std::path::PathBuf;

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_model::{Dtype, Export, MAX_SHARD_BYTES, ModelConfig, ModelError};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{AttemptId, Commit, CommitOutcome, Digest, ObjectRef, Store, keys};
use serde::{Deserialize, Serialize};

use crate::layout::tensors;
use crate::step::Trainer;

/// `stages/{name}/stage.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageManifest {
    /// Who wrote it.
    pub attempt_id: AttemptId,
    /// sha256 of `run.json`.
    pub fingerprint: Digest,
    /// The stage.
    pub stage: String,
    /// Steps that were skipped because a gradient was not finite.
    pub skipped: u64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Ranks that trained it.
    pub world_size: u32,
    /// Instructions that it was computed with.
    pub instruction_set: String,
    /// Files of a model folder.
    pub files: Vec<ObjectRef>,
}

impl StageManifest {
    /// The manifest of a stage, when it is finished.
    ///
    /// # Errors
    /// As the store answers; a malformed manifest.
    pub async fn load(store: &Store, stage: &str) -> StepResult<Option<Self>> {
        let key = keys::stage_manifest(stage);
        match store.try_get(&key).await? {
            None => Ok(None),
            Some(bytes) => Ok(Some(crate::tokens::json(store, &key, &bytes)?)),
        }
    }

    /// The model folder of the stage on this machine.
    ///
    /// # Errors
    /// As the store answers; torn files.
    pub(crate) async fn fetch(&self, ctx: &StepContext) -> StepResult<PathBuf> {
        let key = &self.files.first().context("a stage without files")?.key;
        let (prefix, _) = key.rsplit_once('/').context("a stage's files lie in a folder")?;
        if let Some(root) = ctx.store.local_root() {
            return Ok(root.join(prefix));
        }
        // Each process has its own copy: they may load at the same time.
        let folder = ctx.cache_dir.join(format!("stage-{}-{}", self.stage, std::process::id()));
        for file in &self.files {
            let name = file.key.rsplit('/').next().unwrap_or(&file.key);
            let path = folder.join(name);
            if !path.exists() {
                ctx.progress.activity(format!("fetching {}", ctx.store.uri_of(&file.key)));
                ctx.store.download_verified(file, &path, &|_| ctx.progress.update(|_| ())).await?;
            }
        }
        Ok(folder)
    }
}

/// What a stage came to, without its weights.
pub(crate) struct StageEnd {
    pub(crate) fingerprint: Digest,
    pub(crate) stage: String,
    pub(crate) skipped: u64,
    pub(crate) last_loss: f64,
    pub(crate) world_size: u32,
}

/// Refuses the end of a stage that learned nothing, or whose last loss is no number: such weights
/// are not worth a commit, and nobody could go on from them.
pub(crate) fn check_end(stage: &str, steps: u64, skipped: u64, last_loss: f64) -> StepResult {
    let why = if skipped == steps {
        "no step had finite gradients".to_owned()
    } else if !last_loss.is_finite() {
        format!("the loss of the last step is {last_loss} ({skipped} of {steps} steps were skipped)")
    } else {
        return Ok(());
    };
    let message = format!(
        "stage {stage}: {why}: check the source model, or lower training.learningRate and start over with --restart-from stage"
    );
    Err(StepError::invalid(Reason::InvalidModel, message))
}

/// Writes the weights of `trainer` as a model folder on this machine; f32, so that the next stage
/// starts from the very numbers.
pub(crate) fn write_folder(
    trainer: &Trainer<'_>,
    config: &ModelConfig,
    source: &std::path::Path,
    out: &std::path::Path,
) -> StepResult<Vec<String>> {
    let all = tensors(&trainer.plan().shape);
    let export = Export { config, source, dtype: Dtype::F32, max_shard_bytes: MAX_SHARD_BYTES };
    let files = longstrap_model::export(&export, out, |spec, values| {
        let failed = |message: String| ModelError::Unsupported { file: spec.name.clone(), message };
        let tensor = all.iter().find(|t| t.name == spec.name);
        let tensor = tensor.ok_or_else(|| failed("is no tensor of the trained model".to_owned()))?;
        let view = trainer.weight(tensor);
        trainer.backend().read(view, bytemuck::cast_slice_mut(values)).map_err(|e| failed(e.to_string()))
    })
    .map_err(crate::weights::writing_failed)?;
    Ok(files.into_iter().map(|f| f.name).collect())
}

/// Uploads a stage's folder and commits its manifest.
pub(crate) async fn commit(
    ctx: &StepContext,
    end: &StageEnd,
    folder: &std::path::Path,
    names: &[String],
) -> StepResult {
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let key = keys::working(&keys::stage(&end.stage), &ctx.attempt_id, name);
        let touch = |_| ctx.progress.update(|_| ());
        files.push(ctx.store.put_file(&key, &folder.join(name), &touch).await?);
    }
    let manifest = StageManifest {
        attempt_id: ctx.attempt_id.clone(),
        fingerprint: end.fingerprint,
        stage: end.stage.clone(),
        skipped: end.skipped,
        last_loss: end.last_loss,
        world_size: end.world_size,
        instruction_set: longstrap_engine::instruction_set().to_string(),
        files,
    };
    let bytes = serde_json::to_vec_pretty(&manifest).context("stage.json")?;
    let how = Commit::Working { attempt_id: ctx.attempt_id.clone() };
    if let CommitOutcome::Lost(_) = ctx.store.commit(&keys::stage_manifest(&end.stage), bytes, &how).await? {
        tracing::warn!(stage = end.stage, "another gang finished the stage first; its weights count");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_learned_nothing_is_refused() {
        check_end("s", 4, 3, 2.5).unwrap();
        for (skipped, loss, words) in [
            (4, f64::NAN, "no step had finite gradients"),
            (4, 2.5, "no step had finite gradients"),
            (1, f64::NAN, "last step is NaN (1 of 4"),
            (0, f64::INFINITY, "last step is inf"),
        ] {
            let error = check_end("half", 4, skipped, loss).unwrap_err();
            assert_eq!(error.reason(), Some(Reason::InvalidModel));
            assert!(error.to_string().contains("stage half") && error.to_string().contains(words), "{error}");
        }
    }
}
