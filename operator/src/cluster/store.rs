//! What the API server has, as the watches last told it.
//!
//! Invariant: an entry is replaced by a newer version of itself only; whatever nothing reads (managed
//! fields, specs of pods, templates of Jobs) is dropped on arrival, so that 10,000 objects fit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, PodSpec, PodTemplateSpec},
};
use kube::{Resource, ResourceExt};
use longstrap_crds::{ContextExtensionRun, Object, SynthesisJob, names::LABEL_OWNER};

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

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Namespace and name.
pub(super) type Name = (String, String);

/// What is kept of a kind, and by what it is found besides its name.
pub(super) trait Kept: Resource<DynamicType = ()> + Clone + Send + Sync + 'static {
    /// Drops what nothing reads.
    fn slim(&mut self);
    /// UID of the object of ours that it belongs to: its own, or the owner's by label.
    fn owner(&self) -> Option<String>;
}

impl Kept for SynthesisJob {
    fn slim(&mut self) {}
    fn owner(&self) -> Option<String> {
        self.uid()
    }
}

impl Kept for ContextExtensionRun {
    fn slim(&mut self) {}
    fn owner(&self) -> Option<String> {
        self.uid()
    }
}

impl Kept for Job {
    fn slim(&mut self) {
        if let Some(spec) = &mut self.spec {
            spec.template = PodTemplateSpec::default();
        }
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

impl Kept for Pod {
    fn slim(&mut self) {
        self.spec = self.spec.take().map(|s| PodSpec { node_name: s.node_name, ..PodSpec::default() });
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

struct Entries<K> {
    by_name: BTreeMap<Name, Arc<K>>,
    by_owner: HashMap<String, BTreeSet<Name>>,
}

/// All objects of one kind.
pub(super) struct Store<K> {
    entries: Mutex<Entries<K>>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { by_name: BTreeMap::new(), by_owner: HashMap::new() }) }
    }
}

fn name_of<K: Resource>(object: &K) -> Name {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Versions of one object are numbers that grow; anything else counts as older.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Kept> Entries<K> {
    fn insert(&mut self, object: K) {
        let name = name_of(&object);
        self.remove(&name);
        if let Some(owner) = object.owner() {
            self.by_owner.entry(owner).or_default().insert(name.clone());
        }
        self.by_name.insert(name, Arc::new(object));
    }

    fn remove(&mut self, name: &Name) -> Option<Arc<K>> {
        let old = self.by_name.remove(name)?;
        if let Some(owner) = old.owner()
            && let Some(names) = self.by_owner.get_mut(&owner)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(old)
    }
}

impl<K: Kept> Store<K> {
    fn entries(&self) -> MutexGuard<'_, Entries<K>> {
        // No code panics while it holds the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slimmed(mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        object.slim();
        object
    }

    /// A watch says that the object is there.
    pub(super) fn apply(&self, object: K) {
        let object = Self::slimmed(object);
        let mut entries = self.entries();
        let newer = entries.by_name.get(&name_of(&object)).is_none_or(|old| {
            old.meta().uid != object.meta().uid || version(old.as_ref()) <= version(&object)
        });
        if newer {
            entries.insert(object);
        }
    }

    /// The answer to a write of ours: the watch may be behind, but what is gone stays gone.
    pub(super) fn written(&self, object: K) {
        let known = self.get(&name_of(&object)).is_some_and(|old| old.meta().uid == object.meta().uid);
        if known {
            self.apply(object);
        }
    }

    /// A watch says that the object is gone.
    pub(super) fn delete(&self, object: &K) {
        let mut entries = self.entries();
        let name = name_of(object);
        if entries.by_name.get(&name).is_some_and(|old| old.meta().uid == object.meta().uid) {
            entries.remove(&name);
        }
    }

    /// A list says what there is in a namespace (`None`: in all); what was there before and is not
    /// any more.
    pub(super) fn replace(&self, scope: Option<&str>, objects: Vec<K>) -> Vec<Arc<K>> {
        let listed: BTreeSet<Name> = objects.iter().map(name_of).collect();
        let mut gone = Vec::new();
        {
            let mut entries = self.entries();
            let lost: Vec<Name> = entries
                .by_name
                .keys()
                .filter(|name| scope.is_none_or(|s| s == name.0) && !listed.contains(*name))
                .cloned()
                .collect();
            gone.extend(lost.iter().filter_map(|name| entries.remove(name)));
        }
        objects.into_iter().for_each(|object| self.apply(object));
        gone
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<K>> {
        self.entries().by_name.get(name).cloned()
    }

    /// What belongs to an object of ours.
    pub(super) fn of(&self, owner: &str) -> Vec<Arc<K>> {
        let entries = self.entries();
        let names = entries.by_owner.get(owner).into_iter().flatten();
        names.filter_map(|name| entries.by_name.get(name).cloned()).collect()
    }

    /// All, or all of a namespace, in the order of their names.
    pub(super) fn all(&self, namespace: Option<&str>) -> Vec<Arc<K>> {
        let entries = self.entries();
        let start = namespace.map_or(Bound::Unbounded, |n| Bound::Included((n.to_owned(), String::new())));
        let range = entries.by_name.range((start, Bound::Unbounded));
        range
            .take_while(|(name, _)| namespace.is_none_or(|n| n == name.0))
            .map(|(_, object)| object.clone())
            .collect()
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
            Kind::SynthesisJob => {
                self.synthesis.get(&name).map(|o| Object::SynthesisJob(Box::new((*o).clone())))
            }
            Kind::ContextExtensionRun => {
                self.runs.get(&name).map(|o| Object::ContextExtensionRun(Box::new((*o).clone())))
            }
        }
    }

    /// The object of ours with a UID.
    pub(super) fn key_of(&self, uid: &str) -> Option<Key> {
        let key = |kind, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| Key {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let job = self.synthesis.of(uid).first().map(|o| key(Kind::SynthesisJob, &o.metadata));
        job.or_else(|| self.runs.of(uid).first().map(|o| key(Kind::ContextExtensionRun, &o.metadata)))
    }

    /// Every object of ours.
    pub(super) fn keys(&self) -> Vec<Key> {
        let key = |kind| move |(namespace, name): Name| Key { kind, namespace, name };
        let jobs = self.synthesis.all(None).into_iter().map(|o| name_of(&*o)).map(key(Kind::SynthesisJob));
        let runs = self.runs.all(None).into_iter().map(|o| name_of(&*o)).map(key(Kind::ContextExtensionRun));
        jobs.chain(runs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let pods = store.of("o").into_iter().chain(store.of("p"));
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
        store.apply(pod("b", "3", 9, "o"));
        store.apply(pod("c", "4", 9, "o"));
        let gone = store.replace(Some("ml"), vec![pod("c", "4", 9, "o")]);
        assert_eq!((gone.len(), seen()), (1, vec!["4@9".to_owned()]));
        assert!(store.replace(Some("other"), vec![]).is_empty(), "another namespace's list");
        assert_eq!((store.len(), store.all(Some("ml")).len(), store.all(Some("m")).len()), (1, 1, 0));
        let slim = store.get(&("ml".into(), "c".into())).unwrap().spec.clone().unwrap();
        assert_eq!((slim.node_name.as_deref(), slim.containers.len()), (Some("n1"), 0));
    }
}
