//! Stages that ask for other pods get Jobs of their own; where pods run and what they hold.

use longstrap_crds::{
    Object,
    context_extension_run::{Stage, StageParallelism},
    status::StagePhase,
};

use super::*;

/// A run of stages a, b, c whose SynthesisJob is complete; `b` and `c` on three pods each.
fn three_stages() -> Sim {
    let mut doc = extension_run();
    doc["spec"]["stages"] = json!([
        {"name": "a", "contextLength": 512, "steps": 2},
        {"name": "b", "contextLength": 1024, "steps": 2, "parallelism": {"nodes": 3}},
        {"name": "c", "contextLength": 2048, "steps": 2, "parallelism": {"nodes": 3}},
    ]);
    let mut sim = Sim::new(&doc);
    sim.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
    sim
}

fn stages(object: &mut Object) -> &mut Vec<Stage> {
    let Object::ContextExtensionRun(run) = object else { panic!("a run") };
    &mut run.spec.stages
}

fn nodes(n: u32) -> Option<StageParallelism> {
    Some(StageParallelism { nodes: Some(n), ..StageParallelism::default() })
}

/// Pods, processes of each and stages of a step's task.
fn task(sim: &Sim, step: u32, attempt: u32) -> (u32, u32, std::ops::Range<u32>) {
    let task = &sim.tasks[&child_name("run", UID, Step::Train(step), attempt)];
    (task.workers, task.ranks_per_node, task.stages.clone())
}

fn phases(sim: &Sim) -> Vec<(String, StagePhase)> {
    let Object::ContextExtensionRun(run) = &sim.world.object else { panic!("a run") };
    let stages = run.status.as_ref().unwrap().stages.iter();
    stages.map(|s| (format!("{}:{}", s.name, s.step), s.phase)).collect()
}

#[test]
pub(super) fn consecutive_stages_of_one_shape_share_a_job() {
    let mut sim = three_stages();
    check(
        &mut sim,
        &[
            ("applied", |_| {}, "Pending prepare/1 [prepare-1*] DataReady:DataAvailable @new"),
            (
                "prepared",
                Sim::succeed,
                "Queued train-0/1 [prepare-1 train-0-1*] DataReady:DataAvailable @new",
            ),
            (
                "a is trained: b and c together",
                Sim::succeed,
                "Queued train-1/1 [prepare-1 train-0-1 train-1-1*] DataReady:DataAvailable @saved",
            ),
        ],
    );
    assert_eq!(task(&sim, 0, 1), (2, 4, 0..1));
    assert_eq!(task(&sim, 1, 1), (3, 4, 1..3));
    sim.start();
    sim.settle();
    use StagePhase::{Complete, Pending, Running};
    let shown = |phases: [StagePhase; 3]| {
        ["a:train-0", "b:train-1", "c:train-1"].map(str::to_owned).into_iter().zip(phases).collect::<Vec<_>>()
    };
    assert_eq!(phases(&sim), shown([Complete, Running, Pending]));
    check(
        &mut sim,
        &[(
            "trained: nothing is left",
            Sim::succeed,
            "Queued export/1 [prepare-1 train-0-1 train-1-1 export-1*] DataReady:DataAvailable @saved",
        )],
    );
    assert_eq!(phases(&sim), shown([Complete; 3]));
}

#[test]
pub(super) fn stages_put_apart_or_together_while_they_train() {
    let jobs = "prepare-1 train-0-1";
    for (what, restart, next) in [
        // What a Job was made for is what it has trained, whatever the spec says now.
        (
            "apart",
            false,
            format!("Queued export/1 [{jobs} train-1-1 export-1*] DataReady:DataAvailable @saved"),
        ),
        (
            "apart, restarted",
            true,
            format!("Queued train-2/2 [{jobs} train-1-2 train-2-2*] DataReady:DataAvailable @saved"),
        ),
    ] {
        let mut sim = three_stages();
        for _ in 0..2 {
            sim.settle();
            sim.succeed();
        }
        sim.settle();
        sim.edit(|o| stages(o)[2].parallelism = nodes(4));
        sim.settle();
        assert!(sim.shown().ends_with("!UpToDate:SpecEdited"), "{what}: {}", sim.shown());
        if restart {
            restart_by("1")(&mut sim);
            sim.settle();
        }
        sim.succeed();
        sim.settle();
        assert_eq!(sim.shown(), next.replace("@saved", SAVED), "{what}");
    }
    // Together: the Job of a has ended, the next one starts at b and takes all that is alike.
    let mut sim = three_stages();
    sim.edit(|o| stages(o)[2].parallelism = nodes(5));
    for _ in 0..2 {
        sim.settle();
        sim.succeed();
    }
    sim.edit(|o| stages(o).iter_mut().for_each(|stage| stage.parallelism = None));
    sim.settle();
    assert_eq!(task(&sim, 1, 1), (2, 4, 1..3));
}

