//! prepare → ranks → export on the smoke model: published bytes, stops and resumes, bad input.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use longstrap_crds::task::{Owner, PinnedData, Ports, RunSpec, TaskFile};
use longstrap_crds::{Reason, Step};
use longstrap_runtime::rank::{AgentLink, RankEnv};
use longstrap_runtime::{Progress, StepContext, StepError, StepResult, Surroundings, Termination};
use longstrap_storage::{CheckpointId, Credentials, Digest, Restart, RestartFrom, keys, newest_checkpoint};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::model::Place;
use crate::rank::rank_observed;
use crate::stage::OnPlace;

/// An output folder with a dataset, and a spec.
struct World {
    dir: tempfile::TempDir,
    spec: Value,
}

const WORDS: [&str; 8] = ["the", "window", "of", "a", "model", "grows", "with", "training"];

fn words(seed: usize, count: usize) -> String {
    let word = |i: usize| WORDS[(seed * 31 + i * i + i / 7 * seed) % WORDS.len()];
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

fn model() -> PathBuf {
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
    fn new(stages: Value, evaluation: bool) -> Self {
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
        let held: ArrayRef = Arc::new(texts((0..40).map(|i| words(900 + i, 400))));
        write_parquet(&data.join("heldout.parquet"), vec![("text", held)]);
        let digest = |name: &str| Digest::of(std::fs::read(data.join(name)).unwrap());
        let manifest = json!({
            "formatVersion": 1, "files": [{"name": "part-00000.parquet", "digest": digest("part-00000.parquet")}],
            "heldOut": {"name": "heldout.parquet", "digest": digest("heldout.parquet"), "documents": 40, "tokens": 16000},
            "tokenizerDigest": "t", "templateDigest": "t", "rows": samples, "tokens": 1,
        });
        std::fs::write(data.join("dataset.json"), manifest.to_string()).unwrap();
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
        Self { dir, spec }
    }

    async fn context(&self, step: Step, ranks: u32, pod: &str) -> StepContext {
        let spec: longstrap_crds::ContextExtensionRunSpec =
            serde_json::from_value(self.spec.clone()).unwrap();
        let stages = spec.stages.len() as u32;
        let uri = |name: &str| format!("file://{}", self.dir.path().join(name).display());
        let data = |name: &str, uri: String| PinnedData { name: name.into(), uri, digest: None };
        let task = TaskFile {
            format_version: 1,
            owner: Owner { cluster: "c".into(), namespace: "n".into(), name: "test".into(), uid: "u".into() },
            attempt: 1,
            step,
            spec: RunSpec::ContextExtensionRun(Box::new(spec)),
            data: vec![data("short", uri("short.jsonl")), data("long", uri("data"))],
            stages: 0..stages,
            workers: 1,
            ranks_per_node: ranks,
            threads_per_rank: 1,
            backoff_limit: 3,
            rank_timeout_seconds: 60,
            outage_timeout_seconds: 5,
            rendezvous_host: "localhost".into(),
            ports: Ports::default(),
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

    async fn prepare(&self) -> StepResult {
        crate::prepare(&self.context(Step::Prepare, 1, "aaaaaaaa-prepare").await).await
    }

    /// Runs a gang; `stop_at`: told to stop when the first rank comes to that place.
    async fn train(
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

    async fn export(&self) -> StepResult {
        crate::export(&self.context(Step::Export, 1, "cccccccc-export").await).await
    }

    fn read(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join("run").join(key)).unwrap()
    }

    fn json(&self, key: &str) -> Value {
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

fn two_stages() -> Value {
    json!([
        {"name": "half", "contextLength": 512, "steps": 5, "tokensPerStep": 700},
        {"name": "one", "contextLength": 1024, "steps": 3},
    ])
}

fn stopped(results: &[StepResult]) -> bool {
    results.iter().all(|r| matches!(r, Err(StepError::Stopped)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_stopped_anywhere_ends_in_the_same_bytes() {
    let whole = World::new(two_stages(), true);
    whole.prepare().await.unwrap();
    let run = whole.read(keys::RUN);
    for result in whole.train(2, 1, None).await {
        result.unwrap();
    }
    whole.export().await.unwrap();

    let broken = World::new(two_stages(), true);
    broken.prepare().await.unwrap();
    assert_eq!(broken.read(keys::RUN), run, "run.json is a function of content alone");
    // In the first step of the second stage nothing of it is saved: what starts it again must begin
    // with a fresh optimizer, like the gang that came from the stage before.
    let stops = [
        ("half", 1, Place::Forward { row: 0, layer: 0 }),
        ("half", 4, Place::Backward { row: 0, layer: 1 }),
        ("one", 1, Place::Reduce),
        ("one", 2, Place::Head { row: 0 }),
    ];
    for (i, at) in stops.into_iter().enumerate() {
        let results = broken.train(2, 1 + i as u64, Some(at)).await;
        assert!(stopped(&results), "{at:?}: {results:?}");
        broken.prepare().await.unwrap();
    }
    for result in broken.train(2, 9, None).await {
        result.unwrap();
    }
    broken.export().await.unwrap();
    broken.export().await.unwrap();

    for key in [keys::MODEL_MANIFEST, "model/model.safetensors", "model/config.json", keys::RESULTS] {
        assert!(whole.read(key) == broken.read(key), "{key} differs");
    }
    let config = whole.json("model/config.json");
    assert_eq!(
        (&config["max_position_embeddings"], &config["rope_theta"]),
        (&json!(1024), &json!(160_000.0))
    );
    let results = whole.json(keys::RESULTS);
    let kinds: Vec<_> = results["models"].as_array().unwrap().iter().map(|m| m["kind"].clone()).collect();
    assert_eq!(kinds, [json!("Base"), json!("BaseChange"), json!("Trained"), json!("Trained")]);
    assert!(String::from_utf8(broken.read("report.html")).unwrap().contains("train half"));
    let log = String::from_utf8(broken.read(keys::RUN_LOG)).unwrap();
    assert!(log.lines().filter(|l| l.contains(r#""phase":"train half""#)).count() >= 5);
    // Checkpoints: the newest two, nothing unfinished.
    let manifests = walk(&broken.dir.path().join("run/ckpt"));
    assert_eq!(manifests.iter().filter(|p| p.ends_with("checkpoint.json")).count(), 2);
    assert!(!manifests.iter().any(|p| p.to_string_lossy().contains('#')));
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_ranks_goes_on_from_a_checkpoint() {
    let stages = json!([{"name": "half", "contextLength": 512, "steps": 4}]);
    let mut weights = Vec::new();
    for ranks in [[2, 2], [2, 3], [3, 1]] {
        let world = World::new(stages.clone(), false);
        world.prepare().await.unwrap();
        let at = ("half", 3, Place::Forward { row: 0, layer: 0 });
        assert!(stopped(&world.train(ranks[0], 1, Some(at)).await));
        for result in world.train(ranks[1], 2, None).await {
            result.unwrap();
        }
        world.export().await.unwrap();
        let stored = longstrap_model::Weights::open(&world.dir.path().join("run/model")).unwrap();
        weights.push(stored.tensor_f32("model.embed_tokens.weight").unwrap());
    }
    for other in &weights[1..] {
        let difference = super::rig::relative(other, &weights[0]);
        assert!(difference > 0.0 && difference < 1e-3, "{difference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_over_at_the_stages_takes_the_tokens_over() {
    let mut world = World::new(json!([{"name": "s", "contextLength": 512, "steps": 2}]), false);
    world.prepare().await.unwrap();
    // What is taken over is copied, not rendered: a planted file of the run before shows up.
    let mut manifest = world.json(keys::TOKENS_MANIFEST);
    let ids = &mut manifest["sources"][0]["ids"];
    let planted = vec![7u8; ids["bytes"].as_u64().unwrap() as usize];
    ids["digest"] = json!(Digest::of(&planted));
    std::fs::write(world.dir.path().join("run").join(ids["key"].as_str().unwrap()), &planted).unwrap();
    std::fs::write(world.dir.path().join("run").join(keys::TOKENS_MANIFEST), manifest.to_string()).unwrap();
    let digests = |world: &World, key: &str| {
        let sources = world.json(key)["sources"].clone();
        [0, 1].map(|i| sources[i]["ids"]["digest"].clone())
    };
    let before = digests(&world, keys::TOKENS_MANIFEST);

    world.spec["training"]["learningRate"] = json!("2e-3");
    let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    std::fs::write(world.dir.path().join("short.jsonl"), line).unwrap();
    let storage = world.context(Step::Prepare, 1, "aaaaaaaa-prepare").await.storage;
    for (k, from, long_is_taken_over) in [(1, RestartFrom::Stage, true), (2, RestartFrom::Data, false)] {
        storage.start_over(&Restart { from, request_id: k.to_string() }).await.unwrap();
        world.prepare().await.unwrap();
        let after = digests(&world, &format!("r{k}/{}", keys::TOKENS_MANIFEST));
        assert_eq!(after[0] == before[0], long_is_taken_over, "restart {k}");
        assert_ne!(after[1], before[1], "its file has changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_ends_in_prepare() {
    let one = |length: u32| json!([{"name": "s", "contextLength": length, "steps": 1}]);
    type Change = fn(&mut World);
    let cases: [(u32, Reason, &str, Change); 8] = [
        (256, Reason::WindowNotExtended, "allowWindowNotExtended", |_| {}),
        (512, Reason::DoesNotFit, "acceleratorMemory", |w| w.spec["acceleratorMemory"] = json!("40Mi")),
        (512, Reason::InvalidData, "short.jsonl, line 2", |w| {
            std::fs::write(w.dir.path().join("short.jsonl"), "{\"messages\": []}\n{\"messages\": [{}]}\n")
                .unwrap();
        }),
        (512, Reason::InvalidData, "no *.jsonl", |w| {
            std::fs::remove_dir_all(w.dir.path().join("data")).unwrap()
        }),
        (512, Reason::DataChanged, "its manifest says", |w| {
            std::fs::write(w.dir.path().join("data/part-00000.parquet"), "x").unwrap();
        }),
        (512, Reason::InvalidData, "maxEpochs", |w| {
            w.spec["stages"][0]["steps"] = json!(400);
        }),
        (512, Reason::InvalidModel, "config.json", |w| {
            w.spec["model"]["uri"] = w.spec["storage"]["uri"].clone();
        }),
        (512, Reason::InvalidData, "held-out", |w| {
            w.spec["evaluation"] = json!({"afterEachStage": true, "recall": {}});
            let path = w.dir.path().join("data/dataset.json");
            let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            manifest["heldOut"] = Value::Null;
            std::fs::write(path, manifest.to_string()).unwrap();
        }),
    ];
    for (length, reason, text, change) in cases {
        let mut world = World::new(one(length), false);
        std::fs::create_dir(world.dir.path().join("run")).unwrap();
        change(&mut world);
        let error = world.prepare().await.expect_err(text);
        assert_eq!(error.reason(), Some(reason), "{error}");
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(!world.dir.path().join("run/run.json").exists());
    }
    // A changed spec on a run that exists: one error that lists the fields.
    let mut world = World::new(one(512), false);
    world.prepare().await.unwrap();
    world.spec["training"]["learningRate"] = json!("2e-3");
    let error = world.prepare().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::FingerprintMismatch));
    assert!(
        ["  spec.training.learningRate: 0.001 → 0.002\n", "--restart-from stage", "--out folder"]
            .iter()
            .all(|words| error.to_string().contains(words)),
        "{error}"
    );
}

/// Sources that no SynthesisJob made are compared, too; what is measured is bound to the run.
#[tokio::test(flavor = "multi_thread")]
async fn samples_of_every_source_are_compared_with_the_held_out_text() {
    let leaks = async |more: &str| {
        let mut world = World::new(json!([{"name": "s", "contextLength": 512, "steps": 2}]), true);
        world.spec["evaluation"] = json!({"afterEachStage": true, "recall": {}});
        let path = world.dir.path().join("short.jsonl");
        let sample = json!({"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": more}]});
        let lines = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{lines}\n{sample}\n")).unwrap();
        world.prepare().await.unwrap();
        let run = world.json(keys::RUN);
        let measure = json!({"lossByPosition": false, "recall": true, "needle": false});
        assert_eq!(run["evaluation"]["measure"], measure, "{run}");
        run["heldOut"]["leaks"].as_u64().unwrap()
    };
    let none = leaks("Nothing of the held-out text.").await;
    assert_eq!(leaks(&words(903, 12)).await, none + 1, "twelve words of a held-out document");
    let needle = longstrap_corpus::needles::sentence("library", "gold");
    assert_eq!(leaks(&format!("He said: {needle}")).await, none + 1, "a needle");
}

/// A copy of the smoke model in which `edit` changed the numbers of a tensor.
fn edited_model(world: &World, tensor: &str, edit: impl Fn(&mut [f32])) -> String {
    let dir = world.dir.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (size, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let info = header.info(tensor).unwrap().clone();
    let start = 8 + size;
    let range = start + info.data_offsets.0..start + info.data_offsets.1;
    assert_eq!(info.dtype, safetensors::Dtype::F32);
    let mut numbers: Vec<f32> =
        bytes[range.clone()].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    edit(&mut numbers);
    bytes[range].copy_from_slice(bytemuck::cast_slice(&numbers));
    std::fs::write(&path, bytes).unwrap();
    format!("file://{}", dir.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_finite_is_refused_and_commits_nothing() {
    let norm = "model.norm.weight";
    let stages = || json!([{"name": "half", "contextLength": 512, "steps": 2}]);
    let mut world = World::new(stages(), false);
    let uri = edited_model(&world, norm, |numbers| numbers[3] = f32::NAN);
    world.spec["model"]["uri"] = json!(uri);
    let error = world.prepare().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::InvalidModel));
    assert!(error.to_string().contains("tensor model.norm.weight has NaN at element 3"), "{error}");

    // Finite weights that no gradient survives.
    let mut world = World::new(stages(), false);
    world.spec["model"]["uri"] = json!(edited_model(&world, norm, |numbers| numbers.fill(3e38)));
    world.prepare().await.unwrap();
    for result in world.train(1, 1, None).await {
        let error = result.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::InvalidModel), "{error}");
        assert!(error.to_string().contains("stage half: no step had finite gradients"), "{error}");
    }
    assert!(!world.dir.path().join("run").join(keys::stage_manifest("half")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_is_recomputed_where_it_does_not_fit_and_the_bytes_are_the_same() {
    let stages = json!([{"name": "half", "contextLength": 512, "steps": 2}]);
    let plan = |keep_attention| {
        let config = longstrap_model::ModelConfig::load(&model()).unwrap();
        let options =
            longstrap_memory_plan::Options { ranks: 2, keep_attention, sources: 2, ..Default::default() };
        longstrap_memory_plan::Plan::new(crate::layout::shape_of(&config), 512, options).total_bytes()
    };
    let mut weights = Vec::new();
    for memory in [None, Some(plan(false))] {
        let mut world = World::new(stages.clone(), false);
        world.spec["parallelism"] = json!({"ranksPerNode": 2});
        if let Some(memory) = memory {
            assert!(memory < plan(true));
            world.spec["acceleratorMemory"] = json!(memory);
        }
        world.prepare().await.unwrap();
        for result in world.train(2, 1, None).await {
            result.unwrap();
        }
        world.export().await.unwrap();
        weights.push(world.read("model/model.safetensors"));
    }
    assert!(weights[0] == weights[1]);
}
