//! Random courses: whatever happens in whatever order, some things always hold.

use std::collections::BTreeSet;

use super::sim::*;
use super::*;
use longstrap_crds::{
    Phase, TerminationMessage,
    context_extension_run::StageParallelism,
    names,
    status::{CheckpointStatus, StagePhase, UsageStatus},
};
use proptest::prelude::*;
use serde_json::json;

#[derive(Clone, Debug)]
enum Happening {
    Advance(i64),
    Start,
    End { index: usize, code: i32, committed: u64, generation: u64 },
    Succeed,
    Suspend(bool),
    Edit(u32),
    Spread(usize, u32),
    Restart(u8),
    DeleteJob,
    DeletePods,
    LoseNode(usize),
    StartWithin(u32),
    JobFails,
    Synthesis(Option<u8>),
    CrashAfterStatus,
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        prop_oneof![Just(1_i64), Just(59), Just(60), Just(600), Just(4000)].prop_map(Advance),
        Just(Start),
        Just(Start),
        (
            0..3_usize,
            prop_oneof![Just(0), Just(1), Just(10), Just(11), Just(12), Just(13), Just(137), Just(143)],
            0..6_u64,
            0..4_u64
        )
            .prop_map(|(index, code, committed, generation)| End {
                index,
                code,
                committed,
                generation
            }),
        Just(Succeed),
        Just(Succeed),
        any::<bool>().prop_map(Suspend),
        (0..5_u32).prop_map(Edit),
        (0..2_usize, 1..4_u32).prop_map(|(stage, nodes)| Spread(stage, nodes)),
        (0..3_u8).prop_map(Restart),
        Just(DeleteJob),
        Just(DeletePods),
        (0..3_usize).prop_map(LoseNode),
        prop_oneof![Just(0_u32), Just(30), Just(90)].prop_map(StartWithin),
        Just(JobFails),
        proptest::option::of(0..3_u8).prop_map(Synthesis),
        Just(CrashAfterStatus),
    ]
}

