//! Which fields of a JSON document changed: what a user is told when a manifest was edited.

use std::fmt;

use serde_json::Value;

/// One field that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange {
    /// `spec.stages[0].steps`; list items with a `name` are named: `data[short].weight`.
    pub path: String,
    /// Before; `None`: the field was absent.
    pub old: Option<Value>,
    /// Now; `None`: the field is absent.
    pub new: Option<Value>,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| match value {
            None => "absent".to_owned(),
            Some(value) => {
                let text = value.to_string();
                match text.char_indices().nth(80) {
                    Some((end, _)) => format!("{}…", &text[..end]),
                    None => text,
                }
            }
        };
        write!(f, "{}: {} → {}", self.path, show(&self.old), show(&self.new))
    }
}

/// The smallest fields in which `new` differs from `old`, in the order of their paths.
pub fn diff(old: &Value, new: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    walk(String::new(), Some(old), Some(new), &mut changes);
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn walk(path: String, old: Option<&Value>, new: Option<&Value>, changes: &mut Vec<FieldChange>) {
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let below = |key: &str| match path.is_empty() {
                true => key.to_owned(),
                false => format!("{path}.{key}"),
            };
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                walk(below(key), a.get(key), b.get(key), changes);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => match (names(a), names(b)) {
            (Some(before), Some(after)) => {
                let added = after.iter().filter(|name| !before.contains(name));
                for name in before.iter().chain(added) {
                    let find = |list: &'_ [&str]| list.iter().position(|other| other == name);
                    let (i, j) = (find(&before), find(&after));
                    let item = format!("{path}[{name}]");
                    walk(item, i.and_then(|i| a.get(i)), j.and_then(|j| b.get(j)), changes);
                }
            }
            _ => {
                for i in 0..a.len().max(b.len()) {
                    walk(format!("{path}[{i}]"), a.get(i), b.get(i), changes);
                }
            }
        },
        _ => changes.push(FieldChange { path, old: old.cloned(), new: new.cloned() }),
    }
}

/// Name of the list's item that a path of [`diff`] leads into.
pub fn item_name(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once('[')?;
    rest.split_once(']').map(|(name, _)| name)
}

/// Another name of the field at `path`, by a table of prefixes and what they are called; the first that
/// fits counts, `*` in either stands for `item`. What is below the prefix is kept, except behind a name
/// that ends with `)`: it tells what the field points at.
pub fn called(path: &str, item: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(prefix, name)| {
        let rest = path.strip_prefix(&prefix.replace('*', item))?;
        let name = name.replace('*', item);
        let below = rest.is_empty() || rest.starts_with(['.', '[']);
        below.then(|| if name.ends_with(')') { name } else { name + rest })
    })
}

/// The items' names, when all have one and no two are equal.
fn names(items: &[Value]) -> Option<Vec<&str>> {
    let names: Vec<&str> = items.iter().map(|item| item.get("name")?.as_str()).collect::<Option<_>>()?;
    let unique = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    unique.then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_the_smallest_changed_fields() {
        let old = json!({"a": 1, "gone": true, "same": {"x": [1, 2]},
            "data": [{"name": "long", "w": 1}, {"name": "short", "w": 2}], "list": [1, 2]});
        let new = json!({"a": 2, "same": {"x": [1, 2]}, "new": {"y": 1},
            "data": [{"name": "short", "w": 3}, {"name": "more", "w": 4}], "list": [1]});
        let lines: Vec<_> = diff(&old, &new).iter().map(FieldChange::to_string).collect();
        assert_eq!(
            lines,
            [
                "a: 1 → 2",
                r#"data[long]: {"name":"long","w":1} → absent"#,
                r#"data[more]: absent → {"name":"more","w":4}"#,
                "data[short].w: 2 → 3",
                "gone: true → absent",
                "list[1]: 2 → absent",
                r#"new: absent → {"y":1}"#,
            ]
        );
        assert_eq!(diff(&old, &old), []);
        // Order of a named list is no change of its items.
        assert_eq!(diff(&json!([{"name": "a"}, {"name": "b"}]), &json!([{"name": "b"}, {"name": "a"}])), []);
    }
}
