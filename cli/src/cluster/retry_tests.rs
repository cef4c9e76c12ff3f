//! An API server that a test plays: whatever it does, the object or its manifest is there.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use kube::{Client, Config};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::*;
use crate::cluster::target::Kind;

fn failed() -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "SynthesisJob",
        "metadata": {
            "name": "docs", "namespace": "ml", "uid": "old", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/f"],
            "labels": {"kueue.x-k8s.io/queue-name": "cpu"},
            "annotations": {"longstrap.io/restart-at": "x", "team": "a"},
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {
            "storage": {"uri": "s3://b/docs"}, "tokenizer": {"uri": "s3://b/m"},
            "corpus": [{"name": "web", "uri": "s3://b/c", "format": "Text"}],
            "generator": {"contextLength": "8Ki", "endpoints": []}, "samples": {},
            "aFieldOfANewerVersion": 1,
        },
        "status": {"phase": "Failed"},
    })
}

fn found() -> Found {
    Found::new(Kind::SynthesisJob, serde_json::from_value(failed()).unwrap()).unwrap()
}

#[test]
fn what_server_and_operator_added_is_left_out_and_nothing_else() {
    let wanted = json!({
        "apiVersion": API_VERSION,
        "kind": "SynthesisJob",
        "metadata": {
            "name": "docs", "namespace": "ml",
            "labels": {"kueue.x-k8s.io/queue-name": "cpu"}, "annotations": {"team": "a"},
        },
        "spec": failed()["spec"],
    });
    assert_eq!(manifest(&found()).unwrap(), wanted);
}

