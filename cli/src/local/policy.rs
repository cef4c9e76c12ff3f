//! What a Job makes of a pod that ended: its `podFailurePolicy` and the delay before the next pod
//! of the same index. Pure; the rules are those of the Job controller of Kubernetes.

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::PodFailurePolicy;

/// The container whose exit code stands for the pod.
pub(crate) const WORKER: &str = "worker";

/// What happens to the index of a failed pod, and to its Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The failure counts against `backoffLimitPerIndex`.
    Count,
    /// The pod is replaced; nothing is counted but the back-off.
    Ignore,
    /// No further pod of this index.
    FailIndex,
    /// The whole Job ends; the number is that of the rule.
    FailJob {
        /// Position in `podFailurePolicy.rules`.
        rule: usize,
    },
}

/// The first rule that matches decides; without one the failure counts.
///
/// `disrupted` says whether the pod carries the condition `DisruptionTarget`, the only pod
/// condition that a process on this machine can get.
pub(crate) fn judge(policy: Option<&PodFailurePolicy>, exit_code: i32, disrupted: bool) -> Verdict {
    let rules = policy.map(|policy| policy.rules.as_slice()).unwrap_or_default();
    for (position, rule) in rules.iter().enumerate() {
        let by_code = rule.on_exit_codes.as_ref().is_some_and(|codes| {
            let ours = codes.container_name.as_deref().is_none_or(|name| name == WORKER);
            let listed = codes.values.contains(&exit_code);
            let matches = if codes.operator == "NotIn" { !listed } else { listed };
            ours && exit_code != 0 && matches
        });
        let by_condition = disrupted
            && rule.on_pod_conditions.as_ref().is_some_and(|conditions| {
                conditions.iter().any(|condition| condition.type_ == "DisruptionTarget")
            });
        if by_code || by_condition {
            return match rule.action.as_str() {
                "FailJob" => Verdict::FailJob { rule: position },
                "FailIndex" => Verdict::FailIndex,
                "Ignore" => Verdict::Ignore,
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

/// Seconds from the end of the newest failed pod of an index to its next pod, after `failures`
/// failed pods of that index (ignored ones too): `min(10 · 2^(failures − 1), 600)`.
pub(crate) fn backoff(failures: u32) -> SignedDuration {
    let doubled = 10_i64.saturating_mul(1 << failures.saturating_sub(1).min(20));
    SignedDuration::from_secs(if failures == 0 { 0 } else { doubled.min(600) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> PodFailurePolicy {
        serde_json::from_value(serde_json::json!({"rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [10, 13]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": {"containerName": "worker", "operator": "In", "values": [11, 12, 143]}},
            {"action": "FailIndex", "onExitCodes": {"containerName": "sidecar", "operator": "In", "values": [1]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 10, 11, 12, 13, 137, 143]}},
        ]}))
        .unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = policy();
        for (code, disrupted, verdict) in [
            (10, false, Verdict::FailJob { rule: 0 }),
            (10, true, Verdict::FailJob { rule: 0 }),
            (13, false, Verdict::FailJob { rule: 0 }),
            (137, true, Verdict::Ignore),
            (11, false, Verdict::Ignore),
            (12, false, Verdict::Ignore),
            (143, false, Verdict::Ignore),
            // The sidecar's rule says nothing about the worker.
            (1, false, Verdict::Count),
            (137, false, Verdict::Count),
            (42, false, Verdict::FailIndex),
        ] {
            assert_eq!(judge(Some(&policy), code, disrupted), verdict, "code {code}, {disrupted}");
        }
        assert_eq!(judge(None, 10, true), Verdict::Count);
    }

    #[test]
    fn the_delay_doubles_up_to_ten_minutes() {
        let seconds: Vec<i64> = (0..9).map(|f| backoff(f).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(backoff(u32::MAX).as_secs(), 600);
    }
}
