//! The client: what it waits for, what it counts, what it gives up.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use longstrap_crds::Reason;
use longstrap_model::{Message, Role};

use super::*;
use crate::bench::{Asker, Fault, user};
use crate::llm::openai::{ApiKey, Endpoint, OpenAi};
use crate::llm::{Call, Finish, Llm, LlmError, Params};
use crate::seed::RunSeed;

/// Answers from a list, the last one for ever; keeps the requests.
struct Listed {
    answers: Vec<ResponseTemplate>,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Respond for Listed {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut seen = self.seen.lock().unwrap();
        let mut call: Value = request.body_json().unwrap();
        call["authorization"] = json!(request.headers.get("authorization").map(|v| v.to_str().unwrap()));
        seen.push(call);
        self.answers[(seen.len() - 1).min(self.answers.len() - 1)].clone()
    }
}

async fn serve(answers: Vec<ResponseTemplate>) -> (MockServer, Arc<Mutex<Vec<Value>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let server = MockServer::start().await;
    let listed = Listed { answers, seen: Arc::clone(&seen) };
    Mock::given(method("POST")).respond_with(listed).mount(&server).await;
    (server, seen)
}

fn client(
    server: &MockServer,
    api_key: ApiKey,
    outage: Duration,
) -> (OpenAi, Arc<Mutex<Vec<Option<String>>>>) {
    let waits = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&waits);
    let endpoint = Endpoint {
        name: "a".into(),
        url: format!("{}/v1/", server.uri()),
        model: "m".into(),
        api_key,
        max_concurrency: 2,
        outage,
        pause: Duration::from_millis(1),
    };
    (OpenAi::new(endpoint, Box::new(move |why| told.lock().unwrap().push(why))).unwrap(), waits)
}

fn params() -> Params {
    Params {
        max_tokens: 9,
        temperature: 0.5,
        top_p: 1.0,
        seed: u64::MAX,
        stop: vec!["END".into()],
        answer_prefix: String::new(),
        no_repeat_ngram: 0,
    }
}

fn call() -> Call {
    Call { messages: vec![Message::new(Role::User, "hello")], params: params() }
}

fn say(text: &str) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_json(completion(text))
}

#[tokio::test]
async fn transport_and_capacity_are_waited_for() {
    let busy = || ResponseTemplate::new(429).insert_header("retry-after", "0.05");
    let mut answers: Vec<_> = (0..12).map(|_| busy()).collect();
    answers.push(ResponseTemplate::new(503).set_body_string("down"));
    answers.push(ResponseTemplate::new(200).set_body_string("<html>proxy</html>"));
    answers.push(say("fine"));
    let (server, seen) = serve(answers).await;
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("key");
    std::fs::write(&file, "secret-1\n").unwrap();
    let (llm, waits) = client(&server, ApiKey::File(file), Duration::from_secs(60));
    let began = Instant::now();
    let answer = llm.chat(&call()).await.unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("fine", Finish::Stop));
    assert!(began.elapsed() >= Duration::from_millis(600), "Retry-After was not kept");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 15);
    let request = &seen[0];
    assert_eq!(request["authorization"], "Bearer secret-1");
    assert_eq!(request["model"], "m");
    assert_eq!(request["seed"], 0x7fff_ffffu64);
    assert_eq!(request["stop"], json!(["END"]));
    let waits = waits.lock().unwrap();
    let first = waits[0].as_ref().unwrap();
    assert!(first.contains("asks to wait 1 s: HTTP 429") && waits.last() == Some(&None), "{first}");
    assert!(waits.iter().flatten().all(|why| !why.contains("secret-1")));
}

