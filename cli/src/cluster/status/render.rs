//! An object, its steps and its children as text.
//!
//! Invariant: a function of what was read and the time; nothing is asked here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::DynamicObject;
use longstrap_crds::names::{LABEL_ATTEMPT, LABEL_STEP};
use longstrap_crds::status::{StagePhase, UsageStatus};
use longstrap_crds::{ContextExtensionRun, Object, Phase, Step};

use super::Line;
use crate::cluster::children::{Children, EventView, PodView};
use crate::cluster::target::Kind;
use crate::cluster::words;
use crate::text;

/// Newest Events that are shown.
const EVENTS: usize = 5;

/// What is shown.
pub(super) struct View<'a> {
    pub(super) object: &'a Object,
    /// Or why they are not known.
    pub(super) children: Result<&'a Children, String>,
    pub(super) now: Timestamp,
    /// Pods and Events too.
    pub(super) wide: bool,
}

/// One object in full.
pub(super) fn object(view: &View<'_>) -> String {
    let object = view.object;
    let mut parts = vec![
        format!("{}: {}", words::described(object), words::phase(object)),
        text::table(&facts(view)),
        text::table(&steps(view)),
    ];
    if let Object::ContextExtensionRun(run) = object {
        parts.push(text::table(&stages(run)));
    }
    parts.push(text::table(&conditions(view)));
    match &view.children {
        Ok(children) => {
            parts.push(text::table(&jobs(children, view.now)));
            if view.wide {
                parts.push(text::table(&pods(&children.pods, view.now)));
                parts.push(text::table(&events(&children.events, view.now)));
            }
        }
        Err(why) => parts.push(format!("children: {why}")),
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn facts(view: &View<'_>) -> Vec<Vec<String>> {
    let (object, now) = (view.object, view.now);
    let status = object.status();
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("why", words::cause_words(object));
    row("then", words::goes_on(object).unwrap_or_default());
    if let Some(time) = &status.recovery.next_attempt_time {
        let wait = -now.duration_since(time.0).as_secs_f64();
        row("next attempt", if wait > 0.0 { format!("in {}", text::duration(wait)) } else { "due".into() });
    }
    row("result", words::product(object).unwrap_or_default());
    let attempt = status.attempt.unwrap_or(1);
    let (failures, limit) = (status.recovery.failures, object.common().backoff_limit);
    let counted = match failures {
        0 => String::new(),
        1 => format!(", 1 failure without progress ({limit} are allowed)"),
        n => format!(", {n} failures without progress ({limit} are allowed)"),
    };
    row("attempt", format!("{attempt}{counted}"));
    row("last failure", last_failure(view).unwrap_or_default());
    row("goes on from", goes_on_from(object, now).unwrap_or_default());
    for node in &status.recovery.avoided_nodes {
        row("avoids", format!("node {}: {}", node.name, node.reason));
    }
    row("storage", object.common().storage.uri.clone());
    if let Some(start) = &status.start_time {
        let took = status.completion_time.as_ref().map(|end| words::seconds(start.0, end.0));
        let took = took.map(|s| format!(", took {}", text::duration(s))).unwrap_or_default();
        row("started", format!("{}{took}", words::ago(Some(start.0), now)));
    }
    row("cost", usage(&status.usage));
    if view.wide {
        row("image", status.image.clone().unwrap_or_default());
        row("uid", object.uid().to_owned());
    }
    let metadata = object.metadata();
    if metadata.generation > status.observed_generation && status.observed_generation.is_some() {
        row("note", "the newest edit has not been looked at yet".to_owned());
    }
    if metadata.deletion_timestamp.is_some() {
        row("note", "it is being deleted".to_owned());
    }
    rows
}

/// What a next attempt does not do again.
fn goes_on_from(object: &Object, now: Timestamp) -> Option<String> {
    if let Object::ContextExtensionRun(run) = object
        && let Some(checkpoint) = run.status.as_ref().and_then(|status| status.checkpoint.as_ref())
    {
        let age = words::ago(Some(checkpoint.time.0), now);
        let step = text::count(checkpoint.step);
        return Some(format!("step {step} in stage {}, {age}: {}", checkpoint.stage, checkpoint.uri));
    }
    let done = object.status().recovery.last_committed;
    let what = match object {
        Object::SynthesisJob(_) => "committed shards or steps",
        Object::ContextExtensionRun(_) => "committed checkpoints or steps",
    };
    (done > 0).then(|| format!("{} {what}", text::count(done)))
}

/// `accelerators 12h 05m (5m 00s of it lost), in queues 3m 00s`.
fn usage(usage: &UsageStatus) -> String {
    let time = |seconds: u64| text::duration(seconds as f64);
    let mut parts = Vec::new();
    if usage.accelerator_seconds > 0 {
        let lost = usage.lost_accelerator_seconds;
        let lost = if lost > 0 { format!(" ({} of it lost)", time(lost)) } else { String::new() };
        parts.push(format!("accelerators {}{lost}", time(usage.accelerator_seconds)));
    }
    if usage.queued_seconds > 0 {
        parts.push(format!("in queues {}", time(usage.queued_seconds)));
    }
    parts.join(", ")
}

/// The pod that failed last, or what an Event remembers of it.
fn last_failure(view: &View<'_>) -> Option<String> {
    let children = view.children.as_ref().ok()?;
    let failed = children.pods.iter().filter(|p| p.end.as_ref().is_some_and(|e| e.code != 0));
    let pod = failed.max_by_key(|p| p.end.as_ref().and_then(|e| e.at));
    if let Some((pod, told)) = pod.and_then(|pod| Some((pod, pod.ended()?))) {
        let at = pod.end.as_ref().and_then(|e| e.at);
        return Some(format!("{}, pod {}: {told}", words::ago(at, view.now), pod.name));
    }
    let event = children.events.iter().find(|e| e.warning)?;
    Some(format!("{}, {}: {}", words::ago(event.at, view.now), event.reason, event.message))
}

fn header(names: &[&str]) -> Vec<Vec<String>> {
    vec![names.iter().map(|name| (*name).to_owned()).collect()]
}

/// A table without rows is not shown.
fn unless_empty(rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    if rows.len() > 1 { rows } else { Vec::new() }
}

fn steps(view: &View<'_>) -> Vec<Vec<String>> {
    let status = view.object.status();
    let current: Option<Step> = status.step.as_deref().and_then(|s| s.parse().ok());
    let mut steps = match view.object {
        Object::SynthesisJob(_) => vec![Step::Prepare, Step::Generate, Step::Finalize],
        Object::ContextExtensionRun(run) => {
            let stages = run.status.iter().flat_map(|status| &status.stages);
            let trained = stages.filter_map(|stage| stage.step.parse().ok());
            [Step::Prepare, Step::Train(0), Step::Export].into_iter().chain(trained).collect()
        }
    };
    let seen = view.children.iter().flat_map(|c| &c.jobs).filter_map(step).chain(current);
    seen.for_each(|step| steps.push(step));
    steps.sort();
    steps.dedup();
    let mut rows = header(&["STEP", "STATE", "PROGRESS"]);
    for step in steps {
        let done = view.object.phase() == Some(Phase::Complete) || current.is_some_and(|c| step < c);
        let here = current == Some(step);
        let state = match (done, here) {
            (true, _) => "done",
            (_, true) => words::phase(view.object),
            _ => "-",
        };
        let progress = status.progress.as_ref().filter(|p| here && !done && p.step == step.to_string());
        let told = progress.map(|p| words::progress(p, view.now)).unwrap_or_default();
        rows.push(vec![step.to_string(), state.to_owned(), told]);
    }
    rows
}

fn stages(run: &ContextExtensionRun) -> Vec<Vec<String>> {
    let status = run.status.clone().unwrap_or_default();
    let mut rows = header(&["STAGE", "WINDOW", "STEPS", "STATE"]);
    for stage in &run.spec.stages {
        let phase = status.stages.iter().find(|known| known.name == stage.name).map(|known| known.phase);
        let here = status.common.progress.as_ref().filter(|p| p.stage.as_ref() == Some(&stage.name));
        let state = match (phase, here.and_then(|p| p.optimizer_step)) {
            (Some(StagePhase::Complete), _) => "done".to_owned(),
            (Some(StagePhase::Running), Some(steps)) => format!("{} steps done", text::count(steps)),
            (Some(StagePhase::Running), None) => "in its Job".to_owned(),
            _ => "-".to_owned(),
        };
        let window = text::count(stage.context_length.get());
        rows.push(vec![stage.name.clone(), window, text::count(stage.steps), state]);
    }
    rows
}

fn conditions(view: &View<'_>) -> Vec<Vec<String>> {
    let mut rows = header(&["CONDITION", "IS", "SINCE", "REASON", "IN WORDS"]);
    for condition in &view.object.status().conditions {
        let since = text::duration(words::seconds(condition.last_transition_time.0, view.now));
        let is = match condition.status.as_str() {
            "True" => "yes",
            "False" => "no",
            _ => "unknown",
        };
        let reason = condition.reason.parse::<longstrap_crds::Reason>().ok();
        let told = match (condition.message.as_str(), reason) {
            ("", Some(reason)) => reason.description(),
            (message, _) => message,
        };
        // The cause stands above in full: here it would push the table off the screen.
        let short = told.lines().next().unwrap_or_default();
        let short: String = short.chars().take(100).collect();
        let cut = if short.len() < told.len() { "…" } else { "" };
        rows.push(vec![
            condition.type_.clone(),
            is.to_owned(),
            since,
            condition.reason.clone(),
            format!("{short}{cut}"),
        ]);
    }
    unless_empty(rows)
}

fn step(job: &Job) -> Option<Step> {
    job.labels().get(LABEL_STEP)?.parse().ok()
}

fn jobs(children: &Children, now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = header(&["JOB", "ATTEMPT", "STATE", "PODS", "AGE"]);
    for job in &children.jobs {
        let name = job.name_any();
        let attempt = job.labels().get(LABEL_ATTEMPT).cloned().unwrap_or_default();
        let at = (step(job), attempt.parse().unwrap_or(0));
        let pods = children.pods.iter().filter(|pod| (pod.step, pod.attempt) == at);
        let age = job.creation_timestamp().map(|t| text::duration(words::seconds(t.0, now)));
        rows.push(vec![name, attempt, job_state(job), pod_counts(pods), age.unwrap_or_default()]);
    }
    unless_empty(rows)
}

fn job_state(job: &Job) -> String {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    let has = |types: [&str; 2]| {
        conditions.into_iter().flatten().any(|c| c.status == "True" && types.contains(&c.type_.as_str()))
    };
    let suspended = job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false);
    let state = if job.metadata.deletion_timestamp.is_some() {
        "being deleted"
    } else if has(["Complete", "SuccessCriteriaMet"]) {
        "complete"
    } else if has(["Failed", "FailureTarget"]) {
        "failed"
    } else if suspended {
        "in its queue"
    } else {
        "active"
    };
    state.to_owned()
}

/// `2 running, 1 failed`.
fn pod_counts<'a>(pods: impl Iterator<Item = &'a PodView>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for pod in pods {
        *counts.entry(&pod.phase).or_default() += 1;
    }
    let order = ["Running", "Pending", "Succeeded", "Failed", "Unknown"];
    let told = order.iter().filter_map(|phase| {
        let count = counts.get(phase)?;
        Some(format!("{count} {}", phase.to_lowercase()))
    });
    let told = told.collect::<Vec<_>>().join(", ");
    if told.is_empty() { "none".to_owned() } else { told }
}

