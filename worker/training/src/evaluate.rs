//! Evaluation of a model by one rank, and where its scores are kept.
//!
//! Invariant: scores are a function of weights, held-out text, window and seed; who finds them
//! committed does not measure again.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use longstrap_crds::Reason;
use longstrap_evaluation::{ModelKind, ModelResult, Request, check_texts, measure, plan_texts};
use longstrap_inference::Scorer;
use longstrap_model::{Rope, Tokenizer};
use longstrap_runtime::{StepContext, StepError, StepResult};
use longstrap_storage::{AttemptId, Commit, Store, keys};
use serde::{Deserialize, Serialize};

use crate::aside::aside;
use crate::run::{EvaluationPin, HeldOutPin, StagePin, TrainingRun};

/// What a rank has to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evaluation {
    /// Which model.
    pub(crate) kind: ModelKind,
    /// The stage for which, or after which.
    pub(crate) stage: usize,
}

/// A model's scores in storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    attempt_id: AttemptId,
    result: ModelResult,
}

impl Evaluation {
    /// All evaluations that a run asks for, in the order of the report.
    pub(crate) fn all(run: &TrainingRun) -> Vec<Self> {
        run.evaluation.map_or_else(Vec::new, |wanted| Self::wanted(wanted, run.stages.len()))
    }

    fn wanted(wanted: EvaluationPin, stages: usize) -> Vec<Self> {
        let before = [ModelKind::Base, ModelKind::BaseChange].map(|kind| Self { kind, stage: 0 });
        let after = (0..stages).map(|stage| Self { kind: ModelKind::Trained, stage });
        before
            .into_iter()
            .filter(|_| wanted.before_first_stage)
            .chain(after.filter(|_| wanted.after_each_stage))
            .collect()
    }

    /// Where its scores are.
    pub(crate) fn key(self, run: &TrainingRun) -> String {
        let name = match self.kind {
            ModelKind::Base => "base",
            ModelKind::BaseChange => "base-change",
            ModelKind::Trained => "trained",
        };
        format!("{}/evaluation-{name}.json", keys::stage(&run.stages[self.stage].name))
    }

    /// In words, for progress.
    pub(crate) fn describe(self, run: &TrainingRun) -> String {
        let stage = &run.stages[self.stage].name;
        match self.kind {
            ModelKind::Base => "evaluating the model as it came".to_owned(),
            ModelKind::BaseChange => format!("evaluating the model with the RoPE base of stage {stage}"),
            ModelKind::Trained => format!("evaluating the model after stage {stage}"),
        }
    }

    /// The committed scores.
    ///
    /// # Errors
    /// As the store answers.
    pub(crate) async fn load(self, store: &Store, run: &TrainingRun) -> StepResult<Option<ModelResult>> {
        let key = self.key(run);
        match store.try_get(&key).await? {
            None => Ok(None),
            Some(bytes) => Ok(Some(crate::tokens::json::<Stored>(store, &key, &bytes)?.result)),
        }
    }
}

/// A model to be measured.
pub(crate) struct Subject {
    pub(crate) evaluation: Evaluation,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Another rotary embedding than the folder's.
    pub(crate) rope: Option<Rope>,
    /// Base of the embedding that it is measured with.
    pub(crate) rope_base: f64,
    pub(crate) threads: usize,
}

/// Measures a model and commits its scores.
///
/// # Errors
/// `Stopped`; what evaluation or storage report.
pub(crate) async fn evaluate(
    ctx: &StepContext,
    run: &TrainingRun,
    texts: Arc<Vec<String>>,
    subject: Subject,
) -> StepResult {
    let evaluation = subject.evaluation;
    let stage = run.stages[evaluation.stage].clone();
    let what = evaluation.describe(run);
    ctx.progress.activity(what.clone());
    let wanted = run.evaluation.context("an evaluation that the run does not ask for")?;
    let request = request(wanted, &stage, run.model.window, run.seed);
    let progress = ctx.progress.clone();
    let rope_base = subject.rope_base;
    let scores = aside(ctx, "evaluation", move || {
        let tokenizer = Tokenizer::load(&subject.dir).context("tokenizer")?;
        let layout = plan_texts(&texts, &tokenizer, request)?;
        let mut scorer = Scorer::open(&subject.dir, stage.context_length, subject.threads, subject.rope)?;
        let scores = measure(&mut scorer, &layout, &mut |phase, done, total| {
            progress.activity(format!("{what}: {phase}"));
            progress.work(done as f64, total as f64, "tokens");
        })?;
        anyhow::Ok((scores, stage))
    });
    let (scores, stage) = scores.await?.context("evaluation")?;
    let result = ModelResult {
        kind: evaluation.kind,
        stage: stage.name,
        window: stage.context_length,
        rope_base,
        scores,
    };
    let stored = Stored { attempt_id: ctx.attempt_id.clone(), result };
    let bytes = serde_json::to_vec_pretty(&stored).context("scores as JSON")?;
    let commit = Commit::Working { attempt_id: ctx.attempt_id.clone() };
    let _ = ctx.store.commit(&evaluation.key(run), bytes, &commit).await?;
    Ok(())
}

fn request(wanted: EvaluationPin, stage: &StagePin, old_window: usize, seed: u64) -> Request {
    Request { window: stage.context_length, old_window, measure: wanted.measure, seed }
}

/// Refuses a run that would come to an evaluation whose row cannot be laid out, before anything is
/// trained for it.
///
/// # Errors
/// `InvalidData`: too little text for a stage's window, or a window or tokenizer that needles and
/// passages do not fit.
pub(crate) fn check(
    wanted: EvaluationPin,
    stages: &[StagePin],
    old_window: usize,
    seed: u64,
    texts: &[String],
    tokenizer: &Tokenizer,
) -> StepResult {
    let mut evaluated: Vec<usize> =
        Evaluation::wanted(wanted, stages.len()).into_iter().map(|e| e.stage).collect();
    evaluated.dedup();
    let requests: Vec<Request> =
        evaluated.into_iter().map(|stage| request(wanted, &stages[stage], old_window, seed)).collect();
    check_texts(texts, tokenizer, &requests)
        .map_err(|error| StepError::invalid(Reason::InvalidData, format!("spec.evaluation: {error}")))
}

/// The held-out texts that the run is bound to.
///
/// # Errors
/// A source that the task does not name; other bytes than were pinned.
pub(crate) async fn texts(ctx: &StepContext, held_out: &HeldOutPin) -> StepResult<Vec<String>> {
    let data = ctx.task.data.iter().find(|d| d.name == held_out.source);
    let data = data.with_context(|| format!("the task does not name data source {}", held_out.source))?;
    crate::prepare::sources::held_out_texts(ctx, data, &held_out.name, &held_out.digest).await
}
