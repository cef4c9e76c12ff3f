//! The fields of a spec that the next attempt takes up, as one hash on every Job: those about pods,
//! and those that a running pod has read from its task file.
//!
//! Invariant: the hash changes exactly when such a field does, so `UpToDate=False` means that a
//! restart would change something.

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
            json!([o.spec.parallelism, o.spec.accelerator_memory, stages, o.spec.training.checkpoint])
        }
    };
    let fields = json!([
        common.image,
        common.pod_template,
        common.auxiliary_queue_name,
        common.storage.credentials_secret_ref,
        common.storage.options,
        common.backoff_limit,
        common.recovery.rank_timeout_seconds,
        own,
    ]);
    Sha256::digest(fields.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
