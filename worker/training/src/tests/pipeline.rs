//! prepare → ranks → export on the smoke model: what prepare binds, and what options leave alone.

use longstrap_storage::keys;
use serde_json::json;

use super::world::{World, model, words};

/// Sources that no SynthesisJob made are compared, too; what is measured is bound to the run.
#[tokio::test(flavor = "multi_thread")]
async fn samples_of_every_source_are_compared_with_the_held_out_text() {
    let leaks = async |more: &str| {
        let mut world = World::new(json!([{"name": "s", "contextLength": 512, "steps": 2}]), true);
        world.spec["evaluation"] = json!({"afterEachStage": true, "recall": {}});
        let path = world.dir.path().join("short.jsonl");
        let sample = json!({"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": more}]});
        let lines = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{lines}\n{sample}\n")).unwrap();
        world.prepare().await.unwrap();
        let run = world.json(keys::RUN);
        let measure = json!({"lossByPosition": false, "recall": true, "needle": false});
        assert_eq!(run["evaluation"]["measure"], measure, "{run}");
        run["heldOut"]["leaks"].as_u64().unwrap()
    };
    let none = leaks("Nothing of the held-out text.").await;
    assert_eq!(leaks(&words(903, 12)).await, none + 1, "twelve words of a held-out document");
    let needle = longstrap_corpus::needles::sentence("library", "gold");
    assert_eq!(leaks(&format!("He said: {needle}")).await, none + 1, "a needle");
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_is_recomputed_where_it_does_not_fit_and_the_bytes_are_the_same() {
    let stages = json!([{"name": "half", "contextLength": 512, "steps": 2}]);
    let plan = |keep_attention| {
        let config = longstrap_model::ModelConfig::load(&model()).unwrap();
        let options =
            longstrap_memory_plan::Options { ranks: 2, keep_attention, sources: 2, ..Default::default() };
        longstrap_memory_plan::Plan::new(config.shape(), 512, options).total_bytes()
    };
    let mut weights = Vec::new();
    for memory in [None, Some(plan(false))] {
        let mut world = World::new(stages.clone(), false);
        world.spec["parallelism"] = json!({"ranksPerNode": 2});
        if let Some(memory) = memory {
            assert!(memory < plan(true));
            world.spec["acceleratorMemory"] = json!(memory);
        }
        world.prepare().await.unwrap();
        for result in world.train(2, 1, None).await {
            result.unwrap();
        }
        world.export().await.unwrap();
        weights.push(world.read("model/model.safetensors"));
    }
    assert!(weights[0] == weights[1]);
}
