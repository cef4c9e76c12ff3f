//! The end of a local run: what was produced, where it is, what to try next.

use std::path::Path;

use longstrap_crds::Object;
use url::Url;

use super::outcome::described;
use super::uris::local_path;
use crate::text;

/// One row for each object and each thing that it produced.
pub(crate) fn table<'a>(objects: impl Iterator<Item = &'a Object>, root: &Path) -> String {
    let mut rows = vec![vec!["OBJECT".into(), "PHASE".into(), "PRODUCED".into(), "WHERE".into()]];
    for object in objects {
        let phase = object.phase().map_or("Pending", |phase| phase.as_str());
        let mut row = |what: String, place: String| {
            rows.push(vec![described(object), phase.into(), what, place]);
        };
        let products = products(object);
        if products.is_empty() {
            row("-".into(), shorten(&object.common().storage.uri, root));
        }
        for (what, uri) in products {
            row(what, shorten(&uri, root));
        }
    }
    text::table(&rows)
}

/// What each complete object leaves behind: words and URI.
fn products(object: &Object) -> Vec<(String, String)> {
    match object {
        Object::SynthesisJob(job) => {
            let dataset = job.status.as_ref().and_then(|status| status.dataset.as_ref());
            let wanted = job.spec.samples.wanted();
            dataset
                .map(|set| (dataset_words(set.rows, wanted, set.tokens), set.uri.clone()))
                .into_iter()
                .collect()
        }
        Object::ContextExtensionRun(run) => {
            let Some(model) = run.status.as_ref().and_then(|status| status.model.as_ref()) else {
                return Vec::new();
            };
            let window = run.spec.stages.last().map_or(0, |stage| stage.context_length.get());
            let mut products =
                vec![(format!("model with a window of {}", text::count(window)), model.uri.clone())];
            if let Some(report) = report_of(&model.uri) {
                products.push(("report".into(), report));
            }
            products
        }
    }
}

/// Says when slots stayed empty: such a dataset is complete, but not what was asked for.
fn dataset_words(rows: u64, wanted: u64, tokens: u64) -> String {
    let tokens = text::count(tokens);
    if rows >= wanted {
        return format!("dataset: {} samples, {tokens} tokens", text::count(rows));
    }
    format!(
        "dataset: only {} of {} samples, {tokens} tokens; its README.md says why",
        text::count(rows),
        text::count(wanted)
    )
}

/// The report lies beside the model's folder.
fn report_of(model: &str) -> Option<String> {
    let report = local_path(model)?.parent()?.join("report.html");
    report.is_file().then(|| Url::from_file_path(report).ok()).flatten().map(String::from)
}

/// The program as it was called: it need not be on the PATH.
fn program() -> String {
    std::env::args_os().next().map_or_else(|| "longstrap".into(), |name| name.to_string_lossy().into_owned())
}

/// What to try next: look at what came out, then one's own model and folder. `out` as it was given.
pub(crate) fn next_steps<'a>(objects: impl Iterator<Item = &'a Object>, out: &Path) -> String {
    let (mut synthesis, mut extension) = (false, false);
    for object in objects {
        match object {
            Object::SynthesisJob(_) => synthesis = true,
            Object::ContextExtensionRun(_) => extension = true,
        }
    }
    let (program, out) = (program(), out.display());
    let mut lines = vec!["\nnext:".to_owned()];
    if synthesis {
        lines.push("  # a sample as the model sees it".into());
        lines.push(format!("  {program} inspect 0 --tokens --out {out}"));
    }
    if extension {
        lines.push("  # what the longer window is worth".into());
        lines.push(format!("  {program} report --out {out}"));
    }
    lines.push("  # your own model and documents: copy the manifests, name both in them".into());
    lines.push(format!("  {program} local run -f YOUR-MANIFESTS --out YOUR-FOLDER"));
    lines.join("\n")
}

fn shorten(uri: &str, root: &Path) -> String {
    let Some(path) = local_path(uri) else { return uri.to_owned() };
    let here = std::env::current_dir().unwrap_or_default();
    let shown = path.strip_prefix(&here).or_else(|_| path.strip_prefix(root));
    match shown {
        Ok(short) if path.starts_with(&here) => short.display().to_string(),
        _ => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_that_is_short_says_so() {
        assert_eq!(dataset_words(11, 11, 5000), "dataset: 11 samples, 5,000 tokens");
        assert_eq!(
            dataset_words(1, 11, 800),
            "dataset: only 1 of 11 samples, 800 tokens; its README.md says why"
        );
    }
}
