//! One task for each kind and namespace: list, then watch, for ever, with a back-off of its own.
//!
//! Invariant: a watch that fails, is forbidden or hangs delays no other; the age of its last answer,
//! bookmarks included, is known. (The watcher of kube-runtime hides bookmarks, so that a quiet watch
//! cannot be told from a dead one: hence our own.)

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use super::{
    options::{REQUEST, WATCH_SILENCE},
    store::{Kept, Store},
};

const PAGE: u32 = 500;
/// Seconds after which the server ends a watch in peace.
const SERVER_TIMEOUT: u32 = 290;
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

/// How a watch is doing.
#[derive(Debug)]
pub(super) struct Health {
    /// Plural of the kind.
    pub(super) plural: String,
    /// The namespace; `None`: all.
    pub(super) scope: Option<String>,
    started: Instant,
    /// Milliseconds after `started` of the last good answer, plus one; 0: none yet.
    last: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Health {
    fn new(plural: String, scope: Option<String>) -> Self {
        Self { plural, scope, started: Instant::now(), last: AtomicU64::new(0), error: Mutex::new(None) }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match &self.scope {
            Some(namespace) => format!("{} in {namespace}", self.plural),
            None => self.plural.clone(),
        }
    }

    fn good(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last.store(now + 1, Ordering::Release);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn bad(&self, error: String) {
        tracing::warn!(watch = self.name(), error, "a watch has failed");
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The first list has come.
    pub(super) fn synced(&self) -> bool {
        self.last.load(Ordering::Acquire) > 0
    }

    /// Since the last good answer, or since the start.
    pub(super) fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Acquire).saturating_sub(1));
        self.started.elapsed().saturating_sub(last)
    }

    /// What went wrong last, while it does.
    pub(super) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A watch.
pub(super) struct Watch<K> {
    api: Api<K>,
    scope: Option<String>,
    selector: Option<String>,
    health: Arc<Health>,
}

/// Why a watch starts again.
enum Restart {
    /// From the version that was seen last.
    Resume(String),
    /// From a list: the version is too old.
    List,
}

impl<K> Watch<K>
where
    K: Kept + Clone + Debug + DeserializeOwned,
    Api<K>: Scoped,
{
    /// Of a namespace, or of all; only what carries the selector's labels.
    pub(super) fn new(client: Client, scope: Option<String>, selector: Option<String>) -> Self {
        let api = Api::<K>::scoped(client, scope.as_deref());
        let health = Arc::new(Health::new(K::plural(&()).into_owned(), scope.clone()));
        Self { api, scope, selector, health }
    }

    pub(super) fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// Runs for ever; `changed` is called after the store has changed.
    pub(super) async fn run(self, store: &Store<K>, changed: impl Fn(&K)) {
        let mut version: Option<String> = None;
        let mut failures: u32 = 0;
        loop {
            let (start, listing) = (Instant::now(), version.is_none());
            let result = match version.take() {
                None => self.list(store, &changed).await.map(Restart::Resume),
                Some(from) => self.watch(from, store, &changed).await,
            };
            match result {
                Ok(next) => {
                    failures = 0;
                    version = match next {
                        Restart::Resume(from) => Some(from),
                        Restart::List => None,
                    };
                }
                // After a failure a list: it is not known what was missed.
                Err(error) => {
                    self.health.bad(error);
                    failures = failures.saturating_add(1);
                }
            }
            let pause = match failures {
                // A server that ends each watch at once is not asked without a pause either.
                0 if listing || start.elapsed() > Duration::from_secs(1) => Duration::ZERO,
                0 => FIRST_BACK_OFF,
                n => FIRST_BACK_OFF.saturating_mul(1 << (n - 1).min(10)).min(LONGEST_BACK_OFF),
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn list(&self, store: &Store<K>, changed: &impl Fn(&K)) -> Result<String, String> {
        let mut objects = Vec::new();
        let mut token = None;
        loop {
            let params = ListParams {
                label_selector: self.selector.clone(),
                limit: Some(PAGE),
                continue_token: token.take(),
                ..ListParams::default()
            };
            let page = timeout(REQUEST, self.api.list(&params))
                .await
                .map_err(|_| format!("list: no answer within {}s", REQUEST.as_secs()))?
                .map_err(|e| format!("list: {e}"))?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|t| !t.is_empty()) {
                Some(more) => token = Some(more),
                None => {
                    let version = page.metadata.resource_version.unwrap_or_default();
                    let gone = store.replace(self.scope.as_deref(), objects);
                    self.health.good();
                    gone.iter().chain(&store.all(self.scope.as_deref())).for_each(|o| changed(o));
                    return Ok(version);
                }
            }
        }
    }

    async fn watch(
        &self,
        mut version: String,
        store: &Store<K>,
        changed: &impl Fn(&K),
    ) -> Result<Restart, String> {
        let params = WatchParams {
            label_selector: self.selector.clone(),
            timeout: Some(SERVER_TIMEOUT),
            bookmarks: true,
            ..WatchParams::default()
        };
        let stream = timeout(REQUEST, self.api.watch(&params, &version))
            .await
            .map_err(|_| format!("watch: no answer within {}s", REQUEST.as_secs()))?
            .map_err(|e| format!("watch: {e}"))?;
        self.health.good();
        pin_mut!(stream);
        loop {
            let event = timeout(WATCH_SILENCE, stream.next())
                .await
                .map_err(|_| format!("watch: nothing for {}s", WATCH_SILENCE.as_secs()))?;
            let Some(event) = event else { return Ok(Restart::Resume(version)) };
            let event = event.map_err(|e| format!("watch: {e}"))?;
            let told = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    store.apply(object.clone());
                    object
                }
                WatchEvent::Deleted(object) => {
                    store.delete(&object);
                    object
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    self.health.good();
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(Restart::List),
                WatchEvent::Error(status) => return Err(format!("watch: {status}")),
            };
            self.health.good();
            if let Some(newest) = told.meta().resource_version.clone() {
                version = newest;
            }
            changed(&told);
        }
    }
}

/// An [`Api`] of one namespace or of all.
pub(super) trait Scoped {
    /// `None`: all namespaces.
    fn scoped(client: Client, namespace: Option<&str>) -> Self;
}

impl<K> Scoped for Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    fn scoped(client: Client, namespace: Option<&str>) -> Self {
        match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }
}
