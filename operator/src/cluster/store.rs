//! What the API server has, as the watches last told it.
//!
//! Invariant: an entry is replaced by a newer version of itself only; whatever nothing reads (managed
//! fields, what kubectl applied, specs of pods, templates of Jobs) is dropped on arrival, so that 10,000
//! objects fit; what is looked up at each reconcile is found by an index, never by a scan.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStatus, Pod, PodSpec, PodStatus, PodTemplateSpec},
};
use kube::{Resource, ResourceExt};
use longstrap_crds::{
    ContextExtensionRun, Object, SynthesisJob,
    names::{CONTAINER, LABEL_OWNER},
};

use super::place::Place;

/// A copy of the manifest that `kubectl apply` leaves.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

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

/// By what an object is looked up besides its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Term {
    /// UID of the object of ours that it belongs to: its own, or the owner's by label.
    Owner(String),
    /// A SynthesisJob whose data it takes.
    Data(Name),
    /// Where it keeps what it writes.
    Place(Place),
}

/// What is kept of a kind, and by what it is found.
pub(super) trait Kept: Resource<DynamicType = ()> + Clone + Send + Sync + 'static {
    /// Drops what nothing reads.
    fn slim(&mut self) {}
    /// UID of the object of ours that it belongs to: its own, or the owner's by label.
    fn owner(&self) -> Option<String>;
    /// By what else it is found.
    fn terms(&self) -> Vec<Term> {
        Vec::new()
    }
}

impl Kept for SynthesisJob {
    fn owner(&self) -> Option<String> {
        self.uid()
    }
    fn terms(&self) -> Vec<Term> {
        vec![Term::Place(Place::of(&self.metadata, &self.spec.common))]
    }
}

impl Kept for ContextExtensionRun {
    fn owner(&self) -> Option<String> {
        self.uid()
    }
    fn terms(&self) -> Vec<Term> {
        let namespace = self.metadata.namespace.clone().unwrap_or_default();
        let data = self.spec.data.iter().filter_map(|d| d.synthesis_job_ref.as_ref());
        let data = data.map(|r| Term::Data((namespace.clone(), r.name.clone())));
        data.chain([Term::Place(Place::of(&self.metadata, &self.spec.common))]).collect()
    }
}

impl Kept for Job {
    fn slim(&mut self) {
        if let Some(spec) = &mut self.spec {
            spec.template = PodTemplateSpec::default();
            spec.pod_failure_policy = None;
            spec.success_policy = None;
            spec.selector = None;
        }
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

impl Kept for Pod {
    fn slim(&mut self) {
        self.spec = self.spec.take().map(|s| PodSpec { node_name: s.node_name, ..PodSpec::default() });
        self.metadata.finalizers = None;
        self.status = self.status.take().map(|s| PodStatus {
            phase: s.phase,
            reason: s.reason,
            message: s.message,
            conditions: s.conditions,
            start_time: s.start_time,
            pod_ip: s.pod_ip,
            // A sidecar's end means nothing; an init container may wait for an image or a Secret.
            container_statuses: worker_only(s.container_statuses),
            init_container_statuses: s.init_container_statuses.map(|all| all.into_iter().map(slim).collect()),
            ..PodStatus::default()
        });
    }
    fn owner(&self) -> Option<String> {
        self.labels().get(LABEL_OWNER).cloned()
    }
}

fn worker_only(statuses: Option<Vec<ContainerStatus>>) -> Option<Vec<ContainerStatus>> {
    Some(statuses?.into_iter().filter(|c| c.name == CONTAINER).map(slim).collect())
}

fn slim(status: ContainerStatus) -> ContainerStatus {
    ContainerStatus {
        name: status.name,
        image: status.image,
        state: status.state,
        restart_count: status.restart_count,
        ..ContainerStatus::default()
    }
}

struct Entries<K> {
    by_name: BTreeMap<Name, Arc<K>>,
    index: BTreeSet<(Term, Name)>,
}

/// All objects of one kind.
pub(super) struct Store<K> {
    entries: Mutex<Entries<K>>,
}

impl<K> Default for Store<K> {
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

fn terms_of<K: Kept>(object: &K) -> impl Iterator<Item = Term> {
    object.owner().map(Term::Owner).into_iter().chain(object.terms())
}

impl<K: Kept> Entries<K> {
    fn insert(&mut self, object: K) {
        let name = name_of(&object);
        self.remove(&name);
        self.index.extend(terms_of(&object).map(|term| (term, name.clone())));
        self.by_name.insert(name, Arc::new(object));
    }

    fn remove(&mut self, name: &Name) -> Option<Arc<K>> {
        let old = self.by_name.remove(name)?;
        for term in terms_of(&*old) {
            self.index.remove(&(term, name.clone()));
        }
        Some(old)
    }

    /// What has a term from `first` on, as long as `wanted`.
    fn find(&self, first: Term, wanted: impl Fn(&Term) -> bool) -> Vec<Arc<K>> {
        let range = self.index.range((first, Name::default())..);
        let names = range.take_while(|(term, _)| wanted(term)).map(|(_, name)| name);
        names.filter_map(|name| self.by_name.get(name).cloned()).collect()
    }
}

impl<K: Kept> Store<K> {
    fn entries(&self) -> MutexGuard<'_, Entries<K>> {
        // No code panics while it holds the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slimmed(mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        if let Some(annotations) = &mut object.meta_mut().annotations {
            annotations.remove(LAST_APPLIED);
        }
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

    /// A list said what there is in a namespace (`None`: in all); removes and returns the rest.
    pub(super) fn retain(&self, scope: Option<&str>, listed: &BTreeSet<Name>) -> Vec<Arc<K>> {
        let mut entries = self.entries();
        let gone: Vec<Name> = entries
            .by_name
            .keys()
            .filter(|name| scope.is_none_or(|s| s == name.0) && !listed.contains(*name))
            .cloned()
            .collect();
        gone.iter().filter_map(|name| entries.remove(name)).collect()
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<K>> {
        self.entries().by_name.get(name).cloned()
    }

    /// What belongs to an object of ours.
    pub(super) fn of(&self, owner: &str) -> Vec<Arc<K>> {
        let owner = Term::Owner(owner.to_owned());
        self.entries().find(owner.clone(), |term| *term == owner)
    }

    /// What takes the data of a SynthesisJob.
    pub(super) fn taking(&self, job: &Name) -> Vec<Arc<K>> {
        let data = Term::Data(job.clone());
        self.entries().find(data.clone(), |term| *term == data)
    }

    /// What keeps its data at a place, above or below it.
    pub(super) fn around(&self, place: &Place) -> Vec<Arc<K>> {
        let entries = self.entries();
        let above = place.above().flat_map(|above| {
            let above = Term::Place(above);
            entries.find(above.clone(), |term| *term == above)
        });
        let mut found: Vec<Arc<K>> = above.collect();
        found.extend(entries.find(Term::Place(place.clone()), |term| match term {
            Term::Place(other) => other.is_within(place),
            _ => false,
        }));
        found
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
        let gone = store.retain(Some("ml"), &[("ml".into(), "c".into())].into());
        assert_eq!((gone.len(), seen()), (1, vec!["4@9".to_owned()]));
        assert!(store.retain(Some("other"), &BTreeSet::new()).is_empty(), "another namespace's list");
        assert_eq!((store.len(), store.all(Some("ml")).len(), store.all(Some("m")).len()), (1, 1, 0));
        let slim = store.get(&("ml".into(), "c".into())).unwrap().spec.clone().unwrap();
        assert_eq!((slim.node_name.as_deref(), slim.containers.len()), (Some("n1"), 0));
    }
}
