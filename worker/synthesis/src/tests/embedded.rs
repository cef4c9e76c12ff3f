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
