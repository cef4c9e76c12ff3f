//! The size of a status.
//!
//! Invariant: at most 16 KiB whatever happened: words go first, then telemetry, then what only saves
//! work; what decisions need always fits, by the bounds of the schema (a test fills them).

use longstrap_crds::{CommonStatus, status::RecoveryStatus};

use super::ObjectStatus;

/// Most bytes of a status as JSON.
pub(super) const MAX_STATUS: usize = 16 << 10;

/// Shortens a status until it fits.
pub(super) fn fit(status: &mut ObjectStatus) {
    let shorten: [fn(&mut ObjectStatus); 9] = [
        |s| cut_words(common(s), 1024),
        |s| cut_words(common(s), 256),
        |s| common(s).progress.iter_mut().for_each(|p| p.dropped.clear()),
        |s| common(s).progress = None,
        |s| common(s).recovery.node_failures.clear(),
        |s| halve(&mut common(s).recovery),
        |s| common(s).recovery.avoided_nodes.clear(),
        drop_stages,
        |s| cut_words(common(s), 32),
    ];
    for step in shorten {
        if size(status) <= MAX_STATUS {
            return;
        }
        step(status);
    }
}

fn common(status: &mut ObjectStatus) -> &mut CommonStatus {
    match status {
        ObjectStatus::SynthesisJob(status) => &mut status.common,
        ObjectStatus::ContextExtensionRun(status) => &mut status.common,
    }
}

/// Bytes as JSON.
pub(super) fn size(status: &ObjectStatus) -> usize {
    let json = match status {
        ObjectStatus::SynthesisJob(status) => serde_json::to_vec(status),
        ObjectStatus::ContextExtensionRun(status) => serde_json::to_vec(status),
    };
    json.map_or(0, |json| json.len())
}

fn cut_words(status: &mut CommonStatus, most: usize) {
    let of_conditions = status.conditions.iter_mut().map(|c| &mut c.message);
    for text in of_conditions.chain(&mut status.message) {
        cut(text, most);
    }
}

