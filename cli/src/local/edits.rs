//! Whether an edit makes another run, of whose earlier work nothing can be used.
//!
//! Invariant: the rules are those by which the API server refuses an edit, read from the generated
//! definitions; there is no second list of fields.

use kube::core::cel::{Validator, compile_schema};
use longstrap_crds::{ContextExtensionRunSpec, Object, SynthesisJobSpec, crd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Whether `object` differs from its earlier spec in a field that cannot be edited; a spec that
/// cannot be read is another one.
pub(crate) fn another_run(object: &Object, earlier: &Value) -> bool {
    // Read and written again: an earlier version may have written fewer defaults.
    let earlier = match object {
        Object::SynthesisJob(_) => again::<SynthesisJobSpec>(earlier),
        Object::ContextExtensionRun(_) => again::<ContextExtensionRunSpec>(earlier),
    };
    let now = object.to_json().ok().map(|object| object["spec"].clone());
    let (Some(earlier), Some(now), Some(schema)) = (earlier, now, schema(object.kind())) else { return true };
    let document = |spec: &Value| json!({"spec": sorted(spec)});
    let refused = Validator::new()
        .validate_compiled(&compile_schema(&schema), &document(&now), Some(&document(&earlier)))
        .err();
    refused.into_iter().flatten().any(|error| error.rule.contains("oldSelf"))
}

fn again<Spec: DeserializeOwned + Serialize>(spec: &Value) -> Option<Value> {
    serde_json::to_value(serde_json::from_value::<Spec>(spec.clone()).ok()?).ok()
}

fn schema(kind: &str) -> Option<Value> {
    let (_, crd) = crd::all().into_iter().find(|(_, crd)| crd.spec.names.kind == kind)?;
    serde_json::to_value(crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?).ok()
}

/// Lists of named things in the order of their names, which decides nothing except of stages.
fn sorted(value: &Value) -> Value {
    let each = |items: &[Value]| items.iter().map(sorted).collect::<Vec<_>>();
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| match value {
                Value::Array(stages) if key == "stages" => (key.clone(), each(stages).into()),
                other => (key.clone(), sorted(other)),
            })
            .collect(),
        Value::Array(items) => {
            let mut items = each(items);
            items.sort_by_key(|item| item["name"].to_string());
            items.into()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_content_makes_another_run_and_nothing_else() {
        let spec = json!({
            "storage": {"uri": "file:///r"}, "model": {"uri": "file:///m"},
            "data": [{"name": "b", "uri": "file:///b"}, {"name": "a", "uri": "file:///a"}],
            "stages": [{"name": "s", "contextLength": "1Ki", "steps": 2}, {"name": "l", "contextLength": "2Ki", "steps": 2}],
        });
        let object = |spec: &Value| {
            let object = json!({
                "apiVersion": "longstrap.io/v1alpha1", "kind": "ContextExtensionRun",
                "metadata": {"name": "run"}, "spec": spec,
            });
            longstrap_crds::parse(&object).unwrap()
        };
        let edited = |pointer: &str, value: Value| {
            let mut spec = spec.clone();
            *spec.pointer_mut(pointer).unwrap() = value;
            object(&spec)
        };
        let parallel = json!({"name": "s", "contextLength": 1024, "steps": 2, "parallelism": {"nodes": 2}});
        for (pointer, value, another) in [
            ("/stages/0/steps", json!(2), false),
            ("/stages/0/steps", json!(3), true),
            ("/stages/0", parallel, false),
            ("/data", json!([{"name": "a", "uri": "file:///a"}, {"name": "b", "uri": "file:///b"}]), false),
            ("/data/0/uri", json!("file:///c"), true),
        ] {
            let object = edited(pointer, value.clone());
            // As it was written in a manifest, and as it is remembered.
            assert_eq!(another_run(&object, &spec), another, "{pointer} = {value}");
            let remembered = object.to_json().unwrap()["spec"].clone();
            assert!(!another_run(&object, &remembered), "{pointer} = {value}");
        }
        assert!(another_run(&object(&spec), &json!({"seed": 1})), "what cannot be read");
    }
}
