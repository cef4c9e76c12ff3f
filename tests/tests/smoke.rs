//! The whole road on a tiny model with the real binaries: what comes out, that a second run
//! computes nothing, and what an edited manifest gets to hear.
//!
//! Deliberate breakages that these tests catch: a step that ignores its committed manifest (calls
//! and files of the second run differ), a `prepare` that takes an edited spec silently, a restart
//! that writes over the old results.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use longstrap_tests::chat::{ChatServer, Manner};
use longstrap_tests::smoke::Smoke;
use longstrap_tests::{tensors, tree};
use serde_json::Value;

#[test]
fn manifests_in_a_longer_window_out_and_nothing_twice() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    let text = smoke.complete();
    for word in [
        "SynthesisJob smoke-docs",
        "ContextExtensionRun smoke-1k",
        "model with a window of 1,024",
        "11 samples",
    ] {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    what_the_user_sees(&smoke, &text);

    let read = |path: &str| -> Value {
        serde_json::from_slice(&std::fs::read(smoke.out().join(path)).unwrap()).unwrap()
    };
    let dataset = read("synthesis/dataset/dataset.json");
    let rows: u64 =
        dataset["files"].as_array().unwrap().iter().map(|file| file["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 11, "{dataset}");
    // Two kinds of samples were written, and short ones were trained on beside them.
    let samples =
        std::fs::read_to_string(smoke.out().join("synthesis/dataset/jsonl/part-00000.jsonl")).unwrap();
    for (kind, count) in [("long-input-", 8), ("long-output-", 3)] {
        assert_eq!(samples.matches(&format!("\"id\":\"{kind}")).count(), count, "{kind}");
    }
    let log = std::fs::read_to_string(smoke.out().join("run/run-log.jsonl")).unwrap();
    for stage in ["half-k", "one-k"] {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let steps: Vec<Value> =
            lines.filter(|line| line["stage"] == stage && line["sourceLoss"].is_object()).collect();
        assert_eq!(steps.len(), 6, "{stage}");
        for source in ["long", "short"] {
            assert!(steps.iter().any(|step| step["sourceLoss"][source].is_f64()), "{stage} without {source}");
        }
        assert_eq!(read(&format!("run/stages/{stage}/stage.json"))["worldSize"], 4);
    }

    let config = read("run/model/config.json");
    assert_eq!(config["max_position_embeddings"], 1024);
    // 10,000 · 4 · 4.
    assert_eq!(config["rope_theta"].as_f64(), Some(160_000.0));
    let [before, trained] =
        ["model", "run/model"].map(|model| smoke.out().join(model).join("model.safetensors"));
    assert_eq!(tensors::shapes(&trained), tensors::shapes(&before));
    let changed =
        tensors::values(&before).iter().zip(tensors::values(&trained)).filter(|(a, b)| **a != *b).count();
    assert!(changed > tensors::values(&before).len() / 2, "{changed} values were trained");

    let results = read("run/results.json");
    let models: Vec<String> = results["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| {
            for score in ["lossByPosition", "recall"] {
                assert!(model["scores"][score].as_array().is_some_and(|all| !all.is_empty()), "{model}");
            }
            format!("{} {} {}", model["kind"], model["stage"], model["window"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        models,
        ["Base half-k 512", "BaseChange half-k 512", "Trained half-k 512", "Trained one-k 1024"]
    );
    let report = std::fs::read_to_string(smoke.out().join("run/report.html")).unwrap();
    for chart in ["Loss by position", "Loss of a repeated passage by distance"] {
        assert_eq!(report.matches(&format!("aria-label=\"{chart}\"")).count(), 2, "{chart}, one a window");
    }
    for outside in ["http://", "https://", "src=", "<link", "<script", "@import", "url("] {
        assert!(!report.contains(outside), "the report needs {outside:?}");
    }

    // What is written again has another time of change, whatever its bytes are. The report and the
    // log of the whole run are put together from what stands in storage.
    let written = || {
        let mut times = tree::written(&smoke.out());
        times.retain(|name, _| !matches!(name.as_str(), "run/report.html" | "run/run-log.jsonl"));
        times
    };
    let (files, calls, before) = (tree::published(&smoke.out()), server.calls(), written());
    let text = smoke.complete();
    assert!(!text.contains("of disk"), "what is finished needs nothing more: {text}");
    assert_eq!(server.calls(), calls, "the second run asked the generator again");
    assert_eq!(tree::differences(&files, &tree::published(&smoke.out())), "");
    let after = written();
    let again: Vec<&String> = after.keys().filter(|name| after.get(*name) != before.get(*name)).collect();
    assert!(again.is_empty(), "the second run computed {again:?}");
}

/// At the start what the run needs, at the end what came out and where, and commands to try next
/// that do what they say.
fn what_the_user_sees(smoke: &Smoke, text: &str) {
    let line = |starts: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(starts));
        found.unwrap_or_else(|| panic!("no line {starts:?} in: {text}")).trim_start().to_owned()
    };
    let out = smoke.out().canonicalize().unwrap().display().to_string();
    let disk = line(&format!("{out}: needs up to "));
    for part in
        [" of disk (ContextExtensionRun smoke-1k ", ", SynthesisJob smoke-docs ", " are there, ", " are free"]
    {
        assert!(disk.contains(part), "{part:?} is missing in: {disk}");
    }

    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.contains("  Complete  "))
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let [model, report, dataset] = &rows[..] else { panic!("not three rows: {rows:?}") };
    assert_eq!(dataset[..2], ["SynthesisJob smoke-docs", "Complete"]);
    assert!(dataset[2].starts_with("dataset: 11 samples, "), "{dataset:?}");
    assert_eq!(dataset[3], format!("{out}/synthesis/dataset"));
    let of_run = |what: &str, place: &str| {
        ["ContextExtensionRun smoke-1k", "Complete", what, &format!("{out}/{place}")].map(str::to_owned)
    };
    assert_eq!(model[..], of_run("model with a window of 1,024", "run/model"));
    assert_eq!(report[..], of_run("report", "run/report.html"));

    let next = text.split_once("\nnext:\n").unwrap_or_else(|| panic!("nothing to try next in: {text}")).1;
    let commands: Vec<&str> = next.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    assert!(commands[2].ends_with(" local run -f YOUR-MANIFESTS --out YOUR-FOLDER"), "{next}");
    for (command, shows) in
        [(commands[0], ["tokens", "with a loss", "documents"]), (commands[1], ["/run/report.html", "", ""])]
    {
        let mut words = command.split_whitespace();
        let shown = Command::new(words.next().unwrap()).args(words).output().unwrap();
        let shown =
            String::from_utf8_lossy(&shown.stdout).into_owned() + &String::from_utf8_lossy(&shown.stderr);
        for word in shows {
            assert!(shown.contains(word), "{command}: {word:?} is missing in: {shown}");
        }
    }
}

#[test]
fn an_edited_manifest_is_refused_with_its_fields_until_a_restart_is_asked_for() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    smoke.edit("synthesis.yaml", "count: 8", "count: 2");
    smoke.edit("synthesis.yaml", "workers: 2", "workers: 1");
    std::fs::remove_file(smoke.manifests().join("extension.yaml")).unwrap();
    smoke.complete();
    let before = tree::published(&smoke.out());

    smoke.edit("synthesis.yaml", "seed: 7", "seed: 8");
    let (code, text) = smoke.run(&[]);
    assert_eq!(code, 2, "{text}");
    for word in ["FingerprintMismatch", "seed", "--restart-from"] {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "a refusal changes nothing");

    let (code, text) = smoke.run(&["--restart-from", "data"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "the old results are kept");
    let fresh = std::fs::read(smoke.out().join("synthesis/r1/dataset/dataset.json")).unwrap();
    assert_ne!(fresh, before["synthesis/dataset/dataset.json"]);
}

#[test]
fn stages_are_trained_again_beside_the_old_result() {
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    std::fs::remove_file(smoke.manifests().join("synthesis.yaml")).unwrap();
    smoke.edit("extension.yaml", "  - {name: long, synthesisJobRef: {name: smoke-docs}, weight: 8}\n", "");
    smoke.edit("extension.yaml", "contextLength: 512, steps: 6", "contextLength: 512, steps: 1");
    smoke.edit("extension.yaml", "contextLength: 1Ki, steps: 6", "contextLength: 1Ki, steps: 1");
    let path = smoke.manifests().join("extension.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.split("  evaluation:").next().unwrap()).unwrap();
    smoke.complete();
    let before = tree::published(&smoke.out());

    smoke.edit("extension.yaml", "learningRate: \"1e-3\"", "learningRate: \"2e-3\"");
    let (code, text) = smoke.run(&[]);
    assert!(
        code == 2 && text.contains("FingerprintMismatch") && text.contains("learningRate"),
        "{code}: {text}"
    );

    let (code, text) = smoke.run(&["--restart-from", "stage"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(tree::differences(&before, &tree::published(&smoke.out())), "", "the old result is kept");
    let fresh = std::fs::read(smoke.out().join("run/r1/model/model.safetensors")).unwrap();
    assert_ne!(fresh, before["run/model/model.safetensors"]);
}

#[test]
fn a_key_and_prompts_reach_the_generator_and_the_key_nothing_else() {
    const KEY: &str = "sk-valley-4711";
    let server = ChatServer::start(Manner::Helpful);
    let smoke = Smoke::new(&server);
    std::fs::remove_file(smoke.manifests().join("extension.yaml")).unwrap();
    smoke.edit(
        "synthesis.yaml",
        "maxConcurrency: 4}",
        "maxConcurrency: 4, apiKeySecretRef: {name: llm, key: token}}",
    );
    smoke.edit("synthesis.yaml", "  seed: 7", "  prompts: {configMapRef: {name: house-style}}\n  seed: 7");
    let objects = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: llm}}\nstringData: {{token: {KEY}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: house-style}}\ndata:\n  respond.j2: |\n    \
         {{% for note in notes %}}{{{{ note.text }}}}\n    {{% endfor %}}\n    ---\n    \
         {{{{ instruction }}}} Answer in the style of the house.\n"
    );
    std::fs::write(smoke.manifests().join("objects.yaml"), objects).unwrap();
    let text = smoke.complete();

    let heard = server.heard();
    let bearer = format!("Bearer {KEY}");
    let without = heard.iter().filter(|call| call.authorization.as_ref() != Some(&bearer)).count();
    assert!(!heard.is_empty() && without == 0, "{without} of {} calls without the key", heard.len());
    let styled = heard.iter().filter(|call| call.prompt.contains("in the style of the house")).count();
    assert!(styled >= 8, "{styled} answers were asked for with the prompt that was given");
    let built_in = heard.iter().filter(|call| call.prompt.contains("as somebody who has read the documents"));
    assert_eq!(built_in.count(), 0);

    assert!(!text.contains(KEY), "{text}");
    for name in tree::names(&smoke.out()) {
        let bytes = std::fs::read(smoke.out().join(&name)).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "the key stands in {name}");
    }
}