/// Cuts a text to `most` bytes of JSON, in which a character can take six.
fn cut(text: &mut String, most: usize) {
    let mut bytes = 0;
    let end = text.char_indices().find(|(_, c)| {
        bytes += match c {
            '"' | '\\' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        bytes > most
    });
    if let Some((end, _)) = end {
        text.truncate(end);
    }
}

/// Forgets the older half of the avoided nodes.
fn halve(recovery: &mut RecoveryStatus) {
    let half = recovery.avoided_nodes.len() / 2;
    recovery.avoided_nodes.drain(..half);
}

fn drop_stages(status: &mut ObjectStatus) {
    if let ObjectStatus::ContextExtensionRun(status) = status {
        (status.stages, status.checkpoint) = (Vec::new(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longstrap_crds::ConditionType;
    use serde_json::{Value, json};

    /// `n` items, each different.
    fn list(n: usize, item: impl Fn(usize) -> Value) -> Vec<Value> {
        (0..n).map(item).collect()
    }

    /// A text of exactly `n` characters that begins with `i`.
    fn text(i: usize, n: usize) -> String {
        format!("{i:x<n$}")
    }

    /// Everything that a status can hold, each field as long as the schema allows.
    fn full(conditions: &[ConditionType], counted: usize, model: bool) -> ObjectStatus {
        let (time, most) = ("2026-01-01T00:00:00Z", 1_000_000_000_u64);
        let longest = longstrap_crds::Reason::ALL.iter().map(|r| r.as_str()).max_by_key(|r| r.len());
        let mut status = json!({
            "phase": "Complete", "message": text(0, 4096), "observedGeneration": i64::MAX, "step": "train-15",
            "attempt": most, "image": text(0, 512),
            "imageFromSpec": true, "startTime": time, "completionTime": time,
            "conditions": conditions.iter().map(|t| json!({
                "type": t.as_str(), "status": "False", "reason": longest, "message": "\u{1}".repeat(4096),
                "observedGeneration": i64::MAX, "lastTransitionTime": time,
            })).collect::<Vec<_>>(),
            "progress": {
                "step": "train-15", "stage": text(0, 63), "percent": 100, "samples": most, "optimizerStep": most,
                "of": most, "loss": text(0, 32), "tokensPerSecond": most, "remaining": text(0, 32), "time": time,
                "dropped": list(32, |i| json!({"reason": text(i, 63), "count": most})),
            },
            "usage": {"acceleratorSeconds": u64::MAX, "lostAcceleratorSeconds": u64::MAX, "queuedSeconds": u64::MAX},
            "recovery": {
                "failures": most, "outages": most, "lastCommitted": most, "podSeconds": most,
                "countedPods": list(counted, |i| json!(text(i, 36))), "nextAttemptTime": time,
                "restartedAt": text(0, 64),
                "countedUntil": time, "checkpointBytes": i64::MAX,
                "nodeFailures": list(16, |i| json!({"name": text(i, 253), "count": 1})),
                "avoidedNodes": list(16, |i| json!({"name": text(i, 253), "reason": text(i, 128)})),
            },
            "gangGeneration": most,
            "data": list(16, |i| json!({"name": text(i, 63), "uri": text(i, 540), "digest": text(i, 71)})),
            "checkpoint": {"stage": text(0, 63), "step": most, "uri": text(0, 640), "time": time},
            "stages": list(16, |i| json!({"name": text(i, 63), "phase": "Complete", "step": "train-15"})),
        });
        if model {
            status["model"] = json!({"uri": text(0, 640)});
        }
        ObjectStatus::ContextExtensionRun(serde_json::from_value(status).unwrap())
    }

    #[test]
    fn the_fullest_status_fits_and_keeps_what_decides() {
        use ConditionType::*;
        for (conditions, counted, model) in [
            (&[DataReady, Queued, PodsScheduled, CheckpointAvailable, UpToDate][..], 64, false),
            (&[DataReady, PodsScheduled, Running, CheckpointAvailable, UpToDate], 64, false),
            (&[Ready, Stalled, Failed, DataReady, CheckpointAvailable], 64, false),
            (&[Ready, Complete, DataReady, CheckpointAvailable], 0, true),
        ] {
            let before = full(conditions, counted, model);
            assert!(size(&before) > 2 * MAX_STATUS, "not full");
            let mut after = before.clone();
            fit(&mut after);
            assert!(size(&after) <= MAX_STATUS, "{conditions:?}: {} bytes", size(&after));
            let (ObjectStatus::ContextExtensionRun(before), ObjectStatus::ContextExtensionRun(kept)) =
                (before, &after)
            else {
                panic!()
            };
            assert_eq!((&kept.data, &kept.model), (&before.data, &before.model));
            assert_eq!(kept.common.recovery.counted_pods, before.common.recovery.counted_pods);
            let mut again = after.clone();
            fit(&mut again);
            assert_eq!(again, after);
        }
    }

    #[test]
    fn a_status_is_not_shortened_without_need() {
        let mut small = full(&[ConditionType::Ready], 3, false);
        if let ObjectStatus::ContextExtensionRun(status) = &mut small {
            status.data.clear();
            status.common.recovery.avoided_nodes.truncate(4);
            status.common.recovery.node_failures.clear();
            status.common.conditions[0].message = "short".to_owned();
        }
        let before = small.clone();
        let fits = size(&before) <= MAX_STATUS;
        fit(&mut small);
        assert!(fits && small == before, "{}", size(&before));
    }

    #[test]
    fn texts_are_cut_by_their_bytes_in_json() {
        for (given, most, kept) in
            [("abc", 3, "abc"), ("abcd", 3, "abc"), ("äbc", 3, "äb"), ("\u{1}bc", 6, "\u{1}"), ("\"b", 1, "")]
        {
            let mut text = given.to_owned();
            cut(&mut text, most);
            assert_eq!(text, kept);
        }
    }
}
