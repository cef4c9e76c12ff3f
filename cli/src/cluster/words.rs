//! What a status says, in words that all commands share.
//!
//! Invariant: a function of object and time alone; a time in the future is now.

use jiff::Timestamp;
use longstrap_crds::status::ProgressStatus;
use longstrap_crds::{CommonStatus, ConditionType, Object, Phase, Reason};

use crate::text;

/// Progress older than this is told with its age.
const FRESH_SECONDS: i64 = 60;

/// `3m 12s ago`; nothing for an unknown time.
pub(crate) fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{} ago", text::duration(seconds(time, now))))
}

/// Seconds from `time` to `now`, at least 0: clocks differ.
pub(crate) fn seconds(time: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(time).as_secs_f64().max(0.0)
}

/// `SynthesisJob ml/docs`.
pub(crate) fn described(object: &Object) -> String {
    format!("{} {}/{}", object.kind(), object.namespace(), object.name())
}

/// The phase; before the first status nobody has looked at the object.
pub(crate) fn phase(object: &Object) -> &'static str {
    object.phase().map_or("New", Phase::as_str)
}

/// Why the object is in its phase: reason, message.
pub(crate) fn cause(status: &CommonStatus) -> Option<(Option<Reason>, String)> {
    let explains = [
        (ConditionType::Failed, "True"),
        (ConditionType::Stalled, "True"),
        (ConditionType::DataReady, "False"),
        (ConditionType::Queued, "True"),
        (ConditionType::Running, "True"),
        (ConditionType::Suspended, "True"),
        (ConditionType::Complete, "True"),
    ];
    let condition = explains.iter().find_map(|(type_, value)| {
        status.conditions.iter().find(|c| c.type_ == type_.as_str() && c.status == *value)
    })?;
    Some((condition.reason.parse().ok(), condition.message.clone()))
}

/// Why the object is in its phase: `Reason: message`.
pub(crate) fn cause_words(object: &Object) -> String {
    match (cause(&object.status()), object.phase()) {
        (Some((Some(reason), message)), _) if message.is_empty() => reason.description().to_owned(),
        (Some((Some(reason), message)), _) => format!("{reason}: {message}"),
        (Some((None, message)), _) => message,
        (None, None) => {
            "no operator has looked at it yet; is one installed, and does it watch this namespace?".to_owned()
        }
        (None, Some(_)) => String::new(),
    }
}

/// How far the running step is: `41 %, 451 of 1,100 samples, 8,100 tokens/s, 3h12m left`.
pub(crate) fn progress(progress: &ProgressStatus, now: Timestamp) -> String {
    let mut parts = Vec::new();
    if let Some(percent) = progress.percent {
        parts.push(format!("{percent} %"));
    }
    if let Some(stage) = &progress.stage {
        parts.push(format!("stage {stage}"));
    }
    let of = progress.of.map(|of| format!(" of {}", text::count(of))).unwrap_or_default();
    if let Some(step) = progress.optimizer_step {
        parts.push(format!("step {}{of}", text::count(step)));
    } else if let Some(samples) = progress.samples {
        parts.push(format!("{}{of} samples", text::count(samples)));
    }
    if let Some(loss) = &progress.loss {
        parts.push(format!("loss {loss}"));
    }
    if let Some(rate) = progress.tokens_per_second {
        parts.push(format!("{} tokens/s", text::count(rate)));
    }
    if let Some(remaining) = &progress.remaining {
        parts.push(format!("{remaining} left"));
    }
    if !progress.dropped.is_empty() {
        let each = progress.dropped.iter().map(|d| format!("{} {}", text::count(d.count), d.reason));
        parts.push(format!("dropped: {}", each.collect::<Vec<_>>().join(" ")));
    }
    let old = progress.time.as_ref().map(|time| seconds(time.0, now)).filter(|s| *s > FRESH_SECONDS as f64);
    if let (Some(age), false) = (old, parts.is_empty()) {
        parts.push(format!("as of {} ago", text::duration(age)));
    }
    parts.join(", ")
}

