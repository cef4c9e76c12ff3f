//! What people ask for: suspension, restarts, edits, time to live, objects of others.

use super::*;

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
                "Queued generate/2 [prepare-1 generate-2*] @new",
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
fn other_objects_are_left_alone() {
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
    assert!(sim.shown().ends_with("UpToDate:SpecApplied"), "{}", sim.shown());
    let job = sim.active_job().unwrap();
    assert_eq!(
        job.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.as_deref(),
        Some("mine:2")
    );
    assert_eq!(sim.status().image.as_deref(), Some("mine:2"));
}

#[test]
fn a_pod_template_that_makes_no_pod_blocks_until_it_is_mended() {
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
