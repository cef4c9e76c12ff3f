//! The embedded road with the tiny model: relevance by likelihood, answers that quote.

use longstrap_crds::Step;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_generator_quotes_word_for_word_from_all_over() {
    let tmp = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for (name, workers) in [("one", 1), ("two", 2)] {
        let storage = tmp.path().join(name);
        let cache = tmp.path().join(format!("{name}-cache"));
        let mut spec = spec(&storage, "http://unused/v1");
        spec.workers = workers;
        spec.generator = serde_json::from_value(json!({
            "embedded": {"model": {"uri": uri(&smoke("model"))}},
            "contextLength": 256,
        }))
        .unwrap();
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

/// The quickstart's synthesis on the real model. Prints what it made and how long it took.
/// `LONGSTRAP_SMOLLM2`: the model's folder; `LONGSTRAP_CORPUS`: the demo's corpus.jsonl.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes, and needs the real model and the demo's corpus"]
async fn quickstart_on_the_real_model() {
    let [model, corpus] =
        ["LONGSTRAP_SMOLLM2", "LONGSTRAP_CORPUS"].map(|name| PathBuf::from(std::env::var(name).unwrap()));
    let tmp = tempfile::tempdir().unwrap();
    let storage = tmp.path().join("s");
    let spec: SynthesisJobSpec = serde_json::from_value(json!({
        "storage": {"uri": uri(&storage)},
        "tokenizer": {"uri": uri(&model)},
        "corpus": [{"name": "crates", "uri": uri(&corpus), "format": "JsonLines", "groupField": "group"}],
        "heldOut": {"tokens": 16384},
        "generator": {"embedded": {"model": {"uri": uri(&model)}}, "contextLength": 8192},
        "samples": {
            "longInput": {"count": 2, "lengths": [{"name": "full", "tokens": 16384}]},
            "longOutput": {"count": 2, "minTokens": 2048, "maxTokens": 3072},
        },
        "seed": 17,
        "workers": 1,
    }))
    .unwrap();
    let began = std::time::Instant::now();
    prepare(&spec, tmp.path()).await.unwrap();
    println!("prepare {:.1} s", began.elapsed().as_secs_f64());
    let mut ctx = pod(&spec, Step::Generate, 1, 0, tmp.path()).await;
    ctx.task.threads_per_rank = 2;
    crate::generate(&ctx).await.unwrap();
    println!("generate until {:.1} s", began.elapsed().as_secs_f64());
    crate::finalize(&pod(&spec, Step::Finalize, 1, 0, tmp.path()).await).await.unwrap();
    println!("finalize until {:.1} s", began.elapsed().as_secs_f64());
    let files = published(&storage);
    for name in ["dataset/dataset.json", "dataset/README.md"] {
        println!("{}", String::from_utf8_lossy(&files[name]));
    }
    println!("{}", std::fs::read_to_string(storage.join("corpus/corpus.json")).unwrap());
    for line in String::from_utf8_lossy(&files["dataset/jsonl/part-00000.jsonl"]).lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let [user, answer] = [0, 1].map(|i| sample["messages"][i]["content"].as_str().unwrap());
        let ends = |text: &str| -> (String, String) {
            let chars: Vec<char> = text.chars().collect();
            let n = chars.len();
            (chars[..n.min(300)].iter().collect(), chars[n.saturating_sub(300)..].iter().collect())
        };
        println!("=== {}\nUSER {:?}\nANSWER {:.2000}", sample["id"], ends(user), answer);
    }
}