/// One object, and refusals for the next requests of a method.
#[derive(Default)]
struct Server {
    object: Option<Value>,
    refuse: Vec<(&'static str, u16)>,
    /// Creates an object with another spec as soon as the old one is gone.
    rival: bool,
    log: Vec<String>,
    /// Body of the deletion.
    precondition: Value,
}

impl Server {
    fn answer(&mut self, request: &Request) -> ResponseTemplate {
        let method = request.method.as_str();
        let rehearsal = request.url.query().is_some_and(|query| query.contains("dryRun"));
        self.log.push(format!("{method}{}", if rehearsal { " (dry run)" } else { "" }));
        let status = |code: u16, reason: &str| {
            let details = json!({"name": "docs"});
            let body = json!({"kind": "Status", "code": code, "reason": reason, "message": reason, "details": details});
            ResponseTemplate::new(code).set_body_json(body)
        };
        let method = if rehearsal { "REHEARSE" } else { method };
        if let Some(at) = self.refuse.iter().position(|(refused, _)| *refused == method) {
            let (_, code) = self.refuse.remove(at);
            return status(code, if code == 409 { "Conflict" } else { "refused" });
        }
        let listing = request.url.path().ends_with("synthesisjobs");
        match (method, &self.object) {
            ("REHEARSE", _) => ResponseTemplate::new(201).set_body_json(failed()),
            ("DELETE", _) => {
                self.precondition = request.body_json::<Value>().unwrap()["preconditions"].take();
                self.object = self.rival.then(|| {
                    let mut other = failed();
                    (other["metadata"]["uid"], other["spec"]["seed"]) = (json!("rival"), json!(1));
                    other
                });
                status(200, "deleted")
            }
            ("POST", Some(_)) => status(409, "AlreadyExists"),
            ("POST", None) => {
                let mut new: Value = request.body_json().unwrap();
                new["metadata"]["uid"] = json!("new");
                self.object = Some(new.clone());
                ResponseTemplate::new(201).set_body_json(new)
            }
            ("GET", object) if listing => {
                let items: Vec<_> = object.iter().collect();
                let list = json!({"kind": "SynthesisJobList", "apiVersion": API_VERSION, "metadata": {"resourceVersion": "8"}, "items": items});
                ResponseTemplate::new(200).set_body_json(list)
            }
            ("GET", Some(object)) => ResponseTemplate::new(200).set_body_json(object),
            _ => status(404, "NotFound"),
        }
    }
}

/// Remakes the object: the answer, what the server has then and was asked, and the manifest left.
async fn played(refuse: &[(&'static str, u16)], rival: bool) -> (Result<()>, Server, Option<Value>) {
    let server = Server { object: Some(failed()), refuse: refuse.to_vec(), rival, ..Server::default() };
    let server = Arc::new(Mutex::new(server));
    let http = MockServer::start().await;
    let shared = server.clone();
    let answer = move |request: &Request| shared.lock().unwrap().answer(request);
    Mock::given(any()).respond_with(answer).mount(&http).await;
    let config = Config::new(http.uri().parse().unwrap());
    let cluster = Cluster::played(Client::try_from(config).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let done = remake(&cluster, &found(), &[missing, folder.path().to_owned()]).await;
    let left = fs::read_dir(folder.path())
        .unwrap()
        .next()
        .map(|file| serde_saphyr::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap());
    let server = std::mem::take(&mut *server.lock().unwrap());
    (done, server, left)
}

#[tokio::test]
async fn it_is_made_again_as_it_was_written() {
    let (done, server, left) = played(&[], false).await;
    done.unwrap();
    assert_eq!(server.log, ["POST (dry run)", "DELETE", "GET", "POST"]);
    let new = server.object.unwrap();
    assert_eq!((&new["metadata"]["uid"], &new["spec"]), (&json!("new"), &failed()["spec"]));
    assert_eq!(left, None, "nothing lies about");
    assert_eq!(server.precondition, json!({"uid": "old", "resourceVersion": "7"}));
}

#[tokio::test]
async fn what_was_changed_since_it_was_read_is_not_deleted() {
    let (done, server, left) = played(&[("DELETE", 409)], false).await;
    let error = format!("{:#}", done.unwrap_err());
    assert!(error.starts_with("nothing was deleted: docs of synthesisjobs"), "{error}");
    assert_eq!((server.object.unwrap()["metadata"]["uid"].take(), left), (json!("old"), None));
}

/// Somebody else has put a file, or a link to a file of ours, under the name.
#[test]
fn the_manifest_is_written_into_a_new_file_only() {
    let (folder, mine) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(&mine, "mine").unwrap();
    let path = |name: &str| folder.path().join(format!("longstrap-retry-docs-old{name}.yaml"));
    std::os::unix::fs::symlink(mine.path(), path("")).unwrap();
    fs::write(path("-2"), "theirs").unwrap();
    let folders = [folder.path().to_owned()];
    let saved = save(&found(), &manifest(&found()).unwrap(), &folders).unwrap();
    assert_eq!(saved, path("-3"));
    assert_eq!(fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!((kept(mine.path()), kept(&path("-2"))), ("mine".to_owned(), "theirs".to_owned()));
    for n in 4..=MAX_FILES {
        assert_eq!(save(&found(), &json!({}), &folders).unwrap(), path(&format!("-{n}")));
    }
    let error = save(&found(), &json!({}), &folders).unwrap_err().to_string();
    assert!(
        error.starts_with("nothing was deleted") && error.contains("longstrap-retry-docs-old-10"),
        "{error}"
    );
}

#[tokio::test]
async fn a_refusal_before_the_deletion_deletes_nothing() {
    for refuse in [("REHEARSE", 403), ("REHEARSE", 422), ("DELETE", 403)] {
        let (done, server, left) = played(&[refuse], false).await;
        let error = format!("{:#}", done.unwrap_err());
        assert_eq!(server.object.unwrap()["metadata"]["uid"], "old", "{refuse:?}");
        assert!(
            error.contains(if refuse.0 == "REHEARSE" { "nothing was deleted" } else { "if SynthesisJob" }),
            "{error}"
        );
        assert_eq!(left.is_some(), refuse.0 == "DELETE", "{refuse:?}");
    }
}

#[tokio::test]
async fn a_refusal_after_the_deletion_leaves_the_manifest() {
    let (done, server, left) = played(&[("POST", 403)], false).await;
    let error = format!("{:#}", done.unwrap_err());
    assert!(
        error.contains("kubectl create -f") && error.contains("longstrap-retry-docs-old.yaml"),
        "{error}"
    );
    assert!(server.object.is_none());
    assert_eq!(left, Some(manifest(&found()).unwrap()));
}

#[tokio::test]
async fn a_server_that_stumbles_is_asked_again() {
    let (done, server, left) = played(&[("POST", 503)], false).await;
    done.unwrap();
    assert_eq!(server.object.unwrap()["metadata"]["uid"], "new");
    assert_eq!(left, None);
}

#[tokio::test]
async fn what_somebody_else_creates_meanwhile_is_not_touched() {
    let (done, server, left) = played(&[], true).await;
    let error = format!("{:#}", done.unwrap_err());
    assert!(error.contains("another spec"), "{error}");
    assert_eq!(server.object.unwrap()["metadata"]["uid"], "rival");
    assert!(left.is_some());
}
