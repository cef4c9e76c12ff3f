//! Phase 4: Events for people, written behind the reconciles by one task.
//!
//! Invariant: no decision depends on an Event, none delays anything, and the same one told again is
//! counted up in the Event that is there.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use longstrap_crds::{API_VERSION, Object, Reason};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::Instant};

use super::{
    metrics::Metrics,
    writer::{MANAGER, RequestError, Writer},
};
use crate::plan;

/// Longest message that the API server takes.
const MAX_MESSAGE: usize = 1024;
/// Events that may wait to be written; more are dropped.
const WAITING: usize = 10_000;
/// The same Event is not told again so soon.
const QUIET: Duration = Duration::from_secs(60);
/// The API server forgets an Event after an hour.
const KEPT: Duration = Duration::from_secs(3600);
/// Events that are remembered, to be counted up.
const REMEMBERED: usize = 4096;

/// Takes events down, to be written later.
pub(super) struct Recorder {
    waiting: mpsc::Sender<Event>,
    metrics: Metrics,
}

impl Recorder {
    /// With the end from which [`write`] takes them.
    pub(super) fn new(metrics: Metrics) -> (Self, mpsc::Receiver<Event>) {
        let (waiting, written) = mpsc::channel(WAITING);
        (Self { waiting, metrics }, written)
    }

    /// A plan's events, once its status is written: all but those that tell of Jobs made or deleted.
    pub(super) fn planned(&self, object: &Object, events: &[plan::Event]) {
        self.record(object, events.iter().filter(|event| !is_of_job(event)));
    }

    /// A plan's events about the Jobs that this replica really created or deleted.
    pub(super) fn done(&self, object: &Object, events: &[plan::Event], jobs: &BTreeSet<String>) {
        let done = |event: &&plan::Event| {
            is_of_job(event) && event.message.split(' ').any(|word| jobs.contains(word))
        };
        self.record(object, events.iter().filter(done));
    }

    fn record<'a>(&self, object: &Object, events: impl Iterator<Item = &'a plan::Event>) {
        for event in events {
            self.metrics.event(event.reason.as_str());
            tracing::info!(
                kind = object.kind(),
                namespace = object.namespace(),
                name = object.name(),
                reason = event.reason.as_str(),
                message = event.message,
                "event"
            );
            if self.waiting.try_send(of(object, event, Timestamp::now())).is_err() {
                tracing::warn!("too many Events wait to be written: one is dropped");
            }
        }
    }
}

fn is_of_job(event: &plan::Event) -> bool {
    matches!(event.reason, Reason::JobCreated | Reason::JobDeleted)
}

/// Writes what was recorded, one after the other: a burst of objects needs the API server for its
/// Jobs first.
pub(super) async fn write(mut recorded: mpsc::Receiver<Event>, writer: Writer) {
    let mut told = HashMap::new();
    while let Some(event) = recorded.recv().await {
        if let Err(error) = tell(&writer, &mut told, &event).await {
            tracing::warn!(%error, "an Event could not be written");
        }
    }
}

/// When an Event was last written, and how often.
type Told = HashMap<String, (Instant, i32)>;

async fn tell(writer: &Writer, told: &mut Told, event: &Event) -> Result<(), RequestError> {
    let name = event.metadata.name.clone().unwrap_or_default();
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let before = told.get(&name).filter(|(at, _)| at.elapsed() < KEPT).copied();
    if before.is_some_and(|(at, _)| at.elapsed() < QUIET) {
        return Ok(());
    }
    if told.len() >= REMEMBERED {
        told.clear();
    }
    let again = |count: Option<i32>| {
        let mut patch = json!({"lastTimestamp": event.last_timestamp});
        if let Some(count) = count {
            patch["count"] = json!(count);
        }
        patch
    };
    let mut count = 1;
    if let Some((_, known)) = before {
        count = known.saturating_add(1);
        match writer.merge::<Event>(namespace, &name, &again(Some(count))).await {
            Err(error) if error.is_gone() => count = 1,
            answer => {
                told.insert(name, (Instant::now(), count));
                return answer;
            }
        }
    }
    let answer = match writer.create::<Event>(namespace, &name, event).await {
        // Told by a leader before this one, or by this one an hour ago.
        Err(error) if error.is_conflict() => writer.merge::<Event>(namespace, &name, &again(None)).await,
        answer => answer.map(|_| ()),
    };
    told.insert(name, (Instant::now(), count));
    answer
}

fn of(object: &Object, event: &plan::Event, now: Timestamp) -> Event {
    let uid = object.uid();
    let digest = Sha256::digest(format!("{uid} {} {}", event.reason, event.message));
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let short: String = object.name().chars().take(200).collect();
    let message = event.message.chars().scan(0, |bytes, c| {
        *bytes += c.len_utf8();
        (*bytes <= MAX_MESSAGE).then_some(c)
    });
    let message: String = message.collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{hash}", short.trim_end_matches(['.', '-']))),
            namespace: Some(object.namespace().to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(object.kind().to_owned()),
            name: Some(object.name().to_owned()),
            namespace: Some(object.namespace().to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: object.metadata().resource_version.clone(),
            ..ObjectReference::default()
        },
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.to_string()),
        message: Some(message),
        source: Some(EventSource { component: Some(MANAGER.to_owned()), ..EventSource::default() }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}
