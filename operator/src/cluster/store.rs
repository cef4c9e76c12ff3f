//! What the API server has, as the watches last told it.
//!
//! Invariant: an entry is replaced by a newer version of itself only; what is looked up at each
//! reconcile is found by an index, never by a scan.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::Resource;
use longstrap_crds::{ContextExtensionRun, Object, SynthesisJob};

use super::{
    kept::{Kept, Packed, Term, slimmed},
    place::Place,
};

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    SynthesisJob,
    ContextExtensionRun,
}

/// An object of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(kind: Kind, (namespace, name): Name) -> Self {
        Self { kind, namespace, name }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Namespace and name.
pub(super) type Name = (String, String);

struct Entry<K: Kept> {
    uid: Option<String>,
    version: u64,
    terms: Vec<Term>,
    form: Arc<Packed<K>>,
}

/// An object of which something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) name: Name,
    /// UID of the object of ours that it belongs to.
    pub(super) owner: Option<String>,
    /// It was known already, from the answer to a write of this process.
    pub(super) known: bool,
}

impl Changed {
    pub(super) fn of<K: Kept>(object: &K) -> Self {
        Self { name: name_of(object), owner: object.owner(), known: false }
    }

    fn entry<K: Kept>(name: &Name, entry: &Entry<K>) -> Self {
        let owner = entry.terms.iter().find_map(|term| match term {
            Term::Owner(uid) => Some(uid.clone()),
            _ => None,
        });
        Self { name: name.clone(), owner, known: false }
    }
}

struct Entries<K: Kept> {
    by_name: BTreeMap<Name, Entry<K>>,
    index: BTreeSet<(Term, Name)>,
}

/// All objects of one kind.
pub(super) struct Store<K: Kept> {
    entries: Mutex<Entries<K>>,
}

impl<K: Kept> Default for Store<K> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { by_name: BTreeMap::new(), index: BTreeSet::new() }) }
    }
}

/// Namespace and name of an object.
pub(super) fn name_of<K: Resource>(object: &K) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Versions of one object are numbers that grow; anything else counts as older.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Kept> Entries<K> {
    fn insert(&mut self, name: Name, entry: Entry<K>) {
        self.remove(&name);
        self.index.extend(entry.terms.iter().map(|term| (term.clone(), name.clone())));
        self.by_name.insert(name, entry);
    }

    fn remove(&mut self, name: &Name) -> Option<Entry<K>> {
        let old = self.by_name.remove(name)?;
        for term in &old.terms {
            self.index.remove(&(term.clone(), name.clone()));
        }
        Some(old)
    }

    /// Names of what has a term from `first` on, as long as `wanted`.
    fn names(&self, first: Term, wanted: impl Fn(&Term) -> bool) -> impl Iterator<Item = &Name> {
        let range = self.index.range((first, Name::default())..);
        range.take_while(move |(term, _)| wanted(term)).map(|(_, name)| name)
    }

    fn with(&self, term: &Term) -> impl Iterator<Item = &Name> {
        self.names(term.clone(), move |other| other == term)
    }

    fn form(&self, name: &Name) -> Option<Arc<Packed<K>>> {
        self.by_name.get(name).map(|entry| entry.form.clone())
    }
}

impl<K: Kept> Store<K> {
    fn entries(&self) -> MutexGuard<'_, Entries<K>> {
        // No code panics while it holds the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch says that the object is there; whether that is news.
    pub(super) fn apply(&self, object: K) -> bool {
        let object = slimmed(object);
        let (name, uid, version) = (name_of(&object), object.meta().uid.clone(), version(&object));
        let newer = |entries: &Entries<K>| {
            entries.by_name.get(&name).is_none_or(|old| old.uid != uid || old.version < version)
        };
        // What nobody will look at need not be packed.
        if !newer(&self.entries()) {
            return false;
        }
        let terms = object.owner().map(Term::Owner).into_iter().chain(object.terms()).collect();
        let entry = Entry { uid: uid.clone(), version, terms, form: Arc::new(Packed::new(&object)) };
        let mut entries = self.entries();
        let news = newer(&entries);
        if news {
            entries.insert(name.clone(), entry);
        }
        news
    }

    /// The answer to a write of ours: the watch may be behind, but what is gone stays gone.
    pub(super) fn written(&self, object: K) {
        let uid = &object.meta().uid;
        let known = self.entries().by_name.get(&name_of(&object)).is_some_and(|old| old.uid == *uid);
        if known {
            self.apply(object);
        }
    }

    /// A watch says that the object is gone.
    pub(super) fn delete(&self, object: &K) {
        let mut entries = self.entries();
        let name = name_of(object);
        if entries.by_name.get(&name).is_some_and(|old| old.uid == object.meta().uid) {
            entries.remove(&name);
        }
    }

    /// What is known of an object is not so any more.
    pub(super) fn forget(&self, name: &Name) {
        self.entries().remove(name);
    }

