//! The report: one HTML file that needs nothing else, made from `results.json` and phase times.

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, context};

use crate::chart::{Chart, Series, tokens};
use crate::error::Result;
use crate::layout::Measurements;
use crate::needles::ANSWERS;
use crate::results::{Comparison, ModelKind, ModelResult, Results, copy_loss, hits, text_loss};

const TEMPLATE: &str = include_str!("report.html.j2");

/// Seconds of one phase of the run, for the last table.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseTime {
    /// What ran.
    pub name: String,
    /// How long.
    pub seconds: f64,
}

/// The report of a run called `title`.
///
/// # Errors
/// A template error.
pub fn html(title: &str, results: &Results, times: &[PhaseTime]) -> Result<String> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.add_template("report", TEMPLATE)?;
    let mut windows: Vec<usize> = results.models.iter().map(|m| m.window).collect();
    windows.sort_unstable();
    windows.dedup();
    let sections: Vec<Value> = windows.iter().rev().map(|&w| section(results, w)).collect();
    let total: f64 = times.iter().map(|t| t.seconds).sum();
    let times: Vec<Value> = times
        .iter()
        .map(|t| context! { name => t.name.as_str(), seconds => format!("{:.1}", t.seconds) })
        .collect();
    Ok(env.get_template("report")?.render(context! {
        title,
        old_window => tokens(results.old_window as f64),
        held_out => context! {
            documents => results.held_out.documents,
            tokens => results.held_out.tokens,
            digest => results.held_out.digest.as_str(),
            leaks => results.held_out.leaks,
        },
        sections,
        times,
        total => format!("{total:.1}"),
    })?)
}

fn section(results: &Results, window: usize) -> Value {
    let models: Vec<&ModelResult> = results.models.iter().filter(|m| m.window == window).collect();
    let old = results.old_window;
    let mark = (old as f64, "window of the model as it came");
    let chart = |title, x_label, y_label, points: &dyn Fn(&ModelResult) -> Vec<(f64, f64)>| {
        let series = models
            .iter()
            .map(|m| Series { class: class(m.kind), name: name(m), points: points(m) })
            .collect();
        Value::from_safe_string(Chart { title, x_label, y_label, x_max: window as f64, mark, series }.svg())
    };
    let rows: Vec<Value> = models.iter().map(|m| model_row(m, old)).collect();
    let measured = Measurements {
        loss_by_position: models.iter().any(|m| !m.scores.loss_by_position.is_empty()),
        recall: models.iter().any(|m| !m.scores.recall.is_empty()),
        needle: models.iter().any(|m| !m.scores.needles.is_empty()),
    };
    let comparison = results.comparisons.iter().find(|c| c.window == window);
    context! {
        window => tokens(window as f64),
        extended => window > old,
        models => rows,
        loss => chart("Loss by position", "position in the text, tokens", "loss, nats per token", &by_position),
        recall => chart("Loss of a repeated passage by distance", "distance to the first showing, tokens", "loss of the copy, nats per token", &by_distance),
        bins => bins(&models),
        passages => passages(&models),
        needles => needles(&models),
        measured => context! {
            loss => measured.loss_by_position,
            recall => measured.recall,
            needle => measured.needle,
        },
        verdict => comparison.map(|c| verdict(c, old, measured)).unwrap_or_default(),
        no_verdict => no_comparison(results, window),
    }
}

fn class(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Base => "base",
        ModelKind::BaseChange => "change",
        ModelKind::Trained => "trained",
    }
}

fn name(model: &ModelResult) -> String {
    match model.kind {
        ModelKind::Base => "the model as it came".into(),
        ModelKind::BaseChange => "RoPE base changed, untrained".into(),
        ModelKind::Trained => format!("trained, stage {}", model.stage),
    }
}

fn by_position(model: &ModelResult) -> Vec<(f64, f64)> {
    let bins = model.scores.loss_by_position.iter();
    bins.filter_map(|b| Some(((b.from + b.to) as f64 / 2.0, b.loss?))).collect()
}

