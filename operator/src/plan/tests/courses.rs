//! From start to end: steps, data, what pods wait for, what a step hands on.

use super::*;

#[test]
pub(super) fn a_synthesis_job_from_start_to_end() {
    let mut sim = Sim::new(&synthesis_job());
    check(
        &mut sim,
        &[
            ("applied", |_| {}, "Pending prepare/1 [prepare-1*] @new"),
            (
                "pod runs",
                Sim::start,
                "Pending prepare/1 [prepare-1*] PodsScheduled:PodsHaveNodes UpToDate:SpecApplied",
            ),
            ("prepared", Sim::succeed, "Queued generate/1 [prepare-1 generate-1*] @new"),
            (
                "pods run",
                Sim::start,
                "Running generate/1 [prepare-1 generate-1*] PodsScheduled:PodsHaveNodes Running:PodsRunning UpToDate:SpecApplied",
            ),
            // One success ends the step: the other pod runs still.
            (
                "one worker done",
                |s| s.end(1, 0, &committed(2)),
                "Queued finalize/1 [prepare-1 generate-1 finalize-1*] @new",
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
pub(super) fn a_run_waits_for_its_data_and_needs_it_no_more_when_pinned() {
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
            ("it is complete", |_| {}, "Pending prepare/1 [prepare-1*] DataReady:DataAvailable @new"),
            (
                "it is another one now",
                |s| {
                    let mut other = other_job(Some(Phase::Complete));
                    other.status.as_mut().unwrap().dataset.as_mut().unwrap().digest = "sha256:other".into();
                    s.world.synthesis.insert("docs".into(), other);
                },
                "Pending prepare/1 [prepare-1*] DataReady:DataAvailable @new",
            ),
            (
                "it is deleted",
                |s| s.world.synthesis.clear(),
                "Pending prepare/1 [prepare-1*] DataReady:DataAvailable @new",
            ),
            (
                "prepared",
                Sim::succeed,
                "Queued train-0/1 [prepare-1 train-0-1*] DataReady:DataAvailable @new",
            ),
            (
                "trained",
                Sim::succeed,
                "Queued export/1 [prepare-1 train-0-1 export-1*] DataReady:DataAvailable @new",
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
pub(super) fn what_pods_wait_for_is_told() {
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
        // The worker waits for an init container, and cannot say for what that waits.
        (
            init_waits(json!({"reason": "ErrImagePull", "message": "no such image"})),
            "ImagePull",
            "no such image",
        ),
        (init_waits(json!({"reason": "ImagePullBackOff"})), "ImagePull", "i"),
        (
            init_waits(json!({"reason": "CreateContainerConfigError", "message": "secret \"s3\" not found"})),
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

/// The status of a pod whose second init container waits.
fn init_waits(waiting: Value) -> Value {
    let container = |name: &str, state: Value| json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    json!({
        "phase": "Pending",
        "initContainerStatuses": [
            container("first", json!({"terminated": {"exitCode": 0}})),
            container("second", json!({"waiting": waiting})),
        ],
        "containerStatuses": [container("worker", json!({"waiting": {"reason": "PodInitializing"}}))],
    })
}
