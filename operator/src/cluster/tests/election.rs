//! Elections in virtual time: who leads when, whatever requests do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::fake::{Fake, Fault};
use crate::cluster::{fence::Fence, lease::Election, metrics::Metrics};

/// A replica in the election.
struct Replica {
    fence: Fence,
    /// How often it was told that it was elected.
    elected: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn replica(fake: &Fake, identity: &str) -> Replica {
    let (fence, stop) = (Fence::default(), CancellationToken::new());
    let lease = ("longstrap", "operator");
    let election = Election::new(fake.client(), lease, identity, fence.clone(), Metrics::default());
    let elected = Arc::new(AtomicUsize::new(0));
    let count = elected.clone();
    let told = move || {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let task = tokio::spawn(election.run(stop.clone(), told));
    Replica { fence, elected, stop, task }
}

impl Replica {
    fn leads(&self) -> bool {
        self.fence.check().is_ok()
    }
}

/// Looks at both all the time: never may both lead.
async fn until(replicas: [&Replica; 2], limit: Duration, wanted: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !wanted() {
        assert!(replicas.iter().filter(|r| r.leads()).count() < 2, "two leaders");
        assert!(start.elapsed() <= limit, "not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test(start_paused = true)]
async fn a_killed_leader_is_followed_within_its_lease_and_one_look() {
    let fake = Fake::new();
    let a = replica(&fake, "a");
    tokio::time::sleep(SOON).await;
    let b = replica(&fake, "b");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(a.leads() && !b.leads(), "the lease is renewed");
    a.task.abort();
    until([&a, &b], Duration::from_millis(7500), || b.leads()).await;
    assert_eq!(fake.all("leases")[0]["spec"]["leaseTransitions"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_is_followed_at_once() {
    let fake = Fake::new();
    let (a, b) = (replica(&fake, "a"), replica(&fake, "b"));
    until([&a, &b], SOON, || a.leads() || b.leads()).await;
    let (leader, other) = if a.leads() { (a, b) } else { (b, a) };
    leader.stop.cancel();
    until([&leader, &other], SOON, || other.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let fake = Fake::new();
    let a = replica(&fake, "a");
    until([&a, &a], SOON, || a.leads()).await;
    let b = replica(&fake, "b");
    // Nobody gets an answer for a while: the fence falls, and falls before anybody may take over.
    fake.fault("leases", Some(Fault::Silence));
    until([&a, &b], Duration::from_secs(5), || !a.leads()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!a.leads() && !b.leads());
    fake.fault("leases", None);
    until([&a, &b], Duration::from_secs(3), || a.leads()).await;
    // Only the renewals get lost: reading goes on, and somebody leads again afterwards.
    fake.fault("PUT", Some(Fault::Silence));
    until([&a, &b], Duration::from_secs(5), || !a.leads()).await;
    fake.fault("PUT", None);
    until([&a, &b], Duration::from_secs(10), || a.leads() || b.leads()).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_makes_no_two_leaders() {
    let fake = Fake::new();
    let (a, b) = (replica(&fake, "a"), replica(&fake, "b"));
    for late in [0, 700, 1400, 1600, 300] {
        fake.fault("leases", Some(Fault::Late(Duration::from_millis(late))));
        let end = Instant::now() + Duration::from_secs(60);
        until([&a, &b], Duration::from_secs(61), || Instant::now() >= end).await;
        assert_eq!(a.leads() || b.leads(), late < 1500, "{late} ms");
    }
}

// What was being worked on when the fence fell is put down until the next term: each has to be told,
// also when the fence falls while a renewal is under way that then succeeds.
#[tokio::test(start_paused = true)]
async fn each_term_is_told_once() {
    for silence in (1000..6000).step_by(100) {
        let fake = Fake::new();
        let a = replica(&fake, "a");
        let mut terms = Vec::new();
        let mut look = async |time: u64| {
            for _ in 0..time / 10 {
                terms.extend(a.fence.check().ok().filter(|term| terms.last() != Some(term)));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        look(4000).await;
        fake.fault("leases", Some(Fault::Silence));
        look(silence).await;
        fake.fault("leases", Some(Fault::Late(Duration::from_millis(700))));
        look(10_000).await;
        assert_eq!(a.elected.load(Ordering::Relaxed), terms.len(), "after {silence} ms of silence");
    }
}