fn happen(sim: &mut Sim, what: &Happening) {
    match what {
        Happening::Advance(seconds) => sim.advance(*seconds),
        Happening::Start => sim.start(),
        Happening::End { index, code, committed: n, generation } => {
            let checkpoint =
                CheckpointStatus::new(["a", "b"][index % 2], *n, "s3://b/run/ckpt".into(), 1_767_225_600);
            let message = TerminationMessage {
                generation: *generation,
                checkpoint: (*n > 0).then_some(checkpoint),
                ..committed(*n)
            };
            sim.end(*index, *code, &message);
        }
        Happening::Succeed => sim.succeed(),
        Happening::Suspend(suspend) => sim.edit(|o| o.common_mut().suspend = *suspend),
        Happening::Edit(limit) => sim.edit(|o| {
            o.common_mut().backoff_limit = *limit;
            o.common_mut().active_deadline_seconds = Some(u64::from(*limit) * 3000 + 1000);
        }),
        Happening::Spread(stage, nodes) => sim.edit(|o| {
            if let Object::ContextExtensionRun(run) = o {
                let spread = StageParallelism { nodes: Some(*nodes), ..StageParallelism::default() };
                run.spec.stages[*stage].parallelism = Some(spread);
            }
        }),
        Happening::Restart(n) => {
            let annotation = (names::ANNOTATION_RESTART.to_owned(), n.to_string());
            sim.world.object.metadata_mut().annotations = Some([annotation].into());
        }
        Happening::DeleteJob => {
            if let Some(name) = sim.world.jobs.last().and_then(|j| j.metadata.name.clone()) {
                sim.delete_job(&name);
                sim.created.remove(&name);
            }
        }
        Happening::DeletePods => sim.world.pods.clear(),
        Happening::LoseNode(node) => {
            let node = format!("node-{node}");
            sim.lose(|pod| pod.spec.as_ref().unwrap().node_name.as_ref() == Some(&node));
        }
        Happening::StartWithin(seconds) => sim.edit(|o| {
            let limit = (*seconds > 0).then(|| u64::from(*seconds));
            o.common_mut().startup_deadline_seconds = limit;
        }),
        Happening::JobFails => {
            let condition = serde_json::json!([{"type": "Failed", "status": "True"}]);
            if let Some(job) = sim.active_job() {
                job.status.get_or_insert_default().conditions = serde_json::from_value(condition).unwrap();
            }
        }
        Happening::Synthesis(phase) => {
            let phases = [Phase::Complete, Phase::Running, Phase::Failed];
            match phase {
                Some(p) => {
                    sim.world.synthesis.insert("docs".into(), other_job(Some(phases[usize::from(*p)])))
                }
                None => sim.world.synthesis.remove("docs"),
            };
        }
        // The executor stops after its first write, or gives a pod up by half.
        Happening::CrashAfterStatus => {
            let mut plan = plan(&sim.world);
            let lost = std::mem::take(&mut plan.lost);
            (plan.create, plan.delete) = (Vec::new(), Vec::new());
            sim.apply(plan);
            let given_up = json!({"phase": "Failed", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "NodeLost"},
            ]});
            for pod in sim.world.pods.iter_mut().filter(|p| lost.iter().any(|l| l.uid == p.metadata.uid)) {
                pod.status = serde_json::from_value(given_up.clone()).ok();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(run in any::<bool>(), course in proptest::collection::vec(happening(), 1..40)) {
        let mut sim = Sim::new(&if run { extension_run() } else { synthesis_job() });
        sim.settle();
        for what in &course {
            let before = sim.status();
            let created = sim.created.clone();
            let data = pinned(&sim);
            let (stages, saved) = trained(&sim);
            happen(&mut sim, what);
            sim.settle();
            let after = sim.status();
            prop_assert!(after.attempt >= before.attempt, "{what:?}: the attempt went back");
            prop_assert!(after.recovery.pod_seconds >= before.recovery.pod_seconds);
            prop_assert!(after.start_time == before.start_time || before.start_time.is_none());
            prop_assert!(no_less(&before.usage, &after.usage), "{what:?}: the cost went back");
            let (stages_after, saved_after) = trained(&sim);
            prop_assert!(stages.is_subset(&stages_after) && saved_after >= saved, "{what:?}: a stage went back");
            prop_assert!(budget::size(&plan(&sim.world).status) <= budget::MAX_STATUS);
            prop_assert!(data.is_subset(&pinned(&sim)), "{what:?}: pinned data changed");
            if before.phase.is_some_and(Phase::is_terminal) {
                prop_assert_eq!(before.phase, after.phase);
                prop_assert!(sim.created.is_subset(&created), "{what:?}: a Job after the end");
            }
            let active = sim.world.jobs.iter().filter(|j| !observe::succeeded(j) && !observe::failed(j));
            let names: Vec<_> = active.filter_map(|j| j.metadata.name.clone()).collect();
            prop_assert!(names.len() <= 1, "{what:?}: two Jobs at work: {names:?}");
            let stopped = sim.world.object.common().suspend || after.phase.is_some_and(Phase::is_terminal) || after.phase == Some(Phase::Blocked);
            prop_assert!(!stopped || names.is_empty(), "{what:?}: {} with a Job at work", sim.shown());
            prop_assert!(after.recovery.counted_pods.len() <= 64);
            let ready = after.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str());
            prop_assert_eq!(ready, match after.phase {
                Some(Phase::Complete) => Some("True"),
                Some(Phase::Failed | Phase::Blocked) => Some("False"),
                _ => None,
            });
            // No pod of a lost node is left when its time has come.
            let lost = |p: &Pod| lost_nodes::given_up_at(p).is_some_and(|due| due <= sim.world.now);
            let by_half = |p: &Pod| p.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.reason.is_some());
            prop_assert!(!sim.world.pods.iter().any(|p| lost(p) || by_half(p)), "{what:?}: a lost pod stays");
            // Nothing hangs: a run that is not over has a Job, a time, or somebody to wait for.
            let waits = matches!(after.phase, Some(Phase::Complete | Phase::Failed | Phase::Blocked | Phase::Suspended))
                || after.conditions.iter().any(|c| c.type_ == "DataReady" && c.status == "False");
            prop_assert!(waits || !names.is_empty() || sim.requeue.is_some(), "{what:?}: {} hangs", sim.shown());
        }
    }
}

fn no_less(before: &UsageStatus, after: &UsageStatus) -> bool {
    after.accelerator_seconds >= before.accelerator_seconds
        && after.lost_accelerator_seconds >= before.lost_accelerator_seconds
        && after.queued_seconds >= before.queued_seconds
        && after.lost_accelerator_seconds <= after.accelerator_seconds
}

/// Stages that are complete, and the step of the newest checkpoint.
fn trained(sim: &Sim) -> (BTreeSet<String>, Option<u64>) {
    let Object::ContextExtensionRun(run) = &sim.world.object else { return Default::default() };
    let status = run.status.clone().unwrap_or_default();
    let complete = status.stages.into_iter().filter(|s| s.phase == StagePhase::Complete).map(|s| s.name);
    (complete.collect(), status.checkpoint.map(|c| c.step))
}

fn pinned(sim: &Sim) -> BTreeSet<String> {
    match &sim.world.object {
        Object::ContextExtensionRun(o) => {
            let data = o.status.as_ref().map(|s| s.data.clone()).unwrap_or_default();
            data.into_iter().map(|d| d.name + &d.uri).collect()
        }
        Object::SynthesisJob(_) => BTreeSet::new(),
    }
}
