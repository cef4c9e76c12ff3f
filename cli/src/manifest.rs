//! Manifests from files: documents, their objects, and every error with its file, line and field.
//!
//! Invariant: all errors of all files are found in one pass; nothing is done with a set of
//! manifests that has one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use longstrap_crds::{GROUP, Object};
use serde_json::Value;

use crate::local::mounts::KeyedData;
use crate::located::Located;

/// One error of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    file: PathBuf,
    /// Document of the file, from 1.
    document: usize,
    line: Option<u64>,
    /// The object, where it has a name.
    object: String,
    message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.document > 0 {
            write!(f, " (document {}{})", self.document, self.object)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// What a set of manifests holds.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    /// The runs, in the order of the files.
    pub(crate) objects: Vec<Object>,
    /// ConfigMaps and Secrets.
    pub(crate) data: KeyedData,
    /// Objects of other kinds, as `Kind name`; a cluster's business.
    pub(crate) foreign: Vec<String>,
    /// Fields that only a cluster can honour, as `Kind name: field`.
    pub(crate) cluster_only: Vec<String>,
}

/// What a single machine has no use for (of podTemplate it uses the CPU request of `worker`).
const CLUSTER_ONLY: [&str; 9] = [
    "/spec/podTemplate",
    "/spec/image",
    "/spec/auxiliaryQueueName",
    "/spec/recovery/lostNode",
    "/spec/startupDeadlineSeconds",
    "/spec/ttlSecondsAfterSuccess",
    "/spec/ttlSecondsAfterFailure",
    "/spec/cleanChildrenAfterSeconds",
    "/metadata/labels/kueue.x-k8s.io~1queue-name",
];

/// Reads and validates files and folders (their `*.yaml`, `*.yml` and `*.json`, not deeper).
///
/// # Errors
/// Every problem that was found, in the order of files and documents.
pub(crate) fn load(paths: &[PathBuf]) -> Result<Manifests, Vec<Problem>> {
    let (mut manifests, mut problems) = (Manifests::default(), Vec::new());
    let mut seen: BTreeMap<(String, String, String), String> = BTreeMap::new();
    for path in paths {
        for file in files(path, &mut problems) {
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) => {
                    problems.push(of_file(&file, format!("cannot be read: {error}")));
                    continue;
                }
            };
            for (number, document) in split(&text).into_iter().enumerate() {
                let source = Source { file: &file, number: number + 1 };
                source.take(&document, &mut manifests, &mut seen, &mut problems);
            }
        }
    }
    if problems.is_empty() && manifests.objects.is_empty() {
        let given = paths.first().cloned().unwrap_or_default();
        problems.push(of_file(&given, "no SynthesisJob and no ContextExtensionRun found".to_owned()));
    }
    if problems.is_empty() { Ok(manifests) } else { Err(problems) }
}

fn of_file(file: &Path, message: String) -> Problem {
    Problem { file: file.to_owned(), document: 0, line: None, object: String::new(), message }
}

fn files(path: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let manifest = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && matches!(extension, Some("yaml" | "yml" | "json"))
    };
    match fs::read_dir(path) {
        Ok(entries) => {
            let mut files: Vec<PathBuf> =
                entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(manifest).collect();
            files.sort();
            if files.is_empty() {
                problems.push(of_file(path, "the folder holds no *.yaml, *.yml or *.json".to_owned()));
            }
            files
        }
        Err(error) => {
            problems.push(of_file(path, format!("cannot be listed: {error}")));
            Vec::new()
        }
    }
}

/// The documents of a YAML stream, each preceded by as many empty lines as come before it, so
/// that lines are those of the file. A line that starts with `---` always separates documents.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        let separator =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if separator {
            documents.push("\n".repeat(number + 1));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let meaningful = |document: &String| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    documents.retain(meaningful);
    documents
}

struct Source<'a> {
    file: &'a Path,
    number: usize,
}

