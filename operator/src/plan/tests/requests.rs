//! What people ask for: suspension, restarts, edits, time to live, objects of others.

use super::*;

#[test]
pub(super) fn suspension_deletes_the_child_and_resume_is_the_next_attempt() {
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
                "Queued generate/2 [prepare-1 generate-2*] @new",
            ),
            (
                "an outage",
                |s| {
                    s.start();
                    s.end(0, 12, &because(Reason::StorageUnavailable, "503"));
                },
                "Queued generate/3 [prepare-1] Queued:StorageUnavailable",
            ),
            (
                "suspended meanwhile",
                |s| s.edit(|o| o.common_mut().suspend = true),
                "Suspended generate/3 [prepare-1] Suspended:SuspendRequested",
            ),
            (
                "resumed before the time has come",
                |s| s.edit(|o| o.common_mut().suspend = false),
                "Queued generate/3 [prepare-1] Queued:BackingOff",
            ),
            ("it has come", |s| s.advance(60), "Queued generate/3 [prepare-1 generate-3*] @new"),
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
pub(super) fn other_objects_are_left_alone() {
    let mut other = synthesis_job();
    other["spec"]["managedBy"] = json!("someone/else");
    let sim = Sim::new(&other);
    let idle = plan(&sim.world);
    assert_eq!((idle.create.len(), idle.status), (0, ObjectStatus::SynthesisJob(Box::default())));

    let mut sim = generating();
    sim.world.object.metadata_mut().deletion_timestamp = Some(Time(sim.world.now));
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
                "Pending prepare/1 [prepare-1*] @new",
            ),
            // A Job that is there does not have it.
            ("as an annotation of a running object", annotated, "Pending prepare/1 [prepare-1*] @new"),
            (
                "the next Job would",
                Sim::succeed,
                "Blocked generate/1 [prepare-1] !Ready:KueueKeyNotSupported Stalled:KueueKeyNotSupported",
            ),
        ],
    );
}

