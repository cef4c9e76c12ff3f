//! Phase 5: Events for people, after everything else has been written.
//!
//! Invariant: no decision depends on an Event, and one that cannot be written delays nothing.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use longstrap_crds::{API_VERSION, Object, Reason};
use sha2::{Digest, Sha256};

use super::{
    apply::Applied,
    metrics::Metrics,
    writer::{MANAGER, Writer},
};
use crate::plan;

/// Longest message that the API server takes.
const MAX_MESSAGE: usize = 1024;

/// Writes a plan's events: of Jobs only those that this replica really created or deleted.
pub(super) async fn record(
    writer: &Writer,
    metrics: &Metrics,
    object: &Object,
    events: &[plan::Event],
    applied: &Applied,
) {
    let really = |event: &&plan::Event| {
        let of_job = matches!(event.reason, Reason::JobCreated | Reason::JobDeleted);
        !of_job || event.message.split(' ').any(|word| applied.jobs.contains(word))
    };
    for event in events.iter().filter(really) {
        metrics.event(event.reason.as_str());
        tracing::info!(
            kind = object.kind(),
            namespace = object.namespace(),
            name = object.name(),
            reason = event.reason.as_str(),
            message = event.message,
            "event"
        );
        if let Err(error) = writer.create(&of(object, event, Timestamp::now())).await {
            tracing::warn!(%error, "an Event could not be written");
        }
    }
}

fn of(object: &Object, event: &plan::Event, now: Timestamp) -> Event {
    let (uid, version) = (object.uid(), object.metadata().resource_version.as_deref().unwrap_or_default());
    let digest = Sha256::digest(format!("{uid} {version} {} {}", event.reason, event.message));
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
