//! A corpus from files to workers: what is kept, that the same input gives the same content
//! whoever publishes it, and that a torn object is noticed.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use longstrap_corpus::{
    CorpusError, DropReason, FileContent, Format, LocalFile, NormaliseOptions, Normalised, Source,
    SourceFiles, discard, fetch, list_source, load_manifest, normalise, publish,
};
use longstrap_storage::{AttemptId, Digest, Store};

/// A text of `n` words that belong to `seed` alone.
fn words(seed: u32, n: usize) -> String {
    (0..n as u32).map(|i| format!("w{} ", (seed * 7919 + i).wrapping_mul(2_654_435_761) >> 8)).collect()
}

const LICENCE: &str = "Licensed under either of Apache License, Version 2.0 or MIT license at your option. ";

fn record(group: &str, text: &str) -> String {
    serde_json::json!({"text": text, "repository": group}).to_string() + "\n"
}

fn corpus() -> String {
    let mut lines = String::new();
    for repository in 0..12u32 {
        for document in 0..3 {
            let text = format!("# Title {repository}\n\n{}{LICENCE}", words(repository * 10 + document, 200));
            lines += &record(&format!("r{repository}"), &text);
        }
    }
    lines += &record("copies", &format!("# Title 1\n\n{}{LICENCE}", words(11, 200)));
    lines += &record("copies", &format!("{}{LICENCE}", words(21, 200).replace("w1", "v1 ")));
    lines += &record("copies", &format!("{} and a few words of its own here. {LICENCE}", words(30, 200)));
    lines += "{\"text\":null,\"repository\":\"x\"}\n";
    lines += &record("x", " \n ");
    lines += &record("bad", "bad\u{4} character");
    lines
}

fn source(files: &[&str]) -> Source {
    Source {
        name: "web".into(),
        uri: "s3://bucket/web".into(),
        format: Format::JsonLines,
        text_field: "text".into(),
        group_field: Some("repository".into()),
        files: files.iter().map(|f| (*f).to_owned()).collect(),
    }
}

fn run(file: &Path, dir: &Path, seed: u64, held_out_tokens: u64) -> Result<Normalised, CorpusError> {
    let count = |text: &str| match text.contains("uncountable") {
        true => Err("no tokens".to_owned()),
        false => Ok(text.split_whitespace().count() as u32),
    };
    let mut options = NormaliseOptions {
        dropped_bytes: &[4],
        seed,
        held_out_tokens,
        count: &count,
        progress: &mut |_, _, _| Ok(()),
    };
    let mut open = |_: &Source, _: &str| Ok(LocalFile { path: file.to_owned(), temporary: false });
    normalise(&[source(&["a.jsonl"])], &mut open, dir, &mut options)
}