#[tokio::test]
async fn an_endpoint_that_stays_away_is_an_outage() {
    let (server, _) = serve(vec![ResponseTemplate::new(502)]).await;
    let (llm, _) = client(&server, ApiKey::None, Duration::from_millis(80));
    assert!(matches!(llm.chat(&call()).await, Err(LlmError::Away(why)) if why.contains("HTTP 502")));

    // A server that asks for longer than that is away, however it says so: nobody waits in silence.
    let in_a_day = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(86_400));
    for (status, retry_after) in [(429, "7200"), (429, in_a_day.as_str()), (503, "7200")] {
        let answer = ResponseTemplate::new(status).insert_header("retry-after", retry_after);
        let (server, seen) = serve(vec![answer]).await;
        let (llm, _) = client(&server, ApiKey::None, Duration::from_secs(600));
        let error = llm.chat(&call()).await.unwrap_err();
        let LlmError::Away(why) = &error else { panic!("{retry_after}: {error:?}") };
        assert!(
            why.contains("(Retry-After), longer than it may be away") && why.contains("of 600 s"),
            "{why}"
        );
        assert!(why.contains(&format!("HTTP {status}")), "{why}");
        assert_eq!(seen.lock().unwrap().len(), 1, "asked again before its time");
        let end = longstrap_runtime::StepError::from(crate::SynthError::from(error));
        assert_eq!((end.exit_code().code(), end.reason()), (12, Some(Reason::EndpointUnavailable)));
    }
    // A date that is past, or no date at all, is no reason to wait.
    let answer = |retry_after| ResponseTemplate::new(429).insert_header("retry-after", retry_after);
    let (server, seen) =
        serve(vec![answer("Sun, 06 Nov 1994 08:49:37 GMT"), answer("soon"), say("fine")]).await;
    let (llm, _) = client(&server, ApiKey::None, Duration::from_secs(600));
    assert_eq!(llm.chat(&call()).await.unwrap().text, "fine");
    assert_eq!(seen.lock().unwrap().len(), 3);

    // Requests that are refused as malformed are single cases, until it must be us.
    let (server, _) = serve(vec![ResponseTemplate::new(400).set_body_string("too long")]).await;
    let (llm, _) = client(&server, ApiKey::None, Duration::from_secs(9));
    for _ in 0..19 {
        assert!(matches!(llm.chat(&call()).await, Err(LlmError::Rejected(_))));
    }
    assert!(matches!(llm.chat(&call()).await, Err(LlmError::Refused(why)) if why.contains("20 in a row")));
    let missing = client(&server, ApiKey::File("/nonexistent/key".into()), Duration::from_secs(9)).0;
    assert!(
        matches!(missing.chat(&call()).await, Err(LlmError::Denied(why)) if why.contains("/nonexistent/key"))
    );
}

/// A Secret that is rotated under a running worker: the files change, then the server refuses the
/// old key; a key that is refused and has not changed ends the run.
#[tokio::test]
async fn a_rotated_key_is_read_again() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("key");
    std::fs::write(&file, "old").unwrap();
    let server = MockServer::start().await;
    let rotate = file.clone();
    let refuse = move |request: &Request| {
        let key = request.headers.get("authorization").unwrap().to_str().unwrap();
        if key == "Bearer new" {
            return say("fine");
        }
        std::fs::write(&rotate, "new\n").unwrap();
        ResponseTemplate::new(401).set_body_string("expired")
    };
    Mock::given(method("POST")).respond_with(refuse).mount(&server).await;
    let (llm, _) = client(&server, ApiKey::File(file), Duration::from_secs(9));
    assert_eq!(llm.chat(&call()).await.unwrap().text, "fine");
    assert_eq!(server.received_requests().await.unwrap().len(), 2);

    for status in [401, 403] {
        let (server, seen) = serve(vec![ResponseTemplate::new(status).set_body_string("no")]).await;
        let (llm, _) = client(&server, ApiKey::File(tmp.path().join("key")), Duration::from_secs(9));
        let error = llm.chat(&call()).await.unwrap_err();
        assert!(
            matches!(&error, LlmError::Denied(why) if why.contains("refuses the API key: HTTP 40")),
            "{error}"
        );
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn bad_content_is_asked_for_again_with_another_seed_a_few_times() {
    let (server, seen) = serve(vec![say(" "), say("bad"), say("good"), say("bad")]).await;
    let (llm, _) = client(&server, ApiKey::None, Duration::from_secs(9));
    let asker = Asker::new(&llm, &|_| (), 3);
    let mut draw = RunSeed(1).draw("test");
    let read = |answer: &crate::llm::Answer| match answer.text.as_str() {
        "good" => Ok(()),
        _ => Err(Fault::Unparsable),
    };
    assert_eq!(asker.ask(&mut draw, user("x".into()), params(), read).await.unwrap(), Ok(()));
    assert_eq!(asker.ask(&mut draw, user("x".into()), params(), read).await.unwrap(), Err(Fault::Unparsable));
    assert_eq!(asker.usage().calls, 6);
    let seen = seen.lock().unwrap();
    let mut seeds: Vec<u64> = seen.iter().map(|call| call["seed"].as_u64().unwrap()).collect();
    seeds.dedup();
    assert_eq!(seeds.len(), 6);
}
