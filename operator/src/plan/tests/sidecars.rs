//! Containers besides the worker that do not end with it: the Job controller learns nothing of the
//! worker's end while one of its pod runs.

use super::*;

#[test]
fn a_worker_has_ended_though_its_sidecar_runs_on() {
    // The worker's code, what follows at once, and when its pod has to go.
    for (code, seen, kept) in [
        (0, "Queued finalize/1 [prepare-1 generate-1* finalize-1*]", 30),
        (10, "Blocked generate/2 [prepare-1 generate-1*]", 30),
        (13, "Failed generate/1 [prepare-1 generate-1*]", 30),
        (12, "Queued generate/2 [prepare-1]", 0),
        // Counted at once; the pod gets the time that its replacement would get.
        (1, "Running generate/1 [prepare-1 generate-1*]", 60),
        (143, "Running generate/1 [prepare-1 generate-1*]", 60),
    ] {
        let mut sim = generating();
        sim.end_worker(0, code, &because(Reason::InvalidData, "row 7"));
        sim.settle();
        assert!(sim.shown().starts_with(seen), "{code}: {}", sim.shown());
        assert_eq!(sim.status().recovery.failures, u32::from(code == 1), "{code}");
        for (seconds, there) in [(kept - 1, true), (1, false)] {
            if kept > 0 {
                let due = sim.requeue.unwrap();
                sim.advance(seconds);
                assert!(there || due <= sim.world.now, "{code}: nobody looks again");
                sim.settle();
                assert_eq!(sim.shown().contains("generate-1*"), there, "{code}: {}", sim.shown());
            }
        }
    }
    // The Job controller takes notice in between, as it does where no sidecar is.
    let mut sim = generating();
    sim.end_worker(0, 0, &committed(2));
    sim.settle();
    sim.end(0, 0, &committed(2));
    sim.advance(30);
    sim.settle();
    let seen = "Queued finalize/1 [prepare-1 generate-1 finalize-1*]";
    assert!(sim.shown().starts_with(seen), "{}", sim.shown());
    // A gang is done when all of it is.
    let mut sim = Sim::new(&extension_run());
    sim.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
    sim.settle();
    sim.succeed();
    sim.settle();
    sim.start();
    for (index, seen) in [(1, "Running train-0/1"), (0, "Queued export/1")] {
        sim.end_worker(index, 0, &committed(4));
        sim.settle();
        assert!(sim.shown().starts_with(seen), "{}", sim.shown());
    }
}
