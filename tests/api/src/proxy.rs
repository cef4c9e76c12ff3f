//! An HTTP proxy between an operator and the API server: passes on, refuses, loses answers, is away.
//!
//! Invariant: what a rule does not let pass never reaches the API server, and the operator's rights
//! hold behind the proxy as they do before it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

/// What a rule sees of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// GET, POST …
    pub method: Method,
    /// With its query.
    pub path: String,
}

impl Seen {
    /// Changes something (dry runs do not), other than a Lease.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET && !self.path.contains("/leases") && !self.path.contains("dryRun=")
    }

    /// Is about a kind, by its plural.
    pub fn is_about(&self, plural: &str) -> bool {
        let path = self.path.split('?').next().unwrap_or_default();
        path.split('/').any(|part| part == plural)
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the API server, and the answer comes back.
    Pass,
    /// 403, without reaching the API server.
    Forbid,
    /// Accepted, never answered.
    Silence,
}

type Rule = Box<dyn FnMut(&Seen) -> Verdict + Send>;

/// Writes that an operator has left.
#[derive(Default)]
struct Life {
    /// `None`: it does not die.
    left: Option<usize>,
    writes: usize,
}

struct Shared {
    rule: Mutex<Rule>,
    life: Mutex<Life>,
    died: Notify,
    client: Client,
}

impl Shared {
    fn is_dead(&self) -> bool {
        self.life.lock().unwrap().left == Some(0)
    }

    fn count(&self) {
        let mut life = self.life.lock().unwrap();
        life.writes += 1;
        if let Some(left @ 1..) = &mut life.left {
            *left -= 1;
            if *left == 0 {
                self.died.notify_one();
            }
        }
    }
}

/// A running proxy; it ends with its test.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<AbortHandle>,
}

impl Proxy {
    /// Listens; `client` has the rights of who is proxied.
    pub(crate) async fn start(client: Client, rule: impl FnMut(&Seen) -> Verdict + Send + 'static) -> Self {
        let rule: Mutex<Rule> = Mutex::new(Box::new(rule));
        let shared = Arc::new(Shared { rule, life: Mutex::default(), died: Notify::new(), client });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = Mutex::new(tokio::spawn(accept(listener, shared.clone())).abort_handle());
        Self { address, shared, accepting }
    }

    /// For a kubeconfig.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Another rule from now on.
    pub fn rule(&self, rule: impl FnMut(&Seen) -> Verdict + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// After `n` writes that change something (from 1) the operator is as good as dead: it never learns
    /// of the last one, and nothing of it gets through.
    pub fn dies_after(&self, n: usize) {
        self.shared.life.lock().unwrap().left = Some(n);
    }

    /// Waits for that.
    pub async fn died(&self) {
        self.shared.died.notified().await;
    }

    /// Writes that changed something so far.
    pub fn writes(&self) -> usize {
        self.shared.life.lock().unwrap().writes
    }

    /// The API server is away: connections are cut, new ones are refused.
    pub fn cut(&self) {
        self.accepting.lock().unwrap().abort();
    }

    /// It is back.
    pub async fn mend(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                // The aborted task still holds the port.
                Err(_) => tokio::task::yield_now().await,
            }
        };
        *self.accepting.lock().unwrap() = tokio::spawn(accept(listener, self.shared.clone())).abort_handle();
    }
}

/// Connections live in this task: they are cut when it is aborted.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(&shared, request));
            // A client that goes away is its own affair.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let seen = Seen { method: request.method().clone(), path };
    let verdict = (shared.rule.lock().unwrap())(&seen);
    match verdict {
        Verdict::Pass if shared.is_dead() => std::future::pending().await,
        Verdict::Pass => {
            let answer = pass_on(shared, request).await;
            if seen.is_write() && answer.status().is_success() {
                shared.count();
            }
            if shared.is_dead() { std::future::pending().await } else { Ok(answer) }
        }
        Verdict::Forbid => Ok(failure(StatusCode::FORBIDDEN, "Forbidden", "forbidden by the test")),
        Verdict::Silence => std::future::pending().await,
    }
}

async fn pass_on(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    // The client adds its own host and credentials.
    parts.headers.remove(hyper::header::HOST);
    parts.headers.remove(hyper::header::AUTHORIZATION);
    let Ok(body) = body.collect().await else {
        return failure(StatusCode::BAD_REQUEST, "BadRequest", "the request broke off");
    };
    match shared.client.send(Request::from_parts(parts, Body::from(body.to_bytes()))).await {
        Ok(answer) => answer,
        Err(error) => failure(StatusCode::BAD_GATEWAY, "BadGateway", &error.to_string()),
    }
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16(),
    });
    let body = Body::from(status.to_string().into_bytes());
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}
