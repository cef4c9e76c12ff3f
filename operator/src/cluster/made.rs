//! Jobs that were just created, until the watch brings them: without them they would be created again,
//! in vain.
//!
//! Invariant: believed in for a few seconds only, and only as children of the very object (by UID) that
//! they were made for.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::batch::v1::Job;
use tokio::time::{Duration, Instant};

use super::{observe::owned_by, store::Key};

/// So long the watch may take to bring a Job that was created.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// The last Job of each object.
#[derive(Default)]
pub(super) struct Made(Mutex<HashMap<Key, (Instant, Job)>>);

impl Made {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Job)>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Job was created; until when it is believed in.
    pub(super) fn add(&self, key: &Key, job: Job) -> Instant {
        let until = Instant::now() + WATCH_LAG;
        self.lock().insert(key.clone(), (until, job));
        until
    }

    /// The Job of the object with this UID that is not among those that the watch has brought, and until
    /// when it is believed in.
    pub(super) fn unseen(&self, key: &Key, uid: &str, brought: &[Job]) -> Option<(Instant, Job)> {
        let mut made = self.lock();
        let (until, job) = made.get(key)?;
        let seen = brought.iter().any(|j| j.metadata.uid == job.metadata.uid);
        let of_another = !owned_by(job.metadata.owner_references.as_deref(), uid);
        if seen || of_another || *until <= Instant::now() {
            made.remove(key);
            return None;
        }
        Some((*until, job.clone()))
    }

    /// The object is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// What was made in an earlier term of leading.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::Kind;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn a_job_is_believed_in_for_a_while_and_for_its_own_object() {
        let key = Key { kind: Kind::SynthesisJob, namespace: "ml".into(), name: "docs".into() };
        let job: Job =
            serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j", "ownerReferences": [
            {"apiVersion": "v1", "kind": "SynthesisJob", "name": "docs", "uid": "u", "controller": true}]}}))
            .unwrap();
        for (what, uid, brought, seconds, believed) in [
            ("just made", "u", vec![], 0, true),
            ("brought by the watch", "u", vec![job.clone()], 0, false),
            ("of the object of that name before this one", "v", vec![], 0, false),
            ("never brought", "u", vec![], 6, false),
        ] {
            let made = Made::default();
            made.add(&key, job.clone());
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            assert_eq!(made.unseen(&key, uid, &brought).is_some(), believed, "{what}");
        }
        let made = Made::default();
        made.add(&key, job);
        made.clear();
        assert!(made.unseen(&key, "u", &[]).is_none());
    }
}
