//! Merges a partial PodTemplateSpec into ours, as JSON.
//!
//! Invariant: nothing in either side is lost except where both say something else about the same
//! value: there the user's holds. Lists with a key are merged by it, other lists are replaced.

use serde_json::Value;

/// The key of a list in a pod template, by the list's field name.
fn key_of(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "ports" => Some("containerPort"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        _ => None,
    }
}

/// Merges `over` into `base`.
pub(super) fn merge(base: &mut Value, over: &Value) {
    let (Value::Object(base), Value::Object(over)) = (&mut *base, over) else {
        *base = over.clone();
        return;
    };
    for (field, value) in over {
        match (base.get_mut(field), value, key_of(field)) {
            (Some(Value::Array(ours)), Value::Array(theirs), Some(key)) => merge_list(ours, theirs, key),
            (Some(ours), _, _) => merge(ours, value),
            (None, _, _) => {
                base.insert(field.clone(), value.clone());
            }
        }
    }
}

fn merge_list(ours: &mut Vec<Value>, theirs: &[Value], key: &str) {
    for item in theirs {
        let same = |other: &&mut Value| item.get(key).is_some() && other.get(key) == item.get(key);
        match ours.iter_mut().find(same) {
            Some(found) => merge(found, item),
            None => ours.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_merge_by_key_and_nothing_is_lost() {
        let mut base = json!({"spec": {
            "containers": [{"name": "worker", "image": "a", "env": [{"name": "A", "value": "1"}]}],
            "tolerations": [{"key": "x"}],
        }});
        merge(
            &mut base,
            &json!({"metadata": {"labels": {"l": "1"}}, "spec": {
                "aFieldOfTheFuture": {"deep": [1]},
                "containers": [
                    {"name": "worker", "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}], "volumeMounts": [{"mountPath": "/m", "name": "v"}]},
                    {"name": "sidecar", "image": "s"},
                ],
                "tolerations": [{"key": "y"}],
            }}),
        );
        assert_eq!(
            base,
            json!({"metadata": {"labels": {"l": "1"}}, "spec": {
                "aFieldOfTheFuture": {"deep": [1]},
                "containers": [
                    {"name": "worker", "image": "a", "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}], "volumeMounts": [{"mountPath": "/m", "name": "v"}]},
                    {"name": "sidecar", "image": "s"},
                ],
                "tolerations": [{"key": "y"}],
            }})
        );
    }
}
