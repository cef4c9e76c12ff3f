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
            let words = |rows, tokens| {
                format!("dataset: {} samples, {} tokens", text::count(rows), text::count(tokens))
            };
            dataset.map(|set| (words(set.rows, set.tokens), set.uri.clone())).into_iter().collect()
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

/// The report lies beside the model's folder.
fn report_of(model: &str) -> Option<String> {
    let report = local_path(model)?.parent()?.join("report.html");
    report.is_file().then(|| Url::from_file_path(report).ok()).flatten().map(String::from)
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
    let out = out.display();
    let mut lines = vec!["\nnext:".to_owned()];
    if synthesis {
        lines
            .push(format!("  longstrap inspect 0 --tokens --out {out}      # a sample as the model sees it"));
    }
    if extension {
        lines.push(format!(
            "  longstrap report --out {out}                  # what the longer window is worth"
        ));
    }
    lines.push(
        "  longstrap import hf YOUR-MODEL                # then name it and your folder in the manifests"
            .into(),
    );
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