fn annotated(sim: &mut Sim) {
    let key = ("kueue.x-k8s.io/podset-required-topology".to_owned(), "rack".to_owned());
    sim.world.object.metadata_mut().annotations = Some([key].into());
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
pub(super) fn an_edit_for_the_next_attempt_is_told_and_taken_up() {
    let mut sim = generating();
    sim.edit(|o| o.common_mut().image = Some("mine:2".into()));
    sim.settle();
    assert!(sim.shown().ends_with("!UpToDate:SpecEdited"), "{}", sim.shown());
    sim.world.object.metadata_mut().annotations =
        Some([("longstrap.io/restart-at".into(), "1".into())].into());
    sim.settle();
    assert!(sim.shown().ends_with("UpToDate:SpecApplied"), "{}", sim.shown());
    let job = sim.active_job().unwrap();
    assert_eq!(
        job.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.as_deref(),
        Some("mine:2")
    );
    assert_eq!(sim.status().image.as_deref(), Some("mine:2"));
}

/// The third row of the API's table of edits, and nothing else, makes a Job out of date.
#[test]
fn what_the_next_attempt_takes_up_is_told() {
    fn job(o: &mut Object) -> &mut longstrap_crds::SynthesisJobSpec {
        let Object::SynthesisJob(job) = o else { panic!("a job") };
        &mut job.spec
    }
    fn run(o: &mut Object) -> &mut longstrap_crds::ContextExtensionRunSpec {
        let Object::ContextExtensionRun(run) = o else { panic!("a run") };
        &mut run.spec
    }
    fn secret() -> Option<longstrap_crds::common::LocalRef> {
        serde_json::from_value(json!({"name": "s"})).ok()
    }
    type Edit = fn(&mut Object);
    let (of_jobs, of_runs) = (synthesis_job(), extension_run());
    let rows: [(&Value, &str, bool, Edit); 27] = [
        (&of_jobs, "image", true, |o| o.common_mut().image = Some("mine:2".into())),
        (&of_jobs, "podTemplate", true, |o| o.common_mut().pod_template = Some(Default::default())),
        (&of_jobs, "workers", true, |o| job(o).workers = 7),
        (&of_jobs, "endpoints' url", true, |o| {
            job(o).generator.endpoints.as_mut().unwrap()[0].url = "http://other/v1".into();
        }),
        (&of_jobs, "endpoints' concurrency", true, |o| {
            job(o).generator.endpoints.as_mut().unwrap()[0].max_concurrency = Some(3);
        }),
        (&of_jobs, "credentials", true, |o| o.common_mut().storage.credentials_secret_ref = secret()),
        (&of_jobs, "storage.options", true, |o| {
            o.common_mut().storage.options.insert("endpoint".into(), "http://minio".into());
        }),
        (&of_jobs, "auxiliaryQueueName", true, |o| o.common_mut().auxiliary_queue_name = Some("cpu".into())),
        (&of_runs, "parallelism", true, |o| run(o).parallelism.nodes = 7),
        (&of_runs, "a stage's parallelism", true, |o| {
            run(o).stages[1].parallelism = serde_json::from_value(json!({"nodes": 7})).ok();
        }),
        (&of_runs, "a stage's podTemplate", true, |o| {
            run(o).stages[0].pod_template = Some(Default::default());
        }),
        (&of_runs, "acceleratorMemory", true, |o| {
            run(o).accelerator_memory = serde_json::from_value(json!("80Gi")).ok();
        }),
        // At once.
        (&of_jobs, "activeDeadlineSeconds", false, |o| o.common_mut().active_deadline_seconds = Some(9)),
        (&of_jobs, "startupDeadlineSeconds", false, |o| o.common_mut().startup_deadline_seconds = Some(9)),
        (&of_jobs, "ttlSecondsAfterSuccess", false, |o| o.common_mut().ttl_seconds_after_success = Some(9)),
        (&of_jobs, "ttlSecondsAfterFailure", false, |o| o.common_mut().ttl_seconds_after_failure = Some(9)),
        (&of_jobs, "cleanChildrenAfterSeconds", false, |o| o.common_mut().clean_children_after_seconds = 9),
        (&of_jobs, "backoffLimit", false, |o| o.common_mut().backoff_limit = 9),
        (&of_jobs, "lostNode", false, |o| {
            o.common_mut().recovery.lost_node = longstrap_crds::common::LostNode::Wait;
        }),
        (&of_jobs, "waitForReplacementSeconds", false, |o| {
            o.common_mut().recovery.wait_for_replacement_seconds = 9;
        }),
        (&of_runs, "rankTimeoutSeconds", false, |o| o.common_mut().recovery.rank_timeout_seconds = 9),
        (&of_jobs, "adopt", false, |o| o.common_mut().storage.adopt = true),
        (&of_runs, "checkpoint.everySeconds", false, |o| run(o).training.checkpoint.every_seconds = 9),
        (&of_runs, "checkpoint.keepLast", false, |o| run(o).training.checkpoint.keep_last = 9),
        (&of_runs, "allowWindowNotExtended", false, |o| run(o).allow_window_not_extended = true),
        // Never; not by this hash.
        (&of_jobs, "seed", false, |o| job(o).seed = 9),
        (&of_runs, "steps", false, |o| run(o).stages[0].steps = 9),
    ];
    for (doc, what, told, edit) in rows {
        let mut sim = Sim::new(doc);
        sim.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
        sim.settle();
        sim.edit(edit);
        sim.settle();
        let seen = if told { "!UpToDate:SpecEdited" } else { " UpToDate:SpecApplied" };
        assert!(sim.shown().ends_with(seen), "{what}: {}", sim.shown());
    }
}

#[test]
fn an_image_that_is_taken_out_of_the_spec_gives_way_to_the_operators() {
    let image = |sim: &mut Sim| {
        let used = sim.active_job().unwrap().spec.clone().unwrap().template.spec.unwrap();
        let used = used.containers[0].image.clone().unwrap();
        assert_eq!(sim.status().image.as_ref(), Some(&used));
        let asked = manifests(&sim.world).remove(0).1;
        assert_eq!(asked["spec"]["template"]["spec"]["containers"][0]["image"], used, "the dry run");
        used
    };
    let mut sim = Sim::new(&synthesis_job());
    sim.settle();
    assert_eq!(image(&mut sim), "longstrap@sha256:1");
    // What is edited, the operator's own image, and that of the attempt that follows.
    let rows: [(Option<&str>, &str, &str); 5] = [
        (None, "longstrap@sha256:2", "longstrap@sha256:1"),
        (Some("mine:2"), "longstrap@sha256:2", "mine:2"),
        (Some("mine:2"), "longstrap@sha256:3", "mine:2"),
        (None, "longstrap@sha256:3", "longstrap@sha256:3"),
        (None, "longstrap@sha256:4", "longstrap@sha256:3"),
    ];
    for (attempt, (given, own, seen)) in rows.into_iter().enumerate() {
        sim.world.config.image = own.into();
        sim.edit(|o| o.common_mut().image = given.map(str::to_owned));
        restart_by(&attempt.to_string())(&mut sim);
        sim.settle();
        assert_eq!(image(&mut sim), seen, "row {attempt}");
    }
}

#[test]
pub(super) fn a_pod_template_that_makes_no_pod_blocks_until_it_is_mended() {
    let mut doc = synthesis_job();
    doc["spec"]["podTemplate"] = json!({"spec": {"tolerations": "all"}});
    check(
        &mut Sim::new(&doc),
        &[
            ("applied", |_| {}, "Blocked prepare/1 [] !Ready:InvalidPodTemplate Stalled:InvalidPodTemplate"),
            (
                "mended",
                |s| s.edit(|o| o.common_mut().pod_template = None),
                "Pending prepare/1 [prepare-1*] @new",
            ),
        ],
    );
}

#[test]
pub(super) fn files_of_a_cluster_lie_on_volumes() {
    let mut doc = synthesis_job();
    doc["spec"]["storage"]["uri"] = json!("file:///data/docs");
    doc["spec"]["tokenizer"]["uri"] = json!("file:tokenizer");
    let blocked = "Blocked prepare/1 [] !Ready:StorageNotDurable Stalled:StorageNotDurable";
    let mount = |sim: &mut Sim, volume: Value| {
        let template = json!({"spec": {
            "volumes": [volume],
            "containers": [{"name": "worker", "volumeMounts": [{"name": "v", "mountPath": "/data"}]}],
        }});
        sim.edit(|o| o.common_mut().pod_template = serde_json::from_value(template).ok());
        sim.settle();
    };
    let mut sim = Sim::new(&doc);
    sim.settle();
    assert_eq!(sim.shown(), blocked);
    assert!(sim.status().message.unwrap().starts_with("spec.tokenizer.uri file:tokenizer is relative"));
    doc["spec"]["tokenizer"]["uri"] = json!("file:///models/m");
    let mut sim = Sim::new(&doc);
    sim.settle();
    assert_eq!(sim.shown(), blocked);
    assert!(
        sim.status().message.unwrap().starts_with("spec.storage.uri file:///data/docs does not lie under")
    );
    mount(&mut sim, json!({"name": "v", "emptyDir": {}}));
    assert_eq!(sim.shown(), blocked);
    mount(&mut sim, json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}));
    assert_eq!(sim.shown(), format!("Pending prepare/1 [prepare-1*] {NEW}"));
}

