//! An output folder with a dataset, a spec, and the pods that work on it.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use longstrap_corpus::PhrasesBuilder;
use longstrap_crds::Step;
use longstrap_crds::task::{Owner, PinnedData, Ports, RunSpec, TaskFile};
use longstrap_dataset::{DatasetFile, DatasetManifest, HeldOutFile, MANIFEST, PhrasesFile, Usage};
use longstrap_runtime::rank::{AgentLink, RankEnv};
use longstrap_runtime::{Progress, StepContext, StepError, StepResult, Surroundings, Termination};
use longstrap_storage::{CheckpointId, Credentials, Digest, newest_checkpoint};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::model::Place;
use crate::rank::rank_observed;
use crate::stage::OnPlace;

/// An output folder with a dataset, and a spec.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) spec: Value,
    /// Whether the tasks come from the local executor.
    pub(super) one_machine: bool,
}

const WORDS: [&str; 8] = ["the", "window", "of", "a", "model", "grows", "with", "training"];

pub(super) fn words(seed: usize, count: usize) -> String {
    let word = |i: usize| WORDS[(seed * 31 + i * i + i / 7 * seed) % WORDS.len()];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

pub(super) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke/model").canonicalize().unwrap()
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(texts: impl IntoIterator<Item = String>) -> StringArray {
    StringArray::from(texts.into_iter().collect::<Vec<_>>())
}

impl World {
    pub(super) fn new(stages: Value, evaluation: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        // Two turns a sample, of growing length.
        let samples = 24;
        let turn = |i: usize| words(i, if i.is_multiple_of(2) { 4 + i / 2 } else { 20 + 9 * i });
        let contents: ArrayRef = Arc::new(texts((0..2 * samples).map(turn)));
        let roles: ArrayRef =
            Arc::new(texts((0..2 * samples).map(|i| ["user", "assistant"][i % 2].to_owned())));
        let turns = StructArray::from(vec![
            (Arc::new(Field::new("role", DataType::Utf8, false)), roles),
            (Arc::new(Field::new("content", DataType::Utf8, false)), contents),
        ]);
        let item = Arc::new(Field::new("item", turns.fields().clone().into_data_type(), false));
        let offsets = OffsetBuffer::from_lengths(vec![2; samples]);
        let messages: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::new(turns), None));
        write_parquet(&data.join("part-00000.parquet"), vec![("messages", messages)]);
        let held_out: Vec<String> = (0..40).map(|i| words(900 + i, 400)).collect();
        let held: ArrayRef = Arc::new(texts(held_out.clone()));
        write_parquet(&data.join("heldout.parquet"), vec![("text", held)]);
        let phrases = PhrasesBuilder::new(held_out.iter().map(String::as_str)).finish().to_bytes();
        std::fs::write(data.join("phrases.bin"), phrases).unwrap();
        let digest = |name: &str| Digest::of(std::fs::read(data.join(name)).unwrap());
        let file = |name: &str| DatasetFile { name: name.into(), digest: digest(name), rows: 0, tokens: 0 };
        std::fs::write(data.join("README.md"), "").unwrap();
        let phrases = PhrasesFile { name: "phrases.bin".into(), digest: digest("phrases.bin") };
        let manifest = DatasetManifest {
            format_version: longstrap_dataset::FORMAT_VERSION,
            fingerprint: Digest::of("synthesis"),
            files: vec![file("part-00000.parquet")],
            export: Vec::new(),
            rows: samples as u64,
            tokens: 1,
            held_out: Some(HeldOutFile {
                name: "heldout.parquet".into(),
                digest: digest("heldout.parquet"),
                documents: 40,
                tokens: 16000,
                leaks: 0,
                phrases,
            }),
            card: file("README.md"),
            tokenizer_digest: "t".into(),
            template_digest: "t".into(),
            generator: "none".into(),
            dropped: Default::default(),
            short: 0,
            usage: Usage::default(),
        };
        std::fs::write(data.join(MANIFEST), manifest.to_json().unwrap()).unwrap();
        let line = |i: usize| {
            json!({"messages": [{"role": "user", "content": words(i, 5)}, {"role": "assistant", "content": words(i + 1, 9)}]})
                .to_string()
        };
        let lines: Vec<String> = (100..130).map(line).collect();
        std::fs::write(dir.path().join("short.jsonl"), lines.join("\n")).unwrap();
        let uri = |path: &Path| format!("file://{}", path.display());
        let mut spec = json!({
            "storage": {"uri": uri(&dir.path().join("run"))},
            "model": {"uri": uri(&model())},
            "data": [
                {"name": "long", "synthesisJobRef": {"name": "docs"}, "weight": 4},
                {"name": "short", "uri": uri(&dir.path().join("short.jsonl")), "weight": 1},
            ],
            "stages": stages,
            "training": {"learningRate": "1e-3", "warmupSteps": 1, "seed": 3, "checkpoint": {"everySeconds": 0, "keepLast": 2}},
        });
        if evaluation {
            spec["evaluation"] = json!({
                "beforeFirstStage": true, "afterEachStage": true, "lossByPosition": {}, "recall": {}, "needle": {},
            });
        }
        Self { dir, spec, one_machine: true }
    }

    pub(super) async fn context(&self, step: Step, ranks: u32, pod: &str) -> StepContext {
        let spec: longstrap_crds::ContextExtensionRunSpec =
            serde_json::from_value(self.spec.clone()).unwrap();
        let stages = spec.stages.len() as u32;
        let uri = |name: &str| format!("file://{}", self.dir.path().join(name).display());
        let short = self.spec["data"][1]["uri"].as_str().unwrap().to_owned();
        let data = |name: &str, uri: String| PinnedData { name: name.into(), uri, digest: None };
        let task = TaskFile {
            format_version: 1,
            owner: Owner { cluster: "c".into(), namespace: "n".into(), name: "test".into(), uid: "u".into() },
            attempt: 1,
            step,
            spec: RunSpec::ContextExtensionRun(Box::new(spec)),
            data: vec![data("short", short), data("long", uri("data"))],
            stages: 0..stages,
            workers: 1,
            ranks_per_node: ranks,
            threads_per_rank: 1,
            backoff_limit: 3,
            rank_timeout_seconds: 60,
            outage_timeout_seconds: 5,
            rendezvous_host: "localhost".into(),
            ports: Ports::default(),
            one_machine: self.one_machine,
            grace_seconds: None,
        };
        let cache_dir = self.dir.path().join("cache").join(pod);
        std::fs::create_dir_all(&cache_dir).unwrap();
        let surroundings = Surroundings {
            index: 0,
            pod_uid: pod.into(),
            cache_dir,
            credentials: Credentials::Environment,
            termination: Termination::nowhere(),
            stop: CancellationToken::new(),
        };
        StepContext::new(task, surroundings, Progress::new("u", "test")).await.unwrap()
    }

    pub(super) async fn prepare(&self) -> StepResult {
        crate::prepare(&self.context(Step::Prepare, 1, "aaaaaaaa-prepare").await).await
    }

    /// Runs a gang; `stop_at`: told to stop when the first rank comes to that place.
    pub(super) async fn train(
        &self,
        ranks: u32,
        generation: u64,
        stop_at: Option<(&str, u64, Place)>,
    ) -> Vec<StepResult> {
        let listeners: Vec<TcpListener> =
            (0..ranks).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let first = self.context(Step::Train(0), ranks, "bbbbbbbb-train").await;
        let resume: Option<CheckpointId> = newest_checkpoint(&first.store).await.unwrap();
        let stop = CancellationToken::new();
        let mut running = Vec::new();
        for (rank, listener) in listeners.into_iter().enumerate() {
            let mut ctx = self.context(Step::Train(0), ranks, "bbbbbbbb-train").await;
            ctx.stop = stop.clone();
            let (ours, theirs) = UnixStream::pair().unwrap();
            std::thread::spawn(move || std::io::copy(&mut theirs.take(u64::MAX), &mut std::io::sink()));
            let environment = RankEnv {
                rank: rank as u32,
                world: ranks,
                generation,
                peers: peers.clone(),
                token: "token".into(),
                resume,
                listener,
            };
            let at =
                stop_at.filter(|_| rank == 0).map(|(stage, step, place)| (stage.to_owned(), step, place));
            let stop = stop.clone();
            let on_place: OnPlace = Arc::new(move |stage: &str, step: u64, place: Place| {
                if at.as_ref().is_some_and(|at| (at.0.as_str(), at.1, at.2) == (stage, step, place)) {
                    stop.cancel();
                }
            });
            running.push(tokio::spawn(async move {
                rank_observed(&ctx, environment, AgentLink::new(ours), on_place).await
            }));
        }
        let mut results = Vec::new();
        for rank in running {
            results.push(rank.await.unwrap());
        }
        results
    }

    pub(super) async fn export(&self) -> StepResult {
        crate::export(&self.context(Step::Export, 1, "cccccccc-export").await).await
    }

    pub(super) fn read(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join("run").join(key)).unwrap()
    }

    pub(super) fn json(&self, key: &str) -> Value {
        serde_json::from_slice(&self.read(key)).unwrap()
    }
}

trait IntoDataType {
    fn into_data_type(self) -> DataType;
}

impl IntoDataType for arrow::datatypes::Fields {
    fn into_data_type(self) -> DataType {
        DataType::Struct(self)
    }
}

/// Whether every rank was told to stop and did.
pub(super) fn stopped(results: &[StepResult]) -> bool {
    results.iter().all(|r| matches!(r, Err(StepError::Stopped)))
}

/// All files below a folder.
pub(super) fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}
