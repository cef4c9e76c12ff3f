//! How the operator does with many objects, as lines `figure NAME VALUE`:
//! `operator_figures [OBJECTS [IDLE_SECONDS [STEADY_SECONDS [BURST]]]]`; 10,000, 300, 60 and 1,000 new
//! objects at once by default.
//!
//! The control plane is real and shares the machine; what is compared with a plain client is measured
//! in the same run.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use futures::{StreamExt, pin_mut, stream};
use k8s_openapi::{api::batch::v1::Job, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{WatchEvent, WatchParams},
};
use longstrap_api_tests::{
    ControlPlane, Process, Sandbox,
    audit::{self, Entry},
    http::{self, free_port},
    scale::{IN_FLIGHT, Maker, manifest},
};
use longstrap_crds::names::LABEL_OWNER;

/// Objects that the operator works on at once: as many as the plain client.
const WORKERS: usize = IN_FLIGHT;
/// New objects per second in the steady state.
const PER_SECOND: u32 = 10;

fn figure(name: &str, value: f64, digits: usize) {
    println!("figure {name} {value:.digits$}");
}

/// What the operator asked for in a span of time.
fn asked(from: Timestamp, to: Timestamp) -> Vec<Entry> {
    audit::entries(ControlPlane::shared().audit_log()).filter(|e| from <= e.time && e.time <= to).collect()
}

