//! What can never work ends with its reason and its cure, and commits nothing.

use longstrap_crds::Reason;
use longstrap_storage::keys;
use serde_json::{Value, json};

use super::world::{World, model};

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_work_ends_in_prepare() {
    let one = |length: u32| json!([{"name": "s", "contextLength": length, "steps": 1}]);
    type Change = fn(&mut World);
    let cases: [(u32, Reason, &str, Change); 8] = [
        (256, Reason::WindowNotExtended, "allowWindowNotExtended", |_| {}),
        (512, Reason::DoesNotFit, "acceleratorMemory", |w| w.spec["acceleratorMemory"] = json!("40Mi")),
        (512, Reason::InvalidData, "short.jsonl, line 2", |w| {
            std::fs::write(w.dir.path().join("short.jsonl"), "{\"messages\": []}\n{\"messages\": [{}]}\n")
                .unwrap();
        }),
        (512, Reason::InvalidData, "no *.jsonl", |w| {
            std::fs::remove_dir_all(w.dir.path().join("data")).unwrap()
        }),
        (512, Reason::DataChanged, "its manifest says", |w| {
            std::fs::write(w.dir.path().join("data/part-00000.parquet"), "x").unwrap();
        }),
        (512, Reason::InvalidData, "maxEpochs", |w| {
            w.spec["stages"][0]["steps"] = json!(400);
        }),
        (512, Reason::InvalidModel, "config.json", |w| {
            w.spec["model"]["uri"] = w.spec["storage"]["uri"].clone();
        }),
        (512, Reason::InvalidData, "held-out", |w| {
            w.spec["evaluation"] = json!({"afterEachStage": true, "recall": {}});
            let path = w.dir.path().join("data/dataset.json");
            let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            manifest["heldOut"] = Value::Null;
            std::fs::write(path, manifest.to_string()).unwrap();
        }),
    ];
    for (length, reason, text, change) in cases {
        let mut world = World::new(one(length), false);
        std::fs::create_dir(world.dir.path().join("run")).unwrap();
        change(&mut world);
        let error = world.prepare().await.expect_err(text);
        assert_eq!(error.reason(), Some(reason), "{error}");
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(!world.dir.path().join("run/run.json").exists());
    }
    // A changed spec on a run that exists: one error that lists the fields.
    let mut world = World::new(one(512), false);
    world.prepare().await.unwrap();
    world.spec["training"]["learningRate"] = json!("2e-3");
    let error = world.prepare().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::FingerprintMismatch));
    assert!(
        ["  spec.training.learningRate: 0.001 → 0.002\n", "--restart-from stage", "--out folder"]
            .iter()
            .all(|words| error.to_string().contains(words)),
        "{error}"
    );
}

/// What an evaluation after the last stage needs is known before the first is trained.
#[tokio::test(flavor = "multi_thread")]
async fn evaluations_that_cannot_be_laid_out_end_in_prepare() {
    let stage = |name: &str, length: &str| json!({"name": name, "contextLength": length, "steps": 1});
    let refused = async |stages: Value, evaluation: Value| {
        let mut world = World::new(stages, true);
        world.spec["allowWindowNotExtended"] = json!(true);
        for (field, value) in evaluation.as_object().unwrap() {
            world.spec["evaluation"][field] = value.clone();
        }
        let error = world.prepare().await.unwrap_err();
        assert_eq!((error.exit_code().code(), error.reason()), (10, Some(Reason::InvalidData)), "{error}");
        assert!(!world.dir.path().join("run").join(keys::TOKENS_MANIFEST).exists(), "{error}");
        error.to_string()
    };
    let long = json!([stage("a", "512"), stage("b", "256Ki")]);
    let error = refused(long.clone(), json!({})).await;
    for words in
        ["spec.evaluation: ", "the held-out text has ", "a window of 262144 needs ", "heldOut.tokens"]
    {
        assert!(error.contains(words), "{error}");
    }
    // Its first row is read to the end only where it is asked for: here data end the run, not text.
    let error = refused(long, json!({"afterEachStage": false})).await;
    assert!(error.contains("maxEpochs"), "{error}");
    let short = json!([stage("a", "200"), stage("b", "512")]);
    let error = refused(short, json!({})).await;
    assert!(error.contains("a window of 200 tokens is too small"), "{error}");
}

/// Storage on a volume of this pod says nothing about the memory of the pods that train.
#[tokio::test(flavor = "multi_thread")]
async fn memory_of_the_machine_counts_where_all_pods_share_it() {
    // The other is the longest that there is.
    let lengths = [json!("4Gi"), json!(1u64 << 53)];
    for (one_machine, length) in [true, false].into_iter().flat_map(|one| lengths.clone().map(|l| (one, l))) {
        let mut world = World::new(json!([{"name": "s", "contextLength": length, "steps": 1}]), false);
        world.one_machine = one_machine;
        world.spec["parallelism"] = json!({"nodes": 2});
        let error = world.prepare().await.unwrap_err();
        // Elsewhere the next thing that is wrong is told: so many tokens are not there.
        let (reason, words) = match one_machine {
            true => (Reason::DoesNotFit, "this machine's memory for each of 2 rank(s)"),
            false => (Reason::InvalidData, "maxEpochs"),
        };
        assert_eq!(error.reason(), Some(reason), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// A copy of the smoke model in which `edit` changed the numbers of a tensor.
fn edited_model(world: &World, tensor: &str, edit: impl Fn(&mut [f32])) -> String {
    let dir = world.dir.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (size, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let info = header.info(tensor).unwrap().clone();
    let start = 8 + size;
    let range = start + info.data_offsets.0..start + info.data_offsets.1;
    assert_eq!(info.dtype, safetensors::Dtype::F32);
    let mut numbers: Vec<f32> =
        bytes[range.clone()].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    edit(&mut numbers);
    bytes[range].copy_from_slice(bytemuck::cast_slice(&numbers));
    std::fs::write(&path, bytes).unwrap();
    format!("file://{}", dir.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_finite_is_refused_and_commits_nothing() {
    let norm = "model.norm.weight";
    let stages = || json!([{"name": "half", "contextLength": 512, "steps": 2}]);
    let mut world = World::new(stages(), false);
    let uri = edited_model(&world, norm, |numbers| numbers[3] = f32::NAN);
    world.spec["model"]["uri"] = json!(uri);
    let error = world.prepare().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::InvalidModel));
    assert!(error.to_string().contains("tensor model.norm.weight has NaN at element 3"), "{error}");

    // Finite weights that no gradient survives.
    let mut world = World::new(stages(), false);
    world.spec["model"]["uri"] = json!(edited_model(&world, norm, |numbers| numbers.fill(3e38)));
    world.prepare().await.unwrap();
    for result in world.train(1, 1, None).await {
        let error = result.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::InvalidModel), "{error}");
        assert!(error.to_string().contains("stage half: no step had finite gradients"), "{error}");
    }
    assert!(!world.dir.path().join("run").join(keys::stage_manifest("half")).exists());
}
