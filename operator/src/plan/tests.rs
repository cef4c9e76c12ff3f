//! Courses of runs, step by step: each row edits the world, the plan is applied until it settles,
//! and the row says what is then to be seen.

use super::sim::*;
use super::*;
use longstrap_crds::{Phase, Step, TerminationMessage, names::child_name};
use serde_json::{Value, json};

type Row<'a> = (&'a str, fn(&mut Sim), &'a str);

fn check(sim: &mut Sim, rows: &[Row<'_>]) {
    for (what, edit, seen) in rows {
        edit(sim);
        sim.settle();
        assert_eq!(sim.shown(), *seen, "after: {what}");
    }
}

const SYNC: &str = "UpToDate:SpecApplied";

#[test]
fn a_synthesis_job_from_start_to_end() {
    let mut sim = Sim::new(&synthesis_job());
    check(
        &mut sim,
        &[
            (
                "applied",
                |_| {},
                "Pending prepare/1 [prepare-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "pod runs",
                Sim::start,
                "Pending prepare/1 [prepare-1*] PodsScheduled:PodsHaveNodes UpToDate:SpecApplied",
            ),
            (
                "prepared",
                Sim::succeed,
                "Queued generate/1 [prepare-1 generate-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "pods run",
                Sim::start,
                "Running generate/1 [prepare-1 generate-1*] PodsScheduled:PodsHaveNodes Running:PodsRunning UpToDate:SpecApplied",
            ),
            // One success ends the step: the other pod runs still.
            (
                "one worker done",
                |s| s.end(1, 0, &committed(2)),
                "Queued finalize/1 [prepare-1 generate-1 finalize-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "finalized",
                Sim::succeed,
                "Complete finalize/1 [prepare-1 generate-1 finalize-1] Ready:Completed Complete:Completed",
            ),
            (
                "an hour later",
                |s| s.advance(3600),
                "Complete finalize/1 [] Ready:Completed Complete:Completed",
            ),
        ],
    );
    let Object::SynthesisJob(job) = &sim.world.object else { panic!() };
    assert_eq!(job.status.as_ref().unwrap().dataset, Some(dataset()));
    assert_eq!(sim.created.len(), 3);
    let reasons: Vec<Reason> = sim.events.iter().map(|e| e.reason).collect();
    use Reason::{Completed, JobCreated, JobDeleted, StepComplete};
    assert_eq!(
        reasons,
        [
            JobCreated,
            StepComplete,
            JobCreated,
            StepComplete,
            JobCreated,
            StepComplete,
            Completed,
            JobDeleted,
            JobDeleted,
            JobDeleted
        ]
    );
}

#[test]
fn a_run_waits_for_its_data_and_needs_it_no_more_when_pinned() {
    let mut sim = Sim::new(&extension_run());
    let put = |s: &mut Sim, phase| {
        s.world.synthesis.insert("docs".into(), other_job(phase));
    };
    check(
        &mut sim,
        &[
            ("applied", |_| {}, "Pending prepare/1 [] !DataReady:SynthesisNotFound"),
            (
                "the job exists",
                |s| {
                    s.world.synthesis.insert("docs".into(), other_job(None));
                },
                "Pending prepare/1 [] !DataReady:SynthesisNotComplete",
            ),
            (
                "it failed",
                |s| {
                    s.world.synthesis.insert("docs".into(), other_job(Some(Phase::Failed)));
                },
                "Pending prepare/1 [] !DataReady:SynthesisFailed",
            ),
        ],
    );
    put(&mut sim, Some(Phase::Complete));
    check(
        &mut sim,
        &[
            (
                "it is complete",
                |_| {},
                "Pending prepare/1 [prepare-1*] DataReady:DataAvailable Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "it is deleted",
                |s| s.world.synthesis.clear(),
                "Pending prepare/1 [prepare-1*] DataReady:DataAvailable Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "prepared",
                Sim::succeed,
                "Queued train-0/1 [prepare-1 train-0-1*] DataReady:DataAvailable Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "trained",
                Sim::succeed,
                "Queued export/1 [prepare-1 train-0-1 export-1*] DataReady:DataAvailable Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "exported",
                Sim::succeed,
                "Complete export/1 [prepare-1 train-0-1 export-1] Ready:Completed Complete:Completed DataReady:DataAvailable",
            ),
        ],
    );
    let task = &sim.tasks[&child_name("run", UID, Step::Train(0), 1)];
    assert_eq!(
        (task.workers, task.ranks_per_node, task.threads_per_rank, task.stages.clone()),
        (2, 4, 1, 0..2)
    );
    let pinned: Vec<_> =
        task.data.iter().map(|d| (d.name.as_str(), d.uri.as_str(), d.digest.as_deref())).collect();
    assert_eq!(
        pinned,
        [("long", "s3://b/docs/dataset", Some("sha256:d")), ("short", "s3://b/short", Some("sha256:s"))]
    );
    let child = child_name("run", UID, Step::Train(0), 1);
    assert_eq!(task.rendezvous_host, format!("{child}-0.{child}.ml.svc"));
    let Object::ContextExtensionRun(run) = &sim.world.object else { panic!() };
    assert_eq!(run.status.as_ref().unwrap().model.as_ref().unwrap().uri, "s3://b/run/model");
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

#[test]
fn failures_are_counted_by_pods_until_progress() {
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
                "Queued generate/2 [generate-2*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
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
fn outages_back_off_and_progress_resets_them() {
    let mut sim = generating();
    let outage = |s: &mut Sim| {
        s.start();
        s.end(0, 12, &because(Reason::EndpointUnavailable, "http://vllm/v1 refuses connections"));
    };
    for (attempt, minutes) in [(2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 30), (8, 30)] {
        outage(&mut sim);
        sim.settle();
        let due = sim.world.now.checked_add(jiff::SignedDuration::from_mins(minutes)).unwrap();
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
            condition.last_transition_time =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(sim.world.now));
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
            (
                "60 s",
                |s| s.advance(1),
                "Pending prepare/2 [prepare-1 prepare-2*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
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
                "Pending prepare/3 [prepare-1 prepare-2 prepare-3*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "the same annotation",
                |_| {},
                "Pending prepare/3 [prepare-1 prepare-2 prepare-3*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "another restart",
                |s| {
                    s.world.object.metadata_mut().annotations =
                        Some([("longstrap.io/restart-at".into(), "later".into())].into());
                },
                "Pending prepare/4 [prepare-1 prepare-2 prepare-4*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
        ],
    );
}

#[test]
fn suspension_deletes_the_child_and_resume_is_the_next_attempt() {
    let mut suspended = synthesis_job();
    suspended["spec"]["suspend"] = json!(true);
    check(
        &mut Sim::new(&suspended),
        &[("created suspended", |_| {}, "Suspended prepare/1 [] Suspended:SuspendRequested")],
    );
    let mut sim = generating();
    check(
        &mut sim,
        &[
            (
                "suspended",
                |s| s.edit(|o| o.common_mut().suspend = true),
                "Suspended generate/2 [prepare-1] Suspended:SuspendRequested",
            ),
            (
                "resumed",
                |s| s.edit(|o| o.common_mut().suspend = false),
                "Queued generate/2 [prepare-1 generate-2*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
        ],
    );
}

#[test]
fn suspended_is_said_when_the_pods_are_gone() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().suspend = true);
    let plan = plan(&sim.world);
    assert_eq!(plan.delete.len(), 1);
    let ObjectStatus::SynthesisJob(status) = &plan.status else { panic!() };
    assert_eq!(status.common.phase, Some(Phase::Queued));
    // The Job terminates in the foreground: still not.
    let (delete, kept) = (plan.delete.clone(), sim.world.jobs.clone());
    sim.apply(plan);
    let mut leaving = kept.into_iter().find(|j| j.metadata.name.as_deref() == Some(&delete[0].name)).unwrap();
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    sim.world.jobs.push(leaving);
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Queued));
    sim.delete_job(&delete[0].name);
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Suspended));
}