fn pods(pods: &[PodView], now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = header(&["POD", "STATE", "NODE", "AGE", "END"]);
    for pod in pods {
        let age = pod.created.map(|t| text::duration(words::seconds(t, now))).unwrap_or_default();
        let end = pod.ended().or_else(|| pod.waiting.clone()).unwrap_or_default();
        let node = pod.node.clone().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![pod.name.clone(), pod.phase.to_lowercase(), node, age, end]);
    }
    unless_empty(rows)
}

fn events(events: &[EventView], now: Timestamp) -> Vec<Vec<String>> {
    let mut rows = header(&["EVENT", "SINCE", "IN WORDS"]);
    for event in events.iter().take(EVENTS) {
        let since = event.at.map(|t| text::duration(words::seconds(t, now))).unwrap_or_default();
        rows.push(vec![event.reason.clone(), since, event.message.clone()]);
    }
    unless_empty(rows)
}

/// Many objects, one line each; below them why one cannot be read.
pub(super) fn list(lines: &[Line], namespaces: bool, wide: bool, now: Timestamp) -> String {
    let mut columns = vec!["OBJECT", "PHASE", "STEP", "PROGRESS", "TOKENS/S", "REMAINING", "AGE"];
    if namespaces {
        columns.insert(0, "NAMESPACE");
    }
    if wide {
        columns.extend(["ATTEMPT", "WHY"]);
    }
    let (mut rows, mut unread) = (header(&columns), Vec::new());
    for line in lines {
        let (namespace, mut row, more) = match line {
            Line::Object(object) => (object.namespace(), listed(object, now), more(object)),
            Line::Unread { kind, raw, why } => {
                unread.push(format!("{why}; a newer longstrap can read it"));
                let namespace = raw.metadata.namespace.as_deref().unwrap_or_default();
                (
                    namespace,
                    unreadable(*kind, raw, now),
                    ["-".to_owned(), "not readable, see below".to_owned()],
                )
            }
        };
        if namespaces {
            row.insert(0, namespace.to_owned());
        }
        if wide {
            row.extend(more);
        }
        rows.push(row);
    }
    let mut parts = vec![text::table(&rows)];
    if !unread.is_empty() {
        parts.push(unread.join("\n"));
    }
    parts.join("\n\n")
}