#[test]
pub(super) fn pods_of_a_stage_and_of_cpu_steps() {
    let mut sim = three_stages();
    let gpus = json!({"spec": {"containers": [{"name": "worker", "resources": {"limits": {"cpu": "8", "nvidia.com/gpu": 4}, "claims": [{"name": "d"}]}}]}});
    let own = json!({
        "metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "false"}},
        "spec": {"nodeSelector": {"pool": "big"}},
    });
    sim.edit(|o| {
        o.common_mut().pod_template = serde_json::from_value(gpus).ok();
        stages(o)[1].pod_template = serde_json::from_value(own).ok();
    });
    let pods: BTreeMap<String, Value> = manifests(&sim.world)
        .into_iter()
        .map(|(step, job)| (step.to_string(), job["spec"]["template"].clone()))
        .collect();
    let steps: Vec<&str> = pods.keys().map(String::as_str).collect();
    assert_eq!(steps, ["export", "prepare", "train-0", "train-1", "train-2"]);
    let evict = "cluster-autoscaler.kubernetes.io/safe-to-evict";
    let karpenter = "karpenter.sh/do-not-disrupt";
    for (step, gpu, evict_, karpenter_, pool) in [
        ("prepare", Value::Null, Value::Null, Value::Null, Value::Null),
        ("train-0", json!(4), json!("false"), json!("true"), Value::Null),
        ("train-1", json!(4), json!("false"), json!("false"), json!("big")),
        ("train-2", json!(4), json!("false"), json!("true"), Value::Null),
        ("export", Value::Null, Value::Null, Value::Null, Value::Null),
    ] {
        let pod = &pods[step];
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(resources["limits"]["nvidia.com/gpu"], gpu, "{step}");
        assert_eq!(resources["requests"]["cpu"], "8", "{step}");
        assert_eq!(resources["claims"].is_null(), gpu.is_null(), "{step}");
        let annotations = &pod["metadata"]["annotations"];
        assert_eq!((&annotations[evict], &annotations[karpenter]), (&evict_, &karpenter_), "{step}");
        assert_eq!(pod["spec"]["nodeSelector"]["pool"], pool, "{step}");
    }
}

#[test]
pub(super) fn a_node_of_two_failures_is_avoided() {
    let mut sim = generating();
    let affinity = |sim: &mut Sim| {
        let job = sim.active_job().unwrap();
        job.spec.as_ref().unwrap().template.spec.as_ref().unwrap().affinity.clone()
    };
    let fails = |sim: &mut Sim, committed_: u64| {
        sim.end(0, 1, &committed(committed_));
        sim.start();
        sim.settle();
    };
    let again = |sim: &mut Sim| {
        for suspend in [true, false] {
            sim.edit(|o| o.common_mut().suspend = suspend);
            sim.settle();
        }
        sim.start();
    };
    // Progress between two failures clears the first.
    fails(&mut sim, 0);
    fails(&mut sim, 3);
    fails(&mut sim, 3);
    assert!(sim.status().recovery.avoided_nodes.is_empty());
    // The second one in a row comes in another attempt.
    again(&mut sim);
    assert_eq!(affinity(&mut sim), None);
    fails(&mut sim, 3);
    let recovery = sim.status().recovery;
    assert_eq!((recovery.failures, recovery.node_failures.len()), (2, 0));
    let avoided: Vec<_> = recovery.avoided_nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(avoided, ["node-0"]);
    assert!(
        recovery.avoided_nodes[0].reason.starts_with("2 failures without progress; the last: pod pod-uid-")
    );
    again(&mut sim);
    let wanted = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-0"]}]}},
    ]}});
    assert_eq!(serde_json::to_value(affinity(&mut sim)).unwrap(), wanted);
    restart_by("1")(&mut sim);
    sim.settle();
    assert_eq!(affinity(&mut sim), None);
}