/// What the current step tells of itself, while pods of it run.
pub(crate) fn moves(object: &Object) -> Option<ProgressStatus> {
    let status = object.status();
    let waits = |type_: ConditionType, value: &str| {
        status.conditions.iter().any(|c| c.type_ == type_.as_str() && c.status == value)
    };
    let runs = match status.phase? {
        Phase::Running => true,
        // While inputs are prepared.
        Phase::Pending => !waits(ConditionType::Queued, "True") && !waits(ConditionType::DataReady, "False"),
        _ => false,
    };
    status.progress.filter(|progress| runs && Some(&progress.step) == status.step.as_ref())
}

/// One line for somebody who waits: phase, step, progress, or why nothing moves.
pub(crate) fn line(object: &Object, now: Timestamp) -> String {
    let status = object.status();
    let step = status.step.clone().unwrap_or_default();
    let told = moves(object).map(|p| progress(&p, now)).filter(|told| !told.is_empty());
    let rest = told.unwrap_or_else(|| cause_words(object));
    let mut line = phase(object).to_owned();
    for part in [step, rest] {
        if !part.is_empty() {
            line += &format!(" · {part}");
        }
    }
    line
}

/// What the object has produced, in words with the place.
pub(crate) fn product(object: &Object) -> Option<String> {
    match object {
        Object::SynthesisJob(job) => {
            let set = job.status.as_ref()?.dataset.as_ref()?;
            let (rows, tokens) = (text::count(set.rows), text::count(set.tokens));
            Some(format!("dataset of {rows} samples, {tokens} tokens: {}", set.uri))
        }
        Object::ContextExtensionRun(run) => {
            let model = run.status.as_ref()?.model.as_ref()?;
            let window = run.spec.stages.last().map_or(0, |stage| stage.context_length.get());
            Some(format!("model with a window of {}: {}", text::count(window), model.uri))
        }
    }
}

/// What has to happen for an object that does not move by itself.
pub(crate) fn goes_on(object: &Object) -> Option<String> {
    match object.phase()? {
        Phase::Blocked | Phase::Queued | Phase::Pending => {
            let (reason, _) = cause(&object.status())?;
            // What follows the phase in the table of reasons.
            let effect = reason?.effect().description();
            effect.split_once("; ").map(|(_, then)| then.to_owned())
        }
        Phase::Failed => Some("`longstrap retry` makes it again; it goes on from its storage".to_owned()),
        Phase::Suspended => Some("goes on with `longstrap resume`".to_owned()),
        Phase::Complete | Phase::Running => None,
    }
}

#[cfg(test)]
mod tests {
    use super::line;
    use crate::cluster::tests::{condition, job};
    use serde_json::json;

    #[test]
    fn a_line_tells_progress_while_pods_run_and_else_why_not() {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let progress = json!({
            "step": "prepare", "percent": 41, "samples": 451, "of": 1100, "tokensPerSecond": 8100,
            "remaining": "3h12m", "dropped": [{"reason": "TooShort", "count": 3}], "time": "2026-01-01T00:59:30Z",
        });
        let told = "41 %, 451 of 1,100 samples, 8,100 tokens/s, 3h12m left, dropped: 3 TooShort";
        let mut old = progress.clone();
        old["time"] = json!("2026-01-01T00:50:00Z");
        let queued = condition("Queued", "True", "Unschedulable", "0/3 nodes");
        let awaited = condition("DataReady", "False", "SynthesisNotFound", "there is no docs");
        for (status, wanted) in [
            (
                json!({"phase": "Pending", "step": "prepare", "progress": progress}),
                format!("Pending · prepare · {told}"),
            ),
            (
                json!({"phase": "Running", "step": "prepare", "progress": old}),
                format!("Running · prepare · {told}, as of 10m 00s ago"),
            ),
            // Of a step that is over.
            (
                json!({"phase": "Running", "step": "generate", "progress": progress}),
                "Running · generate".to_owned(),
            ),
            (
                json!({"phase": "Pending", "step": "prepare", "progress": progress, "conditions": [queued]}),
                "Pending · prepare · Unschedulable: 0/3 nodes".to_owned(),
            ),
            (
                json!({"phase": "Pending", "step": "prepare", "progress": progress, "conditions": [awaited]}),
                "Pending · prepare · SynthesisNotFound: there is no docs".to_owned(),
            ),
        ] {
            assert_eq!(line(&job(status), now), wanted);
        }
        assert!(line(&job(json!({})), now).starts_with("New · no operator has looked at it yet"));
    }
}
