//! `--restart-from`: runs start over below a new prefix, beside their old results.
//!
//! Invariant: the same command goes on with what it began in this folder and did not finish; it
//! never starts over twice.

use anyhow::{Context, Result};
use longstrap_crds::{CommonStatus, ConditionType, Object, Reason};
use longstrap_storage::{Restart, RestartFrom as From, Store, keys};

use super::edits::another_run;
use super::executor::new_uid;
use super::folder::{OutFolder, Remembered};
use super::outcome::described;
use super::run::Identity;
use crate::RestartFrom;

/// Whether an object starts over.
fn concerns(from: From, object: &Object) -> bool {
    match from {
        From::Data => true,
        From::Stage => matches!(object, Object::ContextExtensionRun(_)),
    }
}

/// The run of an object that is in its storage now.
pub(crate) struct Current {
    /// Below the newest restart's prefix.
    pub(crate) store: Store,
    record: Option<Restart>,
    /// Its result is published.
    pub(crate) finished: bool,
}

impl Current {
    /// Looks into the storage.
    pub(crate) async fn of(object: &Object) -> Result<Self> {
        let look = async || -> longstrap_storage::Result<Self> {
            let (store, _, record) = open(object)?.current_run().await?;
            let finished = store.size(result_of(object)).await?.is_some();
            Ok(Self { store, record, finished })
        };
        look().await.with_context(|| described(object))
    }
}

/// The manifest that is published last.
fn result_of(object: &Object) -> &'static str {
    match object {
        Object::SynthesisJob(_) => keys::DATASET,
        Object::ContextExtensionRun(_) => keys::MODEL_MANIFEST,
    }
}

fn open(object: &Object) -> longstrap_storage::Result<Store> {
    let storage = &object.common().storage;
    Store::open(&storage.uri, &storage.options)
}

/// A restart that is to be recorded.
#[derive(Debug)]
pub(crate) struct Request(Restart);

impl Request {
    /// What `--restart-from` asks for; `None` when an earlier call of the folder has recorded it and
    /// it is not finished.
    pub(crate) async fn new(
        from: RestartFrom,
        objects: &[Object],
        folder: &OutFolder,
        identity: &Identity,
    ) -> Result<Option<Self>> {
        let from = match from {
            RestartFrom::Data => From::Data,
            RestartFrom::Stage => From::Stage,
        };
        let ours = format!("{}/", identity.cluster);
        let mut begun = Vec::new();
        for object in objects.iter().filter(|object| concerns(from, object)) {
            let current = Current::of(object).await?;
            let remembered = folder.recall(object.kind(), object.name())?;
            let usable = remembered.is_none_or(|earlier| can_go_on(object, &earlier));
            let id = current.record.as_ref().filter(|record| record.from == from && usable);
            let id = id.map(|record| record.request_id.clone()).filter(|id| id.starts_with(&ours));
            begun.push((object, current, id));
        }
        // What is finished is kept when it belongs to a request of which something is not.
        let unfinished =
            |id: &String| begun.iter().any(|(_, run, of)| !run.finished && of.as_ref() == Some(id));
        if begun.iter().all(|(_, _, id)| id.as_ref().is_some_and(unfinished)) {
            for (object, current, _) in &begun {
                eprintln!(
                    "{}: goes on below {}, where an earlier call with --restart-from began and did not finish",
                    described(object),
                    current.store.uri()
                );
            }
            return Ok(None);
        }
        Ok(Some(Self(Restart { from, request_id: ours + &new_uid() })))
    }

    /// Whether an object starts over.
    pub(crate) fn concerns(&self, object: &Object) -> bool {
        concerns(self.0.from, object)
    }

    /// Records the restart in the storage of every object that it concerns.
    pub(crate) async fn record(&self, objects: &[Object]) -> Result<()> {
        for object in objects.iter().filter(|object| self.concerns(object)) {
            let begin = async || open(object)?.start_over(&self.0).await;
            let (run, _) = begin().await.with_context(|| described(object))?;
            eprintln!("{}: starts over below {}", described(object), run.uri());
        }
        Ok(())
    }
}