impl Source<'_> {
    fn problem(&self, line: Option<u64>, object: &str, message: String) -> Problem {
        let object = if object.is_empty() { String::new() } else { format!(", {object}") };
        Problem { file: self.file.to_owned(), document: self.number, line, object, message }
    }

    fn take(
        &self,
        document: &str,
        manifests: &mut Manifests,
        seen: &mut BTreeMap<(String, String, String), String>,
        problems: &mut Vec<Problem>,
    ) {
        let located: Located = match serde_saphyr::from_str(document) {
            Ok(located) => located,
            Err(error) => {
                let line = error.location().map(|location| location.line());
                problems.push(self.problem(line, "", format!("is not valid YAML: {}", first_line(&error))));
                return;
            }
        };
        let value = located.value();
        let text =
            |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let object = if name.is_empty() { kind.clone() } else { format!("{kind} {name}") };
        let place = format!("{} (document {})", self.file.display(), self.number);
        let key = (kind.clone(), text("/metadata/namespace"), name.clone());
        if let Some(first) = (!name.is_empty()).then(|| seen.insert(key, place)).flatten() {
            problems.push(self.problem(None, &object, format!("was given before, in {first}")));
        }
        let group = text("/apiVersion");
        let errors = match (group.as_str(), kind.as_str()) {
            ("v1", "ConfigMap") => serde_json::from_value(value.clone())
                .map(|map| manifests.data.put_config_map(&map))
                .map_err(|error| vec![(String::new(), error.to_string())]),
            ("v1", "Secret") => serde_json::from_value(value.clone())
                .map(|secret| manifests.data.put_secret(&secret))
                .map_err(|error| vec![(String::new(), error.to_string())]),
            (group, kind) if !group.is_empty() && !kind.is_empty() && !ours(group) => {
                manifests.foreign.push(object.clone());
                Ok(())
            }
            _ => longstrap_crds::parse(&value)
                .map(|parsed| {
                    let stages = value.pointer("/spec/stages").and_then(Value::as_array).map_or(0, Vec::len);
                    let of_stages = (0..stages).map(|i| format!("/spec/stages/{i}/podTemplate"));
                    let all = CLUSTER_ONLY.iter().map(|pointer| (*pointer).to_owned()).chain(of_stages);
                    let unused = all.filter(|pointer| value.pointer(pointer).is_some());
                    let field = |pointer: &str| pointer[1..].replace('/', ".").replace("~1", "/");
                    manifests
                        .cluster_only
                        .extend(unused.map(|pointer| format!("{object}: {}", field(&pointer))));
                    manifests.objects.push(parsed);
                })
                .map_err(|errors| {
                    errors.into_iter().map(|error| (error.path.clone(), error.to_string())).collect()
                }),
        };
        for (path, message) in errors.err().into_iter().flatten() {
            problems.push(self.problem(located.line(&path), &object, message));
        }
    }
}

fn ours(api_version: &str) -> bool {
    api_version.split('/').next() == Some(GROUP)
}

fn first_line(error: &serde_saphyr::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines() {
        let text = "# head\n---\na: 1\n--- # second\n\nb: |\n  ---x\n---\n# nothing\n";
        let documents = split(text);
        assert_eq!(documents.len(), 2);
        let lines: Vec<Option<u64>> = documents
            .iter()
            .zip(["a", "b"])
            .map(|(document, key)| serde_saphyr::from_str::<Located>(document).unwrap().line(key))
            .collect();
        assert_eq!(lines, [Some(3), Some(6)]);
    }

    #[test]
    fn all_errors_of_all_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("a.yaml", "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n---\nkind: [\n");
        write(
            "b.yml",
            "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\n---\nkind: Service\napiVersion: v1\n",
        );
        write("ignored.txt", "kind: [");
        let problems = load(&[dir.path().to_owned()]).unwrap_err();
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[0].contains("a.yaml:") && texts[0].contains("(document 2): is not valid YAML"),
            "{texts:?}"
        );
        assert!(texts[1].contains("b.yml (document 1, ConfigMap c): was given before"), "{texts:?}");
    }
}
