//! What a dataset is, and that it is the same whatever was killed.

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use longstrap_crds::Step;
use longstrap_dataset::DatasetManifest;
use longstrap_model::{Message, Role};
use longstrap_runtime::StepError;
use longstrap_storage::Digest;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;
use crate::Target;
use crate::sample::{Dropped, Provenance};

async fn undisturbed(storage: &Path, url: &str, cache: &Path) -> SynthesisJobSpec {
    let spec = spec(storage, url);
    prepare(&spec, cache).await.unwrap();
    crate::generate(&pod(&spec, Step::Generate, 1, 0, cache).await).await.unwrap();
    crate::finalize(&pod(&spec, Step::Finalize, 1, 0, cache).await).await.unwrap();
    spec
}

const GOLDEN: &str = "sha256:148140a25e528b6bcc1ddfd3363fa2b6d4715e75bc2b773e22e4ed278114e0b8";

struct Row {
    id: String,
    kind: String,
    messages: Vec<Message>,
    tokens: usize,
    provenance: Provenance,
}

fn rows(path: &Path) -> Vec<Row> {
    let file = std::fs::File::open(path).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert_eq!(builder.metadata().file_metadata().created_by(), Some("longstrap"));
    let mut rows = Vec::new();
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let text =
            |name: &str, i: usize| batch.column_by_name(name).unwrap().as_string::<i32>().value(i).to_owned();
        for i in 0..batch.num_rows() {
            let list = batch.column_by_name("messages").unwrap().as_list::<i32>().value(i);
            let turns = list.as_struct();
            let part = |n: usize, j: usize| turns.column(n).as_string::<i32>().value(j).to_owned();
            rows.push(Row {
                id: text("id", i),
                kind: text("kind", i),
                messages: (0..turns.len())
                    .map(|j| {
                        Message::new(
                            if part(0, j) == "user" { Role::User } else { Role::Assistant },
                            part(1, j),
                        )
                    })
                    .collect(),
                tokens: batch.column_by_name("tokens").unwrap().as_primitive::<UInt32Type>().value(i)
                    as usize,
                provenance: serde_json::from_str(&text("provenance", i)).unwrap(),
            });
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_holds_what_was_asked_for() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Scripted::start().await;
    let storage = tmp.path().join("s");
    let spec = undisturbed(&storage, &server.url(), tmp.path()).await;

    let manifest: DatasetManifest =
        serde_json::from_slice(&std::fs::read(storage.join("dataset/dataset.json")).unwrap()).unwrap();
    assert_eq!((manifest.rows, manifest.short), (7, 0), "{:?}", manifest.dropped);
    let duplicates = manifest.dropped.get(&Dropped::NearDuplicateInstruction).copied().unwrap_or(0);
    assert!(duplicates > 0, "the script repeats itself: {:?}", manifest.dropped);
    let held_out = manifest.held_out.clone().unwrap();
    assert!(held_out.tokens >= 2000 && held_out.leaks == 0);
    let phrases = std::fs::read(storage.join("dataset").join(&held_out.phrases.name)).unwrap();
    assert_eq!(Digest::of(&phrases), held_out.phrases.digest);
    assert!(longstrap_corpus::Phrases::from_bytes(&phrases).unwrap().len() > 100);

    let target = Target::load(&smoke("model")).unwrap();
    let rows = rows(&storage.join("dataset/part-00000.parquet"));
    let mut exact = 0;
    for row in &rows {
        assert_eq!(row.tokens, target.rendered(&row.messages).unwrap(), "{}", row.id);
        assert_eq!([row.messages[0].role, row.messages[1].role], [Role::User, Role::Assistant]);
        let with_documents =
            if row.kind == "LongInput" { &row.messages[0].content } else { &row.messages[1].content };
        let chars: Vec<char> = with_documents.chars().collect();
        for document in &row.provenance.documents {
            let text: String = chars[document.span.clone()].iter().collect();
            assert!(!text.trim().is_empty() || document.cut, "{}", row.id);
        }
        if row.kind == "LongInput" {
            let length = row.provenance.length.unwrap() as usize;
            assert!((512..=1024).contains(&length));
            assert!(row.tokens <= length && row.tokens * 100 >= length * 99, "{} of {length}", row.tokens);
            exact += usize::from(length == 1024);
            assert!(row.provenance.documents.len() >= 2);
            assert!(row.messages[0].content.contains(&row.provenance.instruction));
        } else {
            assert!((200..=600).contains(&row.tokens), "{}", row.tokens);
        }
    }
    assert!(exact >= 2, "{exact}");
    // Raise the format version of run.json when equal input gives other bytes.
    let part = Digest::of(std::fs::read(storage.join("dataset/part-00000.parquet")).unwrap());
    assert_eq!(part.to_string(), GOLDEN, "the same corpus, prompts and answers gave other bytes than before");
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids[0], "long-input-000000");
    assert_eq!(ids[6], "long-output-000002");
    assert!(ids.is_sorted());

    let lines = std::fs::read_to_string(storage.join("dataset/jsonl/part-00000.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["messages"][1]["content"], rows[0].messages[1].content.as_str());
    assert_eq!(lines.lines().count(), 7);
    let card = std::fs::read_to_string(storage.join("dataset/README.md")).unwrap();
    assert!(card.contains("Samples: 7 (4 long-input, 3 long-output)"), "{card}");
    for name in ["run.json", "dataset/dataset.json", "dataset/README.md"] {
        let text = std::fs::read_to_string(storage.join(name)).unwrap();
        assert!(!text.contains(&server.url()) && !text.contains(&tmp.path().display().to_string()), "{name}");
    }
    // Nothing that a manifest does not name is left of the calls.
    assert!(
        !storage.join("calls").exists()
            || std::fs::read_dir(storage.join("calls")).unwrap().all(|shard| {
                std::fs::read_dir(shard.unwrap().path())
                    .unwrap()
                    .all(|attempt| std::fs::read_dir(attempt.unwrap().path()).unwrap().next().is_none())
            })
    );

    // All again: nothing is asked, nothing changes.
    let (calls, before) = (server.calls(), published(&storage));
    prepare(&spec, tmp.path()).await.unwrap();
    crate::generate(&pod(&spec, Step::Generate, 2, 0, tmp.path()).await).await.unwrap();
    crate::finalize(&pod(&spec, Step::Finalize, 2, 0, tmp.path()).await).await.unwrap();
    assert_eq!(server.calls(), calls);
    assert!(published(&storage) == before);
}

/// Kills: workers are dropped in the middle of a call, several times, each time after some more
/// calls by the seed; then all is done again by what comes after.
#[tokio::test(flavor = "multi_thread")]
async fn kills_change_no_byte_and_pay_for_nothing_twice() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Scripted::start().await;
    let calm = tmp.path().join("calm");
    undisturbed(&calm, &server.url(), &tmp.path().join("c0")).await;
    let want = published(&calm);
    let price = server.calls();
    // Each has a server of its own, so that its calls are its own.
    let runs = [11, 12, 13].map(|seed| kills(seed, tmp.path(), price));
    for (seed, got) in futures::future::join_all(runs).await {
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&got), names(&want), "seed {seed}");
        for (name, bytes) in &want {
            assert!(got[name] == *bytes, "seed {seed}: {name} differs");
        }
    }
}