    /// A list said what there is in a namespace (`None`: in all). Removes the rest; tells of all.
    pub(super) fn listed(&self, scope: Option<&str>, listed: &BTreeSet<Name>) -> Vec<Changed> {
        let mut entries = self.entries();
        let within = |name: &Name| scope.is_none_or(|s| s == name.0);
        let all = entries.by_name.iter().filter(|(name, _)| within(name));
        let told: Vec<Changed> = all.map(|(name, entry)| Changed::entry(name, entry)).collect();
        for gone in told.iter().filter(|c| !listed.contains(&c.name)) {
            entries.remove(&gone.name);
        }
        told
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<Packed<K>>> {
        self.entries().form(name)
    }

    /// What belongs to an object of ours.
    pub(super) fn of(&self, owner: &str) -> Vec<Arc<Packed<K>>> {
        let entries = self.entries();
        entries.with(&Term::Owner(owner.to_owned())).filter_map(|name| entries.form(name)).collect()
    }

    /// Name of the object of ours with a UID.
    fn name_of_uid(&self, uid: &str) -> Option<Name> {
        self.entries().with(&Term::Owner(uid.to_owned())).next().cloned()
    }

    /// What takes the data of a SynthesisJob.
    pub(super) fn taking(&self, job: &Name) -> Vec<Name> {
        self.entries().with(&Term::Data(job.clone())).cloned().collect()
    }

    /// What keeps its data at a place, above or below it.
    pub(super) fn around(&self, place: &Place) -> Vec<Arc<Packed<K>>> {
        let entries = self.entries();
        let mut names: Vec<&Name> = Vec::new();
        let above: Vec<Term> = place.above().map(Term::Place).collect();
        above.iter().for_each(|above| names.extend(entries.with(above)));
        names.extend(entries.names(Term::Place(place.clone()), |term| match term {
            Term::Place(other) => other.is_within(place),
            _ => false,
        }));
        names.into_iter().filter_map(|name| entries.form(name)).collect()
    }

    /// All, in the order of their names.
    pub(super) fn all(&self) -> Vec<(Name, Arc<Packed<K>>)> {
        self.entries().by_name.iter().map(|(name, entry)| (name.clone(), entry.form.clone())).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries().by_name.len()
    }
}

/// All that is watched.
#[derive(Default)]
pub(super) struct Stores {
    pub(super) synthesis: Store<SynthesisJob>,
    pub(super) runs: Store<ContextExtensionRun>,
    pub(super) jobs: Store<Job>,
    pub(super) pods: Store<Pod>,
}

impl Stores {
    pub(super) fn object(&self, key: &Key) -> Option<Object> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::SynthesisJob => self.synthesis.get(&name).map(|o| Object::SynthesisJob(Box::new(o.open()))),
            Kind::ContextExtensionRun => {
                self.runs.get(&name).map(|o| Object::ContextExtensionRun(Box::new(o.open())))
            }
        }
    }

    /// The object of ours with a UID.
    pub(super) fn key_of(&self, uid: &str) -> Option<Key> {
        let job = self.synthesis.name_of_uid(uid).map(|name| Key::new(Kind::SynthesisJob, name));
        job.or_else(|| self.runs.name_of_uid(uid).map(|name| Key::new(Kind::ContextExtensionRun, name)))
    }

    /// Every object of ours.
    pub(super) fn keys(&self) -> Vec<Key> {
        let jobs = self.synthesis.all().into_iter().map(|(name, _)| Key::new(Kind::SynthesisJob, name));
        let runs = self.runs.all().into_iter().map(|(name, _)| Key::new(Kind::ContextExtensionRun, name));
        jobs.chain(runs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::ResourceExt;
    use longstrap_crds::names::LABEL_OWNER;
    use serde_json::json;

    fn pod(name: &str, uid: &str, version: u64, owner: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ml", "name": name, "uid": uid, "resourceVersion": version.to_string(),
                "labels": {LABEL_OWNER: owner}},
            "spec": {"containers": [{"name": "worker"}], "nodeName": "n1"},
        }))
        .unwrap()
    }

    #[test]
    fn older_versions_and_late_deletions_change_nothing() {
        let store = Store::<Pod>::default();
        let seen = || -> Vec<String> {
            let pods = store.of("o").into_iter().chain(store.of("p")).map(|p| p.open());
            pods.map(|p| format!("{}@{}", p.uid().unwrap(), p.resource_version().unwrap())).collect()
        };
        store.apply(pod("a", "1", 5, "o"));
        store.apply(pod("a", "1", 4, "o"));
        assert_eq!(seen(), ["1@5"]);
        store.apply(pod("a", "2", 7, "p"));
        assert_eq!(seen(), ["2@7"], "re-created: the index follows");
        store.delete(&pod("a", "1", 6, "o"));
        assert_eq!(seen(), ["2@7"], "the deletion of the one before");
        store.delete(&pod("a", "2", 8, "p"));
        store.written(pod("a", "2", 8, "p"));
        assert!(seen().is_empty(), "what is gone stays gone");
        assert!(store.apply(pod("b", "3", 9, "o")));
        assert!(store.apply(pod("c", "4", 9, "o")));
        store.written(pod("c", "4", 10, "o"));
        assert!(!store.apply(pod("c", "4", 10, "o")), "the echo of a write is no news");
        let told = store.listed(Some("ml"), &[("ml".into(), "c".into())].into());
        assert_eq!((told.len(), seen()), (2, vec!["4@10".to_owned()]), "of what is gone, too");
        assert!(store.listed(Some("other"), &BTreeSet::new()).is_empty(), "another namespace's list");
        assert_eq!((store.len(), store.all().len()), (1, 1));
    }
}
