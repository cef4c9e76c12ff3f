//! A lenient client for OpenAI-compatible chat servers.
//!
//! Three classes of errors, three policies. Transport (no connection, 5xx): tried again with
//! jitter until the outage limit. Capacity (429): waited for as the server says; not an attempt,
//! but a server that asks for a wait beyond the outage limit is away. Content is not judged here,
//! except that an answer must be a chat completion at all.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use reqwest::StatusCode;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Answer, Call, Finish, Likelihood, Llm, LlmError, ScoreCall, Usage};

/// Answers in a row that are no chat completion, after which the endpoint counts as broken.
const BROKEN_AFTER: u32 = 5;
/// Requests in a row that are refused as malformed, after which all of ours must be.
const REJECTED_AFTER: u32 = 20;

/// Where an API key comes from; it is read for each request, so a rotated Secret is picked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiKey {
    /// None is sent.
    None,
    /// Content of a file (a mounted Secret).
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl ApiKey {
    fn read(&self) -> Result<Option<String>, LlmError> {
        match self {
            ApiKey::None => Ok(None),
            ApiKey::File(path) => std::fs::read_to_string(path)
                .map(|key| Some(key.trim().to_owned()))
                .map_err(|e| LlmError::Denied(format!("API key file {}: {e}", path.display()))),
            ApiKey::Env(name) => std::env::var(name).map(Some).map_err(|_| {
                LlmError::Denied(format!("environment variable {name} with the API key is not set"))
            }),
        }
    }
}

/// How to reach an endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Name in the manifest, for messages.
    pub name: String,
    /// Base address with version: `http://host:8000/v1`.
    pub url: String,
    /// Model name in requests.
    pub model: String,
    /// Key for the `Authorization` header.
    pub api_key: ApiKey,
    /// Requests in flight at once.
    pub max_concurrency: usize,
    /// How long it may be away.
    pub outage: Duration,
    /// First pause of the exponential back-off.
    pub pause: Duration,
}

/// Told what is waited for; `None`: no longer.
pub type OnWait = Box<dyn Fn(Option<String>) + Send + Sync>;

/// The client of one endpoint.
pub struct OpenAi {
    endpoint: Endpoint,
    http: reqwest::Client,
    permits: Semaphore,
    last_success: Mutex<Option<Instant>>,
    broken_in_a_row: AtomicU32,
    rejected_in_a_row: AtomicU32,
    on_wait: OnWait,
}

/// What one request came to.
enum Reply {
    Answer(Answer),
    /// Not there or overloaded: why, and how long it asks to wait.
    Later(String, Option<Duration>),
    /// The key that was sent (or none) is refused: what it said.
    Denied(Option<String>, String),
    /// Answered, but not as a chat server: what it said.
    Rubbish(String),
    Refused(LlmError),
    /// Not this request: what it said.
    Rejected(String),
}