/// The columns that are always shown.
fn listed(object: &Object, now: Timestamp) -> Vec<String> {
    let status = object.status();
    let progress = words::moves(object);
    let progress = progress.as_ref();
    let stage = progress.and_then(|p| p.stage.as_ref()).map(|stage| format!(" ({stage})"));
    let step = status.step.as_ref().map(|step| format!("{step}{}", stage.unwrap_or_default()));
    let created = object.metadata().creation_timestamp.as_ref().map(|t| t.0);
    vec![
        format!("{}/{}", object.kind(), object.name()),
        words::phase(object).to_owned(),
        dash(step),
        dash(progress.and_then(|p| p.percent).map(|percent| format!("{percent} %"))),
        dash(progress.and_then(|p| p.tokens_per_second).map(text::count)),
        dash(progress.and_then(|p| p.remaining.clone())),
        age(created, now),
    ]
}

/// The columns of a wide list.
fn more(object: &Object) -> [String; 2] {
    [dash(object.status().attempt.map(|n| n.to_string())), words::cause_words(object)]
}

/// The columns that need no understanding.
fn unreadable(kind: Kind, raw: &DynamicObject, now: Timestamp) -> Vec<String> {
    let phase = raw.data["status"]["phase"].as_str().map(str::to_owned);
    let mut row = vec![format!("{}/{}", kind.as_str(), raw.name_any()), dash(phase)];
    row.extend([None, None, None, None].map(dash));
    row.push(age(raw.creation_timestamp().map(|t| t.0), now));
    row
}

fn dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    dash(created.map(|t| text::duration(words::seconds(t, now))))
}
