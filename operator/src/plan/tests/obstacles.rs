//! What the executor finds in a run's way, and pods of lost nodes.

use longstrap_crds::common::LostNode;

use super::*;

#[test]
pub(super) fn obstacles_block_or_hold_up() {
    let blocked = |reason| format!("Blocked prepare/1 [] !Ready:{reason} Stalled:{reason}");
    let queued = |reason| {
        format!("Pending prepare/1 [prepare-1*] Queued:{reason} !PodsScheduled:{reason} UpToDate:SpecApplied")
    };
    let begun = format!("Pending prepare/1 [prepare-1*] {NEW}");
    let in_use = || Some(Reason::StorageInUse);
    let none = || None;
    // Obstacle, seconds that pass, what is then to be seen. Until a Job is made the attempt stays.
    let rows: [(&str, Option<Reason>, i64, String); 15] = [
        ("the storage is another's", in_use(), 0, blocked("StorageInUse")),
        ("it is free, but the time has not come", none(), 59, blocked("StorageInUse")),
        ("the time has come, and it is in use again", in_use(), 1, blocked("StorageInUse")),
        ("twice as long", none(), 119, blocked("StorageInUse")),
        ("a name is taken", Some(Reason::NameConflict), 1, blocked("NameConflict")),
        ("four minutes", none(), 239, blocked("NameConflict")),
        ("the template is refused", Some(Reason::InvalidPodTemplate), 1, blocked("InvalidPodTemplate")),
        ("time mends nothing", none(), 100_000, blocked("InvalidPodTemplate")),
        ("an edit does", none(), -1, begun.clone()),
        ("a quota refuses its pods", Some(Reason::QuotaExceeded), 0, queued("QuotaExceeded")),
        ("the quota is raised", none(), 0, begun.clone()),
        ("admission refuses its pods", Some(Reason::PodRejected), 0, queued("PodRejected")),
        ("a volume is not there", Some(Reason::WaitingForPods), 0, begun.clone()),
        (
            "the server does not say what it takes",
            Some(Reason::DryRunUnanswered),
            0,
            format!("Pending prepare/1 [prepare-1*] Reconciling:DryRunUnanswered {NEW}"),
        ),
        (
            "the storage turns out to be another's",
            in_use(),
            0,
            "Blocked prepare/2 [] !Ready:StorageInUse Stalled:StorageInUse".to_owned(),
        ),
    ];
    let mut sim = Sim::new(&synthesis_job());
    for (what, obstacle, seconds, seen) in rows {
        sim.world.obstacles =
            obstacle.into_iter().map(|reason| Obstacle { reason, message: "in the way".into() }).collect();
        match seconds {
            -1 => sim.edit(|_| {}),
            _ => sim.advance(seconds),
        }
        sim.settle();
        assert_eq!(sim.shown(), seen, "after: {what}");
        if what.contains("volume") {
            assert_eq!(sim.status().message.as_deref(), Some("in the way"));
        }
    }
    check(
        &mut Sim::new(&synthesis_job()),
        &[
            ("created", |_| {}, "Pending prepare/1 [prepare-1*] @new"),
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
pub(super) fn a_refused_edit_stops_nothing_that_runs() {
    let typo = |s: &mut Sim| {
        s.edit(|o| o.common_mut().pod_template = serde_json::from_value(json!({"spec": {"aTypo": 1}})).ok());
        let message = "the API server refuses the Job of generate: unknown field aTypo".to_owned();
        s.world.obstacles = vec![Obstacle { reason: Reason::InvalidPodTemplate, message }];
    };
    // It is asked once; the answer is only in the status from then on.
    let forget = |s: &mut Sim| s.world.obstacles.clear();
    let runs = "Running generate/1 [prepare-1 generate-1*] PodsScheduled:PodsHaveNodes Running:PodsRunning";
    let told = &format!("{runs} !UpToDate:InvalidPodTemplate") as &str;
    let blocked = "!Ready:InvalidPodTemplate Stalled:InvalidPodTemplate";
    let outage = |s: &mut Sim| s.end(0, 12, &because(Reason::StorageUnavailable, "503"));
    let crash = |s: &mut Sim| {
        s.world.pods.iter_mut().for_each(|p| {
            let annotations = p.metadata.annotations.as_mut().unwrap();
            annotations.insert("batch.kubernetes.io/job-index-failure-count".into(), "5".into());
        });
        s.end(0, 1, &committed(0));
    };
    for (what, ends) in
        [("an outage", outage as fn(&mut Sim)), ("a restart", |s| restart_by("1")(s)), ("a crash", crash)]
    {
        let mut sim = generating();
        check(&mut sim, &[("edited", typo, told), ("later", forget, told)]);
        ends(&mut sim);
        sim.settle();
        assert_eq!(sim.shown(), format!("Blocked generate/2 [prepare-1] {blocked}"), "{what}");
        assert!(sim.status().message.unwrap().ends_with("unknown field aTypo"), "{what}");
        sim.edit(|o| o.common_mut().pod_template = None);
        sim.settle();
        assert!(sim.active_job().is_some(), "{what}: {}", sim.shown());
    }
    // Mended while the Job runs: as if nothing had been.
    let mend = |s: &mut Sim| s.edit(|o| o.common_mut().pod_template = None);
    let up_to_date = &format!("{runs} UpToDate:SpecApplied") as &str;
    check(
        &mut generating(),
        &[("edited", typo, told), ("later", forget, told), ("mended", mend, up_to_date)],
    );
}

#[test]
pub(super) fn a_pod_of_a_lost_node_is_given_up_after_a_minute() {
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
fn a_long_grace_period_is_waived_on_a_node_that_is_away() {
    let not_ready = |reason: Value| json!([{"type": "Ready", "status": "False", "reason": reason}]);
    let ready = json!([{"type": "Ready", "status": "True"}]);
    // Seconds from the request until the pod is given up.
    for (what, grace, conditions, due) in [
        ("the node controller's mark", 3600, not_ready(Value::Null), 180),
        ("the same", 120, not_ready(Value::Null), 180),
        ("a short one", 30, not_ready(Value::Null), 90),
        // A kubelet that lives gives a reason: the pod of index 0 writes its checkpoint.
        ("a container is not ready", 3600, not_ready(json!("ContainersNotReady")), 3660),
        ("all are", 3600, ready.clone(), 3660),
        ("all are", 120, ready, 180),
    ] {
        let mut sim = generating();
        sim.lose(|_| true);
        let asked = sim.world.now;
        for pod in &mut sim.world.pods {
            let Some(time) = &mut pod.metadata.deletion_timestamp else { continue };
            time.0 = asked + SignedDuration::from_secs(grace);
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            pod.status.as_mut().unwrap().conditions = serde_json::from_value(conditions.clone()).unwrap();
        }
        sim.advance(due - 1);
        let early = plan(&sim.world);
        assert_eq!(
            (early.lost.len(), early.requeue),
            (0, Some(asked + SignedDuration::from_secs(due))),
            "{what}"
        );
        sim.advance(1);
        let plan = plan(&sim.world);
        assert_eq!(plan.lost.len(), 2, "{what}, grace {grace}");
        // The operator stops when it has set them to Failed: the delete does not wait for the hour.
        for pod in sim.world.pods.iter_mut().filter(|p| p.metadata.deletion_timestamp.is_some()) {
            let given_up = json!({"phase": "Failed", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "NodeLost"}]});
            pod.status = serde_json::from_value(given_up).unwrap();
        }
        assert_eq!(super::super::plan(&sim.world).lost.len(), 2, "{what}, grace {grace}, by half");
    }
}

#[test]
fn pods_leave_a_lost_node_in_30_s_whatever_else_they_tolerate() {
    let gpu = json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
    let ours = |what: &str| {
        let key = format!("node.kubernetes.io/{what}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30})
    };
    let (not_ready, unreachable) = (ours("not-ready"), ours("unreachable"));
    let hour =
        json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 3600});
    let everything = json!({"operator": "Exists"});
    let no_schedule = json!({"operator": "Exists", "effect": "NoSchedule"});
    for (given, seen) in [
        (Value::Null, json!([not_ready, unreachable])),
        (json!([]), json!([not_ready, unreachable])),
        (json!([gpu]), json!([gpu, not_ready, unreachable])),
        (json!([hour]), json!([hour, unreachable])),
        (json!([everything]), json!([everything])),
        // Says nothing of eviction.
        (json!([no_schedule]), json!([no_schedule, not_ready, unreachable])),
    ] {
        let mut sim = Sim::new(&synthesis_job());
        let template = json!({"spec": {"tolerations": given}});
        sim.edit(|o| o.common_mut().pod_template = serde_json::from_value(template).ok());
        for (step, job) in manifests(&sim.world) {
            assert_eq!(job["spec"]["template"]["spec"]["tolerations"], seen, "{step}: {given}");
        }
    }
}

#[test]
fn what_was_given_up_by_half_is_finished() {
    let condition = |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
    for (what, reason, seconds, grace, finished) in [
        ("the operator stopped before the delete", "NodeLost", 60, 30, 1),
        ("not due", "NodeLost", 59, 30, 0),
        ("deleted: the Job controller has to see it", "NodeLost", 60, 0, 0),
        ("evicted by somebody else", "EvictionByEvictionAPI", 60, 30, 0),
    ] {
        let mut sim = generating();
        sim.lose(|_| true);
        let pod = sim.world.pods.last_mut().unwrap();
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        let status = pod.status.as_mut().unwrap();
        status.phase = Some("Failed".into());
        status.conditions = serde_json::from_value(condition(reason)).unwrap();
        let name = pod.metadata.name.clone().unwrap();
        sim.advance(seconds);
        let plan = plan(&sim.world);
        assert_eq!(plan.lost.iter().filter(|p| p.name == name).count(), finished, "{what}");
        assert!(plan.events.iter().all(|e| !e.message.contains(&name)), "{what}: it was told before");
    }
}

#[test]
fn an_object_on_its_way_out_gives_up_its_lost_pods() {
    let mut sim = generating();
    sim.lose(|_| true);
    sim.world.object.metadata_mut().deletion_timestamp = Some(Time(sim.world.now));
    let before = sim.world.object.clone();
    let early = plan(&sim.world);
    assert_eq!(early.requeue, Some(sim.world.now + SignedDuration::from_secs(60)));
    sim.advance(60);
    let due = plan(&sim.world);
    assert_eq!((early.lost.len(), due.lost.len()), (0, 2));
    assert!(due.create.is_empty() && due.delete.is_empty());
    sim.apply(due);
    assert_eq!(sim.world.object, before, "its status is nobody's any more");
    // Not by us when it is another's.
    let mut other = generating();
    other.lose(|_| true);
    other.world.object.common_mut().managed_by = "someone/else".into();
    other.advance(60);
    assert!(plan(&other.world).lost.is_empty());
}

#[test]
pub(super) fn all_pods_lost_and_waited_for_is_queued() {
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
