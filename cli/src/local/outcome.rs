//! Where a set of objects stands: whether the executor goes on, and its exit code when it ends.
//!
//! Pure: it reads statuses. A cause that mends itself on a cluster (an endpoint that comes back, a
//! bucket that somebody creates) ends a local run, because a person waits for it.

use longstrap_crds::reason::Effect;
use longstrap_crds::{ConditionType, Object, Phase, Reason};

/// Where one object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Something runs or will run by itself.
    Working,
    /// The result is there.
    Complete,
    /// `spec.suspend`.
    Suspended,
    /// It waits for the data of another object.
    Waiting(String),
    /// Something outside stayed away.
    Outage(String),
    /// A person must mend something.
    Blocked(String),
    /// It will not go on.
    Failed(String),
}

/// How a local run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Everything is complete (or suspended).
    Complete,
    /// Something outside stayed away.
    Outage,
    /// A person must mend something.
    Blocked,
    /// An object failed.
    Failed,
}

impl Outcome {
    /// The exit code of `longstrap local run`.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Failed => 1,
            Self::Blocked => 2,
            Self::Outage => 3,
        }
    }
}

/// Reads an object's status. `idle`: it has no living pod.
pub(crate) fn standing(object: &Object, idle: bool) -> Standing {
    let status = object.status();
    let explained = |reason: Option<Reason>| {
        let message = status.message.clone().unwrap_or_default();
        match reason {
            Some(reason) if !message.starts_with(reason.as_str()) => format!("{reason}: {message}"),
            _ => message,
        }
    };
    let reason = |condition: ConditionType| {
        let of_type = status.conditions.iter().find(|c| c.type_ == condition.as_str())?;
        of_type.reason.parse::<Reason>().ok()
    };
    let outage = status.conditions.iter().find_map(|condition| {
        let reason = condition.reason.parse::<Reason>().ok()?;
        (reason.effect() == Effect::Outage).then(|| format!("{reason}: {}", cause(&condition.message)))
    });
    match status.phase {
        Some(Phase::Complete) => Standing::Complete,
        Some(Phase::Failed) => Standing::Failed(explained(reason(ConditionType::Failed))),
        Some(Phase::Blocked) => Standing::Blocked(explained(reason(ConditionType::Stalled))),
        Some(Phase::Suspended) => Standing::Suspended,
        Some(Phase::Pending | Phase::Queued) if idle => match (outage, reason(ConditionType::DataReady)) {
            (Some(outage), _) => Standing::Outage(outage),
            (None, Some(waits)) if waits.effect() == Effect::WaitsForData => {
                Standing::Waiting(explained(Some(waits)))
            }
            _ => Standing::Working,
        },
        _ => Standing::Working,
    }
}

/// The condition without the time at which a cluster tries again: a local run ends instead.
fn cause(message: &str) -> &str {
    message.split_once("; next attempt at ").map_or(message, |(cause, _)| cause)
}

/// `None` while anything works; then the gravest outcome. What waits for another object's data
/// is blocked only when no other cause is known.
pub(crate) fn outcome(standings: &[Standing]) -> Option<Outcome> {
    if standings.contains(&Standing::Working) {
        return None;
    }
    let own = standings.iter().map(|standing| match standing {
        Standing::Failed(_) => Outcome::Failed,
        Standing::Blocked(_) => Outcome::Blocked,
        Standing::Outage(_) => Outcome::Outage,
        _ => Outcome::Complete,
    });
    let gravest = own.max().unwrap_or(Outcome::Complete);
    let waits = standings.iter().any(|standing| matches!(standing, Standing::Waiting(_)));
    Some(if waits && gravest == Outcome::Complete { Outcome::Blocked } else { gravest })
}

/// `SynthesisJob docs`.
pub(crate) fn described(object: &Object) -> String {
    format!("{} {}", object.kind(), object.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_cause_decides_and_waiting_is_no_cause_of_its_own() {
        let (failed, blocked) = (Standing::Failed(String::new()), Standing::Blocked(String::new()));
        let (outage, waiting) = (Standing::Outage(String::new()), Standing::Waiting(String::new()));
        let complete = Standing::Complete;
        for (standings, code) in [
            (vec![complete.clone(), Standing::Suspended], Some(0)),
            (vec![complete.clone(), Standing::Working], None),
            (vec![failed.clone(), Standing::Working], None),
            (vec![failed.clone(), waiting.clone()], Some(1)),
            (vec![blocked.clone(), outage.clone()], Some(2)),
            (vec![outage, waiting.clone()], Some(3)),
            (vec![waiting, complete], Some(2)),
            (vec![failed, blocked], Some(1)),
        ] {
            assert_eq!(outcome(&standings).map(Outcome::code), code, "{standings:?}");
        }
    }
}
