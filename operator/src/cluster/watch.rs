//! One task for each kind and namespace: list, then watch, for ever, with a back-off of its own.
//!
//! Invariant: a watch that fails, is forbidden or hangs delays no other; the age of its last answer,
//! bookmarks included, is known. (The watcher of kube-runtime hides bookmarks, so that a quiet watch
//! cannot be told from a dead one: hence our own.)

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    kept::Kept,
    options::{REQUEST, WATCH_SILENCE},
    store::{Changed, Store, name_of},
    writer::words,
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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The first list has come.
    synced: bool,
    /// When the server last answered usefully.
    good: Option<Instant>,
    /// When it last answered so, or said that this is not allowed.
    answered: Option<Instant>,
    failures: u64,
    error: Option<String>,
}

impl Health {
    fn new(plural: String, scope: Option<String>) -> Self {
        Self { plural, scope, started: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match &self.scope {
            Some(namespace) => format!("{} in {namespace}", self.plural),
            None => self.plural.clone(),
        }
    }

    fn good(&self) {
        let (mut state, now) = (self.state(), Some(Instant::now()));
        (state.good, state.answered, state.error) = (now, now, None);
    }

    fn bad(&self, failure: Failure) {
        tracing::warn!(watch = self.name(), error = failure.text, "a watch has failed");
        let mut state = self.state();
        state.failures += 1;
        if failure.refused {
            // A new process would be refused too, and its other watches would start anew.
            state.answered = Some(Instant::now());
        }
        state.error = Some(failure.text);
    }

    /// The first list has come; whether this was it.
    fn listed(&self) -> bool {
        self.good();
        !std::mem::replace(&mut self.state().synced, true)
    }

    /// The first list has come.
    pub(super) fn synced(&self) -> bool {
        self.state().synced
    }

    /// Since the last good answer, or since the start.
    pub(super) fn age(&self) -> Duration {
        self.state().good.unwrap_or(self.started).elapsed()
    }

    /// Since the last answer, or since the start.
    pub(super) fn silence(&self) -> Duration {
        self.state().answered.unwrap_or(self.started).elapsed()
    }

    /// What went wrong last, while it does.
    pub(super) fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    /// Times that it had to start over.
    pub(super) fn failures(&self) -> u64 {
        self.state().failures
    }
}

/// Why a watch has to start over.
struct Failure {
    text: String,
    /// By a server that works: the kind is not allowed, or not there.
    refused: bool,
}

impl Failure {
    fn new(text: String) -> Self {
        Self { text, refused: false }
    }

    fn of(what: &str, error: &kube::Error) -> Self {
        let refused = matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404));
        Self { text: format!("{what}: {}", words(error)), refused }
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

    /// Runs for ever; `changed` is called after the store has changed, `known` after the first list, and
    /// when instead of it comes the first failure: who can do without this kind need not wait for it.
    pub(super) async fn run(self, store: &Store<K>, changed: impl Fn(Changed), known: impl Fn()) {
        let mut version: Option<String> = None;
        let mut failures: u32 = 0;
        loop {
            let (start, listing) = (Instant::now(), version.is_none());
            let result = match version.take() {
                None => self.list(store, &changed, &known).await.map(Restart::Resume),
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
                    if failures == 0 && !self.health.synced() {
                        known();
                    }
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

    async fn list(
        &self,
        store: &Store<K>,
        changed: &impl Fn(Changed),
        known: &impl Fn(),
    ) -> Result<String, Failure> {
        let mut listed = BTreeSet::new();
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
                .map_err(|_| Failure::new(format!("list: no answer within {}s", REQUEST.as_secs())))?
                .map_err(|e| Failure::of("list", &e))?;
            // Page by page: a whole list as it comes is many times what is kept of it.
            for object in page.items {
                listed.insert(name_of(&object));
                store.apply(object);
            }
            match page.metadata.continue_.filter(|t| !t.is_empty()) {
                Some(more) => token = Some(more),
                None => {
                    let version = page.metadata.resource_version.unwrap_or_default();
                    let all = store.listed(self.scope.as_deref(), &listed);
                    let first = self.health.listed();
                    all.into_iter().for_each(changed);
                    if first {
                        known();
                    }
                    return Ok(version);
                }
            }
        }
    }

    async fn watch(
        &self,
        mut version: String,
        store: &Store<K>,
        changed: &impl Fn(Changed),
    ) -> Result<Restart, Failure> {
        let params = WatchParams {
            label_selector: self.selector.clone(),
            timeout: Some(SERVER_TIMEOUT),
            bookmarks: true,
            ..WatchParams::default()
        };
        let stream = timeout(REQUEST, self.api.watch(&params, &version))
            .await
            .map_err(|_| Failure::new(format!("watch: no answer within {}s", REQUEST.as_secs())))?
            .map_err(|e| Failure::of("watch", &e))?;
        self.health.good();
        pin_mut!(stream);
        loop {
            let event = timeout(WATCH_SILENCE, stream.next())
                .await
                .map_err(|_| Failure::new(format!("watch: nothing for {}s", WATCH_SILENCE.as_secs())))?;
            let Some(event) = event else { return Ok(Restart::Resume(version)) };
            let event = event.map_err(|e| Failure::of("watch", &e))?;
            let (seen, told) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let told = Changed::of(&object);
                    let seen = object.meta().resource_version.clone();
                    store.apply(object);
                    (seen, told)
                }
                WatchEvent::Deleted(object) => {
                    store.delete(&object);
                    (object.meta().resource_version.clone(), Changed::of(&object))
                }
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    self.health.good();
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(Restart::List),
                WatchEvent::Error(status) => return Err(Failure::of("watch", &kube::Error::Api(status))),
            };
            self.health.good();
            if let Some(newest) = seen {
                version = newest;
            }
            changed(told);
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
