//! Every reason of the API is reached: by a course of these tests, or by the words of a worker.

use std::collections::BTreeSet;

use longstrap_crds::reason::Effect;

use super::*;

/// What only a worker finds out.
const OF_WORKERS: [Reason; 13] = [
    Reason::DoesNotFit,
    Reason::WindowNotExtended,
    Reason::InvalidModel,
    Reason::InvalidData,
    Reason::InvalidTokenizer,
    Reason::StorageUnsupported,
    Reason::DataChanged,
    Reason::FingerprintMismatch,
    Reason::FormatTooNew,
    Reason::AccessDenied,
    Reason::BucketNotFound,
    Reason::EndpointUnavailable,
    Reason::StorageUnavailable,
];

/// All courses: what they reach is collected by [`Sim`].
const COURSES: &[fn()] = &[
    courses::a_synthesis_job_from_start_to_end,
    courses::a_run_waits_for_its_data_and_needs_it_no_more_when_pinned,
    courses::what_pods_wait_for_is_told,
    failures::failures_are_counted_by_pods_until_progress,
    failures::outages_back_off_and_progress_resets_them,
    failures::deadlines,
    obstacles::obstacles_block_or_hold_up,
    obstacles::a_pod_of_a_lost_node_is_given_up_after_a_minute,
    obstacles::all_pods_lost_and_waited_for_is_queued,
    requests::suspension_deletes_the_child_and_resume_is_the_next_attempt,
    requests::other_objects_are_left_alone,
    requests::an_edit_for_the_next_attempt_is_told_and_taken_up,
    requests::a_pod_template_that_makes_no_pod_blocks_until_it_is_mended,
    requests::files_of_a_cluster_lie_on_volumes,
    shapes::a_node_of_two_failures_is_avoided,
];

#[test]
fn what_a_worker_says_decides() {
    for reason in OF_WORKERS {
        let mut sim = generating();
        let outage = reason.effect() == Effect::Outage;
        sim.end(0, if outage { 12 } else { 10 }, &because(reason, "as it is"));
        sim.settle();
        let seen = match outage {
            true => format!("Queued generate/2 [prepare-1] Queued:{reason}"),
            false => format!("Blocked generate/2 [prepare-1 generate-1] !Ready:{reason} Stalled:{reason}"),
        };
        assert_eq!(sim.shown(), seen);
        assert_eq!(
            sim.requeue.is_some_and(|t| t <= sim.world.now + SignedDuration::from_mins(1)),
            reason.effect() != Effect::BlockedUntilEdit,
            "{reason}"
        );
        // An edit is an answer to every block.
        sim.edit(|_| {});
        sim.settle();
        assert_eq!(sim.active_job().is_some(), !outage, "{reason}");
        sim.advance(60);
        sim.settle();
        assert!(sim.active_job().is_some(), "{reason}");
    }
}

#[test]
fn every_reason_is_reached() {
    let reached = REACHED.with(|reached| {
        reached.borrow_mut().clear();
        COURSES.iter().for_each(|course| course());
        reached.borrow().clone()
    });
    let known: BTreeSet<Reason> = reached.iter().copied().chain(OF_WORKERS).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !known.contains(reason)).collect();
    assert_eq!(missing, Vec::<&Reason>::new(), "no course reaches these");
}
