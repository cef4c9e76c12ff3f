//! Tests of the whole workflow against a scripted chat server: answers are a function of the
//! request, so equal bytes can be asked for whatever is killed.

mod corpus;
mod embedded;
mod endpoint;
mod faults;
mod steps;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longstrap_crds::synthesis_job::SynthesisJobSpec;
use longstrap_crds::task::{Owner, Ports, RunSpec};
use longstrap_crds::{Step, TaskFile};
use longstrap_runtime::{Progress, StepContext, StepResult, Surroundings, Termination};
use longstrap_storage::Credentials;
use serde_json::{Value, json};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

/// The example that the repository ships: a tiny model and sixty invented documents.
fn smoke(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke").join(name)
}

/// A scripted server and how often it was called.
struct Scripted {
    server: MockServer,
    calls: Arc<AtomicU64>,
}

impl Scripted {
    async fn start() -> Scripted {
        let calls = Arc::new(AtomicU64::new(0));
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/v1/chat/completions"))
            .respond_with(Script(Arc::clone(&calls)))
            .mount(&server)
            .await;
        Scripted { server, calls }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("{}/v1", self.server.uri())
    }
}

struct Script(Arc<AtomicU64>);

impl Respond for Script {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        self.0.fetch_add(1, Ordering::SeqCst);
        let call: Value = request.body_json().unwrap();
        let prompt = call["messages"][0]["content"].as_str().unwrap();
        let text = answer(prompt, call["seed"].as_u64().unwrap());
        // Slow enough that a worker can be killed while calls are in flight.
        ResponseTemplate::new(200)
            .set_body_json(completion(&text))
            .set_delay(std::time::Duration::from_millis(10))
    }
}

fn completion(text: &str) -> Value {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": text.len() / 4},
    })
}

/// What a capable model would say, more or less: recognised by the words of our prompts.
fn answer(prompt: &str, seed: u64) -> String {
    let hash = prompt.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let sentence = |text: &str| -> String {
        let line =
            text.lines().find(|line| line.len() > 40 && line.contains(". ")).unwrap_or("It is quiet here.");
        format!("{}.", line.split(". ").next().unwrap())
    };
    if let Some((_, text)) = prompt.split_once("Below is one document of a large collection.") {
        let title = text.lines().find_map(|l| l.strip_prefix("# ")).unwrap_or("the valley");
        return match hash % 7 {
            // Sometimes nothing usable comes.
            0 => String::new(),
            1 => "Sure".to_owned(),
            k => format!(
                "<instruction>Compare {title} with places of its kind in respect {k} of {seed}: tower, fire, garden and winter.</instruction>"
            ),
        };
    }
    if let Some((_, text)) = prompt.split_once("Below is a document") {
        // Often the same request: near-duplicates have to be replaced.
        return match seed % 2 {
            0 => {
                format!("<instruction>Write a page like number {seed} about {}</instruction>", sentence(text))
            }
            _ => "<instruction>Write a friendly page about a quiet place and its people.</instruction>"
                .to_owned(),
        };
    }
    if prompt.contains("Summarise what this text says") {
        let (_, text) = prompt.split_once("Text from").unwrap();
        return if hash.is_multiple_of(3) { "IRRELEVANT".to_owned() } else { sentence(text) };
    }
    let (_, notes) = prompt.split_once("Notes from the documents:").unwrap_or(("", prompt));
    format!("In short, case {hash}. {} And that is what the papers say of it.", sentence(notes))
}

fn spec(storage: &Path, url: &str) -> SynthesisJobSpec {
    serde_json::from_value(json!({
        "storage": {"uri": uri(storage)},
        "tokenizer": {"uri": uri(&smoke("model"))},
        "corpus": [{"name": "valleys", "uri": uri(&smoke("corpus/corpus.jsonl")), "format": "JsonLines", "groupField": "group"}],
        "heldOut": {"tokens": 2000},
        "generator": {
            "endpoints": [{"name": "scripted", "url": url, "model": "scripted", "maxConcurrency": 4}],
            "contextLength": 4096,
        },
        "samples": {
            "longInput": {"count": 4, "lengths": [
                {"name": "exact", "tokens": 1024, "weight": 2},
                {"name": "mixed", "from": 512, "to": 1024},
            ]},
            "longOutput": {"count": 3, "minTokens": 200, "maxTokens": 500},
        },
        "seed": 7,
        "workers": 2,
    }))
    .unwrap()
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A pod of a job.
async fn pod(spec: &SynthesisJobSpec, step: Step, attempt: u32, index: u32, cache: &Path) -> StepContext {
    let task = TaskFile {
        format_version: 1,
        owner: Owner { cluster: "c".into(), namespace: "n".into(), name: "docs".into(), uid: "8e1f".into() },
        attempt,
        step,
        spec: RunSpec::SynthesisJob(Box::new(spec.clone())),
        data: Vec::new(),
        stages: 0..0,
        workers: spec.workers,
        ranks_per_node: 1,
        threads_per_rank: 1,
        backoff_limit: 6,
        rank_timeout_seconds: 60,
        outage_timeout_seconds: 1,
        rendezvous_host: "localhost".into(),
        ports: Ports::default(),
        one_machine: true,
        grace_seconds: None,
    };
    let surroundings = Surroundings {
        index,
        pod_uid: format!("{attempt:04}{index:04}"),
        cache_dir: cache.join(format!("{attempt}-{index}-{}", task.step)),
        credentials: Credentials::Environment,
        termination: Termination::nowhere(),
        stop: Default::default(),
    };
    std::fs::create_dir_all(&surroundings.cache_dir).unwrap();
    let progress = Progress::new("8e1f", task.step.to_string());
    StepContext::new(task, surroundings, progress).await.unwrap()
}

async fn prepare(spec: &SynthesisJobSpec, cache: &Path) -> StepResult {
    crate::prepare(&pod(spec, Step::Prepare, 1, 0, cache).await).await
}

/// Every byte that the job publishes, by name.
fn published(storage: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![storage.join("dataset")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(storage).unwrap().display().to_string();
                    files.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    files.insert("run.json".into(), std::fs::read(storage.join("run.json")).unwrap());
    files
}
