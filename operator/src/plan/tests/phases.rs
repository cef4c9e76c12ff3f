//! Both kinds in every phase, as the planner writes them, kept as a file: tools outside Rust
//! (kstatus in tests/gitops) read from it what users see. `UPDATE_GOLDEN=1` writes it again.

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/tests/phases.json");

type Way = fn(&mut Sim);

/// The world, from creation on, that ends in each phase; Pending once more while the present spec could
/// not be planned.
const WAYS: [(Phase, Way); 8] = [
    (Phase::Pending, |_| {}),
    (Phase::Pending, |sim| {
        let message = "etcdserver: request timed out".to_owned();
        sim.world.obstacles = vec![Obstacle { reason: Reason::DryRunUnanswered, message }];
    }),
    (Phase::Queued, prepared),
    (Phase::Running, |sim| {
        prepared(sim);
        sim.start();
    }),
    (Phase::Suspended, |sim| {
        prepared(sim);
        sim.edit(|o| o.common_mut().suspend = true);
    }),
    (Phase::Blocked, |sim| {
        sim.start();
        sim.end(0, 10, &because(Reason::InvalidModel, "config.json: no rope_theta"));
    }),
    (Phase::Complete, |sim| {
        for _ in 0..3 {
            sim.succeed();
            sim.settle();
        }
    }),
    (Phase::Failed, |sim| {
        prepared(sim);
        for _ in 0..3 {
            sim.start();
            sim.end(0, 1, &TerminationMessage::default());
            sim.settle();
            sim.advance(900);
        }
    }),
];

fn prepared(sim: &mut Sim) {
    sim.succeed();
    sim.settle();
}

#[test]
fn both_kinds_in_every_phase() {
    let mut objects = Vec::new();
    for (phase, way) in WAYS {
        for manifest in [synthesis_job(), extension_run()] {
            let mut sim = Sim::new(&manifest);
            sim.world.synthesis.insert("docs".into(), other_job(Some(Phase::Complete)));
            sim.settle();
            way(&mut sim);
            sim.settle();
            assert_eq!(sim.status().phase, Some(phase), "{}", sim.shown());
            objects.push(sim.world.object.to_json().unwrap());
        }
    }
    let text = format!("{}\n", serde_json::to_string_pretty(&objects).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    assert!(
        std::fs::read_to_string(FILE).is_ok_and(|kept| kept == text),
        "{FILE} is not what the planner writes: look at the difference, then UPDATE_GOLDEN=1"
    );
}