#[test]
pub(super) fn what_a_run_has_cost() {
    let mut sim = three_stages();
    sim.settle();
    sim.succeed();
    sim.settle();
    sim.advance(30);
    sim.start();
    sim.settle();
    let saved = sim.world.now.as_second() + 60;
    sim.advance(100);
    let checkpoint =
        longstrap_crds::status::CheckpointStatus::new("b", 3, "s3://b/run/ckpt/1/3".into(), saved);
    let message = TerminationMessage { generation: 1, checkpoint: Some(checkpoint.clone()), ..committed(3) };
    sim.end(0, 137, &message);
    sim.settle();
    sim.edit(|o| o.common_mut().suspend = true);
    sim.settle();
    let status = sim.status();
    let usage = (
        status.usage.accelerator_seconds,
        status.usage.lost_accelerator_seconds,
        status.usage.queued_seconds,
        status.recovery.pod_seconds,
    );
    // Two pods of four processes for 100 s; the one that failed had saved 40 s before.
    assert_eq!(usage, (800, 160, 30, 100));
    let Object::ContextExtensionRun(run) = &sim.world.object else { panic!() };
    assert_eq!(run.status.as_ref().unwrap().checkpoint, Some(checkpoint));
    // A checkpoint of b means that a is finished.
    let of: Vec<StagePhase> = phases(&sim).into_iter().map(|(_, phase)| phase).collect();
    assert_eq!(of, [StagePhase::Complete, StagePhase::Pending, StagePhase::Pending]);
}

#[test]
fn pods_that_are_gone_before_their_attempt_have_cost_too() {
    let second = |p: &Pod| p.spec.as_ref().unwrap().node_name.as_deref() == Some("node-1");
    // What happens to the second pod after 100 s, and what the attempt has cost when it ends at 300 s:
    // two pods of four processes for 100 s, then one, the replacement from 200 s on.
    for (what, lost, usage) in [("evicted", false, (2000, 0)), ("its node is lost", true, (2240, 640))] {
        let mut sim = three_stages();
        sim.settle();
        sim.succeed();
        sim.settle();
        sim.edit(|o| o.common_mut().active_deadline_seconds = Some(301));
        sim.start();
        sim.settle();
        sim.advance(100);
        sim.lose(second);
        sim.settle();
        if !lost {
            sim.world.pods.retain(|p| !second(p));
        }
        sim.advance(60);
        sim.settle();
        assert!(!sim.world.pods.iter().any(second), "{what}");
        sim.advance(40);
        sim.start();
        sim.advance(100);
        sim.settle();
        sim.edit(|o| o.common_mut().suspend = true);
        sim.settle();
        let status = sim.status();
        assert_eq!(
            (status.usage.accelerator_seconds, status.usage.lost_accelerator_seconds),
            usage,
            "{what}"
        );
        assert_eq!(status.recovery.pod_seconds, 300, "{what}");
    }
    // A node that is waited for comes back, and its pod ends: its work is lost once.
    let mut sim = three_stages();
    sim.edit(|o| o.common_mut().recovery.lost_node = longstrap_crds::common::LostNode::Wait);
    sim.settle();
    sim.succeed();
    sim.settle();
    sim.start();
    sim.lose(second);
    for seconds in [60, 40] {
        sim.advance(seconds);
        sim.settle();
    }
    sim.end(1, 137, &committed(0));
    sim.settle();
    sim.edit(|o| o.common_mut().suspend = true);
    sim.settle();
    let usage = sim.status().usage;
    assert_eq!((usage.accelerator_seconds, usage.lost_accelerator_seconds), (800, 240));
    // All of them at once: nobody else's time covers theirs.
    let mut sim = generating();
    sim.advance(100);
    sim.lose(|_| true);
    sim.settle();
    sim.world.pods.retain(|p| p.metadata.deletion_timestamp.is_none());
    sim.advance(1000);
    sim.settle();
    sim.edit(|o| o.common_mut().suspend = true);
    sim.settle();
    assert_eq!(sim.status().recovery.pod_seconds, 100);
}

#[test]
pub(super) fn a_gang_that_never_forms_fails_once_for_each_start() {
    let mut sim = three_stages();
    sim.settle();
    sim.succeed();
    sim.settle();
    for failures in [1, 2] {
        sim.start();
        sim.end(0, 1, &TerminationMessage::default());
        sim.end(1, 1, &TerminationMessage::default());
        sim.settle();
        assert_eq!(sim.status().recovery.failures, failures);
    }
}

#[test]
pub(super) fn pods_that_train_get_the_time_to_write_a_checkpoint() {
    for (checkpoint_bytes, seconds) in
        [(None, 120), (Some(1 << 30), 120), (Some(96_000_000_000), 444), (Some(u64::MAX), 3600)]
    {
        let mut sim = three_stages();
        sim.settle();
        let grace = |sim: &mut Sim| {
            let spec = sim.active_job().unwrap().spec.clone().unwrap().template.spec.unwrap();
            spec.termination_grace_period_seconds
        };
        assert_eq!(grace(&mut sim), Some(120), "prepare");
        sim.start();
        let message = TerminationMessage {
            committed: 1,
            complete: true,
            checkpoint_bytes,
            ..TerminationMessage::default()
        };
        sim.end(0, 0, &message);
        sim.settle();
        assert_eq!(grace(&mut sim), Some(seconds), "{checkpoint_bytes:?}");
    }
}
