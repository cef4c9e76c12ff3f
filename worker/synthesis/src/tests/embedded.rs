//! The embedded road with the tiny model: relevance by likelihood, answers that quote.

use longstrap_crds::{Reason, Step};

use super::*;

fn embedded(storage: &Path, model: &Path) -> SynthesisJobSpec {
    let mut spec = spec(storage, "http://unused/v1");
    let generator = json!({"embedded": {"model": {"uri": uri(model)}}, "contextLength": 256});
    spec.generator = serde_json::from_value(generator).unwrap();
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_generator_quotes_word_for_word_from_all_over() {
    let tmp = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for (name, workers) in [("one", 1), ("two", 2)] {
        let storage = tmp.path().join(name);
        let cache = tmp.path().join(format!("{name}-cache"));
        let mut spec = embedded(&storage, &smoke("model"));
        spec.workers = workers;
        spec.samples = serde_json::from_value(json!({
            "longInput": {"count": 2, "lengths": [{"name": "exact", "tokens": 1024}]},
            "longOutput": {"count": 1, "minTokens": 200, "maxTokens": 500},
        }))
        .unwrap();
        prepare(&spec, &cache).await.unwrap();
        let first = pod(&spec, Step::Generate, 1, 0, &cache).await;
        if workers == 2 {
            let second = pod(&spec, Step::Generate, 1, 1, &cache).await;
            tokio::try_join!(crate::generate(&first), crate::generate(&second)).unwrap();
        } else {
            crate::generate(&first).await.unwrap();
        }
        crate::finalize(&pod(&spec, Step::Finalize, 1, 0, &cache).await).await.unwrap();
        all.push(published(&storage));
    }
    assert!(all[0] == all[1], "another number of workers gave other bytes");

    let target = crate::Target::load(&smoke("model")).unwrap();
    let lines = String::from_utf8(all[0]["dataset/jsonl/part-00000.jsonl"].clone()).unwrap();
    let mut inputs = 0;
    for line in lines.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        if sample["id"].as_str().unwrap().starts_with("long-output") {
            continue;
        }
        inputs += 1;
        let messages: Vec<longstrap_model::Message> =
            serde_json::from_value(sample["messages"].clone()).unwrap();
        let tokens = target.rendered(&messages).unwrap();
        assert!((1014..=1024).contains(&tokens), "{tokens}");
        let (context, response) = (&messages[0].content, &messages[1].content);
        let quotes: Vec<&str> = response
            .split("\n\n")
            .skip(1)
            .filter(|part| !(part.starts_with("From ") && part.ends_with(':')))
            .collect();
        assert!(!quotes.is_empty(), "{response}");
        for quote in &quotes {
            assert!(context.contains(quote), "not in the documents: {quote}");
        }
    }
    assert_eq!(inputs, 2, "{lines}");
    let card = String::from_utf8(all[0]["dataset/README.md"].clone()).unwrap();
    assert!(card.contains("proves no data quality"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_write_is_refused_before_anything_depends_on_it() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(smoke("model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let storage = tmp.path().join("s");
    let mut spec = embedded(&storage, &model);

    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let truncated = prepare(&spec, tmp.path()).await.unwrap_err();
    std::fs::write(&weights, &whole).unwrap();
    spec.generator.context_length = "257".parse().unwrap();
    let too_long = prepare(&spec, tmp.path()).await.unwrap_err();
    for (error, parts) in [
        (truncated, ["spec.generator.embedded.model: ", "model/model.safetensors: ", "truncated"]),
        (too_long, ["spec.generator.contextLength: 257 is longer", "256", "model/config.json"]),
    ] {
        let message = error.to_string();
        assert_eq!((error.reason(), error.exit_code().code()), (Some(Reason::InvalidModel), 10), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(!storage.join("run.json").exists() && !storage.join("corpus").exists());

    spec.generator.context_length = "256".parse().unwrap();
    prepare(&spec, tmp.path()).await.unwrap();

    // Prepared on another kind of machine: a warning, as the worker's, and the same run.
    let path = storage.join("run.json");
    let mut run: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    run["generator"]["embedded"]["instructionSet"] = json!("abacus");
    let foreign = serde_json::to_string_pretty(&run).unwrap() + "\n";
    std::fs::write(&path, &foreign).unwrap();
    prepare(&spec, tmp.path()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);

    // Other weights are another run.
    let mut other = whole;
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, other).unwrap();
    let error = prepare(&spec, tmp.path()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::FingerprintMismatch));
    let line = "\n  spec.generator.embedded.model.uri (the model behind it) has changed\n";
    assert!(error.to_string().contains(line), "{error}");
}