fn by_distance(model: &ModelResult) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> =
        model.scores.recall.iter().map(|r| (r.distance as f64, r.copy)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

/// A dash where nothing was measured.
fn number(v: Option<f64>) -> String {
    v.map_or_else(|| "–".into(), |v| format!("{v:.3}"))
}

fn model_row(model: &ModelResult, old: usize) -> Value {
    let scores = &model.scores;
    let first = scores.recall.iter().map(|r| r.first).sum::<f64>() / scores.recall.len() as f64;
    context! {
        class => class(model.kind),
        name => name(model),
        rope_base => format!("{}", model.rope_base),
        within => number(text_loss(scores, 0, old)),
        beyond => number(text_loss(scores, old, model.window)),
        copy => number(copy_loss(scores, old)),
        first => number((!scores.recall.is_empty()).then_some(first)),
        hits => hits(scores).map_or_else(|| "–".into(), |n| format!("{n} of {}", scores.needles.len())),
    }
}

fn bins(models: &[&ModelResult]) -> Vec<Value> {
    let Some(first) = models.first() else { return Vec::new() };
    first
        .scores
        .loss_by_position
        .iter()
        .enumerate()
        .map(|(i, bin)| {
            let cells: Vec<String> = models
                .iter()
                .filter_map(|m| m.scores.loss_by_position.get(i))
                .map(|b| number(b.loss))
                .collect();
            context! { from => bin.from, to => bin.to, tokens => bin.tokens, cells }
        })
        .collect()
}

fn passages(models: &[&ModelResult]) -> Vec<Value> {
    let Some(first) = models.first() else { return Vec::new() };
    first
        .scores
        .recall
        .iter()
        .enumerate()
        .map(|(i, passage)| {
            let cells: Vec<String> = models
                .iter()
                .filter_map(|m| m.scores.recall.get(i))
                .map(|r| format!("{:.2} → {:.2}", r.first, r.copy))
                .collect();
            context! { distance => passage.distance, cells }
        })
        .collect()
}

fn needles(models: &[&ModelResult]) -> Vec<Value> {
    let Some(first) = models.first() else { return Vec::new() };
    first
        .scores
        .needles
        .iter()
        .enumerate()
        .map(|(i, needle)| {
            let cells: Vec<Value> = models
                .iter()
                .filter_map(|m| m.scores.needles.get(i))
                .map(|n| context! { hit => n.hit, margin => format!("{:+.2}", n.margin).replace('-', "−") })
                .collect();
            context! { position => needle.position, distance => needle.distance, cells }
        })
        .collect()
}

/// What the numbers say, and what they do not.
fn verdict(c: &Comparison, old: usize, measured: Measurements) -> Vec<String> {
    let old = tokens(old as f64);
    let mut lines = Vec::new();
    if let Some(gain) = c.recall_gain_base_change {
        lines.push(format!(
            "Changing the RoPE base alone moves the copy loss beyond {old} by {}: {}",
            change(-gain),
            if gain >= 0.05 {
                "this is what keeps the model from breaking down past its old window, and it costs no training."
            } else {
                "here the base change by itself brings nothing."
            }
        ));
    }
    match c.recall_gain {
        Some(gain) => lines.push(format!(
            "Reach: what training adds to recall. Copies of passages shown more than {old} tokens before: {} against the base \
             change alone. A passage can be copied only by a model that still sees it, so this part is due to the longer window{}.",
            change(-gain),
            if gain >= 0.05 { "" } else { ", and here it is not better than without training" }
        )),
        None if measured.recall => lines.push(format!(
            "Reach: not measured. At this window no passage stands more than {old} tokens before its copy, so these \
             numbers say nothing on recall beyond the old window."
        )),
        None => lines.push(
            "Reach: not measured. The run did not ask for recall (evaluation.recall), which tells reach from adaptation.".into(),
        ),
    }
    if measured.loss_by_position {
        let part = |gain: Option<f64>| gain.map_or_else(|| "not measured".into(), |gain| change(-gain));
        lines.push(format!(
            "Adaptation: what training adds everywhere. Text within the old window: {}; text beyond it: {}. The part that both \
             have in common comes from the kind of text that was trained on, and a short-context run would give it too{}.",
            part(c.loss_gain_within),
            part(c.loss_gain_beyond),
            if c.loss_gain_within.is_some_and(|gain| gain < -0.02) {
                ". Within the old window the model has lost quality"
            } else {
                ""
            }
        ));
    }
    if let Some(needles) = &c.needles {
        let base = needles.base.map(|n| format!("{n} as it came, ")).unwrap_or_default();
        lines.push(format!(
            "Needles found, of {}: {base}{} after the base change, {} after training; guessing finds {}. A small model hardly \
             answers questions, so recall is the sharper measure.",
            needles.of,
            needles.base_change,
            needles.trained,
            needles.of as f64 / ANSWERS as f64
        ));
    }
    lines
}

/// Why nothing is compared at a window.
fn no_comparison(results: &Results, window: usize) -> String {
    let base_change = results.models.iter().find(|m| m.kind == ModelKind::BaseChange);
    let trained = results.models.iter().any(|m| m.kind == ModelKind::Trained && m.window == window);
    match base_change {
        _ if !trained => "No trained model was measured at this window (evaluation.afterEachStage), so nothing is compared here.".into(),
        None => "The models before training were not measured (evaluation.beforeFirstStage), so nothing is compared here: the \
                 numbers show what the trained model does, not what training gave."
            .into(),
        Some(before) => format!(
            "Nothing is compared here. The models before training are measured only at the window of the first stage \
             ({}, {} tokens), so for this later stage there is no base change alone to compare with: the numbers show \
             what the trained model does at this window, not what its training gave.",
            before.stage,
            tokens(before.window as f64)
        ),
    }
}

/// A change of a loss in words: a loss that falls is better.
fn change(by: f64) -> String {
    let word = if by < 0.0 { "better" } else { "worse" };
    if by.abs() < 0.0005 {
        "unchanged".into()
    } else {
        format!("{by:+.3} nats per token ({word})").replace('-', "−")
    }
}
