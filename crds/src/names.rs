//! Labels, annotations and the names of children.
//!
//! Invariant: a child's name is a function of owner, step and attempt alone and is a DNS label
//! (an Indexed Job's pods and a Service need one), whatever the owner is called.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use crate::step::Step;

/// Label: `app.kubernetes.io/name`.
pub const LABEL_APP: &str = "app.kubernetes.io/name";
/// Value of [`LABEL_APP`].
pub const APP: &str = "longstrap";
/// Label: UID of the owner. Selects everything that belongs to a run.
pub const LABEL_OWNER: &str = "longstrap.io/owner-uid";
/// Label: the step.
pub const LABEL_STEP: &str = "longstrap.io/step";
/// Label: the attempt.
pub const LABEL_ATTEMPT: &str = "longstrap.io/attempt";
/// Annotation: `namespace/name` of the owner, for people (a label's value would be too short).
pub const ANNOTATION_OWNER: &str = "longstrap.io/owner";
/// Annotation on a Job: hash of the spec fields that the next attempt would take up.
pub const ANNOTATION_INPUTS: &str = "longstrap.io/inputs-hash";
/// Annotation on a training Job: index of the first stage that it does not train.
pub const ANNOTATION_STAGES_END: &str = "longstrap.io/stages-end";
/// Annotation on a Job: the backoffLimit that its pods know.
pub const ANNOTATION_BACKOFF_LIMIT: &str = "longstrap.io/backoff-limit";
/// Annotation on a run: asks for a new attempt now; a new value is a new request.
pub const ANNOTATION_RESTART: &str = "longstrap.io/restart-at";
/// Label by which Kueue takes a Job into a queue.
pub const LABEL_QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Prefix of Kueue's labels and annotations.
pub const KUEUE_PREFIX: &str = "kueue.x-k8s.io/";
/// Name of the main container.
pub const CONTAINER: &str = "worker";
/// Key of the task file in its ConfigMap.
pub const TASK_KEY: &str = "task.json";

/// Name of the Job, the Service and the ConfigMap of one attempt at a step:
/// `r-<30 of the name>-<8 base32 of sha256(UID)>-<step>-<attempt>`.
pub fn child_name(name: &str, uid: &str, step: Step, attempt: u32) -> String {
    let short: String = name.chars().take(30).map(|c| if c == '.' { '-' } else { c }).collect();
    let hash = BASE32_NOPAD.encode(&Sha256::digest(uid.as_bytes())).to_lowercase();
    format!("r-{}-{}-{step}-{attempt}", short.trim_end_matches('-'), &hash[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        let uid = "5f0f3b4c-0a59-4c0e-9d0e-0d2a3f0f7f11";
        let name = child_name("docs", uid, Step::Prepare, 1);
        assert_eq!(name, "r-docs-twkwaxzm-prepare-1");
        for (owner, start) in [
            ("7.a-name.with-dots", "r-7-a-name-with-dots-"),
            ("a23456789012345678901234567890123", "r-a23456789012345678901234567890-"),
            ("a2345678901234567890123456789.tail", "r-a2345678901234567890123456789-t"),
        ] {
            let name = child_name(owner, uid, Step::Train(12), 1_000_000);
            assert!(name.starts_with(start), "{name}");
            // Pods of an Indexed Job are called <job>-<index>.
            assert!(name.len() + 5 <= 63, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        }
        assert_ne!(child_name("a", "1", Step::Export, 1), child_name("a", "2", Step::Export, 1));
    }
}
