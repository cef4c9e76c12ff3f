//! A small S3 server over a map that can lie about conditional PUTs, as real networks make
//! real servers do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use longstrap_storage::{Credentials, Store};

/// What the server does with one conditional PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Writes, then answers with this status.
    DoneThen(u16),
    /// Writes, then closes the connection without an answer.
    DoneThenClosed,
    /// Writes nothing and answers with this status.
    NotDone(u16),
}

#[derive(Default)]
pub struct Behaviour {
    /// Taken one by one by conditional PUTs; none left: honest.
    pub lies: VecDeque<Lie>,
    /// Conditions are ignored, as by a server that does not know them.
    pub ignores_conditions: bool,
    /// Answer to everything, with this body.
    pub refuses: Option<(u16, &'static str)>,
    /// Only this access key is let in.
    pub access_key: Option<&'static str>,
}

type Parts = BTreeMap<u32, Vec<u8>>;

#[derive(Clone, Default)]
pub struct Server {
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Parts by upload.
    pub uploads: Arc<Mutex<BTreeMap<String, Parts>>>,
    address: String,
}

impl Server {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap().to_string(), ..Self::default() };
        let router =
            Router::new().fallback(handle).layer(DefaultBodyLimit::disable()).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn lie(&self, lies: impl IntoIterator<Item = Lie>) {
        self.behaviour.lock().unwrap().lies = lies.into_iter().collect();
    }

    pub fn options(&self) -> BTreeMap<String, String> {
        let endpoint = format!("http://{}", self.address);
        let options = [("endpoint", endpoint.as_str()), ("allow_http", "true"), ("region", "x")];
        options.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    pub fn store(&self) -> Store {
        let mut options = self.options();
        options.insert("access_key_id".into(), "key".into());
        options.insert("secret_access_key".into(), "secret".into());
        Store::open_with("s3://bucket/run", &options, &Credentials::Environment).unwrap()
    }
}

fn answer(status: u16, body: impl Into<axum::body::Body>) -> Response<axum::body::Body> {
    let builder = Response::builder().status(status).header(header::ETAG, "\"tag\"");
    builder.header(header::LAST_MODIFIED, "Tue, 24 Nov 2026 08:00:00 GMT").body(body.into()).unwrap()
}

async fn handle(
    State(server): State<Server>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<axum::body::Body> {
    let key = uri.path().trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let query: BTreeMap<_, _> = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).collect();
    let head = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    {
        let behaviour = server.behaviour.lock().unwrap();
        if let Some((status, body)) = behaviour.refuses {
            return answer(status, body);
        }
        let allowed = behaviour.access_key.is_none_or(|k| head(header::AUTHORIZATION).contains(k));
        if !allowed {
            return answer(403, "<Error><Code>AccessDenied</Code></Error>");
        }
    }
    let mut objects = server.objects.lock().unwrap();
    match method {
        Method::PUT if query.contains_key("partNumber") => {
            let mut uploads = server.uploads.lock().unwrap();
            let Some(parts) = uploads.get_mut(&*query["uploadId"]) else {
                return answer(404, "<Error><Code>NoSuchUpload</Code></Error>");
            };
            parts.insert(query["partNumber"].parse().unwrap(), body.into());
            answer(200, "")
        }
        Method::DELETE if query.contains_key("uploadId") => {
            match server.uploads.lock().unwrap().remove(&*query["uploadId"]) {
                Some(_) => answer(204, ""),
                None => answer(404, "<Error><Code>NoSuchUpload</Code></Error>"),
            }
        }
        Method::PUT => {
            let mut behaviour = server.behaviour.lock().unwrap();
            let conditional = headers.contains_key(header::IF_NONE_MATCH);
            let exists = objects.contains_key(&key);
            if conditional && exists && !behaviour.ignores_conditions {
                return answer(412, "<Error><Code>PreconditionFailed</Code></Error>");
            }
            let lie = if conditional { behaviour.lies.pop_front() } else { None };
            if !matches!(lie, Some(Lie::NotDone(_))) {
                objects.insert(key, body.into());
            }
            match lie {
                None => answer(200, ""),
                Some(Lie::DoneThen(status) | Lie::NotDone(status)) => answer(status, ""),
                Some(Lie::DoneThenClosed) => {
                    drop((objects, behaviour));
                    // Ends the connection's task without an answer and without a message.
                    std::panic::resume_unwind(Box::new(()))
                }
            }
        }
        Method::POST if query.contains_key("uploads") => {
            let mut uploads = server.uploads.lock().unwrap();
            let id = format!("upload-{}", uploads.len());
            uploads.insert(id.clone(), BTreeMap::new());
            let result = "InitiateMultipartUploadResult";
            answer(200, format!("<{result}><UploadId>{id}</UploadId></{result}>"))
        }
        Method::POST if query.contains_key("uploadId") => {
            let parts = server.uploads.lock().unwrap().remove(&*query["uploadId"]).unwrap();
            objects.insert(key, parts.into_values().flatten().collect());
            let result = "CompleteMultipartUploadResult";
            answer(200, format!("<{result}><ETag>x</ETag></{result}>"))
        }
        Method::POST => {
            let text = String::from_utf8(body.into()).unwrap();
            let mut deleted = String::new();
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                objects.remove(key);
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            answer(200, format!("<DeleteResult>{deleted}</DeleteResult>"))
        }
        Method::GET if query.contains_key("list-type") => {
            let prefix = query.get("prefix").map(|p| p.to_string()).unwrap_or_default();
            let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix));
            let items: String = found
                .map(|(key, value)| {
                    let size = value.len();
                    format!(
                        "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>x</ETag>\
                         <LastModified>2026-11-24T08:00:00Z</LastModified></Contents>"
                    )
                })
                .collect();
            answer(200, format!("<ListBucketResult>{items}</ListBucketResult>"))
        }
        Method::GET | Method::HEAD => match objects.get(&key) {
            None => answer(404, "<Error><Code>NoSuchKey</Code></Error>"),
            Some(value) => {
                let range = head(header::RANGE).strip_prefix("bytes=").and_then(|r| r.split_once('-'));
                let Some((from, to)) = range else { return answer(200, value.clone()) };
                let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                let to = to.min(value.len() - 1);
                let mut response = answer(206, value[from..=to].to_vec());
                let range = format!("bytes {from}-{to}/{}", value.len());
                response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
                response
            }
        },
        _ => answer(StatusCode::METHOD_NOT_ALLOWED.as_u16(), ""),
    }
}
