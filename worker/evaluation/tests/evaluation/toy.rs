//! A model whose scores are known, and the results that it would get.

use std::convert::Infallible;

use longstrap_evaluation::{
    EvaluationError, HeldOut, Layout, Measurements, ModelKind, ModelResult, Request, Results, Scorer, Scores,
    measure, plan,
};

/// A character is a token: enough to tell the answers apart.
pub(crate) fn encode(text: &str) -> Result<Vec<u32>, EvaluationError> {
    Ok(text.chars().map(u32::from).collect())
}

/// Documents without a repeated token, so that only insertions repeat.
pub(crate) fn documents(tokens: usize) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..tokens as u32).map(|i| 1_000_000 + i).collect();
    all.chunks(700).map(<[u32]>::to_vec).collect()
}

pub(crate) const ALL: Measurements = Measurements { loss_by_position: true, recall: true, needle: true };

pub(crate) fn request(window: usize) -> Request {
    Request { window, old_window: window / 2, measure: ALL, seed: 17 }
}

pub(crate) fn layout(window: usize) -> Layout {
    plan(&documents(window), request(window), &encode).unwrap()
}

/// Loss 0.25 for a token that followed the same two tokens within `reach`, else 2 plus `surcharge`
/// where it is inserted text.
pub(crate) struct Copier {
    reach: usize,
    pub(crate) surcharge: Vec<f32>,
    row: Vec<u32>,
    pub(crate) breakage: Breakage,
}

#[derive(PartialEq)]
pub(crate) enum Breakage {
    None,
    NotANumber,
    OneShort,
}

impl Copier {
    pub(crate) fn new(reach: usize) -> Self {
        Self { reach, surcharge: Vec::new(), row: Vec::new(), breakage: Breakage::None }
    }

    fn seen(&self, context: &[u32], token: u32) -> bool {
        let [.., a, b] = context else { return false };
        let from = context.len().saturating_sub(self.reach);
        context[from..].windows(3).any(|w| w == [*a, *b, token])
    }

    fn loss(&self, all: &[u32], position: usize) -> f32 {
        let extra = self.surcharge.get(position).copied().unwrap_or(0.0);
        if self.seen(&all[..position], all[position]) { 0.25 + extra } else { 2.0 + extra }
    }
}

impl Scorer for Copier {
    type Error = Infallible;

    fn prefill(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>, Infallible> {
        self.row = tokens.to_vec();
        let mut losses: Vec<f32> = (1..tokens.len()).map(|p| self.loss(tokens, p)).collect();
        match self.breakage {
            Breakage::None => {}
            Breakage::NotANumber => losses[5] = f32::NAN,
            Breakage::OneShort => losses.truncate(tokens.len() - 2),
        }
        progress(tokens.len());
        Ok(losses)
    }

    fn branch(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>, Infallible> {
        progress(tokens.len());
        let all = [&self.row[..], tokens].concat();
        Ok((self.row.len()..all.len()).map(|p| self.loss(&all, p)).collect())
    }

    fn next(&mut self, prefix: &[u32], candidates: &[u32]) -> Result<Vec<f32>, Infallible> {
        // The secret of a key is what followed its sentence: the whole question must match.
        let question = &prefix[2..];
        let all = [&self.row[..], prefix].concat();
        let from = self.row.len().saturating_sub(self.reach);
        let found = all[from..self.row.len()].windows(question.len() + 1).find(|w| w.starts_with(question));
        let answer = found.map(|w| w[question.len()]);
        Ok(candidates.iter().map(|c| if Some(*c) == answer { -0.1 } else { -3.0 }).collect())
    }
}

pub(crate) fn scores(copier: &mut Copier, layout: &Layout) -> Scores {
    measure(copier, layout, &mut |_, _, _| {}).unwrap()
}

pub(crate) fn model_on(request: Request, kind: ModelKind, reach: usize, lift: f32) -> ModelResult {
    let window = request.window;
    let plan = plan(&documents(window), request, &encode).unwrap();
    let mut copier = Copier::new(reach);
    copier.surcharge = vec![lift; window];
    let stage = if window == 2048 { "2k" } else { "other" }.into();
    ModelResult { kind, stage, window, rope_base: 40000.0, scores: scores(&mut copier, &plan) }
}

pub(crate) fn held_out() -> HeldOut {
    HeldOut { digest: "sha256:00".into(), documents: 3, tokens: 2048, leaks: 0 }
}

pub(crate) fn results_on(request: Request) -> Results {
    let models = vec![
        model_on(request, ModelKind::Base, 700, 1.0),
        model_on(request, ModelKind::BaseChange, 1200, 0.5),
        model_on(request, ModelKind::Trained, 4000, 0.25),
    ];
    Results::new(request.old_window, held_out(), models)
}

pub(crate) fn results() -> Results {
    results_on(request(2048))
}
