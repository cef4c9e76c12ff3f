//! Where a URI leads to, on this machine and at an object store.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use longstrap_crds::TaskFile;
use longstrap_runtime::{Progress, Surroundings, Termination};
use longstrap_storage::Credentials;

use super::*;

async fn context(folder: &Path, storage: &str, options: serde_json::Value) -> StepContext {
    let task = serde_json::json!({
        "formatVersion": 1, "attempt": 1, "step": "prepare",
        "owner": {"cluster": "c", "namespace": "n", "name": "x", "uid": "u"},
        "spec": {"contextExtensionRun": {
            "storage": {"uri": storage, "options": options}, "model": {"uri": "file:///m"}, "data": [],
            "stages": [],
        }},
        "workers": 1, "ranksPerNode": 1, "threadsPerRank": 1, "backoffLimit": 1, "rankTimeoutSeconds": 1,
        "outageTimeoutSeconds": 0, "rendezvousHost": "", "ports": {"rendezvous": 0, "progress": 0},
    });
    let surroundings = Surroundings {
        index: 0,
        pod_uid: "aaaaaaaa".into(),
        cache_dir: folder.join("cache"),
        credentials: Credentials::Environment,
        termination: Termination::nowhere(),
        stop: Default::default(),
    };
    let task = TaskFile::from_json(&task.to_string()).unwrap();
    StepContext::new(task, surroundings, Progress::new("u", "prepare")).await.unwrap()
}

fn data(uri: impl Into<String>) -> PinnedData {
    PinnedData { name: "short".into(), uri: uri.into(), digest: None }
}

#[tokio::test]
async fn a_file_is_found_by_its_name_whatever_the_uri_encodes() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().display();
    let ctx = context(folder.path(), &format!("file://{there}/run"), serde_json::json!({})).await;
    std::fs::create_dir(folder.path().join("my data")).unwrap();
    for (name, encoded) in [
        ("short.jsonl", "short.jsonl"),
        ("my short.jsonl", "my%20short.jsonl"),
        ("Übung 1 #2.jsonl", "%C3%9Cbung%201%20%232.jsonl"),
        ("50%.jsonl", "50%25.jsonl"),
        ("as it is.jsonl", "as it is.jsonl"),
    ] {
        let path = folder.path().join("my data").join(name);
        std::fs::write(&path, name).unwrap();
        let source = open(&ctx, &data(format!("file://{there}/my%20data/{encoded}"))).await.unwrap();
        assert_eq!(source.files.iter().map(|(_, path)| path).collect::<Vec<_>>(), [&path]);
        // The digest is of name and content: no run that could be made before is another now.
        let content = Digest::of(name);
        assert_eq!(source.digest, Digest::of(format!("{name} {content}\n")).to_string());
    }
}

/// A server that has nothing; what is asked of it.
fn empty_server() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
            if told.send(target).is_err() {
                return;
            }
            let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).unwrap();
        }
    });
    (format!("http://{address}"), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_is_asked_for_the_name_encoded_once() {
    let (endpoint, asked) = empty_server();
    let options = serde_json::json!({
        "endpoint": endpoint, "allow_http": "true", "region": "x", "access_key_id": "k",
        "secret_access_key": "s",
    });
    let folder = tempfile::tempdir().unwrap();
    let ctx = context(folder.path(), "s3://bucket/run", options).await;
    for uri in ["s3://bucket/my%20data/%C3%BCb%201~.jsonl", "s3://bucket/my data/üb 1~.jsonl"] {
        let error = open(&ctx, &data(uri)).await.unwrap_err().to_string();
        assert!(error.contains("s3://bucket/my data/üb 1~.jsonl"), "{error}");
        let targets: Vec<String> = asked.try_iter().collect();
        assert!(targets.contains(&"/bucket/my%20data/%C3%BCb%201~.jsonl".to_owned()), "{targets:?}");
    }
}
