//! Which steps a run has, in which order, and on how many pods.
//!
//! Invariant: a function of the spec alone, except what a finished training Job has trained: an edit
//! meanwhile may have put stages together or apart.

use std::ops::Range;

use longstrap_crds::{
    ContextExtensionRunSpec, Object, Step,
    context_extension_run::{Parallelism, Stage},
};

/// How many pods a step has, and what they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Pods.
    pub(super) pods: u32,
    /// Processes in each pod.
    pub(super) ranks_per_node: u32,
    /// Stages that the step trains.
    pub(super) stages: Range<u32>,
    /// The step is done when ONE pod says so: it exits 0 only when the work of all is committed.
    pub(super) first_success_ends: bool,
    /// The step needs no accelerator and runs on the auxiliary queue.
    pub(super) auxiliary: bool,
}

/// Every run begins by resolving its inputs.
pub(super) fn first() -> Step {
    Step::Prepare
}

/// The step after `step`; `None`: the run is complete. `trained`: the first stage that the finished
/// Job did not train, when it said so.
pub(super) fn next(object: &Object, step: Step, trained: Option<u32>) -> Option<Step> {
    match (object, step) {
        (Object::SynthesisJob(_), Step::Prepare) => Some(Step::Generate),
        (Object::SynthesisJob(_), Step::Generate) => Some(Step::Finalize),
        (Object::ContextExtensionRun(_), Step::Prepare) => Some(Step::Train(0)),
        (Object::ContextExtensionRun(o), Step::Train(first)) => {
            let end = trained.unwrap_or_else(|| group(&o.spec, first).end);
            Some(if index(end) < o.spec.stages.len() { Step::Train(end) } else { Step::Export })
        }
        _ => None,
    }
}

/// The pods of a step.
pub(super) fn shape(object: &Object, step: Step) -> Shape {
    let one = Shape { pods: 1, ranks_per_node: 1, stages: 0..0, first_success_ends: false, auxiliary: true };
    match (object, step) {
        (Object::SynthesisJob(o), Step::Generate) => {
            Shape { pods: o.spec.workers.max(1), first_success_ends: true, auxiliary: false, ..one }
        }
        (Object::ContextExtensionRun(o), Step::Train(first)) => {
            let parallelism = parallelism(&o.spec, first);
            Shape {
                pods: parallelism.nodes.max(1),
                ranks_per_node: parallelism.ranks_per_node.max(1),
                stages: group(&o.spec, first),
                auxiliary: false,
                ..one
            }
        }
        _ => one,
    }
}

/// The stage by whose fields the pods of a step are made; `None`: by the object's alone.
pub(super) fn leading_stage(object: &Object, step: Step) -> Option<&Stage> {
    match (object, step) {
        (Object::ContextExtensionRun(o), Step::Train(first)) => o.spec.stages.get(index(first)),
        _ => None,
    }
}

fn parallelism(spec: &ContextExtensionRunSpec, stage: u32) -> Parallelism {
    let stage = spec.stages.get(index(stage));
    stage.map_or_else(|| spec.parallelism.clone(), |stage| stage.parallelism(&spec.parallelism))
}

/// Consecutive stages from `first` on that ask for the same pods: one Job trains them all.
fn group(spec: &ContextExtensionRunSpec, first: u32) -> Range<u32> {
    let pods = |stage: &Stage| (stage.parallelism(&spec.parallelism), stage.pod_template.clone());
    let rest = spec.stages.get(index(first)..).unwrap_or_default();
    let same = rest.iter().take_while(|stage| pods(stage) == pods(&rest[0])).count();
    first..first.saturating_add(u32::try_from(same).unwrap_or(u32::MAX))
}

/// All training Jobs of a run: their steps and stages.
pub(super) fn training(spec: &ContextExtensionRunSpec) -> Vec<(Step, Range<u32>)> {
    let mut all: Vec<(Step, Range<u32>)> = Vec::new();
    loop {
        let group = group(spec, all.last().map_or(0, |(_, stages)| stages.end));
        if group.is_empty() {
            return all;
        }
        all.push((Step::Train(group.start), group));
    }
}

fn index(stage: u32) -> usize {
    usize::try_from(stage).unwrap_or(usize::MAX)
}
