//! The protocol against a local folder, memory, and an S3 server that lies.
//!
//! Breakages that these tests catch: taking the answer of a Create at its word, comparing
//! attempt ids loosely, a probe that trusts the second Create's status, a fence that looks at its
//! own claim only.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod data;
mod s3;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use longstrap_storage::{
    AttemptId, Commit, CommitOutcome, Credentials, Error, ErrorKind, FieldChange, Patience, Restart,
    RestartFrom, RunCommit, StorageOwner, Store, keys,
};
use s3::{Lie, Server};
use serde::Deserialize;
use serde_json::json;

fn attempt(text: &str) -> AttemptId {
    text.parse().unwrap()
}

fn working(text: &str) -> (Commit, Vec<u8>) {
    let body = serde_json::to_vec(&json!({"attemptId": text, "rows": 3})).unwrap();
    (Commit::Working { attempt_id: attempt(text) }, body)
}

fn folder() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("file://{}/my run", folder.path().display());
    (folder, Store::open(&uri, &BTreeMap::new()).unwrap())
}

fn memory() -> Store {
    Store::open("memory:///run", &BTreeMap::new()).unwrap()
}

#[tokio::test]
async fn a_create_whose_answer_lies_is_decided_by_what_stands_there() {
    let server = Server::start().await;
    let store = server.store();
    for (i, lies) in [
        vec![],
        vec![Lie::DoneThen(503)],
        vec![Lie::DoneThen(409)],
        vec![Lie::DoneThenClosed],
        vec![Lie::NotDone(503)],
        vec![Lie::NotDone(409)],
        vec![Lie::NotDone(409), Lie::DoneThenClosed],
        vec![Lie::NotDone(503), Lie::DoneThen(503)],
    ]
    .into_iter()
    .enumerate()
    {
        // Alone: won, whatever was answered.
        let (commit, body) = working("1-0-me");
        server.lie(lies.clone());
        let key = format!("alone/{i}.json");
        assert_eq!(store.commit(&key, body.clone(), &commit).await, Ok(CommitOutcome::Won), "{lies:?}");
        assert_eq!(store.get(&key).await.unwrap(), body);
        server.lie(lies.clone());
        let key = format!("published/{i}.json");
        let published = store.commit(&key, "bytes", &Commit::Published).await;
        assert_eq!(published, Ok(CommitOutcome::Won), "{lies:?}");

        // Another's manifest stands: lost, with it in hand, and it stays.
        let other = working("1-1-other").1;
        let key = format!("lost/{i}.json");
        store.put(&key, other.clone()).await.unwrap();
        server.lie(lies.clone());
        let outcome = store.commit(&key, body.clone(), &commit).await;
        assert_eq!(outcome, Ok(CommitOutcome::Lost(other.clone().into())), "{lies:?}");
        assert_eq!(store.get(&key).await.unwrap(), other);
    }
    server.lie([]);
    let conflict = store.commit("published/0.json", "other bytes", &Commit::Published).await;
    assert_eq!(conflict.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn of_two_workers_on_one_shard_one_wins() {
    let server = Server::start().await;
    let (_folder, local) = folder();
    for store in [local, memory(), server.store()] {
        for i in 0..10 {
            server.lie([Lie::DoneThen(503), Lie::DoneThen(409)].into_iter().take(i % 3));
            let key = keys::shard(i as u32);
            let (a, b) = (working("1-0-a"), working("1-1-b"));
            let (first, second) =
                tokio::join!(store.commit(&key, a.1.clone(), &a.0), store.commit(&key, b.1.clone(), &b.0));
            let stands = store.get(&key).await.unwrap();
            let expected = match stands == a.1 {
                true => (CommitOutcome::Won, CommitOutcome::Lost(stands)),
                false => (CommitOutcome::Lost(stands), CommitOutcome::Won),
            };
            assert_eq!((first.unwrap(), second.unwrap()), expected);
        }
    }
}

#[tokio::test]
async fn a_kill_between_data_and_manifest_leaves_nothing_complete() {
    let (_folder, store) = folder();
    let (dead, now) = (attempt("1-0-dead"), attempt("2-0-new"));
    // Killed after its data, and inside an upload.
    let orphan = keys::working("shards", &dead, "0.parquet");
    store.put(&orphan, "half a shard").await.unwrap();
    let staged = store.local_root().unwrap().join("shards/1-0-dead/1.parquet#1");
    std::fs::write(&staged, "half a file").unwrap();
    assert_eq!(store.try_get(&keys::shard(0)).await, Ok(None));
    assert_eq!(store.list("shards").await.unwrap().len(), 1, "a staging file is no object");

    // Data of a dead attempt that a manifest names stay.
    let kept = store.put_ref(&keys::working("shards", &dead, "7.parquet"), "a shard").await.unwrap();
    // The next attempt does the shard again, under its own name.
    let data = store.put_ref(&keys::working("shards", &now, "0.parquet"), "a whole shard").await.unwrap();
    let (commit, body) = working("2-0-new");
    assert_eq!(store.commit(&keys::shard(0), body, &commit).await, Ok(CommitOutcome::Won));
    let named = BTreeSet::from([kept.key.clone(), data.key.clone()]);
    let swept = store.sweep("shards", &named, &now).await.unwrap();
    assert_eq!((swept.objects, swept.staging_files), (vec![orphan], vec![staged.clone()]));
    assert!(!staged.exists());
    for object in [kept, data] {
        store.get_verified(&object).await.unwrap();
    }
}

#[tokio::test]
async fn the_probe_tells_stores_that_keep_the_protocol_from_others() {
    let server = Server::start().await;
    let (_folder, local) = folder();
    let me = attempt("1-0-me");
    for store in [local, memory(), server.store()] {
        // Also when a former try died in the middle.
        store.put("probe/1-0-me", "left").await.unwrap();
        store.probe(&me).await.unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }
    server.lie([Lie::DoneThen(503)]);
    server.store().probe(&me).await.unwrap();

    server.behaviour.lock().unwrap().ignores_conditions = true;
    let error = server.store().probe(&me).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("s3://bucket/run: a conditional write"), "{error}");
    server.lie([Lie::NotDone(501)]);
    assert_eq!(server.store().probe(&me).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(server.store().try_get("probe/1-0-me").await.unwrap(), None);
}

fn owner(name: &str, uid: &str) -> StorageOwner {
    StorageOwner { cluster: "c".into(), namespace: "ns".into(), name: name.into(), uid: uid.into() }
}

#[tokio::test]
async fn a_storage_has_one_owner() {
    let (_folder, store) = folder();
    let old = owner("run", "uid-1");
    assert_eq!(store.claim_owner(&old, false).await.unwrap().n, 0);
    assert_eq!(store.claim_owner(&old, false).await.unwrap().n, 0, "again");
    let (fenced, (commit, body)) = (store.fenced("uid-1"), working("1-0-me"));
    assert_eq!(fenced.sub("r1").commit("a.json", body.clone(), &commit).await, Ok(CommitOutcome::Won));

    let error = store.claim_owner(&owner("other", "uid-2"), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("ns/run") && error.to_string().contains("storage.adopt"), "{error}");

    // The same name created again takes over by itself, another one when told to.
    let again = store.claim_owner(&owner("run", "uid-3"), false).await.unwrap();
    assert_eq!((again.n, again.previous), (1, Some(old.clone())));
    let late = fenced.sub("r1").commit("b.json", body.clone(), &commit).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::InUse);
    assert_eq!(store.try_get("r1/b.json").await.unwrap(), None);
    assert_eq!(store.claim_owner(&owner("other", "uid-2"), true).await.unwrap().n, 2);
    assert_eq!(store.fenced("uid-2").commit("c.json", body, &commit).await, Ok(CommitOutcome::Won));

    // Who was superseded does not come back by itself: two adopters would fight for ever.
    for uid in ["uid-1", "uid-3"] {
        let error = store.claim_owner(&owner("run", uid), true).await.unwrap_err();
        assert!(error.to_string().contains("taken over by ns/other"), "{error}");
    }
}

#[tokio::test]
async fn two_that_claim_at_once_see_one_owner() {
    let server = Server::start().await;
    let store = server.store();
    server.lie([Lie::DoneThen(503), Lie::DoneThen(409)]);
    let (a, b) = (owner("a", "uid-a"), owner("b", "uid-b"));
    let (first, second) = tokio::join!(store.claim_owner(&a, false), store.claim_owner(&b, false));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    assert_eq!(first.and(second).unwrap_err().kind(), ErrorKind::InUse);
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    format_version: u32,
    seed: u64,
}

#[tokio::test]
async fn run_json_is_written_once_and_its_changes_are_named() {
    let (_folder, store) = folder();
    let run = json!({"formatVersion": 1, "seed": 17});
    assert_eq!(store.read_run::<Content>(1).await.unwrap_err().kind(), ErrorKind::NotFound);
    let RunCommit::Committed(fingerprint) = store.commit_run(&run).await.unwrap() else { panic!() };
    assert_eq!(store.commit_run(&run).await.unwrap(), RunCommit::Committed(fingerprint));
    let read = store.read_run::<Content>(1).await.unwrap();
    assert_eq!((read.content.seed, read.fingerprint), (17, fingerprint));

    let changed = store.commit_run(&json!({"formatVersion": 1, "seed": 18})).await.unwrap();
    let seed = FieldChange { path: "seed".into(), old: Some(json!(17)), new: Some(json!(18)) };
    assert_eq!(changed, RunCommit::Changed(vec![seed]));
    assert_eq!(store.read_run::<Content>(1).await.unwrap().fingerprint, fingerprint);

    for (text, kind, says) in [
        (r#"{"formatVersion": 2}"#, ErrorKind::FormatTooNew, "knows up to 1"),
        (r#"{"formatVersion": 1, "seed": 1, "new": 1}"#, ErrorKind::Malformed, "unknown field `new`"),
        (r#"{"seed": 1}"#, ErrorKind::Malformed, "formatVersion"),
        ("{", ErrorKind::Malformed, "run.json"),
    ] {
        store.put(keys::RUN, text.to_owned()).await.unwrap();
        let error = store.read_run::<Content>(1).await.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_restart_is_a_new_prefix() {
    let store = memory();
    let ask = |id: &str| Restart { from: RestartFrom::Data, request_id: id.to_owned() };
    assert_eq!(store.current_run().await.unwrap().1, 0);
    assert_eq!(store.start_over(&ask("x")).await.unwrap().1, 1);
    assert_eq!(store.start_over(&ask("x")).await.unwrap().1, 1, "asked twice");
    assert_eq!(store.start_over(&ask("y")).await.unwrap().1, 2);
    let (run, k, restart) = store.current_run().await.unwrap();
    assert_eq!((run.uri().as_str(), k, restart), ("memory:///run/r2", 2, Some(ask("y"))));
}

#[tokio::test]
async fn errors_say_what_they_mean() {
    let server = Server::start().await;
    for (status, body, kind) in [
        (503, "", ErrorKind::Away),
        (429, "", ErrorKind::Away),
        (507, "", ErrorKind::NoSpace),
        (403, "<Error><Code>AccessDenied</Code></Error>", ErrorKind::Denied),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", ErrorKind::BucketNotFound),
        (400, "<Error><Code>ExpiredToken</Code></Error>", ErrorKind::Denied),
        (400, "<Error><Code>Odd</Code></Error>", ErrorKind::Other),
    ] {
        server.behaviour.lock().unwrap().refuses = Some((status, body));
        let error = server.store().get("x").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with("cannot read s3://bucket/run/x: "), "{error}");
    }
    let mut options = server.options();
    options.insert("endpoint".into(), "http://127.0.0.1:1".into());
    options.insert("access_key_id".into(), "key".into());
    options.insert("secret_access_key".into(), "very secret".into());
    let error = Store::open("s3://bucket/run", &options).unwrap().get("x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Away, "{error}");
    assert!(!error.to_string().contains("very secret"));
}

/// Brings the server back at the second failure of an operation.
struct Healer(Server, Mutex<Vec<u32>>);

impl Patience for Healer {
    fn failed<'a>(&'a self, error: &'a Error, failures: u32) -> BoxFuture<'a, bool> {
        assert_eq!(error.kind(), ErrorKind::Away);
        self.1.lock().unwrap().push(failures);
        if failures == 2 {
            self.0.behaviour.lock().unwrap().refuses = None;
        }
        Box::pin(async { true })
    }

    fn recovered(&self) {
        self.1.lock().unwrap().push(0);
    }
}

#[tokio::test]
async fn an_outage_is_waited_out_in_any_operation() {
    let server = Server::start().await;
    let healer = Arc::new(Healer(server.clone(), Mutex::default()));
    let store = server.store().patient(healer.clone());
    let away = || server.behaviour.lock().unwrap().refuses = Some((503, ""));
    let (commit, body) = working("1-0-me");
    away();
    assert_eq!(store.commit("a.json", body.clone(), &commit).await, Ok(CommitOutcome::Won));
    away();
    assert_eq!(store.get("a.json").await.unwrap(), body);
    assert_eq!(*healer.1.lock().unwrap(), [1, 2, 0, 1, 2, 0]);
    // Without patience it is the caller's.
    away();
    let error = server.store().commit("b.json", body, &commit).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Away);
}

#[tokio::test]
async fn credentials_are_read_again_when_they_are_refused() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |key: &str| std::fs::write(folder.path().join("AWS_ACCESS_KEY_ID"), key).unwrap();
    std::fs::write(folder.path().join("AWS_SECRET_ACCESS_KEY"), "secret\n").unwrap();
    write("old-key");
    let credentials = Credentials::Folder(folder.path().to_owned());
    let store = Store::open_with("s3://bucket/run", &server.options(), &credentials).unwrap();
    store.put("x", "1").await.unwrap();
    server.behaviour.lock().unwrap().access_key = Some("new-key");
    assert_eq!(store.get("x").await.unwrap_err().kind(), ErrorKind::Denied);
    write("new-key");
    assert_eq!(store.get("x").await.unwrap(), "1");

    // Also in the middle of an upload in parts: it may take longer than credentials live.
    let file = folder.path().join(".large");
    std::fs::write(&file, vec![7; 20 << 20]).unwrap();
    let attempt = AttemptId::new(1, 0, "0f8fad5b").unwrap();
    for (store, key) in [(store.written_by(&attempt), "newer-key"), (store.clone(), "newest-key")] {
        let rotate = |_| {
            write(key);
            server.behaviour.lock().unwrap().access_key = Some(key);
        };
        let object = store.put_file(key, &file, &rotate).await.unwrap();
        assert_eq!((object.bytes, store.size(key).await.unwrap()), (20 << 20, Some(20 << 20)));
    }
    assert!(server.uploads.lock().unwrap().is_empty());
}
