//! A small API server in memory: collections, watches, versions, and faults on demand.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::stream;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

/// What a server does instead of answering.
#[derive(Clone, Debug)]
pub(in crate::cluster) enum Fault {
    /// An error.
    Status(u16, &'static str),
    /// Nothing, for ever.
    Silence,
    /// The right thing, late.
    Late(Duration),
}

/// Collection (`/apis/batch/v1 jobs`), namespace, name.
type Path = (String, String, String);

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<Path, Value>,
    /// What happened, by version.
    log: Vec<(Path, &'static str, Value)>,
    faults: Vec<(&'static str, Fault)>,
    requests: Vec<String>,
}

/// The server.
#[derive(Clone)]
pub(in crate::cluster) struct Fake {
    world: Arc<Mutex<World>>,
    grown: watch::Sender<usize>,
}

impl Fake {
    pub(in crate::cluster) fn new() -> Self {
        Self { world: Arc::default(), grown: watch::Sender::new(0) }
    }

    /// A client without a network: usable while the clock of a test stands still.
    pub(in crate::cluster) fn client(&self) -> Client {
        let router = Router::new().fallback(answer).with_state(self.clone());
        let service = router
            .into_service::<Body>()
            .map_request(|request: axum::http::Request<kube::client::Body>| request.map(Body::new));
        Client::new(service, "default")
    }

    /// Serves on a port of this machine.
    pub(in crate::cluster) async fn config(&self) -> Config {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Config::new(format!("http://{address}").parse().unwrap())
    }

    /// Requests whose `METHOD path?query` contains the text get the fault; `None` lifts it.
    pub(in crate::cluster) fn fault(&self, text: &'static str, fault: Option<Fault>) {
        let mut world = self.world.lock().unwrap();
        world.faults.retain(|(of, _)| *of != text);
        world.faults.extend(fault.map(|f| (text, f)));
    }

    /// How many requests contained the text.
    pub(in crate::cluster) fn requests(&self, text: &str) -> usize {
        self.world.lock().unwrap().requests.iter().filter(|r| r.contains(text)).count()
    }

    /// All objects of a plural.
    pub(in crate::cluster) fn all(&self, plural: &str) -> Vec<Value> {
        let world = self.world.lock().unwrap();
        let of = |path: &Path| path.0.ends_with(&format!(" {plural}"));
        world.objects.iter().filter(|(path, _)| of(path)).map(|(_, object)| object.clone()).collect()
    }

    /// Puts an object there, as somebody else would.
    pub(in crate::cluster) fn put(&self, collection: &str, object: Value) -> Value {
        let text = |field: &str| object["metadata"][field].as_str().unwrap().to_owned();
        let path = (collection.to_owned(), text("namespace"), text("name"));
        let mut world = self.world.lock().unwrap();
        let stored = world.store(path, object);
        self.grown.send_replace(world.log.len());
        stored
    }

    /// Takes an object away.
    pub(in crate::cluster) fn remove(&self, collection: &str, namespace: &str, name: &str) {
        let mut world = self.world.lock().unwrap();
        world.remove(&(collection.to_owned(), namespace.to_owned(), name.to_owned()));
        self.grown.send_replace(world.log.len());
    }
}

impl World {
    fn store(&mut self, path: Path, mut object: Value) -> Value {
        let what = if self.objects.contains_key(&path) { "MODIFIED" } else { "ADDED" };
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        metadata["namespace"] = json!(path.1);
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if metadata["generation"].is_null() {
            metadata["generation"] = json!(1);
        }
        self.objects.insert(path.clone(), object.clone());
        self.log.push((path, what, object.clone()));
        object
    }

    fn remove(&mut self, path: &Path) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((path.clone(), "DELETED", object.clone()));
        Some(object)
    }
}

/// Whether an object is not, or not any more, what a request is meant for.
fn differs(object: &Value, preconditions: &Value) -> bool {
    let unlike = |field: &str| {
        let wanted = &preconditions[field];
        !wanted.is_null() && *wanted != object["metadata"][field]
    };
    unlike("uid") || unlike("resourceVersion")
}

fn refusal(code: u16, message: &str) -> Response {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "Refused",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message});
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

