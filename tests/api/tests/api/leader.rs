//! Who leads: takeover, release, a leader that was asleep.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use longstrap_api_tests::{
    End, Process, Proxy, Sandbox, Seen, Verdict,
    http::{self, free_port},
    roles::LEASE,
    seed::{Random, seed},
    synthesis_job,
};
use nix::sys::signal::Signal;

async fn holder(s: &Sandbox) -> Option<String> {
    let lease = s.api::<Lease>().get_opt(LEASE).await.unwrap()?;
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

/// An operator that has begun to look at the Lease.
async fn standby(s: &Sandbox, identity: &str) -> Process {
    let port = free_port();
    let operator = s.operator_at(identity, s.server(), &[&format!("--listen=127.0.0.1:{port}")]);
    s.until("ready", async || match http::get(port, "/readyz").await {
        (200, _) => Ok(()),
        other => Err(other),
    })
    .await;
    operator
}

#[tokio::test]
async fn another_replica_takes_over() {
    let s = Sandbox::new("takeover").await;
    let a = standby(&s, "a").await;
    led_by(&s, "a").await;
    let mut b = standby(&s, "b").await;
    // Killed: the lease has to run out.
    drop(a);
    let took = led_by(&s, "b").await;
    println!("takeover from a killed leader: {took:?}");
    assert!(took <= Duration::from_secs(10), "{took:?}");
    s.create(&synthesis_job("docs")).await;
    s.start_pods(1).await;

    // Asked to end: it gives the lease back, and is gone.
    let _a = standby(&s, "a").await;
    b.signal(Signal::SIGTERM);
    let start = Instant::now();
    while b.ended().is_none() {
        assert!(start.elapsed() <= Duration::from_secs(1), "it still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ended = start.elapsed();
    assert!(b.ended().is_some_and(|status| status.success()));
    led_by(&s, "a").await;
    println!("ended after SIGTERM: {ended:?}; the next leader after {:?}", start.elapsed());
    // A server that does not answer in time gets nothing back: then the lease has to run out.
    let given_back = std::fs::read_to_string(s.log("b")).unwrap().contains("the lease is given back");
    let limit = Duration::from_secs(if given_back { 3 } else { 10 });
    assert!(start.elapsed() <= limit, "given back: {given_back}; {:?}", start.elapsed());
    s.end_pods(&End::committed()).await;
    s.start_pods(2).await;
}

/// An operator, and what it asked for through its proxy.
struct Replica {
    process: Process,
    asked: Arc<Mutex<Vec<Seen>>>,
    _proxy: Proxy,
}

impl Replica {
    async fn start(s: &Sandbox, identity: &str) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let rule = move |seen: &Seen| {
            log.lock().unwrap().push(seen.clone());
            Verdict::Pass
        };
        let proxy = s.proxy(rule).await;
        let process = s.operator_at(identity, &proxy.url(), &[]);
        Self { process, asked, _proxy: proxy }
    }

    fn asked(&self) -> Vec<Seen> {
        self.asked.lock().unwrap().clone()
    }
}

/// What the operators own of a namespace: identity and version of each status, and each child.
async fn owned(s: &Sandbox) -> Vec<String> {
    let mut all = Vec::new();
    for o in s.objects("SynthesisJob").list(&Default::default()).await.unwrap().items {
        all.push(format!("{:?} {}", o.metadata.uid, o.data["status"]));
    }
    all.extend(s.jobs().await.iter().map(|j| format!("{:?} {:?}", j.metadata.uid, j.spec)));
    all
}

async fn leaders_that_sleep(name: &str, times: usize, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let s = Sandbox::new(name).await;
    let replicas = [Replica::start(&s, "a").await, Replica::start(&s, "b").await];
    let mut late = 0;
    for n in 0..times {
        s.until("a leader", async || holder(&s).await.ok_or(())).await;
        let leader = usize::from(holder(&s).await.as_deref() == Some("b"));
        let asleep = &replicas[leader];
        // In the midst of its work, wherever that is.
        s.create(&synthesis_job(&format!("docs-{n}"))).await;
        tokio::time::sleep(Duration::from_millis(random.below(250))).await;
        asleep.process.signal(Signal::SIGSTOP);
        led_by(&s, ["b", "a"][leader]).await;
        s.until("a Job for each", async || {
            let objects = s.objects("SynthesisJob").list(&Default::default()).await.unwrap().items;
            let jobs = s.jobs().await.len();
            let told = objects.iter().all(|o| o.data["status"]["phase"] == "Pending");
            if told && objects.len() == jobs { Ok(()) } else { Err(jobs) }
        })
        .await;
        s.settled().await;
        let (before, asked) = (owned(&s).await, asleep.asked().len());
        asleep.process.signal(Signal::SIGCONT);
        // It has noticed when it has read who holds the lease.
        s.until("it has looked at the lease", async || {
            let asked = asleep.asked().split_off(asked);
            let looked = asked.iter().any(|seen| seen.method == "GET" && seen.is_about("leases"));
            if looked { Ok(()) } else { Err(asked) }
        })
        .await;
        s.settled().await;
        late += asleep.asked().split_off(asked).iter().filter(|seen| seen.is_write()).count();
        assert!(before == owned(&s).await, "seed {seed}, {n}: something differs");
    }
    late
}

#[tokio::test]
async fn a_leader_that_slept_changes_nothing_when_it_wakes() {
    let seed = seed();
    let runs = (0..5).map(|i| leaders_that_sleep("asleep", 10, seed + i));
    let late: usize = join_all(runs).await.into_iter().sum();
    println!("seed {seed}: 50 leaders slept, {late} writes of theirs came late");
    assert!(late <= 2, "{late} writes came late: only those on their way may");
}
