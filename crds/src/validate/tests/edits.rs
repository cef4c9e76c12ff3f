//! Edits of an object that exists: which fields may change. It is the API server that applies
//! these rules; here they are evaluated as it does.

use super::*;

const STAGES: &str = "spec.stages: stages cannot be added, removed, renamed or put into another order; make another ContextExtensionRun";

/// What the API server says of an edit: also the rules that compare with what was.
fn edit_errors(old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = validate(new);
    let rules = &shape_of(new).unwrap().rules;
    // It ignores the order of lists with a key when it compares.
    let (old, new) = (sorted(old), sorted(new));
    let failed = Validator::new().validate_compiled(rules, &new, Some(&old)).err();
    let compared = failed.into_iter().flatten().filter(|error| error.rule.contains("oldSelf"));
    errors.extend(compared.map(|error| FieldError::new(error.field_path, error.message)));
    errors.sort();
    errors.dedup();
    errors
}

/// The document with every list of named things in the order of their names, but stages: no rule
/// compares them as a list.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered = |key: &str, value: &Value| match value {
                Value::Array(stages) if key == "stages" => stages.iter().map(sorted).collect(),
                other => sorted(other),
            };
            map.iter().map(|(key, value)| (key.clone(), ordered(key, value))).collect()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(sorted).collect();
            items.sort_by_key(|item| item["name"].to_string());
            items.into()
        }
        other => other.clone(),
    }
}

#[test]
fn edits() {
    let rows: Vec<(Value, &str, Value, &[&str])> = vec![
        (job(), "/spec/workers", json!(4), &[]),
        (job(), "/spec/storage/adopt", json!(true), &[]),
        (job(), "/spec/seed", json!(0), &[]), // The default, written out.
        (job(), "/spec/seed", json!(1), &["spec.seed: seed cannot be changed; make another SynthesisJob"]),
        (
            job(),
            "/spec/heldOut",
            Value::Null,
            &["spec.heldOut: heldOut cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/storage/uri",
            json!("file:other"),
            &["spec.storage.uri: uri cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/generator/contextLength",
            json!("4Ki"),
            &["spec.generator.contextLength: contextLength cannot be changed; make another SynthesisJob"],
        ),
        (
            job(),
            "/spec/generator",
            json!({"contextLength": "8Ki", "endpoints": [{"name": "a", "url": "http://h", "model": "m"}]}),
            &[
                "spec.generator.embedded: embedded cannot be changed; make another SynthesisJob",
                "spec.generator.endpoints: endpoints cannot be changed; make another SynthesisJob",
            ],
        ),
        (run(), "/spec/training", json!({"checkpoint": {"everySeconds": 5}}), &[]),
        (
            run(),
            "/spec/training",
            json!({"warmupSteps": 5}),
            &["spec.training.warmupSteps: warmupSteps cannot be changed; make another ContextExtensionRun"],
        ),
        (
            run(),
            "/spec/stages/0/steps",
            json!(3),
            &["spec.stages[0].steps: steps cannot be changed; make another ContextExtensionRun"],
        ),
        (run(), "/spec/stages/0/name", json!("c"), &[STAGES]),
        (
            run(),
            "/spec/stages/1/ropeBase",
            Value::Null,
            &["spec.stages[1].ropeBase: ropeBase cannot be changed; make another ContextExtensionRun"],
        ),
        (
            run(),
            "/spec/stages/1/learningRate",
            json!("1e-5"),
            &[
                "spec.stages[1].learningRate: learningRate cannot be changed; make another ContextExtensionRun",
            ],
        ),
        (run(), "/spec/stages", json!([{"name": "a", "contextLength": 512, "steps": 2}]), &[STAGES]),
        (run(), "/spec/stages/0/parallelism", json!({"nodes": 2}), &[]),
        (run(), "/spec/stages/1/podTemplate", json!({"spec": {"nodeSelector": {"a": "b"}}}), &[]),
        (run(), "/spec/parallelism", json!({"nodes": 2}), &[]),
    ];
    for (old, pointer, value, errors) in rows {
        let new = with(old.clone(), pointer, value.clone());
        assert_eq!(shown(&edit_errors(&old, &new)), errors, "{pointer} = {value}");
    }
    // Order decides of stages, and of nothing else.
    let mut new = run();
    new["spec"]["stages"].as_array_mut().unwrap().reverse();
    let errors = shown(&edit_errors(&run(), &new));
    assert!(errors.contains(&STAGES.to_owned()), "{errors:?}");
    let mut new = run();
    new["spec"]["data"].as_array_mut().unwrap().reverse();
    assert_eq!(shown(&edit_errors(&run(), &new)), Vec::<String>::new());
    // A server's endpoint may move; its model may not change.
    let at = |url: &str, model: &str| {
        with(
            job(),
            "/spec/generator",
            json!({"contextLength": "8Ki", "endpoints": [{"name": "a", "url": url, "model": model}]}),
        )
    };
    assert_eq!(shown(&edit_errors(&at("http://a", "m"), &at("http://b", "m"))), Vec::<String>::new());
    assert_eq!(
        shown(&edit_errors(&at("http://a", "m"), &at("http://a", "n"))),
        ["spec.generator: the model of the endpoints cannot be changed; make another SynthesisJob"]
    );
}
