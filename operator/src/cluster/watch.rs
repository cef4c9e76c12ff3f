//! One task for each kind and namespace: list, then watch, for ever, with a back-off of its own.
//!
//! Invariant: a watch that fails, is forbidden or hangs delays no other, and neither does an object that
//! cannot be read (of a newer version); the age of its last answer, bookmarks included, is known. (The
//! watcher of kube-runtime hides bookmarks, so that a quiet watch cannot be told from a dead one: hence
//! our own.)

use std::{collections::BTreeSet, fmt::Debug, marker::PhantomData, sync::Arc, time::Duration};

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
    health::{Failure, Health},
    kept::Kept,
    options::{REQUEST, WATCH_SILENCE},
    store::{Changed, Store},
};

const PAGE: u32 = 500;
/// Seconds after which the server ends a watch in peace.
const SERVER_TIMEOUT: u32 = 290;
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

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
                (Changed { name, owner, known: false }, None)
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
                    let (mut told, object) = self.read(object);
                    match object {
                        Some(object) => told.known = !store.apply(object),
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
