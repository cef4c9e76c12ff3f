//! /healthz, /readyz, /metrics, /debug/state.
//!
//! Invariant: ready means that every watch has had its first list; alive means that every watch had
//! an answer within the last minutes. Neither depends on who leads.

use std::{fmt::Write as _, sync::Arc};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};

use super::{Shared, metrics::gauge, options::WATCH_DEAD};

/// The routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/state", get(state))
        .with_state(shared)
}

fn verdict(bad: Vec<String>) -> (StatusCode, String) {
    match bad.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, bad.join("\n") + "\n"),
    }
}

async fn alive(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let silent = shared.watches.iter().filter(|w| w.age() > WATCH_DEAD);
    verdict(silent.map(|w| format!("no answer for {}s: {}", w.age().as_secs(), w.name())).collect())
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let unsynced = shared.watches.iter().filter(|w| !w.synced());
    verdict(unsynced.map(|w| format!("not listed yet: {}", w.name())).collect())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> String {
    let mut text = shared.reconciler.metrics.render();
    let leads = f64::from(u8::from(shared.reconciler.writer.leads()));
    gauge(&mut text, "longstrap_leader", [(String::new(), leads)]);
    let (waiting, busy, failing) = shared.queue.sizes();
    let count = |n: usize| n as f64;
    gauge(
        &mut text,
        "longstrap_queue_objects",
        [("waiting", waiting), ("busy", busy), ("failing", failing)]
            .map(|(state, n)| (format!(r#"state="{state}""#), count(n))),
    );
    gauge(
        &mut text,
        "longstrap_watch_age_seconds",
        shared.watches.iter().map(|w| (format!(r#"watch="{}""#, w.name()), w.age().as_secs_f64())),
    );
    gauge(
        &mut text,
        "longstrap_objects",
        shared
            .phases()
            .into_iter()
            .map(|((kind, phase), n)| (format!(r#"kind="{kind}",phase="{phase}""#), count(n))),
    );
    let _ = writeln!(text);
    text
}

async fn state(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let (waiting, busy, failing) = shared.queue.sizes();
    let stores = &shared.reconciler.stores;
    let watches: Vec<Value> = shared
        .watches
        .iter()
        .map(|w| json!({"watch": w.name(), "synced": w.synced(), "ageSeconds": w.age().as_secs(), "error": w.error()}))
        .collect();
    Json(json!({
        "leads": shared.reconciler.writer.leads(),
        "watches": watches,
        "queue": {"waiting": waiting, "busy": busy, "failing": failing},
        "objects": {
            "synthesisJobs": stores.synthesis.len(),
            "contextExtensionRuns": stores.runs.len(),
            "jobs": stores.jobs.len(),
            "pods": stores.pods.len(),
        },
    }))
}