#[test]
fn what_does_not_go_together_blocks_before_a_pod_is_asked_for() {
    let mut run = Sim::new(&extension_run());
    run.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
    // Past `validate`, as the API server lets it pass.
    if let Object::ContextExtensionRun(run) = &mut run.world.object {
        run.spec.stages[1].context_length = run.spec.stages[0].context_length;
    }
    let mut job = Sim::new(&synthesis_job());
    if let Object::SynthesisJob(job) = &mut job.world.object {
        let lengths = json!([{"name": "x", "from": 512, "to": 512}]);
        job.spec.samples.long_input.as_mut().unwrap().lengths = serde_json::from_value(lengths).unwrap();
    }
    for (mut sim, field, other) in [
        (run, "spec.stages[1].contextLength: ", "make another ContextExtensionRun"),
        (job, "spec.samples.longInput.lengths[0].to: ", "make another SynthesisJob"),
    ] {
        sim.settle();
        let seen = "Blocked prepare/1 [] !Ready:InvalidData Stalled:InvalidData";
        assert!(sim.shown().starts_with(seen), "{}", sim.shown());
        let message = sim.status().message.unwrap();
        assert!(message.starts_with(field) && message.ends_with(other), "{message}");
        assert!(sim.created.is_empty());
    }
}

#[test]
fn a_finished_object_makes_nothing_any_more() {
    let mut sim = generating();
    for _ in 0..2 {
        sim.succeed();
        sim.settle();
    }
    let (created, shown) = (
        sim.created.clone(),
        "Complete finalize/1 [prepare-1 generate-1] Ready:Completed Complete:Completed",
    );
    let last = sim.world.jobs.last().unwrap().metadata.name.clone().unwrap();
    sim.delete_job(&last);
    for edit in [restart_by("1"), restart_by("2")] {
        sim.settle();
        assert_eq!((sim.shown().as_str(), &sim.created), (shown, &created));
        edit(&mut sim);
    }
}

#[test]
fn a_job_that_somebody_deletes_is_made_again() {
    check(
        &mut generating(),
        &[
            (
                "its state stays",
                |s| s.end(0, 137, &committed(1)),
                "Running generate/1 [prepare-1 generate-1*] !PodsScheduled:WaitingForPods Running:PodsRunning CheckpointAvailable:Committed UpToDate:SpecApplied",
            ),
            (
                "deleted",
                |s| {
                    let name = child_name("docs", UID, Step::Generate, 1);
                    s.delete_job(&name);
                },
                "Queued generate/1 [prepare-1 generate-1*] Queued:WaitingForPods !PodsScheduled:WaitingForPods CheckpointAvailable:Committed UpToDate:SpecApplied",
            ),
        ],
    );
}

/// Names of Jobs and Services are at most 63 characters long, and of one object alone.
#[test]
fn long_names_and_names_that_are_used_again() {
    let mut doc = synthesis_job();
    doc["metadata"]["name"] = json!("n".repeat(253));
    let names = |doc: &Value| {
        let mut sim = Sim::new(doc);
        for _ in 0..3 {
            sim.settle();
            sim.succeed();
        }
        sim.settle();
        assert_eq!(sim.status().phase, Some(Phase::Complete));
        sim.created
    };
    let first = names(&doc);
    assert!(first.iter().all(|name| name.len() <= 58), "{first:?}");
    doc["metadata"]["uid"] = json!("6f0f3b4c-0a59-4c0e-9d0e-0d2a3f0f7f11");
    assert!(names(&doc).is_disjoint(&first));
}