/// Whether the run that is remembered can still become that of `object`: neither an edit nor what
/// the run found in its inputs makes it another one.
fn can_go_on(object: &Object, remembered: &Remembered) -> bool {
    let status: CommonStatus = serde_json::from_value(remembered.status.clone()).unwrap_or_default();
    let changed = [Reason::FingerprintMismatch, Reason::DataChanged].map(Reason::as_str);
    let refused = status.conditions.iter().any(|condition| {
        condition.type_ == ConditionType::Stalled.as_str()
            && condition.status == "True"
            && changed.contains(&condition.reason.as_str())
    });
    !refused && !another_run(object, &remembered.spec)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    /// A folder with a SynthesisJob and a ContextExtensionRun.
    struct Bench {
        dir: tempfile::TempDir,
        folder: OutFolder,
        objects: [Object; 2],
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = OutFolder::open(dir.path()).unwrap();
            let at = |name: &str| format!("file://{}", folder.root().join(name).display());
            let object = |kind: &str, spec: Value| {
                let object = json!({
                    "apiVersion": "longstrap.io/v1alpha1", "kind": kind, "metadata": {"name": "x"}, "spec": spec,
                });
                longstrap_crds::parse(&object).unwrap()
            };
            let job = json!({
                "storage": {"uri": at("docs")}, "tokenizer": {"uri": at("model")},
                "corpus": [{"name": "c", "uri": at("corpus.jsonl"), "format": "JsonLines"}],
                "generator": {"endpoints": [{"name": "a", "url": "http://h", "model": "m"}], "contextLength": "8Ki"},
                "samples": {"longOutput": {"count": 4}},
            });
            let run = json!({
                "storage": {"uri": at("run")}, "model": {"uri": at("model")},
                "data": [{"name": "d", "synthesisJobRef": {"name": "x"}}],
                "stages": [{"name": "s", "contextLength": "1Ki", "steps": 2}],
            });
            let objects = [object("SynthesisJob", job), object("ContextExtensionRun", run)];
            Self { dir, folder, objects }
        }

        /// As an executor leaves it.
        fn remember(&self, object: &Object, status: Value) {
            let what = Remembered {
                uid: "u".into(),
                generation: 1,
                spec: object.to_json().unwrap()["spec"].clone(),
                status,
                created: jiff::Timestamp::UNIX_EPOCH,
            };
            self.folder.remember(object.kind(), object.name(), &what).unwrap();
        }

        /// Asks for a restart; whether it is a new one.
        async fn restart(&self, from: RestartFrom) -> bool {
            let identity = Identity::of(&self.folder, 1);
            let request = Request::new(from, &self.objects, &self.folder, &identity).await.unwrap();
            if let Some(request) = &request {
                request.record(&self.objects).await.unwrap();
            }
            self.objects.iter().for_each(|object| self.remember(object, json!({"phase": "Running"})));
            request.is_some()
        }

        fn finish(&self, manifest: &str) {
            let path = self.dir.path().join(manifest);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }

        /// The newest restart of each object.
        fn newest(&self) -> [usize; 2] {
            let count = |run: &Path| (1..).take_while(|k| run.join(format!("r{k}")).exists()).count();
            ["docs", "run"].map(|name| count(&self.dir.path().join(name)))
        }
    }

    #[tokio::test]
    async fn the_same_command_goes_on_until_everything_that_it_began_is_finished() {
        let bench = Bench::new();
        assert!(bench.restart(RestartFrom::Data).await);
        assert!(!bench.restart(RestartFrom::Data).await);
        // The run is not finished: its finished data are kept.
        bench.finish("docs/r1/dataset/dataset.json");
        assert!(!bench.restart(RestartFrom::Data).await);
        assert_eq!(bench.newest(), [1, 1]);
        bench.finish("run/r1/model/model.json");
        assert!(bench.restart(RestartFrom::Data).await);
        assert_eq!(bench.newest(), [2, 2]);
        // Another kind of restart is another command.
        assert!(bench.restart(RestartFrom::Stage).await);
        assert!(!bench.restart(RestartFrom::Stage).await);
        assert_eq!(bench.newest(), [2, 3]);
    }

    #[tokio::test]
    async fn another_run_or_another_folder_is_not_gone_on_with() {
        let mut bench = Bench::new();
        assert!(bench.restart(RestartFrom::Data).await);
        let edit = |object: &mut Object, seed| match object {
            Object::SynthesisJob(job) => (job.spec.seed, job.spec.workers) = (seed, 7),
            Object::ContextExtensionRun(_) => {}
        };
        edit(&mut bench.objects[0], 0);
        assert!(!bench.restart(RestartFrom::Data).await, "workers decide nothing");
        edit(&mut bench.objects[0], 1);
        assert!(bench.restart(RestartFrom::Data).await, "the seed decides");
        // A corpus that changed is known by what the run said.
        let refused = json!({"type": "Stalled", "status": "True", "reason": "FingerprintMismatch",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        bench.remember(&bench.objects[0], json!({"phase": "Blocked", "conditions": [refused]}));
        assert!(bench.restart(RestartFrom::Data).await, "it was refused");
        assert_eq!(bench.newest(), [3, 3]);

        let elsewhere = Bench::new();
        let identity = Identity::of(&elsewhere.folder, 1);
        let request = Request::new(RestartFrom::Data, &bench.objects, &elsewhere.folder, &identity);
        assert!(request.await.unwrap().is_some(), "it was begun in another folder");
    }
}
