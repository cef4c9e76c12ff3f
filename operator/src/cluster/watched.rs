//! What is watched, and whom a change concerns.
//!
//! Invariant: a change of anything that a plan is made from queues the object that is planned; what
//! this process wrote itself, and planned with, does not.

use std::sync::Arc;

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{Api, Client};
use longstrap_crds::{
    ContextExtensionRun, SynthesisJob,
    names::{APP, LABEL_APP},
};
use tokio::task::JoinSet;

use super::{
    Shared,
    health::Health,
    kept::Kept,
    store::{Changed, Key, Kind, Store, Stores},
    watch::{Scoped, Watch},
};

/// All watches in all scopes.
pub(super) fn watches(client: Client, scopes: &[Option<String>]) -> Watches {
    let mut watches = Watches { client, health: Vec::new(), starts: Vec::new() };
    let ours = || Some(format!("{LABEL_APP}={APP}"));
    for scope in scopes {
        watches.add::<SynthesisJob>(
            scope,
            None,
            |s| &s.synthesis,
            |shared, job| {
                // Runs may wait for its data.
                for name in shared.reconciler.stores.runs.taking(&job.name) {
                    shared.queue.add(Key::new(Kind::ContextExtensionRun, name));
                }
                queue_news(shared, Kind::SynthesisJob, job);
            },
        );
        watches.add::<ContextExtensionRun>(
            scope,
            None,
            |s| &s.runs,
            |shared, run| queue_news(shared, Kind::ContextExtensionRun, run),
        );
        watches.add::<Job>(scope, ours(), |s| &s.jobs, child_changed);
        watches.add::<Pod>(scope, ours(), |s| &s.pods, child_changed);
    }
    watches
}

pub(super) type Start = Box<dyn FnOnce(&mut JoinSet<()>, Arc<Shared>) + Send>;

/// Watches that are about to start.
pub(super) struct Watches {
    client: Client,
    pub(super) health: Vec<Arc<Health>>,
    pub(super) starts: Vec<Start>,
}

impl Watches {
    fn add<K>(
        &mut self,
        scope: &Option<String>,
        selector: Option<String>,
        store: fn(&Stores) -> &Store<K>,
        changed: fn(&Shared, Changed),
    ) where
        K: Kept + std::fmt::Debug + serde::de::DeserializeOwned,
        Api<K>: Scoped,
    {
        let watch = Watch::<K>::new(self.client.clone(), scope.clone(), selector);
        self.health.push(watch.health());
        self.starts.push(Box::new(move |tasks, shared| {
            tasks.spawn(async move {
                let stores = shared.reconciler.stores.clone();
                // What was put aside until this list had come, or failed.
                let known = || shared.queue_all();
                watch.run(store(&stores), |what| changed(&shared, what), known).await;
            });
        }));
    }
}

/// Queues an object of ours, unless this process has just written what the watch tells of: a plan
/// made from it again would be the same.
fn queue_news(shared: &Shared, kind: Kind, object: Changed) {
    if !object.known {
        shared.queue.add(Key::new(kind, object.name));
    }
}

/// Queues the owner of a Job or a pod.
fn child_changed(shared: &Shared, child: Changed) {
    if let Some(key) = child.owner.and_then(|uid| shared.reconciler.stores.key_of(&uid)) {
        shared.queue.add(key);
    }
}