#[test]
fn deadlines() {
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
    assert_eq!(sim.requeue, Some(sim.world.now.checked_add(jiff::SignedDuration::from_secs(40)).unwrap()));
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
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(sim.world.now);
    let job = sim.active_job().unwrap();
    job.spec.as_mut().unwrap().suspend = None;
    job.status.get_or_insert_default().start_time = Some(now);
    check(
        &mut sim,
        &[
            (
                "admitted, 29 s",
                |s| s.advance(29),
                "Pending prepare/1 [prepare-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
            (
                "30 s",
                |s| s.advance(1),
                "Failed prepare/1 [] !Ready:StartupDeadlineExceeded Stalled:StartupDeadlineExceeded Failed:StartupDeadlineExceeded",
            ),
        ],
    );
}

#[test]
fn what_pods_wait_for_is_told() {
    for (status, reason, message) in [
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]}),
            "Unschedulable",
            "0/3 nodes",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
            "ImagePull",
            "x",
        ),
        (
            json!({"phase": "Pending", "containerStatuses": [{"name": "worker", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"s3\" not found"}}}]}),
            "SecretNotFound",
            "secret \"s3\" not found",
        ),
    ] {
        let mut sim = generating();
        for pod in &mut sim.world.pods {
            pod.status = serde_json::from_value(status.clone()).unwrap();
        }
        sim.settle();
        assert!(
            sim.shown().contains(&format!(
                "Queued generate/1 [prepare-1 generate-1*] Queued:{reason} !PodsScheduled:{reason}"
            )),
            "{}",
            sim.shown()
        );
        assert_eq!(sim.status().message.as_deref(), Some(message));
    }
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
    check(
        &mut sim,
        &[(
            "the fourth",
            |_| {},
            "Queued generate/2 [prepare-1 generate-2*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
        )],
    );
    assert_eq!((sim.status().recovery.failures, sim.status().recovery.counted_pods), (3, vec![]));
}

