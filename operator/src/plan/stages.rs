//! How far each stage of a run is, for the status.
//!
//! Invariant: told by steps that are complete, by Jobs and by termination messages, never by
//! telemetry; a stage never goes back.

use longstrap_crds::{
    Object, Step,
    status::{StagePhase, StageStatus},
};

use super::draft::Draft;
use super::steps;

/// Writes the list.
pub(super) fn write(draft: &mut Draft<'_>) {
    let Object::ContextExtensionRun(run) = draft.object() else { return };
    let at = match draft.step {
        Step::Train(first) => first,
        Step::Export => u32::MAX,
        _ => 0,
    };
    let trains = matches!(draft.step, Step::Train(_)) && draft.observed().pods.iter().any(|p| p.running);
    // A checkpoint of a stage means that the stages before it are finished.
    let saved = draft.checkpoint.as_ref().map(|c| c.stage.as_str());
    let saved = run.spec.stages.iter().position(|stage| Some(stage.name.as_str()) == saved).unwrap_or(0);
    let before = std::mem::take(&mut draft.stages);
    let mut running = trains;
    for (step, stages) in steps::training(&run.spec) {
        for (index, stage) in stages.clone().zip(run.spec.stages.iter().skip(stages.start as usize)) {
            let was = before.iter().find(|s| s.name == stage.name).map(|s| s.phase);
            let done = index < at || (index as usize) < saved || was == Some(StagePhase::Complete);
            let phase = match done {
                true => StagePhase::Complete,
                false if std::mem::take(&mut running) => StagePhase::Running,
                false => StagePhase::Pending,
            };
            draft.stages.push(StageStatus { name: stage.name.clone(), phase, step: step.to_string() });
        }
    }
}
