//! What failures, outages and deadlines do.

use super::*;

#[test]
pub(super) fn failures_are_counted_by_pods_until_progress() {
    let mut sim = generating();
    let failures = |s: &Sim| (s.status().recovery.failures, s.status().recovery.last_committed);
    sim.end(0, 1, &committed(0));
    sim.settle();
    assert_eq!(failures(&sim), (1, 0));
    // The same pod is not counted again, a stopped, ignored or disrupted one never.
    sim.settle();
    sim.end(1, 11, &committed(0));
    sim.start();
    sim.end(1, 143, &committed(0));
    sim.start();
    sim.settle();
    assert_eq!(failures(&sim), (1, 0));
    // Work was committed: the count begins anew, whoever tells it.
    sim.end(0, 137, &committed(3));
    sim.settle();
    assert_eq!(failures(&sim), (0, 3));
    for expected in [1, 2] {
        // Later than any back-off of the Job controller: a replaced pod is there at once.
        sim.start();
        sim.end(1, 1, &committed(3));
        sim.start();
        sim.settle();
        assert_eq!(failures(&sim), (expected, 3));
    }
    sim.end(0, 1, &TerminationMessage::parse("Killed by the kernel"));
    sim.settle();
    let status = sim.status();
    assert_eq!(status.phase, Some(Phase::Failed));
    let message = status.message.unwrap();
    assert!(
        message.starts_with("3 failures without progress (backoffLimit is 2); the last: pod pod-uid-"),
        "{message}"
    );
    assert!(message.ends_with("ended with code 1: Killed by the kernel"), "{message}");
    assert!(sim.shown().starts_with(&format!("Failed generate/{} [prepare-1", status.attempt.unwrap())));
    assert!(sim.shown().ends_with("!Ready:BackoffLimitExceeded Stalled:BackoffLimitExceeded Failed:BackoffLimitExceeded CheckpointAvailable:Committed"));
    // Terminal stays terminal.
    let before = sim.shown();
    sim.edit(|o| o.common_mut().backoff_limit = 100);
    sim.settle();
    assert_eq!(sim.shown(), before);
}

#[test]
fn disrupted_pods_are_nobodys_failure() {
    for disrupt in [
        |p: &mut Pod| p.metadata.deletion_timestamp = p.metadata.creation_timestamp.clone(),
        |p: &mut Pod| {
            let condition = json!([{"type": "DisruptionTarget", "status": "True"}]);
            p.status.as_mut().unwrap().conditions = serde_json::from_value(condition).unwrap();
        },
    ] {
        let mut sim = generating();
        sim.end(0, 137, &committed(0));
        sim.world
            .pods
            .iter_mut()
            .filter(|p| p.status.as_ref().unwrap().phase.as_deref() == Some("Failed"))
            .for_each(disrupt);
        sim.settle();
        assert_eq!(sim.status().recovery.failures, 0);
    }
}

#[test]
fn a_gang_falls_once_per_generation() {
    let mut sim = Sim::new(&extension_run());
    sim.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
    sim.settle();
    sim.succeed();
    sim.settle();
    for (generation, failures) in [(1, 1), (2, 2)] {
        sim.start();
        let message = TerminationMessage { generation, ..committed(0) };
        sim.end(0, 1, &message);
        sim.end(1, 139, &message);
        sim.start();
        sim.settle();
        assert_eq!(sim.status().recovery.failures, failures, "generation {generation}");
    }
    let Object::ContextExtensionRun(run) = &sim.world.object else { panic!() };
    assert_eq!(run.status.as_ref().unwrap().gang_generation, Some(2));
}

