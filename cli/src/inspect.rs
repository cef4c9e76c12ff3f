//! `longstrap inspect`: one sample as the model will see it: rendered text, borders of documents,
//! loss mask, counts.

use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use longstrap_model::{ChatTemplate, LossOn, Rendered, Role, Tokenizer};
use serde_json::Value;

use crate::dataset::{self, Sample};
use crate::local::folder::Remembered;
use crate::local::uris::local_path;
use crate::{InspectArgs, text};

/// Prints the sample.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8> {
    let folders = match &args.dataset {
        Some(folder) => vec![folder.clone()],
        None => dataset::find(&args.out),
    };
    if folders.is_empty() {
        bail!("no dataset below {}; name one with --dataset", args.out.display());
    }
    for folder in &folders {
        let Some(sample) = dataset::sample(folder, &args.sample)? else { continue };
        head(folder, &sample);
        if args.tokens {
            let model = args.model.clone().map_or_else(|| model_of(&args.out, folder), Ok)?;
            tokens(&sample, &model, args.loss_on.into())?;
        } else {
            for message in &sample.messages {
                println!("\n[{}]\n{}", message.role.name(), message.content);
            }
        }
        return Ok(0);
    }
    let searched = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    bail!("no sample has the id or number {} in {searched}", args.sample)
}

fn head(folder: &Path, sample: &Sample) {
    println!(
        "{} · {} · {} tokens · {}",
        sample.id,
        sample.kind,
        text::count(sample.tokens),
        folder.display()
    );
    for document in documents(&sample.provenance) {
        println!("  {} {}", document.role, document.id);
    }
}

fn tokens(sample: &Sample, model: &Path, loss_on: LossOn) -> Result<()> {
    let tokenizer = Tokenizer::load(model)?;
    let template = ChatTemplate::load(model, &tokenizer)?;
    let rendered = template.render(&tokenizer, &sample.messages)?;
    let spans = rendered.spans(loss_on);
    let learned: usize = spans.iter().map(ExactSizeIterator::len).sum();
    let (on, off) = if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        ("\u{1b}[32m", "\u{1b}[0m")
    } else {
        ("⟦", "⟧")
    };
    println!("\n{}", marked(&rendered, &spans, &borders(&rendered, sample), on, off));
    println!(
        "\n{} tokens, {} with a loss ({on}like this{off}), {} documents",
        text::count(rendered.ids.len() as u64),
        text::count(learned as u64),
        documents(&sample.provenance).len()
    );
    if rendered.ids.len() as u64 != sample.tokens {
        println!(
            "the dataset counted {}: it was made with another tokenizer or template",
            text::count(sample.tokens)
        );
    }
    Ok(())
}

/// A document of a sample, as the provenance tells it.
struct Document {
    id: String,
    role: String,
    /// In characters of its turn.
    span: Range<usize>,
}

fn documents(provenance: &Value) -> Vec<Document> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    let read = |document: &Value| {
        Some(Document {
            id: document["id"].as_str()?.to_owned(),
            role: document["role"].as_str()?.to_owned(),
            span: number(&document["span"]["start"])?..number(&document["span"]["end"])?,
        })
    };
    provenance["documents"].as_array().into_iter().flatten().filter_map(read).collect()
}

/// Byte offsets in the rendered text at which documents begin and end, with a line for each.
fn borders(rendered: &Rendered, sample: &Sample) -> Vec<(usize, String)> {
    let mut borders = Vec::new();
    for document in documents(&sample.provenance) {
        let side = if document.role == "Target" { Role::Assistant } else { Role::User };
        let Some(turn) = rendered.turns.iter().find(|turn| turn.role == side) else { continue };
        let Some(content) = rendered.text.get(turn.text.clone()) else { continue };
        let at = |chars: usize| {
            turn.text.start + content.char_indices().nth(chars).map_or(content.len(), |(offset, _)| offset)
        };
        borders.push((at(document.span.start), format!("── {} {} ──", document.role, document.id)));
        borders.push((at(document.span.end), "── end ──".to_owned()));
    }
    borders.sort_by_key(|(offset, _)| *offset);
    borders
}

/// The rendered text with `on` and `off` around what has a loss and a line at each border.
fn marked(
    rendered: &Rendered,
    spans: &[Range<usize>],
    borders: &[(usize, String)],
    on: &str,
    off: &str,
) -> String {
    let place = |token: usize| rendered.offsets.get(token).map_or(rendered.text.len(), |bytes| bytes.start);
    // At one offset a span ends before a border stands and another span begins.
    let mut marks: Vec<(usize, u8, String)> = Vec::new();
    for span in spans {
        marks.push((place(span.start), 2, on.to_owned()));
        marks.push((place(span.end), 0, off.to_owned()));
    }
    for (offset, line) in borders {
        let inside = spans.iter().any(|span| place(span.start) < *offset && *offset < place(span.end));
        let line = if inside { format!("{off}\n{line}\n{on}") } else { format!("\n{line}\n") };
        marks.push((*offset, 1, line));
    }
    marks.sort_by_key(|(offset, order, _)| (*offset, *order));
    let (mut out, mut last) = (String::new(), 0);
    for (offset, _, mark) in marks {
        out.push_str(rendered.text.get(last..offset).unwrap_or_default());
        out.push_str(&mark);
        last = offset.max(last);
    }
    out.push_str(rendered.text.get(last..).unwrap_or_default());
    out
}

/// The model folder whose tokenizer counted this dataset, by what the executor remembers.
fn model_of(out: &Path, dataset: &Path) -> Result<PathBuf> {
    let unknown = || anyhow!("which tokenizer? name the model's folder with --model");
    let dataset = dataset.canonicalize().with_context(|| dataset.display().to_string())?;
    let objects = std::fs::read_dir(out.join(".local/objects")).map_err(|_| unknown())?;
    let remembered = objects.filter_map(|entry| {
        let bytes = std::fs::read(entry.ok()?.path()).ok()?;
        serde_json::from_slice::<Remembered>(&bytes).ok()
    });
    let place = |spec: &Value, field: &str| local_path(spec[field]["uri"].as_str()?);
    remembered
        .filter(|object| place(&object.spec, "storage").is_some_and(|storage| dataset.starts_with(storage)))
        .find_map(|object| place(&object.spec, "tokenizer"))
        .ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_and_the_borders_stand_where_they_belong() {
        let text = "<u>ab cd<a>yes!";
        let turn = |role, text: Range<usize>| longstrap_model::Turn { role, text, tokens: 0..0 };
        let rendered = Rendered {
            text: text.into(),
            ids: vec![1, 2, 3, 4, 5],
            offsets: vec![0..3, 3..5, 5..8, 8..11, 11..15],
            turns: vec![turn(Role::User, 3..8), turn(Role::Assistant, 11..15)],
        };
        let sample = Sample {
            id: "x".into(),
            kind: "LongInput".into(),
            messages: Vec::new(),
            tokens: 5,
            provenance: serde_json::json!({"documents": [{"id": "d", "role": "Relevant", "span": {"start": 3, "end": 5}}]}),
        };
        let borders = borders(&rendered, &sample);
        let response = marked(&rendered, std::slice::from_ref(&(4..5)), &borders, "[", "]");
        assert_eq!(response, "<u>ab \n── Relevant d ──\ncd\n── end ──\n<a>[yes!]");
        let all = marked(&rendered, std::slice::from_ref(&(1..5)), &borders, "[", "]");
        assert_eq!(all, "<u>[ab ]\n── Relevant d ──\n[cd]\n── end ──\n[<a>yes!]");
    }
}
