//! The API server is away, hangs, or forbids: what works goes on, and the operator tells what does not.

use std::time::{Duration, Instant};

use longstrap_api_tests::{
    End, RUN, SYNTH, Sandbox, Seen, Verdict,
    http::{self, free_port},
    synthesis_job,
};

/// `LONGSTRAP_OUTAGE_SECONDS`, or a minute.
fn outage() -> Duration {
    Duration::from_secs(std::env::var("LONGSTRAP_OUTAGE_SECONDS").map_or(60, |s| s.parse().unwrap()))
}

/// A run that needs no SynthesisJob.
fn run_of_its_own(name: &str) -> serde_json::Value {
    let mut run = longstrap_api_tests::extension_run(name, "docs");
    run["spec"]["data"].as_array_mut().unwrap().remove(0);
    run
}

#[tokio::test]
async fn the_api_server_is_away_for_a_minute() {
    let s = Sandbox::new("away").await;
    let proxy = s.proxy(|_| Verdict::Pass).await;
    let mut operator = s.operator_at("a", &proxy.url(), &[]);
    s.create(&synthesis_job("docs")).await;
    s.start_pods(1).await;
    proxy.cut();
    // The world goes on without it.
    s.end_pods(&End::committed()).await;
    s.create(&synthesis_job("late")).await;
    tokio::time::sleep(outage()).await;
    assert!(operator.ended().is_none(), "the process has ended");
    assert_eq!(s.status(SYNTH, "docs").await["step"], "prepare");
    proxy.mend().await;
    let back = Instant::now();
    s.start_pods(3).await;
    println!("at work {:?} after the API server was back", back.elapsed());
    s.phase(SYNTH, "docs", "Running").await;
}

type Rule = fn(&Seen) -> Verdict;

/// What fails, and whether ContextExtensionRuns go on all the same.
const ROWS: [(&str, Rule, bool); 4] = [
    (
        "a kind hangs",
        |seen| if seen.is_about("contextextensionruns") { Verdict::Silence } else { Verdict::Pass },
        false,
    ),
    (
        "a kind is forbidden",
        |seen| if seen.is_about("contextextensionruns") { Verdict::Forbid } else { Verdict::Pass },
        false,
    ),
    (
        "a watch hangs",
        |seen| {
            if seen.is_about("pods") && seen.path.contains("watch=") {
                Verdict::Silence
            } else {
                Verdict::Pass
            }
        },
        true,
    ),
    (
        "Events are forbidden",
        |seen| if seen.is_about("events") { Verdict::Forbid } else { Verdict::Pass },
        true,
    ),
];

#[tokio::test]
async fn one_kind_fails_and_the_others_go_on() {
    futures::future::join_all(ROWS.map(async |(what, rule, runs_go_on)| {
        let s = Sandbox::new("partly").await;
        let proxy = s.proxy(rule).await;
        let port = free_port();
        let _operator = s.operator_at("a", &proxy.url(), &[&format!("--listen=127.0.0.1:{port}")]);
        s.create(&synthesis_job("docs")).await;
        s.create(&run_of_its_own("run")).await;
        let jobs = if runs_go_on { 2 } else { 1 };
        s.start_pods(jobs).await;
        s.end_pods(&End::committed()).await;
        s.until("the next steps", async || {
            let steps =
                [s.status(SYNTH, "docs").await["step"].clone(), s.status(RUN, "run").await["step"].clone()];
            match (steps[0] == "generate", steps[1] == "train-0") {
                (true, run) if run == runs_go_on => Ok(()),
                _ => Err(steps),
            }
        })
        .await;
        if runs_go_on {
            return;
        }
        let (code, text) = http::get(port, "/readyz").await;
        assert!(code == 503 && text.contains("contextextensionruns"), "{what}: {code} {text}");
        s.until("the failure is told", async || {
            let state = http::state(port).await.unwrap_or_default();
            let told = state["watches"].as_array().into_iter().flatten().find(|w| {
                w["watch"].as_str().is_some_and(|n| n.starts_with("contextextensionruns"))
                    && w["error"].is_string()
            });
            told.map(|_| ()).ok_or(state)
        })
        .await;
        // Mended: nothing has to be started again.
        proxy.rule(|_| Verdict::Pass);
        s.start_pods(3).await;
        s.until("ready", async || match http::get(port, "/readyz").await {
            (200, _) => Ok(()),
            other => Err(other),
        })
        .await;
    }))
    .await;
}