#[test]
fn exit_codes_decide() {
    let mut sim = generating();
    sim.end(0, 10, &because(Reason::InvalidData, "web: row 7 has no field text"));
    check(
        &mut sim,
        &[
            (
                "exit 10",
                |_| {},
                "Blocked generate/2 [prepare-1 generate-1] !Ready:InvalidData Stalled:InvalidData",
            ),
            (
                "a day later",
                |s| s.advance(80_000),
                "Blocked generate/2 [] !Ready:InvalidData Stalled:InvalidData",
            ),
            (
                "an edit mends it",
                |s| s.edit(|o| o.common_mut().backoff_limit = 3),
                "Queued generate/2 [generate-2*] @new",
            ),
            (
                "exit 13",
                |s| {
                    s.start();
                    s.end(0, 13, &because(Reason::BackoffLimitExceeded, "rank 1 died 3 times"));
                },
                "Failed generate/2 [generate-2] !Ready:BackoffLimitExceeded Stalled:BackoffLimitExceeded Failed:BackoffLimitExceeded",
            ),
        ],
    );
    assert_eq!(sim.status().message.as_deref(), Some("rank 1 died 3 times"));
}

#[test]
pub(super) fn outages_back_off_and_progress_resets_them() {
    let mut sim = generating();
    let outage = |s: &mut Sim| {
        s.start();
        s.end(0, 12, &because(Reason::EndpointUnavailable, "http://vllm/v1 refuses connections"));
    };
    for (attempt, minutes) in [(2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 30), (8, 30)] {
        outage(&mut sim);
        sim.settle();
        let due = sim.world.now.checked_add(SignedDuration::from_mins(minutes)).unwrap();
        assert_eq!(sim.shown(), format!("Queued generate/{attempt} [prepare-1] Queued:EndpointUnavailable"));
        assert_eq!(
            sim.status().message,
            Some(format!("http://vllm/v1 refuses connections; next attempt at {due}"))
        );
        assert_eq!(sim.requeue, Some(due));
        sim.advance(minutes * 60 - 1);
        sim.settle();
        assert!(sim.active_job().is_none(), "too early");
        sim.advance(1);
        sim.world.jobs.retain(|j| j.metadata.name.as_deref().unwrap().contains("prepare"));
        sim.world.jobs.iter_mut().for_each(|j| {
            let condition = &mut j.status.as_mut().unwrap().conditions.as_mut().unwrap()[0];
            condition.last_transition_time = Some(Time(sim.world.now));
        });
        sim.settle();
        assert!(sim.active_job().is_some(), "attempt {attempt} begins at its time");
    }
    sim.start();
    sim.end(1, 1, &committed(5));
    sim.settle();
    assert_eq!(sim.status().recovery.outages, 0);
}

#[test]
fn blocked_by_a_store_is_tried_again_by_itself() {
    let mut sim = Sim::new(&synthesis_job());
    sim.settle();
    sim.start();
    sim.end(0, 10, &because(Reason::AccessDenied, "s3://b: 403"));
    check(
        &mut sim,
        &[
            ("403", |_| {}, "Blocked prepare/2 [prepare-1] !Ready:AccessDenied Stalled:AccessDenied"),
            (
                "59 s",
                |s| s.advance(59),
                "Blocked prepare/2 [prepare-1] !Ready:AccessDenied Stalled:AccessDenied",
            ),
            ("60 s", |s| s.advance(1), "Pending prepare/2 [prepare-1 prepare-2*] @new"),
            (
                "403 again",
                |s| {
                    s.start();
                    s.end(0, 10, &because(Reason::AccessDenied, "s3://b: 403"));
                },
                "Blocked prepare/3 [prepare-1 prepare-2] !Ready:AccessDenied Stalled:AccessDenied",
            ),
            (
                "60 s",
                |s| s.advance(60),
                "Blocked prepare/3 [prepare-1 prepare-2] !Ready:AccessDenied Stalled:AccessDenied",
            ),
            (
                "restart",
                |s| {
                    s.world.object.metadata_mut().annotations =
                        Some([("longstrap.io/restart-at".into(), "now".into())].into());
                },
                "Pending prepare/3 [prepare-1 prepare-2 prepare-3*] @new",
            ),
            ("the same annotation", |_| {}, "Pending prepare/3 [prepare-1 prepare-2 prepare-3*] @new"),
            (
                "another restart",
                |s| {
                    s.world.object.metadata_mut().annotations =
                        Some([("longstrap.io/restart-at".into(), "later".into())].into());
                },
                "Pending prepare/4 [prepare-1 prepare-2 prepare-4*] @new",
            ),
        ],
    );
}

