//! A scripted OpenAI-compatible chat server: each answer is a function of its request alone, so
//! that a run has one right result whatever is killed, repeated or reordered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

/// What the server does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers as a model would that follows the prompts.
    Helpful,
    /// Answers with a page that is no chat completion.
    Rubbish,
}

/// A running server; it ends with the process.
#[derive(Clone, Debug)]
pub struct ChatServer {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Keeps the port of [`ChatServer::away`].
    _reserved: Option<Arc<TcpSocket>>,
}

/// A call as it arrived.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The last message.
    pub prompt: String,
}

#[derive(Clone)]
struct Script {
    manner: Manner,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl ChatServer {
    /// Starts a server on any free port.
    pub fn start(manner: Manner) -> Self {
        Self::listen(std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap(), manner)
    }

    /// Starts a server in a thread of its own.
    pub fn listen(listener: std::net::TcpListener, manner: Manner) -> Self {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let script = Script { manner, heard: Arc::clone(&heard) };
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = Router::new().route("/v1/chat/completions", post(complete)).with_state(script);
                axum::serve(listener, router).await.unwrap();
            });
        });
        Self { address, heard, _reserved: None }
    }

    /// An address that refuses every connection: its port is taken, and nobody listens.
    pub fn away() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = socket.local_addr().unwrap();
        Self { address, heard: Arc::default(), _reserved: Some(Arc::new(socket)) }
    }

    /// Number of calls so far.
    pub fn calls(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    /// All calls so far, in the order of their arrival.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

async fn complete(
    State(script): State<Script>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let prompt =
        request["messages"].as_array().and_then(|all| all.last()?["content"].as_str()).unwrap_or_default();
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    script.heard.lock().unwrap().push(Heard { authorization, prompt: prompt.to_owned() });
    if script.manner == Manner::Rubbish {
        return (StatusCode::OK, Json(json!({"page": "welcome"})));
    }
    let content = answer(prompt, request["seed"].as_u64().unwrap_or(0));
    let usage =
        json!({"prompt_tokens": prompt.len() / 4, "completion_tokens": content.len() / 4, "total_tokens": 0});
    let choice =
        json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}});
    (
        StatusCode::OK,
        Json(json!({"id": "scripted", "object": "chat.completion", "choices": [choice], "usage": usage})),
    )
}

/// The answer to a prompt of ours, recognised by the words that ask for it.
fn answer(prompt: &str, seed: u64) -> String {
    if prompt.contains("Write the request that somebody could have sent") {
        let title = title(after(prompt, "Below is a document"));
        return format!(
            "<instruction>Write the page about {title} for visitors, request {seed}.</instruction>"
        );
    }
    if prompt.contains("Write only the instruction") {
        let title = title(after(prompt, "Below is one document of a large collection."));
        let what =
            ["its builders", "its tower", "its tolls", "the way there", "its fire"][pick(prompt, seed, 5)];
        return format!(
            "<instruction>Compare {title} with other places of the valley: {what}, case {seed}.</instruction>"
        );
    }
    if let Some((_, sentinel)) = prompt.split_once("answer with the single word ") {
        let (_, text) = prompt.split_once("Text from").unwrap_or_default();
        // A third of the chunks does not help, whatever was asked.
        let irrelevant = pick(text, 0, 3) == 0;
        let sentinel = sentinel.trim().trim_end_matches('.');
        return if irrelevant { sentinel.to_owned() } else { sentences(text, 2) };
    }
    let notes = prompt.rsplit_once("\n---\n").map_or(prompt, |(notes, _)| notes);
    sentences(notes, 6)
}

fn after<'a>(text: &'a str, marker: &str) -> &'a str {
    text.split_once(marker).map_or(text, |(_, rest)| rest)
}

/// The first heading, else the first words.
fn title(text: &str) -> String {
    let heading = text.lines().find_map(|line| line.strip_prefix("# "));
    heading.map_or_else(|| text.split_whitespace().take(3).collect::<Vec<_>>().join(" "), str::to_owned)
}

/// The first `count` lines that read like sentences, each cut after its first one.
fn sentences(text: &str, count: usize) -> String {
    let lines = text.lines().filter(|line| line.len() > 20 && line.contains(". "));
    let first = lines.filter_map(|line| line.split_once(". ").map(|(sentence, _)| format!("{sentence}.")));
    let joined = first.take(count).collect::<Vec<_>>().join(" ");
    if joined.is_empty() { "The valley is quiet in winter.".to_owned() } else { joined }
}

/// A number below `bound` that the text and the seed decide (FNV-1a).
fn pick(text: &str, seed: u64, bound: usize) -> usize {
    let bytes = text.bytes().chain(seed.to_le_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    usize::try_from(hash % bound as u64).unwrap()
}
