//! What the API tests used and reached, all in all: run after them, on what they left.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, path::PathBuf};

use longstrap_api_tests::{audit, roles::rights};
use longstrap_crds::Reason;

fn log(variable: &str) -> PathBuf {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make test-api`")).into()
}

/// Least privilege: each right of the chart's roles was used, and none was missing.
#[test]
fn the_operator_has_the_rights_that_it_uses() {
    let (mut used, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for entry in audit::entries(&log("LONGSTRAP_AUDIT_LOG")) {
        match entry.allowed {
            true => used.insert(entry.right),
            false => missing.insert(format!("{}: {}", entry.right, entry.uri)),
        };
    }
    let granted = rights();
    let unused: Vec<_> = granted.difference(&used).collect();
    println!("{} rights granted, {} used", granted.len(), used.len());
    assert!(missing.is_empty() && unused.is_empty(), "missing: {missing:?}\nunused: {unused:?}");
}

/// Reasons that only Events have.
const EVENTS_ONLY: [Reason; 6] = [
    Reason::JobCreated,
    Reason::JobDeleted,
    Reason::NodeAvoided,
    Reason::StepComplete,
    Reason::PodFailed,
    Reason::RestartRequested,
];

/// Each reason that a condition can have was one's.
#[test]
fn every_reason_of_a_condition_was_reached() {
    let text = std::fs::read_to_string(log("LONGSTRAP_REASONS_LOG")).unwrap();
    let seen: BTreeSet<&str> = text.lines().collect();
    let wanted = Reason::ALL.iter().filter(|r| !EVENTS_ONLY.contains(r));
    let never: Vec<_> = wanted.filter(|r| !seen.contains(r.as_str())).collect();
    assert!(never.is_empty(), "never reached: {never:?}");
}