#[test]
fn a_slow_replacement_starts_over() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().backoff_limit = 100);
    // The Job controller waits 10, 20, 40 s; the fourth wait would be 80.
    for _ in 0..3 {
        sim.end(0, 1, &committed(0));
        sim.settle();
        assert_eq!(sim.status().attempt, Some(1));
        sim.start();
    }
    sim.end(0, 11, &committed(0));
    check(&mut sim, &[("the fourth", |_| {}, "Queued generate/2 [prepare-1 generate-2*] @new")]);
    assert_eq!((sim.status().recovery.failures, sim.status().recovery.counted_pods), (3, vec![]));
}

#[test]
pub(super) fn deadlines() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().active_deadline_seconds = Some(100));
    sim.advance(60);
    sim.end(0, 12, &because(Reason::StorageUnavailable, "503"));
    sim.settle();
    // Time without pods does not count.
    assert_eq!(sim.status().recovery.pod_seconds, 60);
    sim.advance(3000);
    sim.settle();
    sim.start();
    sim.settle();
    assert_eq!(sim.requeue, Some(sim.world.now.checked_add(SignedDuration::from_secs(40)).unwrap()));
    sim.advance(39);
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Running));
    sim.advance(1);
    sim.settle();
    assert_eq!(sim.status().message.as_deref(), Some("pods ran for 100s; activeDeadlineSeconds is 100"));
    assert_eq!(sim.active_job(), None, "the pods are stopped");

    let mut sim = Sim::new(&synthesis_job());
    sim.edit(|o| o.common_mut().startup_deadline_seconds = Some(30));
    sim.settle();
    sim.active_job().unwrap().spec.as_mut().unwrap().suspend = Some(true);
    check(
        &mut sim,
        &[(
            "an hour in a queue",
            |s| s.advance(3600),
            "Pending prepare/1 [prepare-1*] Queued:KueueSuspended !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
        )],
    );
    let now = Time(sim.world.now);
    let job = sim.active_job().unwrap();
    job.spec.as_mut().unwrap().suspend = None;
    job.status.get_or_insert_default().start_time = Some(now);
    check(
        &mut sim,
        &[
            ("admitted, 29 s", |s| s.advance(29), "Pending prepare/1 [prepare-1*] @new"),
            (
                "30 s",
                |s| s.advance(1),
                "Failed prepare/1 [] !Ready:StartupDeadlineExceeded Stalled:StartupDeadlineExceeded Failed:StartupDeadlineExceeded",
            ),
        ],
    );
}

#[test]
fn a_startup_deadline_tells_what_the_pods_waited_for() {
    for reason in [Reason::QuotaExceeded, Reason::PodRejected, Reason::SecretNotFound] {
        let mut sim = Sim::new(&synthesis_job());
        sim.edit(|o| o.common_mut().startup_deadline_seconds = Some(30));
        sim.settle();
        sim.world.obstacles = vec![Obstacle { reason, message: "exceeded quota: q".into() }];
        sim.advance(30);
        sim.settle();
        let message = sim.status().message.unwrap();
        assert_eq!(message, "not all pods of prepare ran within 30s: exceeded quota: q", "{reason}");
    }
}

#[test]
fn a_pod_lost_late_has_its_own_time_to_be_replaced() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().startup_deadline_seconds = Some(30));
    sim.advance(5000);
    sim.end(0, 143, &committed(0));
    sim.settle();
    sim.advance(29);
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Running));
    sim.advance(1);
    sim.settle();
    assert_eq!(sim.status().message.as_deref(), Some("not all pods of generate ran within 30s"));
}