/// Starts an operator, and waits until it has planned each object once.
async fn sync(s: &Sandbox, count: usize) -> (Process, Duration) {
    let port = free_port();
    let start = Instant::now();
    let listen = format!("--listen=127.0.0.1:{port}");
    let operator = s.operator_at("a", s.server(), &[&listen, &format!("--workers={WORKERS}")]);
    let give_up = start + Duration::from_secs(600);
    loop {
        let state = http::state(port).await.unwrap_or_default();
        let planned = state["objects"]["planned"].as_u64().unwrap_or(0);
        if planned >= count as u64 {
            return (operator, start.elapsed());
        }
        assert!(Instant::now() < give_up, "{planned} of {count} objects are planned: {state}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The most memory that a process had, in MiB.
fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// CPU time of a process so far, in all its threads.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name in parentheses, which may contain anything; proc(5), in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

async fn idle(seconds: u64) {
    // What is left to write about objects that were just planned belongs to the start.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let from = Timestamp::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let asked = asked(from, Timestamp::now());
    let writes: Vec<_> = asked.iter().filter(|e| e.is_write()).collect();
    if let Some(first) = writes.first() {
        println!("written while idle: {} {}", first.right, first.uri);
    }
    let reads = asked.iter().filter(|e| e.is_read()).count();
    figure("operator_idle_writes", writes.len() as f64, 0);
    figure("operator_idle_reads_per_s", reads as f64 / seconds as f64, 3);
}

/// Writes per second of a plain client that does what an operator would, for objects that no operator
/// looks at. It makes the objects, too: those of the burst are also made while the operator writes, and
/// on neither side are these writes counted.
async fn raw_rate(count: usize) -> f64 {
    let s = Sandbox::new("raw").await;
    let maker = Maker::new(&s).await;
    let start = Instant::now();
    let make = async |i| {
        let object = maker.create(&manifest(&format!("raw-{i}"), i)).await;
        maker.as_an_operator_would(object).await
    };
    let made = stream::iter(0..count).map(make).buffer_unordered(IN_FLIGHT);
    let writes: usize = made.fold(0, async |sum, writes| sum + writes).await;
    writes as f64 / start.elapsed().as_secs_f64()
}

/// Many new objects at once: from the operator's first write for them to its last.
async fn burst(s: &Sandbox, count: usize, operator: u32) {
    let raw = raw_rate(count).await;
    let maker = Maker::new(s).await;
    let before = s.jobs().await.len();
    let (from, cpu) = (Timestamp::now(), cpu_seconds(operator));
    let create = async |i| drop(maker.create(&manifest(&format!("new-{i}"), i)).await);
    stream::iter(0..count).for_each_concurrent(IN_FLIGHT, create).await;
    s.until("a Job for each", async || {
        let jobs = s.jobs().await.len();
        if jobs == before + count { Ok(()) } else { Err(jobs) }
    })
    .await;
    let asked = asked(from, Timestamp::now());
    let counted = asked.iter().filter(|e| e.is_write() && !e.right.ends_with("events"));
    let mut times: Vec<Timestamp> = counted.map(|e| e.time).collect();
    times.sort();
    let rate = times.len() as f64 / times[times.len() - 1].duration_since(times[0]).as_secs_f64();
    let mut by_right = BTreeMap::<&str, usize>::new();
    asked.iter().for_each(|e| *by_right.entry(&e.right).or_default() += 1);
    println!("{} writes for {count} objects at {rate:.0}/s; a plain client: {raw:.0}/s", times.len());
    println!("asked for meanwhile: {by_right:?}; {:.1} s of CPU", cpu_seconds(operator) - cpu);
    figure("operator_burst_efficiency", rate / raw, 2);
}

/// New objects at a steady pace: from the call that creates one to its Job.
async fn steady(s: &Sandbox, seconds: u64) {
    let maker = Maker::new(s).await;
    let count = usize::try_from(seconds).unwrap() * PER_SECOND as usize;
    let jobs = s.api::<Job>();
    let newest = jobs.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
    let watch = async {
        let events = jobs.watch(&WatchParams::default(), &newest).await.unwrap();
        pin_mut!(events);
        let mut seen = HashMap::new();
        while seen.len() < count {
            if let Some(Ok(WatchEvent::Added(job))) = events.next().await {
                seen.insert(job.labels()[LABEL_OWNER].clone(), Instant::now());
            }
        }
        seen
    };
    let pace = Duration::from_secs(1) / PER_SECOND;
    let begin = Instant::now();
    // Each at its time, however long another one takes.
    let create = stream::iter(0..count).map(async |i| {
        tokio::time::sleep_until((begin + pace * u32::try_from(i).unwrap()).into()).await;
        let start = Instant::now();
        let uid = maker.create(&manifest(&format!("steady-{i}"), i)).await.uid().to_owned();
        (uid, start)
    });
    let create = create.buffer_unordered(count).collect::<Vec<_>>();
    let (seen, created) = tokio::join!(watch, create);
    let latency = |(uid, start): &(String, Instant)| seen[uid].duration_since(*start).as_secs_f64() * 1000.0;
    let mut latencies: Vec<f64> = created.iter().map(latency).collect();
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share).round() as usize];
    println!("creation to Job in ms: median {:.0}, p90 {:.0}, worst {:.0}", at(0.5), at(0.9), at(1.0));
    figure("operator_latency_p99_ms", at(0.99), 0);
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u64>().unwrap());
    let mut next = |default| arguments.next().unwrap_or(default);
    let (count, idle_seconds, steady_seconds, at_once) = (next(10_000), next(300), next(60), next(1000));
    let count = usize::try_from(count).unwrap();
    let s = Sandbox::new("figures").await;
    let start = Instant::now();
    Maker::new(&s).await.old_cluster(count).await;
    println!("{count} objects, made in {:.0} s", start.elapsed().as_secs_f64());
    let (operator, took) = sync(&s, count).await;
    let many = if count.is_multiple_of(1000) { format!("{}k", count / 1000) } else { count.to_string() };
    figure(&format!("operator_{many}_sync_seconds"), took.as_secs_f64(), 1);
    figure(&format!("operator_{many}_rss_mib"), peak_mib(operator.id()), 0);
    idle(idle_seconds).await;
    burst(&s, usize::try_from(at_once).unwrap(), operator.id()).await;
    steady(&s, steady_seconds).await;
}