#[test]
fn a_result_lost_with_its_pod_is_asked_for_again() {
    let mut sim = generating();
    sim.end(0, 0, &committed(2));
    sim.settle();
    for attempt in [2, 3] {
        sim.start();
        sim.end(0, 0, &TerminationMessage::default());
        sim.settle();
        assert_eq!((sim.status().step.as_deref(), sim.status().attempt), (Some("finalize"), Some(attempt)));
    }
    sim.succeed();
    sim.settle();
    assert_eq!(sim.status().phase, Some(Phase::Complete));
}

#[test]
fn other_objects_are_left_alone() {
    let mut other = synthesis_job();
    other["spec"]["managedBy"] = json!("someone/else");
    let sim = Sim::new(&other);
    let idle = plan(&sim.world);
    assert_eq!((idle.create.len(), idle.status), (0, ObjectStatus::SynthesisJob(Box::default())));

    let mut sim = generating();
    sim.world.object.metadata_mut().deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(sim.world.now));
    let idle = plan(&sim.world);
    assert!(idle.create.is_empty() && idle.delete.is_empty() && idle.events.is_empty());

    let mut kueue = synthesis_job();
    kueue["metadata"]["labels"] = json!({"kueue.x-k8s.io/job-min-parallelism": "1"});
    check(
        &mut Sim::new(&kueue),
        &[
            (
                "applied",
                |_| {},
                "Blocked prepare/1 [] !Ready:KueueKeyNotSupported Stalled:KueueKeyNotSupported",
            ),
            (
                "mended",
                |s| s.world.object.metadata_mut().labels = None,
                "Pending prepare/1 [prepare-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods UpToDate:SpecApplied",
            ),
        ],
    );
}

#[test]
fn the_object_deletes_itself_after_its_time_to_live() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().ttl_seconds_after_success = Some(60));
    sim.succeed();
    sim.settle();
    sim.succeed();
    sim.settle();
    assert_eq!((sim.status().phase, sim.delete_object), (Some(Phase::Complete), false));
    sim.advance(60);
    sim.settle();
    assert!(sim.delete_object);
}

#[test]
fn an_edit_for_the_next_attempt_is_told_and_taken_up() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().image = Some("mine:2".into()));
    sim.settle();
    assert!(sim.shown().ends_with("!UpToDate:SpecEdited"), "{}", sim.shown());
    sim.world.object.metadata_mut().annotations =
        Some([("longstrap.io/restart-at".into(), "1".into())].into());
    sim.settle();
    assert!(sim.shown().ends_with(SYNC), "{}", sim.shown());
    let job = sim.active_job().unwrap();
    assert_eq!(
        job.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.as_deref(),
        Some("mine:2")
    );
    assert_eq!(sim.status().image.as_deref(), Some("mine:2"));
}

/// The manifests as they go to the API server.
#[test]
fn manifests() {
    let mut doc = synthesis_job();
    doc["metadata"]["labels"] = json!({"kueue.x-k8s.io/queue-name": "gpu", "team": "a"});
    doc["spec"]["auxiliaryQueueName"] = json!("cpu");
    doc["spec"]["storage"]["credentialsSecretRef"] = json!({"name": "s3"});
    doc["spec"]["generator"]["endpoints"][0]["apiKeySecretRef"] = json!({"name": "llm", "key": "token"});
    doc["spec"]["prompts"] = json!({"configMapRef": {"name": "my-prompts"}});
    doc["spec"]["podTemplate"] = json!({
        "metadata": {"labels": {"team": "a", "longstrap.io/step": "fake"}},
        "spec": {"serviceAccountName": "synth", "containers": [
            {"name": "worker", "resources": {"requests": {"cpu": "4"}}, "env": [{"name": "HTTP_PROXY", "value": "http://p"}]},
            {"name": "sidecar", "image": "s"},
        ]},
    });
    let mut sim = Sim::new(&doc);
    let first = plan(&sim.world);
    let queue = |plan: &Plan| match &plan.create[2] {
        Child::Job(job) => job.metadata.labels.as_ref().unwrap()["kueue.x-k8s.io/queue-name"].clone(),
        _ => panic!("the Job comes last"),
    };
    assert_eq!(queue(&first), "cpu");
    sim.settle();
    sim.succeed();
    let plan = plan(&sim.world);
    assert_eq!(queue(&plan), "gpu");
    let mut children: Vec<Value> = Vec::new();
    for child in &plan.create {
        children.push(match child {
            Child::ConfigMap(map) => {
                let mut map = serde_json::to_value(map).unwrap();
                let task: Value = serde_json::from_str(map["data"]["task.json"].as_str().unwrap()).unwrap();
                map["data"]["task.json"] = task;
                map
            }
            Child::Service(service) => serde_json::to_value(service).unwrap(),
            Child::Job(job) => serde_json::to_value(job).unwrap(),
        });
    }
    insta::assert_yaml_snapshot!(children);
}
