//! Who leads: takeover, release, a leader that was asleep.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use longstrap_api_tests::{End, Sandbox, synthesis_job};
use nix::sys::signal::Signal;

async fn holder(s: &Sandbox) -> Option<String> {
    let lease = s.api::<Lease>().get_opt("longstrap-operator").await.unwrap()?;
    lease.spec?.holder_identity.filter(|h| !h.is_empty())
}

async fn led_by(s: &Sandbox, identity: &str) -> Duration {
    let start = Instant::now();
    s.until(identity, async || {
        let holder = holder(s).await;
        if holder.as_deref() == Some(identity) { Ok(()) } else { Err(holder) }
    })
    .await;
    start.elapsed()
}

#[tokio::test]
async fn another_replica_takes_over() {
    let s = Sandbox::new("takeover").await;
    let a = s.operator("a");
    led_by(&s, "a").await;
    let mut b = s.operator("b");
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Killed: the lease has to run out.
    drop(a);
    let took = led_by(&s, "b").await;
    assert!(took <= Duration::from_secs(10), "{took:?}");
    s.create(&synthesis_job("docs")).await;
    s.start_pods(1).await;

    // Asked to end: it gives the lease back.
    let _a = s.operator("a");
    tokio::time::sleep(Duration::from_secs(2)).await;
    b.signal(Signal::SIGTERM);
    let start = Instant::now();
    led_by(&s, "a").await;
    assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
    // It waits a moment for reconciles in flight at most.
    while b.ended().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(b.ended().is_some_and(|status| status.success()));
    s.end_pods(&End::committed()).await;
    s.start_pods(2).await;
}

#[tokio::test]
async fn a_leader_that_slept_writes_nothing_when_it_wakes() {
    let s = Sandbox::new("asleep").await;
    let a = s.operator("a");
    led_by(&s, "a").await;
    let b = s.operator("b");
    for (asleep, awake) in [(&a, "b"), (&b, "a"), (&a, "b")] {
        asleep.signal(Signal::SIGSTOP);
        led_by(&s, awake).await;
        s.create(&synthesis_job(&format!("for-{awake}-{}", s.jobs().await.len()))).await;
        let settled = async || {
            let objects = s.objects("SynthesisJob").list(&ListParams::default()).await.unwrap().items;
            let jobs = s.jobs().await;
            (objects, jobs)
        };
        s.until("a Job for each", async || {
            let (objects, jobs) = settled().await;
            let all =
                objects.len() == jobs.len() && objects.iter().all(|o| o.data["status"]["phase"] == "Pending");
            if all { Ok(()) } else { Err(jobs.len()) }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = settled().await;
        asleep.signal(Signal::SIGCONT);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(before == settled().await, "something differs");
        assert_eq!(holder(&s).await.as_deref(), Some(awake));
    }
}