/// A run whose workers are killed by `seed`; what it publishes.
async fn kills(seed: u64, tmp: &Path, price: u64) -> (u64, BTreeMap<String, Vec<u8>>) {
    let server = Scripted::start().await;
    let storage = tmp.join(format!("s{seed}"));
    let cache = tmp.join(format!("c{seed}"));
    let spec = spec(&storage, &server.url());
    prepare(&spec, &cache).await.unwrap();
    let mut draw = crate::seed::RunSeed(seed).draw("kills");
    let mut kills = Vec::new();
    loop {
        let goal = server.calls() + 1 + draw.below(12) as u64;
        let attempt = kills.len() as u32 + 1;
        let pods = [
            pod(&spec, Step::Generate, attempt, 0, &cache).await,
            pod(&spec, Step::Generate, attempt, 1, &cache).await,
        ];
        let both = async {
            let [first, second] = &pods;
            tokio::try_join!(crate::generate(first), crate::generate(second))
        };
        let killed = async {
            while server.calls() < goal {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            result = both => {
                result.unwrap();
                break;
            }
            () = killed => kills.push(server.calls()),
        }
    }
    println!("seed {seed}: killed after calls {kills:?}");
    assert!(kills.len() >= 3, "seed {seed}: only {} kills", kills.len());
    // What a dead writer left is swept away.
    let orphans = ["corpus/1-7-dead/documents-00000.parquet", "shards/1-7-dead/0.jsonl"];
    for orphan in orphans {
        std::fs::create_dir_all(storage.join(orphan).parent().unwrap()).unwrap();
        std::fs::write(storage.join(orphan), "torn").unwrap();
    }
    // Finalize is stopped before it ends, and done again.
    let last = pod(&spec, Step::Finalize, 90, 0, &cache).await;
    last.stop.cancel();
    assert!(matches!(crate::finalize(&last).await, Err(StepError::Stopped)));
    crate::finalize(&pod(&spec, Step::Finalize, 91, 0, &cache).await).await.unwrap();
    assert!(orphans.iter().all(|orphan| !storage.join(orphan).exists()));
    // A kill loses at most what was in flight: four calls a worker.
    let paid = server.calls();
    assert!(paid <= price + kills.len() as u64 * 8 + 1, "seed {seed}: {paid} calls for {price}, {kills:?}");
    (seed, published(&storage))
}

/// A worker that is gone for good: the other one takes its shards over.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_shard_is_taken_over() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Scripted::start().await;
    let storage = tmp.path().join("s");
    let spec = spec(&storage, &server.url());
    prepare(&spec, tmp.path()).await.unwrap();
    let gone = pod(&spec, Step::Generate, 1, 0, tmp.path()).await;
    let calls = server.calls();
    tokio::select! {
        _ = crate::generate(&gone) => panic!("it was to be killed"),
        () = async {
            while server.calls() < calls + 6 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        } => {}
    }
    let ctx = pod(&spec, Step::Generate, 1, 1, tmp.path()).await;
    let run = crate::open::run(&ctx).await.unwrap();
    let bench = crate::open::bench(&ctx, &spec, run.content).await.unwrap();
    let llm = crate::open::generator(&ctx, &spec, &bench.run).await.unwrap();
    let worker = crate::Worker {
        store: &ctx.store,
        attempt: &ctx.attempt_id,
        fingerprint: run.fingerprint,
        bench: &bench,
        llm: llm.as_ref(),
        index: 1,
        workers: 2,
        patience: std::time::Duration::from_millis(50),
        progress: ctx.progress.clone(),
    };
    worker.run(BTreeMap::new(), &|_| Ok(())).await.unwrap();
    crate::finalize(&pod(&spec, Step::Finalize, 1, 0, tmp.path()).await).await.unwrap();

    let calm = tmp.path().join("calm");
    undisturbed(&calm, &server.url(), &tmp.path().join("c0")).await;
    assert!(published(&storage) == published(&calm));
    let report = ctx.progress.report();
    assert_eq!((report.count, report.of), (7, 7));
    assert_eq!(report.done, report.total);
}
