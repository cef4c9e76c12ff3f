//! Which steps a run has, in which order, and on how many pods.
//!
//! Invariant: a function of the spec alone.

use std::ops::Range;

use longstrap_crds::{Object, Step};

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
    /// The step runs on the auxiliary queue.
    pub(super) auxiliary: bool,
}

/// Every run begins by resolving its inputs.
pub(super) fn first() -> Step {
    Step::Prepare
}

/// The step after `step`; `None`: the run is complete.
pub(super) fn next(object: &Object, step: Step) -> Option<Step> {
    match (object, step) {
        (Object::SynthesisJob(_), Step::Prepare) => Some(Step::Generate),
        (Object::SynthesisJob(_), Step::Generate) => Some(Step::Finalize),
        // All stages ask for the same pods: one Job trains them all.
        (Object::ContextExtensionRun(_), Step::Prepare) => Some(Step::Train(0)),
        (Object::ContextExtensionRun(_), Step::Train(_)) => Some(Step::Export),
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
        (Object::ContextExtensionRun(o), Step::Train(_)) => Shape {
            pods: o.spec.parallelism.nodes.max(1),
            ranks_per_node: o.spec.parallelism.ranks_per_node.max(1),
            stages: 0..u32::try_from(o.spec.stages.len()).unwrap_or(u32::MAX),
            auxiliary: false,
            ..one
        },
        _ => one,
    }
}
