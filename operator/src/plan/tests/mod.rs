//! Courses of runs, step by step: each row edits the world, the plan is applied until it settles,
//! and the row says what is then to be seen.

mod any_object;
mod courses;
mod failures;
mod manifests;
mod obstacles;
mod phases;
mod reasons;
mod requests;
mod shapes;
mod sidecars;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longstrap_crds::{Phase, Step, TerminationMessage, names::child_name};
use serde_json::{Value, json};

use super::sim::*;
use super::*;

type Row<'a> = (&'a str, fn(&mut Sim), &'a str);

/// Conditions of a Job whose pods have not started.
const NEW: &str = "Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied";

/// The same when an earlier Job has committed something.
const SAVED: &str =
    "Queued:WaitingForPods !PodsScheduled:WaitingForPods CheckpointAvailable:Committed UpToDate:SpecApplied";

/// Plays the rows; `@new` stands for [`NEW`], `@saved` for [`SAVED`].
fn check(sim: &mut Sim, rows: &[Row<'_>]) {
    for (what, edit, seen) in rows {
        edit(sim);
        sim.settle();
        assert_eq!(sim.shown(), seen.replace("@new", NEW).replace("@saved", SAVED), "after: {what}");
    }
}

/// A job whose two workers run.
fn generating() -> Sim {
    let mut sim = Sim::new(&synthesis_job());
    sim.settle();
    sim.succeed();
    sim.settle();
    sim.start();
    sim.settle();
    sim
}
