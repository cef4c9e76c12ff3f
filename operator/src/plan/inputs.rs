//! The fields of a spec that the next attempt takes up, as one hash on every Job: the third row of the
//! API's table of edits.
//!
//! Invariant: the hash changes exactly when such a field does, so `UpToDate=False` means that a running
//! Job waits for a restart. Limits and intervals (`backoffLimit`, `recovery`, `training.checkpoint`) are
//! no reason to restart: what the operator decides by them holds at once, and what a pod has read of
//! them is as good until its next attempt.

use longstrap_crds::Object;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Hex of the first 8 bytes of the hash.
pub(super) fn hash(object: &Object) -> String {
    let common = object.common();
    let own: Value = match object {
        Object::SynthesisJob(o) => json!([o.spec.workers, o.spec.generator.endpoints]),
        Object::ContextExtensionRun(o) => {
            let stages: Vec<_> =
                o.spec.stages.iter().map(|s| json!([s.parallelism, s.pod_template])).collect();
            json!([o.spec.parallelism, o.spec.accelerator_memory, stages])
        }
    };
    let fields = json!([
        common.image,
        common.pod_template,
        common.auxiliary_queue_name,
        common.storage.credentials_secret_ref,
        common.storage.options,
        own,
    ]);
    Sha256::digest(fields.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