impl OpenAi {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// When the HTTP stack cannot be set up (no certificates).
    pub fn new(endpoint: Endpoint, on_wait: OnWait) -> Result<OpenAi, LlmError> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(900))
            .build()
            .map_err(|e| LlmError::Refused(format!("endpoint {}: {e}", endpoint.name)))?;
        Ok(OpenAi {
            permits: Semaphore::new(endpoint.max_concurrency.max(1)),
            endpoint,
            http,
            last_success: Mutex::new(None),
            broken_in_a_row: AtomicU32::new(0),
            rejected_in_a_row: AtomicU32::new(0),
            on_wait,
        })
    }

    fn who(&self) -> String {
        format!("endpoint {} ({}, model {})", self.endpoint.name, self.endpoint.url, self.endpoint.model)
    }

    async fn once(&self, call: &Call) -> Reply {
        let key = match self.endpoint.api_key.read() {
            Ok(key) => key,
            Err(error) => return Reply::Refused(error),
        };
        let url = format!("{}/chat/completions", self.endpoint.url.trim_end_matches('/'));
        let mut request = self.http.post(url).json(&body(&self.endpoint.model, call));
        if let Some(key) = &key {
            request = request.bearer_auth(key);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // `without_url`: an address may hold user info; the cause chain says what failed.
            Err(e) => return Reply::Later(causes(&e.without_url()), None),
        };
        let status = response.status();
        let wait =
            response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        let text = match response.text().await {
            Ok(text) => text,
            Err(e) => return Reply::Later(causes(&e.without_url()), None),
        };
        let said = || format!("HTTP {}: {}", status.as_u16(), excerpt(&text));
        match status {
            s if s.is_success() => match parse(&text) {
                Some(answer) => Reply::Answer(answer),
                None => Reply::Rubbish(said()),
            },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Reply::Later(said(), wait),
            s if s.is_server_error() => Reply::Later(said(), wait),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reply::Denied(key, said()),
            StatusCode::NOT_FOUND => Reply::Refused(LlmError::Refused(format!(
                "{} does not have this address or model: {}; check url (it ends in /v1) and model",
                self.who(),
                said()
            ))),
            _ => Reply::Rejected(said()),
        }
    }

    /// How long it has been since the endpoint worked, seen by a call that began at `began`.
    fn away_for(&self, began: Instant) -> Duration {
        let last = *self.last_success.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.map_or(began, |last| last.max(began)).elapsed()
    }

    async fn ask(&self, call: &Call) -> Result<Answer, LlmError> {
        let began = Instant::now();
        let mut pauses = 0u32;
        loop {
            let reply = {
                // The semaphore lives as long as the client and is never closed.
                let _permit = self.permits.acquire().await.expect("never closed");
                self.once(call).await
            };
            let (why, wait) = match reply {
                Reply::Answer(answer) => {
                    *self.last_success.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                        Some(Instant::now());
                    self.broken_in_a_row.store(0, Ordering::Relaxed);
                    self.rejected_in_a_row.store(0, Ordering::Relaxed);
                    (self.on_wait)(None);
                    return Ok(answer);
                }
                Reply::Refused(error) => return Err(error),
                // A key that was changed meanwhile gets its chance: the Secret is being rotated.
                Reply::Denied(sent, said) => {
                    if self.endpoint.api_key.read()? != sent {
                        continue;
                    }
                    return Err(LlmError::Denied(format!("{} refuses the API key: {said}", self.who())));
                }
                Reply::Rejected(said) => {
                    let message = format!("{} does not take a request: {said}", self.who());
                    let in_a_row = self.rejected_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                    return Err(match in_a_row >= REJECTED_AFTER {
                        true => LlmError::Refused(format!("{message} ({in_a_row} in a row)")),
                        false => LlmError::Rejected(message),
                    });
                }
                Reply::Rubbish(said) => {
                    let in_a_row = self.broken_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                    if in_a_row >= BROKEN_AFTER || self.away_for(began) >= self.endpoint.outage {
                        return Err(LlmError::Rubbish(format!(
                            "{} does not answer as an OpenAI-compatible chat server: {said}; check \
                             the url (it ends in /v1) and what listens there",
                            self.who()
                        )));
                    }
                    (said, None)
                }
                Reply::Later(why, wait) => (why, wait),
            };
            let away = self.away_for(began);
            let left = self.endpoint.outage.saturating_sub(away);
            if left.is_zero() {
                return Err(LlmError::Away(format!(
                    "{} has been away for {} s: {why}",
                    self.who(),
                    away.as_secs()
                )));
            }
            if let Some(wait) = wait.filter(|&wait| wait > left) {
                return Err(LlmError::Away(format!(
                    "{} asks to wait {} s (Retry-After), longer than it may be away ({} s of {} s are left): {why}",
                    self.who(),
                    wait.as_secs(),
                    left.as_secs(),
                    self.endpoint.outage.as_secs()
                )));
            }
            (self.on_wait)(Some(match wait {
                Some(wait) => {
                    format!("{} asks to wait {:.0} s: {why}", self.who(), wait.as_secs_f64().ceil())
                }
                None => format!("{}: {why}", self.who()),
            }));
            let backoff = self.endpoint.pause * 2u32.saturating_pow(pauses.min(6));
            // Full jitter, from the call itself: many workers must not come back together.
            let share = (call.params.seed.rotate_left(pauses * 8) % 1024) as f64 / 1024.0;
            let pause = wait.unwrap_or(Duration::ZERO) + backoff.mul_f64(0.25 + 0.75 * share);
            tokio::time::sleep(pause.min(left)).await;
            pauses += 1;
        }
    }
}

