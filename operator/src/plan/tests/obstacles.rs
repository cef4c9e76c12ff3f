//! What the executor finds in a run's way, and pods of lost nodes.

use longstrap_crds::common::LostNode;

use super::*;

fn met(reason: Reason) -> Vec<Obstacle> {
    vec![Obstacle { reason, message: "in the way".into() }]
}

#[test]
fn obstacles_before_the_first_job_block_and_keep_the_attempt() {
    check(
        &mut Sim::new(&synthesis_job()),
        &[
            (
                "the storage is another's",
                |s| s.world.obstacles = met(Reason::StorageInUse),
                "Blocked prepare/1 [] !Ready:StorageInUse Stalled:StorageInUse",
            ),
            (
                "it is free, but the time has not come",
                |s| {
                    s.world.obstacles.clear();
                    s.advance(59);
                },
                "Blocked prepare/1 [] !Ready:StorageInUse Stalled:StorageInUse",
            ),
            (
                "the time has come, and it is in use again: twice as long",
                |s| {
                    s.world.obstacles = met(Reason::StorageInUse);
                    s.advance(1);
                },
                "Blocked prepare/1 [] !Ready:StorageInUse Stalled:StorageInUse",
            ),
            (
                "after two minutes, free",
                |s| {
                    s.world.obstacles.clear();
                    s.advance(120);
                },
                "Pending prepare/1 [prepare-1*] @new",
            ),
        ],
    );
    check(
        &mut Sim::new(&synthesis_job()),
        &[
            (
                "the template is refused",
                |s| s.world.obstacles = met(Reason::InvalidPodTemplate),
                "Blocked prepare/1 [] !Ready:InvalidPodTemplate Stalled:InvalidPodTemplate",
            ),
            (
                "time mends nothing",
                |s| {
                    s.world.obstacles.clear();
                    s.advance(100_000);
                },
                "Blocked prepare/1 [] !Ready:InvalidPodTemplate Stalled:InvalidPodTemplate",
            ),
            ("an edit does", |s| s.edit(|_| {}), "Pending prepare/1 [prepare-1*] @new"),
        ],
    );
}

#[test]
fn obstacles_of_a_job_that_exists() {
    let queued = "Pending prepare/1 [prepare-1*] Queued:QuotaExceeded !PodsScheduled:QuotaExceeded UpToDate:SpecApplied";
    let mut sim = Sim::new(&synthesis_job());
    check(
        &mut sim,
        &[
            ("created", |_| {}, "Pending prepare/1 [prepare-1*] @new"),
            ("its pods are refused", |s| s.world.obstacles = met(Reason::QuotaExceeded), queued),
            ("the quota is raised", |s| s.world.obstacles.clear(), "Pending prepare/1 [prepare-1*] @new"),
            (
                "MultiKueue takes it",
                |s| {
                    let spec = s.active_job().unwrap().spec.as_mut().unwrap();
                    spec.managed_by = Some("kueue.x-k8s.io/multikueue".into());
                },
                "Blocked prepare/2 [] !Ready:MultiKueueUnsupported Stalled:MultiKueueUnsupported",
            ),
        ],
    );
}

#[test]
fn a_pod_of_a_lost_node_is_given_up_after_a_minute() {
    for (lost_node, given_up) in [(LostNode::Replace, 1), (LostNode::Wait, 0)] {
        let mut sim = generating();
        sim.edit(|o| o.common_mut().recovery.lost_node = lost_node);
        sim.settle();
        let deleted = Time(sim.world.now);
        for pod in &mut sim.world.pods {
            let running = pod.status.as_ref().unwrap().phase.as_deref() == Some("Running");
            if running && pod.metadata.annotations.as_ref().unwrap().values().any(|v| v == "1") {
                pod.metadata.deletion_timestamp = Some(deleted.clone());
            }
        }
        sim.advance(59);
        let early = plan(&sim.world);
        assert!(early.lost.is_empty());
        assert_eq!(early.requeue, Some(sim.world.now + SignedDuration::from_secs(1)));
        sim.advance(1);
        let due = plan(&sim.world);
        assert_eq!(due.lost.len(), given_up, "{lost_node:?}");
        assert_eq!(due.events.iter().filter(|e| e.reason == Reason::NodeLost).count(), given_up);
        // The pod that lives goes on; nothing was counted.
        let ObjectStatus::SynthesisJob(status) = due.status else { panic!() };
        assert_eq!((status.common.phase, status.common.recovery.failures), (Some(Phase::Running), 0));
    }
}

#[test]
fn all_pods_lost_and_waited_for_is_queued() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().recovery.lost_node = LostNode::Wait);
    let deleted = Time(sim.world.now);
    sim.world.pods.iter_mut().for_each(|p| p.metadata.deletion_timestamp = Some(deleted.clone()));
    sim.advance(60);
    sim.settle();
    let seen = "Queued generate/1 [prepare-1 generate-1*] Queued:NodeLost PodsScheduled:PodsHaveNodes UpToDate:SpecApplied";
    assert_eq!(sim.shown(), seen);
}

#[test]
fn manifests_are_the_jobs_to_come() {
    let mut sim = Sim::new(&extension_run());
    sim.edit(|o| {
        let over = json!({"spec": {"aTypo": 1}});
        o.common_mut().pod_template = serde_json::from_value(over).ok();
    });
    let all = manifests(&sim.world);
    let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
    assert_eq!(steps, ["prepare", "train-0", "export"]);
    for (step, job) in all {
        assert_eq!(job["spec"]["template"]["spec"]["aTypo"], 1, "{step} has lost the typo");
    }
}
