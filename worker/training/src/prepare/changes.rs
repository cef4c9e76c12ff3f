//! What a user is told when the manifest is not the one that a run began with.
//!
//! Invariant: fields are named as the manifest names them, each once; what only follows from
//! another change is left out.

use longstrap_crds::ContextExtensionRunSpec;
use longstrap_storage::{FieldChange, called, item_name};

/// Prefixes of paths in `run.json` and what they are in the manifest; the first that fits counts.
/// `*` stands for the name of a stage or a data source.
const FIELDS: [(&str, &str); 21] = [
    ("model", "spec.model.uri (the model behind it)"),
    ("data[*].digest", "spec.data[*] (its content)"),
    ("data[*]", "spec.data[*]"),
    ("data", "spec.data"),
    ("heldOut", "spec.data (the held-out text)"),
    ("stages[*].learningRate.peak", "spec.stages[*].learningRate"),
    ("stages[*].learningRate.schedule", "spec.training.schedule"),
    ("stages[*].learningRate.warmupSteps", "spec.training.warmupSteps"),
    ("stages[*].learningRate.steps", "spec.stages[*].steps"),
    ("stages[*].maxEpochs", "spec.training.maxEpochs"),
    ("stages[*]", "spec.stages[*]"),
    ("stages", "spec.stages"),
    ("seed", "spec.training.seed"),
    ("evaluation.measure.lossByPosition", "spec.evaluation.lossByPosition"),
    ("evaluation.measure.recall", "spec.evaluation.recall"),
    ("evaluation.measure.needle", "spec.evaluation.needle"),
    ("evaluation", "spec.evaluation"),
    ("export", "spec.export.dtype"),
    ("adam", "the optimizer's constants (another version of Longstrap)"),
    ("tokens", "the rendered tokens (another version of Longstrap)"),
    ("formatVersion", "the format of run.json (another version of Longstrap)"),
];
/// Rendered tokens and row plans follow from everything else.
const FOLLOWS: &str = "tokens";

/// One line for each changed field.
pub(super) fn describe(changes: &[FieldChange], spec: &ContextExtensionRunSpec) -> Vec<String> {
    let causes: Vec<&FieldChange> =
        changes.iter().filter(|c| c.path != FOLLOWS && !base_follows(c, changes, spec)).collect();
    let told: Vec<&FieldChange> = if causes.is_empty() { changes.iter().collect() } else { causes };
    let mut lines: Vec<String> = Vec::new();
    for change in told {
        let field = field(&change.path, spec);
        // Digests and the like of what a field points at say nothing to a reader.
        let line = match field.ends_with(')') {
            true => format!("{field} has changed"),
            false => FieldChange { path: field, ..change.clone() }.to_string(),
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// The manifest's name of a field of `run.json`.
fn field(path: &str, spec: &ContextExtensionRunSpec) -> String {
    let name = item_name(path).unwrap_or_default();
    let stage = spec.stages.iter().find(|s| s.name == name);
    // Unless the stage has its own, the value is that of `training`.
    match path.rsplit_once('.').map(|(_, last)| last) {
        Some("peak") if stage.is_some_and(|s| s.learning_rate.is_none()) => {
            return "spec.training.learningRate".to_owned();
        }
        Some("tokensPerStep") if stage.is_some_and(|s| s.tokens_per_step.is_none()) => {
            return "spec.training.tokensPerStep".to_owned();
        }
        _ => {}
    }
    called(path, name, &FIELDS).unwrap_or_else(|| path.to_owned())
}

/// True for a stage's base that is only the one before it times four.
fn base_follows(change: &FieldChange, all: &[FieldChange], spec: &ContextExtensionRunSpec) -> bool {
    let of = |name: &str| format!("stages[{name}].ropeBase");
    let Some(at) = spec.stages.iter().position(|s| of(&s.name) == change.path) else { return false };
    let before = spec.stages[..at].iter().any(|s| all.iter().any(|c| c.path == of(&s.name)));
    let model = all.iter().any(|c| c.path == "model.ropeBase");
    spec.stages[at].rope_base.is_none() && (before || model)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(paths: &[&str]) -> Vec<String> {
        let spec = json!({
            "storage": {"uri": "file:x"}, "model": {"uri": "file:m"},
            "data": [{"name": "long", "uri": "file:d"}],
            "stages": [
                {"name": "half-k", "contextLength": 512, "steps": 2, "ropeBase": "4e4"},
                {"name": "one-k", "contextLength": 1024, "steps": 2, "learningRate": "5e-4"},
            ],
            "training": {"learningRate": "1e-3"},
        });
        let spec: ContextExtensionRunSpec = serde_json::from_value(spec).unwrap();
        let change = |path: &&str| FieldChange {
            path: (*path).to_owned(),
            old: Some(Value::from(1)),
            new: Some(Value::from(2)),
        };
        describe(&paths.iter().map(change).collect::<Vec<_>>(), &spec)
    }

    #[test]
    fn fields_are_the_manifests_and_each_is_told_once() {
        let cases: [(&[&str], &[&str]); 11] = [
            (&["stages[half-k].learningRate.peak"], &["spec.training.learningRate: 1 → 2"]),
            (&["stages[one-k].learningRate.peak"], &["spec.stages[one-k].learningRate: 1 → 2"]),
            (
                &["stages[half-k].learningRate.steps", "stages[half-k].contextLength", "tokens"],
                &["spec.stages[half-k].steps: 1 → 2", "spec.stages[half-k].contextLength: 1 → 2"],
            ),
            (
                &["stages[half-k].learningRate.warmupSteps", "stages[one-k].learningRate.warmupSteps"],
                &["spec.training.warmupSteps: 1 → 2"],
            ),
            (
                &["stages[half-k].tokensPerStep", "stages[one-k].tokensPerStep"],
                &["spec.training.tokensPerStep: 1 → 2"],
            ),
            (
                &["stages[half-k].ropeBase", "stages[one-k].ropeBase"],
                &["spec.stages[half-k].ropeBase: 1 → 2"],
            ),
            (
                &["stages[gone]", "seed", "export"],
                &["spec.stages[gone]: 1 → 2", "spec.training.seed: 1 → 2", "spec.export.dtype: 1 → 2"],
            ),
            (&["model.config", "model.weights"], &["spec.model.uri (the model behind it) has changed"]),
            (
                &["data[long].digest", "data[long].weight", "tokens"],
                &["spec.data[long] (its content) has changed", "spec.data[long].weight: 1 → 2"],
            ),
            (&["evaluation.measure.needle"], &["spec.evaluation.needle: 1 → 2"]),
            (&["tokens"], &["the rendered tokens (another version of Longstrap) has changed"]),
        ];
        for (paths, lines) in cases {
            assert_eq!(told(paths), lines, "{paths:?}");
        }
    }
}