#[tokio::test]
async fn from_files_to_workers() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.jsonl");
    std::fs::write(&file, corpus()).unwrap();

    let first = run(&file, &tmp.path().join("one"), 17, 1000).unwrap();
    let report = &first.report;
    assert_eq!(report.dropped[&DropReason::ExactDuplicate], 1, "{report:?}");
    assert!(report.dropped[&DropReason::NearDuplicate] >= 1, "{report:?}");
    assert_eq!((report.dropped[&DropReason::NoText], report.dropped[&DropReason::Empty]), (1, 1));
    assert!(report.held_out_tokens >= 1000);
    let groups = |documents: Vec<longstrap_corpus::Document>| -> BTreeSet<String> {
        documents.into_iter().map(|d| d.group).collect()
    };
    let kept: Vec<_> = (0..first.documents.len()).map(|n| first.documents.get(n).unwrap()).collect();
    assert!(kept.iter().any(|d| d.text == "bad character"));
    assert!(kept.iter().all(|d| first.phrases.hits(&d.text) == 0));
    assert!(groups(kept).is_disjoint(&groups(first.held_out.clone())));
    assert!(first.held_out.iter().all(|d| first.phrases.hits(&d.text) > 100));

    let store =
        Store::open(&format!("file://{}", tmp.path().join("store").display()), &BTreeMap::new()).unwrap();
    let settings = Digest::of("settings");
    let attempt = |n: u32| AttemptId::new(n, 0, "0123456789").unwrap();
    let won = publish(&store, &attempt(1), &first, settings, &tmp.path().join("one"), &mut |_| Ok(()))
        .await
        .unwrap();
    // A second writer of the same corpus loses the commit, takes the winner's and leaves nothing.
    let second = run(&file, &tmp.path().join("two"), 17, 1000).unwrap();
    let lost = publish(&store, &attempt(2), &second, settings, &tmp.path().join("two"), &mut |_| Ok(()))
        .await
        .unwrap();
    assert_eq!(lost, won);
    assert_eq!(load_manifest(&store).await.unwrap().unwrap(), won);
    assert!(store.list("corpus").await.unwrap().iter().all(|meta| !meta.key.contains("2-0-")));

    // What it was made of is written down.
    let content = FileContent::of(&file).unwrap();
    assert_eq!((content.bytes, content.digest), (corpus().len() as u64, Digest::of(corpus())));
    assert_eq!(won.sources, [SourceFiles::new(&source(&["a.jsonl"]), &[content])]);

    // Alone elsewhere it has the same content; with another seed it has not.
    for (seed, same) in [(17, true), (18, false)] {
        let other =
            Store::open(&format!("file://{}/s{seed}", tmp.path().display()), &BTreeMap::new()).unwrap();
        let dir = tmp.path().join(format!("d{seed}"));
        let again = run(&file, &dir, seed, 1000).unwrap();
        let manifest = publish(&other, &attempt(3), &again, settings, &dir, &mut |_| Ok(())).await.unwrap();
        assert_eq!(manifest.digest == won.digest, same, "seed {seed}");
    }

    let there = fetch(&store, &won, &tmp.path().join("cache"), &|_| ()).await.unwrap();
    assert_eq!(there.documents.len(), first.documents.len());
    let last = there.documents.len() - 1;
    assert_eq!(there.documents.get(last).unwrap(), first.documents.get(last).unwrap());
    let query: String = there.documents.get(3).unwrap().text.chars().skip(400).take(60).collect();
    assert_eq!(there.index.search(&query, 3).unwrap()[0].number, 3);
    assert_eq!(won.held_out(&store, tmp.path()).await.unwrap(), first.held_out);
    assert_eq!(won.phrases(&store).await.unwrap(), first.phrases);

    let part = store.local_root().unwrap().join(&won.parts[0].key);
    let bytes = std::fs::read(&part).unwrap();
    std::fs::write(&part, &bytes[..bytes.len() - 1]).unwrap();
    let torn = fetch(&store, &won, &tmp.path().join("cache2"), &|_| ()).await.unwrap_err();
    assert!(torn.to_string().contains(&won.parts[0].key), "{torn}");

    discard(&store, &won).await.unwrap();
    assert_eq!(load_manifest(&store).await.unwrap(), None);
    assert_eq!(store.list("corpus").await.unwrap(), []);
}

/// Without held-out text, too: another job's evaluation may ask for them.
#[test]
fn documents_with_needles_of_an_evaluation_are_dropped() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.jsonl");
    let needle = longstrap_corpus::needles::sentence("museum", "jade");
    let text = format!("{} {needle} {}", words(1, 50), words(2, 50));
    std::fs::write(&file, record("a", &words(3, 100)) + &record("b", &text)).unwrap();
    let got = run(&file, tmp.path(), 17, 0).unwrap();
    assert_eq!(got.report.dropped[&DropReason::HeldOutOverlap], 1, "{:?}", got.report);
    assert_eq!((got.documents.len(), got.documents.get(0).unwrap().group.as_str()), (1, "a"));
}

#[tokio::test]
async fn corpora_that_cannot_be_used() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("a.jsonl");
    for (text, held_out, want) in [
        ("".to_owned(), 0, "empty: 0 documents read, none kept (its files hold no record)"),
        (record("a", " ") + &record("a", "\u{4}"), 0, "empty: 2 documents read, none kept (Empty 2)"),
        (record("a", "one two three"), 2, "asks for 2 tokens, but the corpus has 3"),
        (
            record("a", "one") + &record("a", "uncountable"),
            0,
            "corpus `web`, file s3://bucket/web/a.jsonl, row 2: no tokens",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = run(&file, tmp.path(), 1, held_out).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let folder = tmp.path().join("folder/sub");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["b.jsonl.gz", "a.jsonl", "notes.txt"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
    let store = Store::open(&format!("file://{}/folder", tmp.path().display()), &BTreeMap::new()).unwrap();
    let listed = list_source(&store, source(&[])).await.unwrap();
    assert_eq!(listed.files, ["sub/a.jsonl", "sub/b.jsonl.gz"]);
    let parquet = Source { format: Format::Parquet, ..source(&[]) };
    let error = list_source(&store, parquet).await.unwrap_err().to_string();
    assert_eq!(error, "corpus `web`: no file under s3://bucket/web ends in .parquet (looked at 3 files)");
    let single = Store::open(&format!("file://{}", file.display()), &BTreeMap::new()).unwrap();
    assert_eq!(list_source(&single, source(&[])).await.unwrap().files, [""]);
}
