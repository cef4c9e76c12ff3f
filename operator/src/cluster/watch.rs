//! One task for each kind and namespace: list, then watch, for ever, with a back-off of its own.
//!
//! Invariant: a watch that fails, is forbidden or hangs delays no other, and neither does an object that
//! cannot be read (of a newer version); the age of its last answer, bookmarks included, is known. (The watcher of kube-runtime hides bookmarks, so that a quiet watch
//! cannot be told from a dead one: hence our own.)

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{TryStreamExt, pin_mut};
use kube::{
    Api, Client,
    api::{ListParams, ObjectList, WatchEvent, WatchParams},
    core::Request,
};
use longstrap_crds::names::LABEL_OWNER;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    kept::Kept,
    options::{REQUEST, WATCH_SILENCE},
    store::{Changed, Name, Store},
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
    /// Objects that cannot be read, and why.
    unreadable: BTreeMap<Name, String>,
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

    /// `namespace/name` of the objects that cannot be read: to this process they do not exist.
    pub(super) fn unreadable(&self) -> Vec<String> {
        self.state().unreadable.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
    }

    /// What came of reading an object.
    fn read(&self, name: &Name, error: Option<String>) {
        let mut state = self.state();
        match error {
            Some(error) => {
                if state.unreadable.get(name) != Some(&error) {
                    tracing::warn!(
                        watch = self.plural,
                        namespace = name.0,
                        name = name.1,
                        error,
                        "an object cannot be read"
                    );
                }
                state.unreadable.insert(name.clone(), error);
            }
            None => {
                state.unreadable.remove(name);
            }
        }
    }

    /// A whole list has come: what is not in it is gone.
    fn only(&self, there: &BTreeSet<Name>) {
        self.state().unreadable.retain(|name, _| there.contains(name));
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
    client: Client,
    /// Path of the collection.
    url: String,
    kind: PhantomData<fn() -> K>,
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
        let url = Api::<K>::scoped(client.clone(), scope.as_deref()).resource_url().to_owned();
        let health = Arc::new(Health::new(K::plural(&()).into_owned(), scope.clone()));
        Self { client, url, kind: PhantomData, scope, selector, health }
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
        let (mut listed, mut there) = (BTreeSet::new(), BTreeSet::new());
        let mut token = None;
        loop {
            let params = ListParams {
                label_selector: self.selector.clone(),
                limit: Some(PAGE),
                continue_token: token.take(),
                ..ListParams::default()
            };
            let request = Request::new(&self.url).list(&params);
            let request = request.map_err(|e| Failure::of("list", &kube::Error::BuildRequest(e)))?;
            let page: ObjectList<Value> = timeout(REQUEST, self.client.request(request))
                .await
                .map_err(|_| Failure::new(format!("list: no answer within {}s", REQUEST.as_secs())))?
                .map_err(|e| Failure::of("list", &e))?;
            // Page by page: a whole list as it comes is many times what is kept of it.
            for object in page.items {
                let (told, object) = self.read(object);
                there.insert(told.name.clone());
                if let Some(object) = object {
                    listed.insert(told.name);
                    store.apply(object);
                }
            }
            match page.metadata.continue_.filter(|t| !t.is_empty()) {
                Some(more) => token = Some(more),
                None => {
                    let version = page.metadata.resource_version.unwrap_or_default();
                    let all = store.listed(self.scope.as_deref(), &listed);
                    self.health.only(&there);
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

    /// One object; `None`: it cannot be read.
    fn read(&self, object: Value) -> (Changed, Option<K>) {
        let text = |field: &Value| field.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        let name = |field: &str| text(&metadata[field]).unwrap_or_default();
        let name = (name("namespace"), name("name"));
        let owner = text(&metadata["labels"][LABEL_OWNER]);
        match serde_json::from_value::<K>(object) {
            Ok(object) => {
                self.health.read(&name, None);
                (Changed::of(&object), Some(object))
            }
            Err(error) => {
                self.health.read(&name, Some(error.to_string()));
                (Changed { name, owner }, None)
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
        let request = Request::new(&self.url).watch(&params, &version);
        let request = request.map_err(|e| Failure::of("watch", &kube::Error::BuildRequest(e)))?;
        let stream = timeout(REQUEST, self.client.request_events::<Value>(request))
            .await
            .map_err(|_| Failure::new(format!("watch: no answer within {}s", REQUEST.as_secs())))?
            .map_err(|e| Failure::of("watch", &e))?;
        self.health.good();
        pin_mut!(stream);
        loop {
            let event = timeout(WATCH_SILENCE, stream.try_next())
                .await
                .map_err(|_| Failure::new(format!("watch: nothing for {}s", WATCH_SILENCE.as_secs())))?;
            let event = event.map_err(|e| Failure::of("watch", &e))?;
            let Some(event) = event else { return Ok(Restart::Resume(version)) };
            let (seen, told) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let seen = version_of(&object);
                    let (told, object) = self.read(object);
                    match object {
                        Some(object) => store.apply(object),
                        // What it was before is not what it is.
                        None => store.forget(&told.name),
                    }
                    (seen, told)
                }
                WatchEvent::Deleted(object) => {
                    let seen = version_of(&object);
                    let (told, object) = self.read(object);
                    match object {
                        Some(object) => store.delete(&object),
                        None => store.forget(&told.name),
                    }
                    self.health.read(&told.name, None);
                    (seen, told)
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

fn version_of(object: &Value) -> Option<String> {
    object["metadata"]["resourceVersion"].as_str().map(str::to_owned)
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
