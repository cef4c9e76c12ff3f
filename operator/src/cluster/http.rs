//! /healthz, /readyz, /metrics, /debug/state.
//!
//! Invariant: ready means that every watch has had its first list; alive means that every watch had
//! an answer within the last minutes. Neither depends on who leads. Nothing here holds a secret.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};

use super::{
    Shared,
    metrics::{gauge, resident_bytes, series},
    options::WATCH_DEAD,
};

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
    let silent = shared.watches.iter().filter(|w| w.silence() > WATCH_DEAD);
    verdict(silent.map(|w| format!("no answer for {}s: {}", w.silence().as_secs(), w.name())).collect())
}

async fn ready(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let unsynced = shared.watches.iter().filter(|w| !w.synced());
    let why = |error: Option<String>| error.map(|e| format!(": {e}")).unwrap_or_default();
    verdict(unsynced.map(|w| format!("not listed yet: {}{}", w.name(), why(w.error()))).collect())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> String {
    let mut text = shared.metrics.render();
    let count = |n: usize| n as f64;
    let version = format!(r#"version="{}""#, env!("CARGO_PKG_VERSION"));
    gauge(&mut text, "longstrap_build_info", [(version, 1.0)]);
    let leads = f64::from(u8::from(shared.reconciler.writer.term().is_some()));
    gauge(&mut text, "longstrap_leader", [(String::new(), leads)]);
    let sizes = shared.queue.sizes();
    gauge(
        &mut text,
        "longstrap_queue_objects",
        [("waiting", sizes.waiting), ("due", sizes.due), ("busy", sizes.busy), ("failing", sizes.failing)]
            .map(|(state, n)| (format!(r#"state="{state}""#), count(n))),
    );
    let watches = || shared.watches.iter().map(|w| (format!(r#"watch="{}""#, w.name()), w));
    let ages = watches().map(|(label, w)| (label, w.age().as_secs_f64()));
    gauge(&mut text, "longstrap_watch_age_seconds", ages);
    let failures = watches().map(|(label, w)| (label, w.failures() as f64));
    series(&mut text, "longstrap_watch_failures_total", "counter", failures);
    let unreadable = watches().map(|(label, w)| (label, w.unreadable().len() as f64));
    gauge(&mut text, "longstrap_unreadable_objects", unreadable);
    gauge(
        &mut text,
        "longstrap_objects",
        shared
            .phases()
            .into_iter()
            .map(|((kind, phase), n)| (format!(r#"kind="{kind}",phase="{phase}""#), count(n))),
    );
    text += &shared.reconciler.live.render(&shared.reconciler.stores);
    if let Some(bytes) = resident_bytes() {
        gauge(&mut text, "process_resident_memory_bytes", [(String::new(), bytes)]);
    }
    let started = shared.started.as_second() as f64;
    gauge(&mut text, "process_start_time_seconds", [(String::new(), started)]);
    text
}

async fn state(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let stores = &shared.reconciler.stores;
    let watches: Vec<Value> = shared
        .watches
        .iter()
        .map(|w| json!({"watch": w.name(), "synced": w.synced(), "ageSeconds": w.age().as_secs(), "error": w.error(), "unreadable": w.unreadable()}))
        .collect();
    Json(json!({
        "leads": shared.reconciler.writer.term().is_some(),
        "watches": watches,
        "queue": shared.queue.sizes(),
        "objects": {
            "synthesisJobs": stores.synthesis.len(),
            "contextExtensionRuns": stores.runs.len(),
            "jobs": stores.jobs.len(),
            "pods": stores.pods.len(),
            "planned": shared.reconciler.journal.len(),
        },
        "plans": shared.reconciler.journal.all(),
    }))
}