/// Collection, namespace, name, subresource.
fn parse(uri: &Uri) -> (String, String, String, String) {
    let mut parts = uri.path().trim_start_matches('/').split('/');
    let mut group = format!("/{}", parts.next().unwrap());
    for _ in 0..if group == "/api" { 1 } else { 2 } {
        group = format!("{group}/{}", parts.next().unwrap());
    }
    let rest: Vec<&str> = parts.collect();
    let (namespace, rest) = match rest.as_slice() {
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
    (format!("{group} {}", part(0)), namespace.to_owned(), part(1), part(2))
}

async fn answer(State(fake): State<Fake>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let line = format!("{method} {uri}");
    let fault = {
        let mut world = fake.world.lock().unwrap();
        world.requests.push(line.clone());
        world.faults.iter().find(|(text, _)| line.contains(text)).map(|(_, fault)| fault.clone())
    };
    match fault {
        Some(Fault::Status(code, message)) => return refusal(code, message),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Late(time)) => tokio::time::sleep(time).await,
        None => {}
    }
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    if uri.query().is_some_and(|q| q.contains("watch=true")) {
        return fake.watch(&uri);
    }
    let response = fake.change(&method, &uri, &body);
    fake.grown.send_replace(fake.world.lock().unwrap().log.len());
    response
}

impl Fake {
    fn watch(&self, uri: &Uri) -> Response {
        let (collection, namespace, ..) = parse(uri);
        let from = uri.query().and_then(|q| q.split("resourceVersion=").nth(1)).unwrap_or("0");
        let from: u64 = from.split('&').next().unwrap().parse().unwrap();
        let fake = self.clone();
        let events = stream::unfold((0, self.grown.subscribe()), move |(mut at, mut grown)| {
            let (fake, collection, namespace) = (fake.clone(), collection.clone(), namespace.clone());
            async move {
                loop {
                    let next = fake.world.lock().unwrap().log.get(at).cloned();
                    let Some(((of, ns, _), what, object)) = next else {
                        grown.changed().await.ok()?;
                        continue;
                    };
                    at += 1;
                    let version: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                    if of == collection && (namespace.is_empty() || ns == namespace) && version > from {
                        let line = format!("{}\n", json!({"type": what, "object": object}));
                        return Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), (at, grown)));
                    }
                }
            }
        });
        Body::from_stream(events).into_response()
    }

    fn change(&self, method: &Method, uri: &Uri, body: &[u8]) -> Response {
        let (collection, namespace, name, sub) = parse(uri);
        let mut world = self.world.lock().unwrap();
        let path = (collection.clone(), namespace.clone(), name.clone());
        let old = world.objects.get(&path).cloned();
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let object = match (method.as_str(), old) {
            ("GET", _) if name.is_empty() => {
                let of = |p: &Path| p.0 == collection && (namespace.is_empty() || p.1 == namespace);
                let items: Vec<_> = world.objects.iter().filter(|(p, _)| of(p)).map(|(_, o)| o).collect();
                let version = world.version.to_string();
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
            }
            ("POST", _) => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = (collection, namespace, name);
                match uri.query().is_some_and(|q| q.contains("dryRun=All")) {
                    true => sent,
                    false if world.objects.contains_key(&path) => return refusal(409, "it exists"),
                    false => world.store(path, sent),
                }
            }
            (_, None) => return refusal(404, "it is not there"),
            ("GET", Some(old)) => old,
            ("DELETE", Some(old)) if differs(&old, &sent["preconditions"]) => {
                return refusal(409, "it was changed");
            }
            ("DELETE", Some(_)) => world.remove(&path).unwrap(),
            ("PUT", Some(mut old)) => {
                let version = &sent["metadata"]["resourceVersion"];
                if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
                    return refusal(409, "it was changed");
                }
                let new = match sub.as_str() {
                    "status" => {
                        old["status"] = sent["status"].clone();
                        old
                    }
                    _ => sent,
                };
                world.store(path, new)
            }
            ("PATCH", Some(mut old)) => {
                for (field, value) in sent.as_object().unwrap() {
                    old[field] = value.clone();
                }
                world.store(path, old)
            }
            other => panic!("{other:?}"),
        };
        axum::Json(object).into_response()
    }
}
