//! What a user is told when the manifest, or what it points at, is not what a run began with.
//!
//! Invariant: fields and values are those of the manifest, each told once; what only follows from
//! another change is left out.

use longstrap_corpus::SourceFiles;
use longstrap_crds::SynthesisJobSpec;
use longstrap_storage::{FieldChange, called, item_name};
use serde_json::Value;

use crate::run::length_shares;
use crate::slots::LengthShare;

/// Prefixes of paths in `run.json` and what they are in the manifest; the first that fits counts.
/// `*` stands for the name in brackets, or of the prompt.
const FIELDS: [(&str, &str); 18] = [
    ("seed", "spec.seed"),
    ("target.tokenizer", "spec.tokenizer.uri (the tokenizer behind it)"),
    ("target.template", "spec.tokenizer.uri (the chat template behind it)"),
    ("corpus.sources[*]", "spec.corpus[*]"),
    ("corpus.heldOutTokens", "spec.heldOut.tokens"),
    ("corpus", "corpus/ in the output folder (it was changed, or made by another version of Longstrap)"),
    ("generator.endpoint.model", "spec.generator.endpoints[*].model"),
    ("generator.embedded.model", "spec.generator.embedded.model.uri (the model behind it)"),
    ("generator", "spec.generator"),
    ("contextLength", "spec.generator.contextLength"),
    ("retriever", "spec.retriever"),
    ("samples.longOutput[0]", "spec.samples.longOutput.minTokens"),
    ("samples.longOutput[1]", "spec.samples.longOutput.maxTokens"),
    ("plan.longInput", "spec.samples.longInput.count"),
    ("plan.longOutput", "spec.samples.longOutput.count"),
    ("prompts.*", "spec.prompts (the text of *.j2, its own or built in)"),
    ("variety", "the lists of tasks and tones (another version of Longstrap)"),
    ("formatVersion", "the format of run.json (another version of Longstrap)"),
];
/// Path of a length share in `run.json`, before its name.
const SHARE: &str = "samples.lengths[";
/// What the manifest calls it.
const SHARE_FIELD: &str = "spec.samples.longInput.lengths";

/// A source whose files are others than those of the run.
pub(super) struct SourceChange {
    /// Where they are now.
    pub(super) uri: String,
    pub(super) then: SourceFiles,
    pub(super) now: SourceFiles,
}

impl SourceChange {
    fn line(&self) -> String {
        let SourceChange { uri, then, now } = self;
        let equal = (then.files, then.bytes) == (now.files, now.bytes);
        let other = if equal { " with other names or contents" } else { "" };
        format!("spec.corpus[{}] (the files at {uri}): {then} → {now}{other}", then.name)
    }
}