#[test]
fn a_limit_that_was_raised_gives_the_agent_another_attempt() {
    for (limit, seen) in [
        (2, "Failed generate/1 [prepare-1 generate-1] !Ready:BackoffLimitExceeded"),
        (3, "Queued generate/2 [prepare-1 generate-1 generate-2*] Queued:WaitingForPods"),
    ] {
        let mut sim = generating();
        sim.edit(|o| o.common_mut().backoff_limit = limit);
        sim.settle();
        assert!(sim.shown().ends_with(" UpToDate:SpecApplied"), "{}", sim.shown());
        sim.end(0, 13, &because(Reason::BackoffLimitExceeded, "rank 1 died 3 times"));
        sim.settle();
        assert!(sim.shown().starts_with(seen), "{}", sim.shown());
    }
}

#[test]
fn what_a_newer_operator_decided_stands() {
    for (code, stands) in
        [(10, "Blocked generate/2 [prepare-1 generate-1]"), (13, "Failed generate/1 [prepare-1 generate-1]")]
    {
        let mut sim = generating();
        sim.end(0, code, &because(Reason::InvalidData, "row 7"));
        sim.settle();
        let mut status = sim.world.object.to_json().unwrap();
        for condition in status["status"]["conditions"].as_array_mut().unwrap() {
            condition["reason"] = json!("AReasonOfTheFuture");
        }
        sim.world.object = Object::SynthesisJob(serde_json::from_value(status).unwrap());
        sim.settle();
        assert!(sim.shown().starts_with(stands), "{}", sim.shown());
        assert_eq!(sim.status().message.as_deref(), Some("row 7"));
    }
}

#[test]
fn the_event_of_an_end_names_its_pod_and_the_condition_does_not() {
    for (code, text, event, message) in [
        (10, "row 7", "pod POD: row 7", "row 7"),
        (12, "503", "pod POD: 503", "503; next attempt at 2026-01-01T00:01:00Z"),
        (13, "rank 1 died", "pod POD: rank 1 died", "rank 1 died"),
        (13, "", "pod POD ended with code 13", "pod POD ended with code 13"),
    ] {
        let mut sim = generating();
        let pod = sim.world.pods.iter().find(|p| !of_second(p) && !super::super::observe::has_ended(p));
        let pod = pod.unwrap().metadata.name.clone().unwrap();
        sim.end(0, code, &TerminationMessage { message: text.into(), ..TerminationMessage::default() });
        sim.settle();
        let told: Vec<&str> = sim.events.iter().filter(|e| e.warning).map(|e| e.message.as_str()).collect();
        assert_eq!(told, [event.replace("POD", &pod)], "{code}");
        assert_eq!(sim.status().message, Some(message.replace("POD", &pod)), "{code}");
    }
}

#[test]
fn a_job_that_is_about_to_fail_is_kept_for_its_logs() {
    for (code, phase) in [(10, "Blocked generate/2"), (13, "Failed generate/1")] {
        // Whether the Job controller fails it, seconds later, and the Jobs that are left then.
        for (fails, seconds, left) in [
            (false, 29, "[prepare-1 generate-1*]"),
            (false, 30, "[prepare-1]"),
            (true, 30, "[prepare-1 generate-1]"),
            (true, 3600, "[]"),
        ] {
            let mut sim = generating();
            sim.end(0, code, &because(Reason::InvalidData, "row 7"));
            let status = sim.world.jobs.last_mut().unwrap().status.take();
            sim.settle();
            let seen = format!("{phase} [prepare-1 generate-1*]");
            assert!(sim.shown().starts_with(&seen), "{}", sim.shown());
            if fails {
                sim.world.jobs.last_mut().unwrap().status = status;
            }
            sim.advance(seconds);
            sim.settle();
            assert!(sim.shown().starts_with(&format!("{phase} {left}")), "{code}: {}", sim.shown());
        }
    }
}

