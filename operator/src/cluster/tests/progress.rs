//! The poller against real gRPC servers.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use longstrap_crds::task::Ports;
use longstrap_proto::v1alpha1::{
    ProgressReport, ProgressRequest,
    progress_server::{Progress, ProgressServer},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::{fake::Fake, reconciler, synthesis_job};
use crate::cluster::{
    Shared,
    progress::{Budget, round},
    queue::Queue,
    store::{Key, Kind},
};

struct Pod(ProgressReport);

#[tonic::async_trait]
impl Progress for Pod {
    async fn get(&self, _: Request<ProgressRequest>) -> Result<Response<ProgressReport>, Status> {
        Ok(Response::new(self.0.clone()))
    }
}

/// An address of this machine that no other test has.
fn address(pod: u8) -> IpAddr {
    let [.., a, b] = std::process::id().to_be_bytes();
    format!("127.{}.{b}.{pod}", 64 | (a & 63)).parse().unwrap()
}

async fn serve(pod: u8, port: u16, uid: &str, done: f64) -> u16 {
    let listener = TcpListener::bind((address(pod), port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let report = ProgressReport {
        run_uid: uid.into(),
        step: "generate".into(),
        done,
        total: 100.0,
        count: 7,
        of: 20,
        ..ProgressReport::default()
    };
    let server = Server::builder().add_service(ProgressServer::new(Pod(report)));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    port
}

fn job(step: &str, attempt: u32) -> Value {
    let mut doc = synthesis_job("docs");
    doc["metadata"]["resourceVersion"] = json!("1");
    doc["status"] = json!({"phase": "Running", "step": step, "attempt": attempt});
    doc
}

fn pod(number: u8, attempt: &str, index: u32) -> k8s_openapi::api::core::v1::Pod {
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "ml", "name": format!("p-{number}"), "uid": format!("p-{number}"),
            "labels": {"longstrap.io/owner-uid": "uid-of-docs", "longstrap.io/step": "generate", "longstrap.io/attempt": attempt},
            "annotations": {"batch.kubernetes.io/job-completion-index": index.to_string()},
        },
        "status": {"phase": "Running", "podIP": address(number)},
    }))
    .unwrap()
}

fn shared(port: u16) -> Shared {
    let (mut reconciler, metrics) = reconciler(&Fake::new());
    reconciler.config.ports = Ports { progress: port, ..Ports::default() };
    Shared {
        reconciler,
        queue: Queue::default(),
        watches: Vec::new(),
        metrics,
        started: Timestamp::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn pods_of_live_runs_are_asked_and_their_numbers_go_with_them() {
    let port = serve(1, 0, "uid-of-docs", 30.0).await;
    serve(2, port, "uid-of-docs", 40.0).await;
    serve(3, port, "of-another-run", 90.0).await;
    // A pod that takes the connection and says nothing.
    let _mute = TcpListener::bind((address(4), port)).await.unwrap();
    serve(5, port, "uid-of-docs", 95.0).await;
    let shared = shared(port);
    let stores = &shared.reconciler.stores;
    stores.synthesis.apply(serde_json::from_value(job("generate", 2)).unwrap());
    for (number, attempt) in [(1, "2"), (2, "2"), (3, "2"), (4, "2"), (5, "1")] {
        stores.pods.apply(pod(number, attempt, u32::from(number)));
    }
    let budget = Budget::default();
    let start = Instant::now();
    round(&shared, &budget).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let key = Key { kind: Kind::SynthesisJob, namespace: "ml".into(), name: "docs".into() };
    let live = &shared.reconciler.live;
    let told = live.of(&key, "uid-of-docs").unwrap();
    assert_eq!((told.percent, told.samples, told.of), (Some(40), Some(7), Some(20)));
    assert_eq!(live.of(&key, "uid-of-its-successor"), None);
    assert_eq!(shared.queue.next().await, key, "its status may have to be written");
    let metrics = || live.render(stores);
    let line =
        r#"longstrap_run_progress_ratio{namespace="ml",name="docs",kind="SynthesisJob",step="generate"} 0.4"#;
    assert!(metrics().lines().any(|l| l == line), "{}", metrics());
    let polls = shared.metrics.render();
    for line in [r#"longstrap_polls_total{result="ok"} 2"#, r#"longstrap_polls_total{result="error"} 2"#] {
        assert!(polls.lines().any(|l| l == line), "{polls}");
    }

    // No pod of the new step runs.
    let mut next = job("finalize", 2);
    next["metadata"]["resourceVersion"] = json!("2");
    stores.synthesis.apply(serde_json::from_value(next).unwrap());
    round(&shared, &budget).await;
    assert_eq!((live.of(&key, "uid-of-docs"), metrics().as_str()), (None, ""));

    // The object goes: so do its numbers, before the next round.
    let mut back = job("generate", 2);
    back["metadata"]["resourceVersion"] = json!("3");
    stores.synthesis.apply(serde_json::from_value(back.clone()).unwrap());
    round(&shared, &budget).await;
    assert!(metrics().contains("longstrap_run_progress_ratio"));
    stores.synthesis.delete(&serde_json::from_value(back.clone()).unwrap());
    assert_eq!(metrics(), "");

    // One of another controller: its pods are not ours to ask.
    back["spec"]["managedBy"] = json!("example.com/other");
    back["metadata"]["resourceVersion"] = json!("4");
    stores.synthesis.apply(serde_json::from_value(back).unwrap());
    let polls = shared.metrics.render();
    round(&shared, &budget).await;
    assert_eq!(shared.metrics.render(), polls);
}

#[tokio::test(start_paused = true)]
async fn questions_keep_to_their_budget() {
    let budget = Budget::default();
    let start = tokio::time::Instant::now();
    futures::future::join_all((0..101).map(|_| budget.turn())).await;
    assert_eq!(start.elapsed(), Duration::from_secs(2), "50 a second");
    tokio::time::sleep(Duration::from_secs(9)).await;
    let start = tokio::time::Instant::now();
    budget.turn().await;
    assert_eq!(start.elapsed(), Duration::ZERO, "what was not asked is not saved up, nor owed");
}