#[async_trait]
impl Llm for OpenAi {
    async fn chat(&self, call: &Call) -> Result<Answer, LlmError> {
        self.ask(call).await
    }

    async fn score(&self, _: &ScoreCall) -> Result<Likelihood, LlmError> {
        Err(LlmError::Unsupported(format!("{} gives no likelihoods of given texts", self.who())))
    }

    fn concurrency(&self) -> usize {
        self.endpoint.max_concurrency.max(1)
    }
}

/// `Retry-After`: seconds (servers send fractions, too) or an HTTP date (RFC 9110, 10.2.3), which
/// may be past. `None`: neither.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let value = value.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(now).unwrap_or(Duration::ZERO))
}

fn body(model: &str, call: &Call) -> Value {
    let params = &call.params;
    let mut body = json!({
        "model": model,
        "messages": call.messages,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        // Servers keep seeds in 32 bits, signed.
        "seed": params.seed & 0x7fff_ffff,
    });
    if !params.stop.is_empty() {
        body["stop"] = json!(params.stop);
    }
    body
}

/// Reads a chat completion as leniently as can be: content as a string or as parts, no usage, no
/// finish reason. `None`: it is none.
fn parse(text: &str) -> Option<Answer> {
    let value: Value = serde_json::from_str(text).ok()?;
    let choice = value.get("choices")?.get(0)?;
    let content = choice.get("message").map_or_else(|| choice.get("text"), |m| m.get("content"));
    let text = match content? {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect::<Vec<_>>().concat()
        }
        _ => return None,
    };
    let count = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
    let cut = matches!(choice["finish_reason"].as_str(), Some("length" | "max_tokens"));
    Some(Answer {
        text: without_thinking(&text).to_owned(),
        finish: if cut { Finish::Length } else { Finish::Stop },
        usage: Usage {
            calls: 1,
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
        },
    })
}

/// The answer after a model's thoughts, where a server leaves them in the content.
fn without_thinking(text: &str) -> &str {
    match text.trim_start().strip_prefix("<think>") {
        Some(rest) => rest.split_once("</think>").map_or("", |(_, answer)| answer),
        None => text,
    }
}

fn excerpt(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if line.trim().is_empty() { "(empty body)".to_owned() } else { line }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // 1994-11-06 08:49:37 UTC, the example of RFC 9110, less 90 s.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        for (value, want) in [
            ("120", Some(120.0)),
            (" 0.5 ", Some(0.5)),
            ("0", Some(0.0)),
            ("86400", Some(86_400.0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(90.0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(90.0)),
            ("Sun Nov  6 08:49:37 1994", Some(90.0)),
            // Past: no wait.
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(0.0)),
            ("-1", None),
            ("NaN", None),
            ("1e300", None),
            ("soon", None),
            ("", None),
        ] {
            let got = retry_after(&HeaderValue::from_static(value), now);
            assert_eq!(got.map(|wait| wait.as_secs_f64()), want, "{value:?}");
        }
    }

    #[test]
    fn completions_are_read_leniently() {
        let text = |t: &str| parse(t).map(|a| (a.text, a.finish));
        for (body, want) in [
            (
                r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#,
                Some(("a", Finish::Stop)),
            ),
            (
                r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"text":"b"}]}}]}"#,
                Some(("ab", Finish::Stop)),
            ),
            (
                r#"{"choices":[{"message":{"content":null},"finish_reason":"length"}]}"#,
                Some(("", Finish::Length)),
            ),
            (r#"{"choices":[{"text":"a"}],"usage":null}"#, Some(("a", Finish::Stop))),
            (r#"{"choices":[{"message":{"content":"<think>x</think>a"}}]}"#, Some(("a", Finish::Stop))),
            (r#"{"choices":[]}"#, None),
            (r#"{"error":"x"}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(text(body), want.map(|(t, f)| (t.to_owned(), f)), "{body}");
        }
    }
}