/// On the second worker's node.
fn of_second(pod: &Pod) -> bool {
    pod.spec.as_ref().unwrap().node_name.as_deref() == Some("node-1")
}

#[test]
fn a_node_lost_after_the_startup_deadline_has_its_own_time_too() {
    use longstrap_crds::common::LostNode;
    let evict = |s: &mut Sim| s.world.pods.retain(|p| !of_second(p));
    let lose = |s: &mut Sim| s.lose(of_second);
    // What happens an hour after the start; seconds until the pod is missed, if it ever is.
    for (what, happens, lost_node, missed) in [
        ("its node is lost", lose as fn(&mut Sim), LostNode::Replace, 60),
        ("its node is lost and waited for", lose, LostNode::Wait, 60),
        ("it is evicted, and gone", evict, LostNode::Replace, 0),
    ] {
        let mut sim = generating();
        sim.edit(|o| {
            o.common_mut().startup_deadline_seconds = Some(30);
            o.common_mut().recovery.lost_node = lost_node;
        });
        sim.settle();
        sim.advance(3600);
        happens(&mut sim);
        sim.settle();
        sim.advance(missed);
        sim.settle();
        for _ in 0..29 {
            assert_eq!(sim.status().phase, Some(Phase::Running), "{what}");
            sim.advance(1);
            sim.settle();
        }
        let mut replaced = sim.world.clone();
        sim.advance(1);
        sim.settle();
        assert!(sim.shown().contains("Failed:StartupDeadlineExceeded"), "{what}: {}", sim.shown());
        // A replacement in time goes on.
        replaced.pods.retain(|p| p.metadata.deletion_timestamp.is_none());
        sim.world = replaced;
        sim.start();
        sim.advance(3600);
        sim.settle();
        assert_eq!(sim.status().phase, Some(Phase::Running), "{what}");
    }
}

#[test]
fn a_job_that_fails_without_a_word_is_counted() {
    let fails = |s: &mut Sim| {
        let condition = json!([{"type": "Failed", "status": "True"}]);
        s.active_job().unwrap().status.get_or_insert_default().conditions =
            serde_json::from_value(condition).unwrap();
    };
    check(
        &mut Sim::new(&synthesis_job()),
        &[
            ("made", |_| {}, "Pending prepare/1 [prepare-1*] @new"),
            ("failed", fails, "Pending prepare/2 [prepare-1 prepare-2*] @new"),
            ("again", fails, "Pending prepare/3 [prepare-1 prepare-2 prepare-3*] @new"),
            (
                "once more than backoffLimit",
                fails,
                "Failed prepare/3 [prepare-1 prepare-2 prepare-3] !Ready:BackoffLimitExceeded Stalled:BackoffLimitExceeded Failed:BackoffLimitExceeded",
            ),
        ],
    );
}

#[test]
fn times_hold_across_a_restart_of_the_operator() {
    // All that a new process knows is what the API server kept.
    let restarted = |sim: &mut Sim| {
        let kept = sim.world.object.to_json().unwrap();
        sim.world.object = match serde_json::from_value(kept.clone()) {
            Ok(job) => Object::SynthesisJob(job),
            Err(_) => Object::ContextExtensionRun(serde_json::from_value(kept).unwrap()),
        };
    };
    let mut sim = generating();
    sim.edit(|o| {
        o.common_mut().active_deadline_seconds = Some(100);
        o.common_mut().ttl_seconds_after_failure = Some(50);
    });
    sim.advance(60);
    sim.settle();
    restarted(&mut sim);
    sim.advance(39);
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Running));
    sim.advance(1);
    sim.settle();
    assert_eq!((sim.status().phase, sim.delete_object), (Some(Phase::Failed), false));
    restarted(&mut sim);
    sim.advance(50);
    sim.settle();
    assert!(sim.delete_object);
}