/// One line for each change.
pub(super) fn describe(
    changes: &[FieldChange],
    files: &[SourceChange],
    spec: &SynthesisJobSpec,
) -> Vec<String> {
    let causes: Vec<&FieldChange> = changes.iter().filter(|change| !follows(change, changes)).collect();
    let told = if causes.is_empty() && files.is_empty() { changes.iter().collect() } else { causes };
    let mut lines: Vec<String> = files.iter().map(SourceChange::line).collect();
    for change in told {
        for line in lines_of(change, changes, spec) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}

/// Whether a change is only what another one makes of the run.
fn follows(change: &FieldChange, all: &[FieldChange]) -> bool {
    let changed = |prefix: &str| all.iter().any(|other| other.path.starts_with(prefix));
    // A kind of samples that is asked for only before or only now is told by its count.
    let whole = |count: &str| {
        let none = |value: &Option<Value>| value.as_ref().is_some_and(|value| *value == 0);
        all.iter().any(|other| other.path == count && (none(&other.old) || none(&other.new)))
    };
    match change.path.as_str() {
        "corpus.digest" | "corpus.documents" | "corpus.tokens" => {
            changed("corpus.sources") || changed("corpus.heldOut") || changed("seed") || changed("target.")
        }
        "plan.slotsPerShard" => changed("plan.longInput") || changed("plan.longOutput"),
        "samples.longOutput" => whole("plan.longOutput"),
        path if path.starts_with("limits.") => changed("contextLength") || changed("generator."),
        path if path.starts_with(SHARE) => whole("plan.longInput"),
        _ => false,
    }
}

fn lines_of(change: &FieldChange, all: &[FieldChange], spec: &SynthesisJobSpec) -> Vec<String> {
    if let Some(rest) = change.path.strip_prefix(SHARE)
        && let Some((name, _)) = rest.split_once(']')
    {
        return share_lines(name, all, spec);
    }
    if let "generator.endpoint" | "generator.embedded" = change.path.as_str() {
        let kind = |change: &FieldChange, old: bool| {
            let endpoint = change.path == "generator.endpoint";
            let there = if old { &change.old } else { &change.new };
            if endpoint == there.is_some() { "endpoints" } else { "embedded" }
        };
        return vec![format!("spec.generator: {} → {}", kind(change, true), kind(change, false))];
    }
    let field = field(&change.path, spec);
    // Digests and the like of what a field points at say nothing to a reader.
    if field.ends_with(')') {
        return vec![format!("{field} has changed")];
    }
    if change.path.starts_with("corpus.sources[") && change.path.ends_with(']') {
        let what = if change.old.is_none() { "is new" } else { "is gone" };
        return vec![format!("{field} {what}")];
    }
    // 0 and null stand for a field that is not there.
    let given = |value: &Option<Value>| value.clone().filter(|value| !value.is_null() && *value != 0);
    let optional = field.starts_with("spec.heldOut") || field.starts_with("spec.samples");
    let value = |value: &Option<Value>| match optional || value.as_ref().is_some_and(Value::is_null) {
        true => given(value),
        false => value.clone(),
    };
    vec![FieldChange { old: value(&change.old), new: value(&change.new), path: field }.to_string()]
}

/// The manifest's name of a field of `run.json`.
fn field(path: &str, spec: &SynthesisJobSpec) -> String {
    let endpoint = spec.generator.endpoints.as_deref().and_then(<[_]>::first);
    let name = match path.split_once('.') {
        Some(("prompts", prompt)) => prompt,
        Some(("generator", _)) => endpoint.map_or("", |endpoint| &endpoint.name),
        _ => item_name(path).unwrap_or_default(),
    };
    called(path, name, &FIELDS).unwrap_or_else(|| match path.split_once('.') {
        Some(("limits", name)) => format!("the limit {name} (another version of Longstrap)"),
        _ => path.to_owned(),
    })
}

/// A length is written `tokens`, or `from` and `to`; a run has both bounds of either.
fn share_lines(name: &str, all: &[FieldChange], spec: &SynthesisJobSpec) -> Vec<String> {
    let path = format!("{SHARE}{name}]");
    let field = format!("{SHARE_FIELD}[{name}]");
    let Some(now) = length_shares(spec).into_iter().find(|share| share.name == name) else {
        return vec![format!("{field} is gone")];
    };
    if all.iter().any(|change| change.path == path) {
        return vec![format!("{field} is new")];
    }
    let before = |key: &str, now: u64| {
        let change = all.iter().find(|change| change.path == format!("{path}.{key}"));
        change.and_then(|change| change.old.as_ref()?.as_u64()).unwrap_or(now)
    };
    let (from, to) = (before("from", now.from), before("to", now.to));
    let weight = before("weight", now.weight.into());
    let mut lines = Vec::new();
    match (from == to, now.from == now.to) {
        (true, true) => lines.push(("tokens", from, now.from)),
        (false, false) => lines.extend([("from", from, now.from), ("to", to, now.to)]),
        _ => {}
    }
    lines.push(("weight", weight, now.weight.into()));
    lines.retain(|(_, old, new)| old != new);
    let mut lines: Vec<String> =
        lines.into_iter().map(|(key, old, new)| format!("{field}.{key}: {old} → {new}")).collect();
    if (from == to) != (now.from == now.to) {
        let then = LengthShare { from, to, ..now.clone() };
        lines.insert(0, format!("{field}: {} → {}", bounds(&then), bounds(&now)));
    }
    lines
}

fn bounds(share: &LengthShare) -> String {
    match share.from == share.to {
        true => format!("tokens {}", share.to),
        false => format!("from {} to {}", share.from, share.to),
    }
}

#[cfg(test)]
mod tests {
    use longstrap_storage::{Digest, diff};
    use serde_json::json;

    use super::*;
    use crate::run::SynthesisRun;

    fn spec(change: Value) -> SynthesisJobSpec {
        let mut spec = json!({
            "storage": {"uri": "file:x"}, "tokenizer": {"uri": "file:m"},
            "corpus": [{"name": "web", "uri": "file:c", "format": "JsonLines"}],
            "heldOut": {"tokens": 2000},
            "generator": {"endpoints": [{"name": "a", "url": "http://h/v1", "model": "m"}], "contextLength": 4096},
            "samples": {
                "longInput": {"count": 4, "lengths": [
                    {"name": "exact", "tokens": 1024}, {"name": "mixed", "from": 512, "to": 1024}]},
                "longOutput": {"count": 3, "minTokens": 200, "maxTokens": 500},
            },
        });
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn run(spec: &SynthesisJobSpec) -> Value {
        let target = crate::run::TargetRef { tokenizer: "t".into(), template: "c".into() };
        let generator = match &spec.generator.endpoints {
            Some(all) => crate::run::GeneratorRun::Endpoint { model: all[0].model.clone() },
            None => crate::run::GeneratorRun::Embedded {
                model: Digest::of("model"),
                instruction_set: "avx".into(),
            },
        };
        let corpus = super::super::corpus_run(spec, Digest::of(format!("{:?}", spec.corpus)), 7, 900);
        let prompts = [("instruct".to_owned(), "Write".to_owned())].into();
        let run: SynthesisRun = super::super::resolve(spec, target, generator, prompts, corpus);
        serde_json::to_value(run).unwrap()
    }

    #[track_caller]
    fn told(change: Value, lines: &[&str]) {
        let (before, after) = (spec(json!({})), spec(change));
        assert_eq!(describe(&diff(&run(&before), &run(&after)), &[], &after), lines);
        // The other way round as many.
        assert_eq!(describe(&diff(&run(&after), &run(&before)), &[], &before).len(), lines.len());
    }

    #[test]
    fn fields_and_values_are_the_manifests_and_each_is_told_once() {
        let samples =
            |input: Value, output: Value| json!({"samples": {"longInput": input, "longOutput": output}});
        let input = json!({"count": 4, "lengths": [
            {"name": "exact", "tokens": 1024}, {"name": "mixed", "from": 512, "to": 1024}]});
        let output = json!({"count": 3, "minTokens": 200, "maxTokens": 500});
        let lengths = |lengths: Value| samples(json!({"count": 4, "lengths": lengths}), output.clone());

        told(
            json!({"seed": 8, "retriever": {"maxDocuments": 5}}),
            &["spec.retriever.maxDocuments: 64 → 5", "spec.seed: 0 → 8"],
        );
        told(json!({"heldOut": {"tokens": 3000}}), &["spec.heldOut.tokens: 2000 → 3000"]);
        told(json!({"heldOut": null}), &["spec.heldOut.tokens: 2000 → absent"]);
        told(
            json!({"corpus": [{"name": "web", "uri": "file:c", "format": "JsonLines", "groupField": "g"}]}),
            &[r#"spec.corpus[web].groupField: absent → "g""#],
        );
        told(
            json!({"corpus": [{"name": "notes", "uri": "file:c", "format": "Text"}]}),
            &["spec.corpus[notes] is new", "spec.corpus[web] is gone"],
        );
        let endpoints = json!([{"name": "a", "url": "http://h/v1", "model": "n"}]);
        told(
            json!({"generator": {"endpoints": endpoints, "contextLength": 2048}}),
            &["spec.generator.contextLength: 4096 → 2048", r#"spec.generator.endpoints[a].model: "m" → "n""#],
        );
        told(
            json!({"generator": {"embedded": {"model": {"uri": "file:m"}}, "contextLength": 4096}}),
            &["spec.generator: endpoints → embedded"],
        );
        told(
            samples(json!({"count": 900, "lengths": input["lengths"]}), output.clone()),
            &["spec.samples.longInput.count: 4 → 900"],
        );
        told(samples(Value::Null, output.clone()), &["spec.samples.longInput.count: 4 → absent"]);
        told(samples(input.clone(), Value::Null), &["spec.samples.longOutput.count: 3 → absent"]);
        told(
            samples(input, json!({"count": 3, "minTokens": 100, "maxTokens": 600})),
            &["spec.samples.longOutput.minTokens: 200 → 100", "spec.samples.longOutput.maxTokens: 500 → 600"],
        );
        told(
            lengths(
                json!([{"name": "exact", "tokens": 2048}, {"name": "mixed", "from": 256, "to": 2048, "weight": 2}]),
            ),
            &[
                "spec.samples.longInput.lengths[exact].tokens: 1024 → 2048",
                "spec.samples.longInput.lengths[mixed].from: 512 → 256",
                "spec.samples.longInput.lengths[mixed].to: 1024 → 2048",
                "spec.samples.longInput.lengths[mixed].weight: 1 → 2",
            ],
        );
        told(
            lengths(json!([{"name": "exact", "from": 512, "to": 1024}, {"name": "more", "tokens": 99}])),
            &[
                "spec.samples.longInput.lengths[exact]: tokens 1024 → from 512 to 1024",
                "spec.samples.longInput.lengths[mixed] is gone",
                "spec.samples.longInput.lengths[more] is new",
            ],
        );
    }

    #[test]
    fn what_a_field_points_at_and_other_versions_have_changed() {
        let spec = spec(json!({}));
        let told = |path: &str| {
            let change = FieldChange { path: path.into(), old: Some(json!(1)), new: Some(json!(2)) };
            describe(&[change], &[], &spec)
        };
        for (path, line) in [
            ("target.tokenizer", "spec.tokenizer.uri (the tokenizer behind it) has changed"),
            ("target.template", "spec.tokenizer.uri (the chat template behind it) has changed"),
            (
                "generator.embedded.model",
                "spec.generator.embedded.model.uri (the model behind it) has changed",
            ),
            ("prompts.respond", "spec.prompts (the text of respond.j2, its own or built in) has changed"),
            ("limits.tries", "the limit tries (another version of Longstrap) has changed"),
            (
                "variety.tones[0].weight",
                "the lists of tasks and tones (another version of Longstrap) has changed",
            ),
            ("formatVersion", "the format of run.json (another version of Longstrap) has changed"),
        ] {
            assert_eq!(told(path), [line]);
        }
        assert!(told("corpus.digest")[0].starts_with("corpus/ in the output folder"));
    }

    #[test]
    fn changed_files_are_told_by_what_they_were() {
        let files = |files, bytes, text: &str| SourceFiles {
            name: "web".into(),
            files,
            bytes,
            digest: Digest::of(text),
        };
        let spec = spec(json!({}));
        for (now, line) in [
            (files(2, 30, "b"), "1 file of 20 bytes → 2 files of 30 bytes"),
            (files(1, 20, "b"), "1 file of 20 bytes → 1 file of 20 bytes with other names or contents"),
            (files(0, 0, ""), "1 file of 20 bytes → no file"),
        ] {
            let change = SourceChange { uri: "file:///c".into(), then: files(1, 20, "a"), now };
            let lines = describe(&[], &[change], &spec);
            assert_eq!(lines, [format!("spec.corpus[web] (the files at file:///c): {line}")]);
        }
    }
}
