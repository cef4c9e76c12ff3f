//! The whole process: endpoints, a forbidden kind, a panic, the end.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    RUNS, SYNTHESIS, extension_run,
    fake::{Fake, Fault},
    options, synthesis_job,
};
use crate::cluster::{
    Options, ProcessError, conclude, contained,
    queue::{Outcome, Queue, Sizes},
    serve,
    store::{Key, Kind},
};

struct Operator {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ProcessError>>,
}

impl Operator {
    async fn start(fake: &Fake) -> Self {
        Self::with(fake, options()).await
    }

    async fn with(fake: &Fake, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(options, fake.config().await, listener, stop.clone()));
        Self { address, stop, task }
    }

    /// Status code and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn metric(&self, line: &str) -> bool {
        self.get("/metrics").await.1.lines().any(|l| l == line)
    }
}

async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn phase(fake: &Fake, plural: &str) -> Value {
    fake.all(plural)[0]["status"]["phase"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_is_forbidden_stops_no_other() {
    let fake = Fake::new();
    fake.fault("/contextextensionruns?", Some(Fault::Status(403, "runs are forbidden")));
    let mut doc = synthesis_job("docs");
    doc["spec"]["podTemplate"] = json!({"spec": {
        "aFieldOfTheFuture": {"deep": [1]},
        "containers": [{"name": "worker", "env": [{"name": "SALT", "value": "not for everyone"}]}],
    }});
    fake.put(SYNTHESIS, doc);
    fake.put(RUNS, extension_run("llama"));
    let operator = Operator::start(&fake).await;
    until("the SynthesisJob has its Job", async || fake.all("jobs").len() == 1).await;
    // The whole podTemplate has come through; everything was asked for before anything was made.
    assert_eq!(fake.all("jobs")[0]["spec"]["template"]["spec"]["aFieldOfTheFuture"], json!({"deep": [1]}));
    assert_eq!(fake.requests("dryRun=All&fieldManager=longstrap-operator&fieldValidation=Strict"), 3);
    until("the event", async || fake.all("events").len() == 1).await;
    for path in ["/readyz", "/healthz", "/metrics", "/debug/state"] {
        let (code, body) = operator.get(path).await;
        assert_eq!(code, if path == "/readyz" { 503 } else { 200 }, "{path}: {body}");
        assert!(!body.contains("not for everyone"), "{path}");
    }
    assert!(operator.get("/readyz").await.1.contains("contextextensionruns: list: runs are forbidden"));
    assert_eq!(phase(&fake, "contextextensionruns"), Value::Null);

    fake.fault("/contextextensionruns?", None);
    until("the run has its Job, too", async || fake.all("jobs").len() == 2).await;
    until("the Jobs are seen", async || {
        operator.metric(r#"longstrap_objects{kind="ContextExtensionRun",phase="Pending"} 1"#).await
    })
    .await;
    assert_eq!(operator.get("/readyz").await, (200, "ok\n".to_owned()));
    for line in [
        "longstrap_leader 1",
        r#"longstrap_queue_objects{state="failing"} 0"#,
        r#"longstrap_writes_total{verb="create",kind="Job",result="ok"} 2"#,
        r#"longstrap_watch_failures_total{watch="jobs"} 0"#,
        r#"longstrap_events_total{reason="JobCreated"} 2"#,
        r#"longstrap_writes_total{verb="create",kind="Event",result="ok"} 2"#,
        r#"longstrap_queue_objects{state="due"} 0"#,
        r#"longstrap_queue_objects{state="busy"} 0"#,
    ] {
        until(line, async || operator.metric(line).await).await;
    }
    let state: Value = serde_json::from_str(&operator.get("/debug/state").await.1).unwrap();
    assert_eq!(state["leads"], true);
    assert_eq!(state["objects"]["planned"], 2);
    assert_eq!(state["watches"].as_array().unwrap().len(), 4);
    let plan = &state["plans"]["SynthesisJob ml/docs"];
    assert_eq!(
        (&plan["phase"], &plan["step"], &plan["error"]),
        (&json!("Pending"), &json!("prepare"), &Value::Null)
    );

    // Nothing to do: nothing is written.
    let writes = || fake.requests("POST") + fake.requests("PUT") - fake.requests("leases");
    let before = writes();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(writes(), before);

    fake.remove(SYNTHESIS, "ml", "docs");
    until("it is forgotten", async || !operator.get("/debug/state").await.1.contains("ml/docs")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_synthesis_jobs_runs_that_need_none_go_on() {
    let fake = Fake::new();
    fake.fault("/synthesisjobs?", Some(Fault::Status(403, "jobs are forbidden")));
    fake.put(RUNS, extension_run("alone"));
    let mut needs = extension_run("needs");
    needs["spec"]["data"] = json!([{"name": "long", "synthesisJobRef": {"name": "docs"}}]);
    fake.put(RUNS, needs);
    fake.put(SYNTHESIS, synthesis_job("docs"));
    let operator = Operator::start(&fake).await;
    until("the run has its Job", async || fake.all("jobs").len() == 1).await;
    assert!(fake.all("jobs")[0]["metadata"]["name"].as_str().unwrap().contains("-alone-"));
    let waits = |o: &Value| o["metadata"]["name"] == "needs" && o["status"] == Value::Null;
    assert!(fake.all("contextextensionruns").iter().any(waits), "nothing is said of what is not known");
    assert!(operator.get("/readyz").await.1.contains("synthesisjobs: list: jobs are forbidden"));

    fake.fault("/synthesisjobs?", None);
    until("it waits for its data", async || {
        let all = fake.all("contextextensionruns");
        all.iter().any(|o| o["metadata"]["name"] == "needs" && o["status"]["phase"] == "Pending")
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_hears_nothing_for_ten_minutes_is_dead_until_it_does() {
    let fake = Fake::new();
    let operator = Operator::start(&fake).await;
    until("all are listed", async || operator.get("/readyz").await.0 == 200).await;
    assert_eq!(operator.get("/healthz").await.0, 200);
    let later = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    // Neither the watch nor the lists that follow it.
    fake.fault("/pods?", Some(Fault::Silence));
    later(601).await;
    let others = async || !operator.get("/healthz").await.1.contains("jobs");
    until("the other watches have had an answer", others).await;
    let (code, body) = operator.get("/healthz").await;
    assert!(code == 503 && body.contains("no answer for 60") && body.contains(": pods"), "{code}: {body}");
    fake.fault("/pods?", None);
    later(20).await;
    until("it lives", async || operator.get("/healthz").await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_quick_and_frees_the_lease_whatever_hangs() {
    let fake = Fake::new();
    let operator = Operator::start(&fake).await;
    until("it leads", async || operator.metric("longstrap_leader 1").await).await;
    fake.fault("POST /api/v1/namespaces/ml/configmaps", Some(Fault::Silence));
    fake.put(SYNTHESIS, synthesis_job("docs"));
    until("a write hangs", async || fake.requests("configmaps") == 1).await;
    let start = Instant::now();
    operator.stop.cancel();
    operator.task.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(fake.all("leases")[0]["spec"]["holderIdentity"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_namespaces_needs_no_right_beyond_them() {
    let fake = Fake::new();
    let namespaces = vec!["ml".to_owned(), "lab".to_owned()];
    let operator = Operator::with(&fake, Options { namespaces, ..options() }).await;
    until("all are listed", async || operator.get("/readyz").await.0 == 200).await;
    fake.put(SYNTHESIS, synthesis_job("docs"));
    until("it works", async || fake.all("jobs").len() == 1).await;
    assert_eq!(fake.requests(""), fake.requests("/namespaces/"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_the_end_of_one_reconcile_only() {
    let key = Key { kind: Kind::SynthesisJob, namespace: "ml".into(), name: "bad".into() };
    let queue = Queue::default();
    queue.add(key.clone());
    for wait in [0, 500, 1000] {
        let start = tokio::time::Instant::now();
        let taken = queue.next().await;
        assert_eq!(start.elapsed().as_millis(), wait);
        let ended = contained(async { panic!("no {}", "way") }).await;
        let (result, error, outcome) = conclude(ended);
        assert_eq!((result, outcome), ("panic", Outcome::Failed { by: None }));
        assert!(error.is_some_and(|e| e.contains("no way")));
        queue.done(&taken, outcome);
    }
    assert_eq!(queue.sizes(), Sizes { waiting: 1, failing: 1, ..Sizes::default() });
}
