//! How a watch is doing: when it last heard of the server, what went wrong, what it cannot read.
//!
//! Invariant: a refusal is an answer: a process that is started again would be refused too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{store::Name, writer::words};

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
    pub(super) fn new(plural: String, scope: Option<String>) -> Self {
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

    pub(super) fn good(&self) {
        let (mut state, now) = (self.state(), Some(Instant::now()));
        (state.good, state.answered, state.error) = (now, now, None);
    }

    pub(super) fn bad(&self, failure: Failure) {
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
    pub(super) fn listed(&self) -> bool {
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
    pub(super) fn read(&self, name: &Name, error: Option<String>) {
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
    pub(super) fn only(&self, there: &BTreeSet<Name>) {
        self.state().unreadable.retain(|name, _| there.contains(name));
    }

    /// Times that it had to start over.
    pub(super) fn failures(&self) -> u64 {
        self.state().failures
    }
}

/// Why a watch has to start over.
pub(super) struct Failure {
    text: String,
    /// By a server that works: the kind is not allowed, or not there.
    refused: bool,
}

impl Failure {
    pub(super) fn new(text: String) -> Self {
        Self { text, refused: false }
    }

    pub(super) fn of(what: &str, error: &kube::Error) -> Self {
        let refused = matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404));
        Self { text: format!("{what}: {}", words(error)), refused }
    }
}
