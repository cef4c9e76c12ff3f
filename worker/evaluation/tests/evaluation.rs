//! The evaluation with a toy model that copies whatever it saw within its reach.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::path::Path;

use longstrap_evaluation::{
    EvaluationError, HeldOut, Inserted, Kind, Layout, Measurements, ModelKind, ModelResult, NeedleScore,
    Phase, PhaseTime, PositionLoss, Recall, Request, Results, Scorer, Scores, html, measure, plan,
    plan_texts,
};

/// A character is a token: enough to tell the answers apart.
fn encode(text: &str) -> Result<Vec<u32>, EvaluationError> {
    Ok(text.chars().map(u32::from).collect())
}

/// Documents without a repeated token, so that only insertions repeat.
fn documents(tokens: usize) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..tokens as u32).map(|i| 1_000_000 + i).collect();
    all.chunks(700).map(<[u32]>::to_vec).collect()
}

const ALL: Measurements = Measurements { loss_by_position: true, recall: true, needle: true };

fn request(window: usize) -> Request {
    Request { window, old_window: window / 2, measure: ALL, seed: 17 }
}

fn layout(window: usize) -> Layout {
    plan(&documents(window), request(window), &encode).unwrap()
}

/// Loss 0.25 for a token that followed the same two tokens within `reach`, else 2 plus `surcharge`
/// where it is inserted text.
struct Copier {
    reach: usize,
    surcharge: Vec<f32>,
    row: Vec<u32>,
    breakage: Breakage,
}

#[derive(PartialEq)]
enum Breakage {
    None,
    NotANumber,
    OneShort,
}

impl Copier {
    fn new(reach: usize) -> Self {
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

fn scores(copier: &mut Copier, layout: &Layout) -> Scores {
    measure(copier, layout, &mut |_, _, _| {}).unwrap()
}

#[test]
fn every_token_of_the_row_is_text_or_one_insertion() {
    for window in [512, 1024, 3000, 16384] {
        let plan = layout(window);
        let sizes = plan.sizes;
        assert_eq!(plan.prefill.len(), sizes.prefill);
        assert_eq!(sizes.prefill + sizes.branch(), window);
        assert_eq!(plan.continuation.len(), sizes.branch());
        assert_eq!(plan.copies.len(), sizes.branch());
        assert!(plan.needles.iter().all(|n| n.question.len() < sizes.branch()));
        let mut text = Vec::new();
        let mut end = 0;
        for item in &plan.inserted {
            assert!(item.span.start >= end && item.body.start == item.span.start + 2, "{item:?}");
            text.extend_from_slice(&plan.prefill[end..item.span.start]);
            end = item.span.end;
        }
        text.extend_from_slice(&plan.prefill[end..]);
        text.extend_from_slice(&plan.continuation);
        let running = documents(window).join(&encode("\n\n").unwrap()[..]);
        assert_eq!(
            text,
            running[..text.len()],
            "the running text goes on over insertions and into branch (a)"
        );
        for (i, shown) in plan.shown.iter().enumerate() {
            let copy = &plan.copies[i * sizes.passage..][..sizes.passage];
            assert_eq!(&plan.prefill[shown.clone()], copy);
            assert!(!text.windows(copy.len()).any(|w| w == copy), "a passage is not also running text");
        }
        for needle in &plan.needles {
            let hidden = &plan.prefill[needle.at..];
            let question = &needle.question[2..];
            assert!(hidden.starts_with(question));
            assert_eq!(hidden[question.len()], needle.candidates[needle.answer]);
        }
    }
}

#[test]
fn sixteen_k_is_laid_out_as_in_the_reference_measurement() {
    let plan = layout(16384);
    assert_eq!(
        (plan.prefill.len(), plan.sizes.passage, plan.sizes.skip, plan.needles.len()),
        (14848, 192, 32, 8)
    );
    let distances: Vec<i64> =
        plan.shown.iter().enumerate().map(|(i, s)| (14848 + i * 192 - s.start) as i64).collect();
    for (got, want) in distances.iter().zip([14_500, 13_000, 11_400, 9_900, 8_300, 6_800, 5_200, 3_600]) {
        assert!((got - want).abs() < 150, "{distances:?}");
    }
    let depths: Vec<usize> = plan.needles.iter().map(|n| n.at * 16 / 14848).collect();
    assert_eq!(depths, [1, 3, 5, 7, 9, 11, 13, 15]);
}

#[test]
fn the_plan_is_a_function_of_text_window_and_seed() {
    let text = documents(1024);
    assert_eq!(plan(&text, request(1024), &encode).unwrap(), layout(1024));
    let other = plan(&text, Request { seed: 18, ..request(1024) }, &encode).unwrap();
    assert_ne!(other.shown.len(), 0);
    assert_ne!(other, layout(1024));
    // What is hidden is what synthesis and training look for.
    let looked_for = longstrap_corpus::Phrases::default();
    let text_of = |tokens: &[u32]| tokens.iter().map(|&t| char::from_u32(t).unwrap()).collect::<String>();
    assert!(layout(1024).inserted.iter().all(|Inserted { kind, body, .. }| match kind {
        Kind::Needle(_) => looked_for.hits(&text_of(&layout(1024).prefill[body.clone()])) == 1,
        Kind::Passage(_) => true,
    }));
}

#[test]
fn a_model_recalls_what_lies_within_its_reach_and_no_more() {
    let plan = layout(2048);
    for reach in [300, 1000, 4000] {
        let got = scores(&mut Copier::new(reach), &plan);
        for r in &got.recall {
            assert_eq!(r.first, 2.0);
            let seen = r.distance < reach;
            assert_eq!(r.copy, if seen { 0.25 } else { 2.0 }, "reach {reach}, {r:?}");
        }
        for n in &got.needles {
            assert_eq!(n.hit, n.distance <= reach, "reach {reach}, {n:?}");
            assert_eq!(n.hit, n.margin > 0.0);
        }
        assert!(got.recall.windows(2).all(|w| w[0].distance > w[1].distance));
    }
}

#[test]
fn inserted_text_is_left_out_of_loss_by_position() {
    let plan = layout(2048);
    let mut copier = Copier::new(4000);
    copier.surcharge = vec![0.0; plan.prefill.len()];
    for item in &plan.inserted {
        copier.surcharge[item.span.clone()].fill(1000.0);
    }
    let got = scores(&mut copier, &plan);
    let inserted: usize = plan.inserted.iter().map(|i| i.span.len()).sum();
    let counted: usize = got.loss_by_position.iter().map(|b| b.tokens).sum();
    assert_eq!(counted, 2048 - inserted - 1, "all positions but the first and the inserted ones");
    assert!(got.loss_by_position.iter().all(|b| b.loss.unwrap() <= 2.0), "{:?}", got.loss_by_position);
    assert!(got.recall.iter().all(|r| r.first == 1002.0 && r.copy == 0.25), "{:?}", got.recall);
    assert_eq!(got.loss_by_position.last().unwrap().tokens, 128, "the end of the window is branch (a)");
}

#[test]
fn progress_reaches_the_end_and_never_goes_back() {
    let plan = layout(1024);
    let mut seen = Vec::new();
    measure(&mut Copier::new(100), &plan, &mut |phase, done, total| seen.push((phase, done, total))).unwrap();
    assert!(seen.windows(2).all(|w| w[0].1 <= w[1].1 && w[0].2 == w[1].2));
    assert!(seen.iter().any(|s| s.0 == Phase::Prefill));
    assert!(matches!(seen.last(), Some((Phase::Needles, done, total)) if done == total));
}

#[test]
fn what_cannot_be_evaluated_says_why() {
    let text = documents(4096);
    let same = |s: &str| Ok(vec![7; s.len()]);
    let error = |r: Result<Layout, EvaluationError>| r.unwrap_err().to_string();
    let few = error(plan(&documents(600), request(1024), &encode));
    assert!(few.contains("has 600 tokens"), "{few}");
    assert!(few.contains("raise heldOut.tokens"), "{few}");
    assert!(error(plan(&text, request(255), &encode)).contains("too small"));
    let wordy = |s: &str| Ok(s.chars().flat_map(|c| [u32::from(c); 3]).collect());
    assert!(error(plan(&text, request(512), &wordy)).contains("a window of 512 tokens is too small"));
    assert!(error(plan(&text, request(1024), &same)).contains("apart"));
    for (breakage, words) in [
        (
            Breakage::NotANumber,
            "reading the held-out row the model gave a loss that is not finite at token 5",
        ),
        (Breakage::OneShort, "gave 926 values for 927 tokens"),
    ] {
        let mut copier = Copier { breakage, ..Copier::new(10) };
        let error = measure(&mut copier, &layout(1024), &mut |_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// The smoke model was trained with a window of 256 on text of this kind; its folder says so.
#[test]
fn a_real_model_breaks_down_beyond_its_window_and_repeats_itself_to_the_bit() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/smoke");
    let folder = examples.join("model");
    let corpus = std::fs::read_to_string(examples.join("corpus/corpus.jsonl")).unwrap();
    let document =
        |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
    let texts: Vec<String> = corpus.lines().map(document).collect();
    let tokenizer = longstrap_model::Tokenizer::load(&folder).unwrap();
    let layout = plan_texts(&texts, &tokenizer, request(1024)).unwrap();
    let measured = |threads| {
        let mut scorer = longstrap_inference::Scorer::open(&folder, 1024, threads, None).unwrap();
        measure(&mut scorer, &layout, &mut |_, _, _| {}).unwrap()
    };
    let got = measured(1);
    assert_eq!(got, measured(2), "bits depend on no thread count");
    let mean = |parts: &[PositionLoss]| {
        let sum: f64 = parts.iter().map(|p| p.loss.unwrap() * p.tokens as f64).sum();
        sum / parts.iter().map(|p| p.tokens as f64).sum::<f64>()
    };
    let (within, beyond) = got.loss_by_position.split_at(4);
    assert!(mean(within) < 1.6 && mean(beyond) > 2.2, "{:?}", got.loss_by_position);
}

fn model_on(request: Request, kind: ModelKind, reach: usize, lift: f32) -> ModelResult {
    let window = request.window;
    let plan = plan(&documents(window), request, &encode).unwrap();
    let mut copier = Copier::new(reach);
    copier.surcharge = vec![lift; window];
    let stage = if window == 2048 { "2k" } else { "other" }.into();
    ModelResult { kind, stage, window, rope_base: 40000.0, scores: scores(&mut copier, &plan) }
}

fn held_out() -> HeldOut {
    HeldOut { digest: "sha256:00".into(), documents: 3, tokens: 2048, leaks: 0 }
}

fn results_on(request: Request) -> Results {
    let models = vec![
        model_on(request, ModelKind::Base, 700, 1.0),
        model_on(request, ModelKind::BaseChange, 1200, 0.5),
        model_on(request, ModelKind::Trained, 4000, 0.25),
    ];
    Results::new(request.old_window, held_out(), models)
}

fn results() -> Results {
    results_on(request(2048))
}

#[test]
fn the_comparison_separates_adaptation_from_reach() {
    let results = results();
    let [c] = &results.comparisons[..] else { panic!("{:?}", results.comparisons) };
    assert_eq!(
        (c.loss_gain_within, c.loss_gain_beyond, c.loss_gain_end),
        (Some(0.25), Some(0.25), Some(0.25))
    );
    // Five of the eight distances lie beyond 1,024; a reach of 1,200 covers one of them.
    let distances: Vec<usize> = results.models[0].scores.recall.iter().map(|r| r.distance).collect();
    let far = distances.iter().filter(|d| **d > 1024).count();
    let covered = distances.iter().filter(|d| (1025..1200).contains(*d)).count();
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-5, "{got} {want} {distances:?}");
    near(c.recall_gain_base_change.unwrap(), 0.5 + 1.75 * covered as f64 / far as f64);
    near(c.recall_gain.unwrap(), 0.25 + 1.75 * (far - covered) as f64 / far as f64);
    let needles = c.needles.as_ref().unwrap();
    assert!(needles.base.unwrap() < needles.base_change && needles.base_change < needles.trained);
    let only_trained = Results::new(1024, results.held_out.clone(), results.models[2..].to_vec());
    assert!(only_trained.comparisons.is_empty());
}

/// What was not asked for is neither read, scored nor shown, and the rest is the same kind of row.
#[test]
fn only_what_is_asked_for_is_measured() {
    let parts: [(&str, &str, &[&str], Phase); 3] = [
        (
            "lossByPosition",
            "<h3>Loss by position</h3>",
            &["lossGainWithin", "lossGainBeyond", "lossGainEnd"],
            Phase::Continuation,
        ),
        ("recall", "<h3>Recall by distance</h3>", &["recallGain", "recallGainBaseChange"], Phase::Copies),
        ("needles", "<h3>Needles</h3>", &["needles"], Phase::Needles),
    ];
    for wanted in 1..8 {
        let on = |part: usize| wanted & (1 << part) != 0;
        let measure = Measurements { loss_by_position: on(0), recall: on(1), needle: on(2) };
        let request = Request { measure, ..request(2048) };
        let plan = plan(&documents(2048), request, &encode).unwrap();
        assert_eq!(plan.prefill.len(), layout(2048).prefill.len());
        let mut phases = Vec::new();
        let got = scores_with_phases(&plan, &mut phases);
        let results = results_on(request);
        let json: serde_json::Value = serde_json::from_slice(&results.to_json().unwrap()).unwrap();
        assert_eq!(Results::from_json(&results.to_json().unwrap()).unwrap(), results);
        let page = html("run", &results, &[]).unwrap();
        for (part, (name, heading, compared, phase)) in parts.iter().enumerate() {
            assert_eq!(phases.contains(phase), on(part), "{wanted} {name}");
            assert_eq!(serde_json::to_value(&got).unwrap().get(name).is_some(), on(part), "{wanted} {name}");
            for model in json["models"].as_array().unwrap() {
                assert_eq!(model["scores"].get(name).is_some(), on(part), "{wanted} {name}");
            }
            for field in *compared {
                assert_eq!(json["comparisons"][0].get(field).is_some(), on(part), "{wanted} {field}");
            }
            assert_eq!(page.contains(heading), on(part), "{wanted} {heading}");
        }
        let inserted = |wanted: fn(&Kind) -> bool| plan.inserted.iter().any(|i| wanted(&i.kind));
        assert_eq!(inserted(|k| matches!(k, Kind::Passage(_))), on(1));
        assert_eq!(inserted(|k| matches!(k, Kind::Needle(_))), on(2));
    }
}

fn scores_with_phases(plan: &Layout, phases: &mut Vec<Phase>) -> Scores {
    measure(&mut Copier::new(4000), plan, &mut |phase, _, _| phases.push(phase)).unwrap()
}

/// A window that is hardly longer than the old one: no passage stands that far before its copy.
#[test]
fn what_could_not_be_measured_is_not_a_loss_of_zero() {
    let results = results_on(Request { window: 1100, old_window: 1024, ..request(1100) });
    let [c] = &results.comparisons[..] else { panic!("{:?}", results.comparisons) };
    assert_eq!((c.recall_gain, c.recall_gain_base_change), (None, None), "{c:?}");
    assert_eq!((c.loss_gain_within, c.loss_gain_beyond), (Some(0.25), Some(0.25)));
    let page = html("run", &results, &[]).unwrap();
    assert!(
        page.contains("Reach: not measured. At this window no passage stands more than 1K tokens"),
        "{page}"
    );
    assert!(!page.contains("not better than without training"), "{page}");
    let row = page.lines().find(|l| l.contains("trained, stage other</td>")).unwrap();
    assert!(row.contains("<td>–</td>") && !row.contains("0.000"), "{row}");
    // Nothing lies beyond the old window of a model that had this window before.
    let [c] = &results_on(Request { old_window: 2048, ..request(2048) }).comparisons[..] else { panic!() };
    assert_eq!((c.loss_gain_within, c.loss_gain_beyond, c.recall_gain), (Some(0.25), None, None));
}

/// Every token counts on one side of the old window, wherever that lies.
#[test]
fn parts_of_the_window_are_cut_at_the_old_window() {
    for old_window in [1, 700, 1000, 1023, 1024, 1025, 2047, 2048, 4096] {
        let plan = plan(&documents(2048), Request { old_window, ..request(2048) }, &encode).unwrap();
        let mut copier = Copier::new(0);
        copier.surcharge = (0..2048).map(|p| if p < old_window { 0.0 } else { 1.0 }).collect();
        let parts = scores(&mut copier, &plan).loss_by_position;
        assert!(parts.windows(2).all(|w| w[0].to == w[1].from && w[0].from < w[0].to), "{parts:?}");
        assert_eq!((parts[0].from, parts.last().unwrap().to), (0, 2048));
        for part in parts {
            let want = (part.tokens > 0).then_some(if part.to <= old_window { 2.0 } else { 3.0 });
            assert_eq!(part.loss, want, "{old_window} {part:?}");
        }
    }
}

#[test]
fn a_stage_without_a_base_change_to_compare_with_says_so() {
    let mut models = results().models;
    models.push(model_on(request(4096), ModelKind::Trained, 4000, 0.25));
    let page = |models: Vec<ModelResult>| {
        let results = Results::new(1024, held_out(), models);
        html("run", &results, &[]).unwrap()
    };
    let both = page(models.clone());
    let (later, first) = both.split_once("<h2>At 2K tokens</h2>").unwrap();
    let words = "measured only at the window of the first stage (2k, 2K tokens)";
    assert!(later.contains(words) && !first.contains(words), "{later}");
    assert!(first.contains("Reach:") && !later.contains("Reach:"));
    assert!(page(models[2..].to_vec()).contains("models before training were not measured"));
    assert!(page(models[..2].to_vec()).contains("No trained model was measured at this window"));
}

#[test]
fn the_report_states_leaks() {
    let leaking = |leaks| {
        let results = Results::new(1024, HeldOut { leaks, ..held_out() }, results().models);
        html("run", &results, &[]).unwrap()
    };
    assert!(leaking(0).contains("a needle's question): 0, as it should be"));
    assert!(leaking(3).contains("a needle's question): 3, where 0 is expected"));
}

#[test]
fn results_json_comes_back_as_the_same_bytes() {
    let bytes = results().to_json().unwrap();
    let again = Results::from_json(&bytes).unwrap();
    assert_eq!(again, results());
    assert_eq!(again.to_json().unwrap(), bytes);
    let text = String::from_utf8(bytes).unwrap();
    let newer = text.replacen("\"formatVersion\": 1", "\"formatVersion\": 2", 1);
    assert!(matches!(Results::from_json(newer.as_bytes()), Err(EvaluationError::FormatTooNew(2))));
    let odd = text.replacen("\"oldWindow\"", "\"surprise\": 1, \"oldWindow\"", 1);
    assert!(Results::from_json(odd.as_bytes()).unwrap_err().to_string().contains("surprise"));
}

/// Golden: when these bytes change, `FORMAT_VERSION` has to rise.
#[test]
fn results_json_keeps_its_form() {
    let model = |kind, loss: f64| ModelResult {
        kind,
        stage: "16k".into(),
        window: 16384,
        rope_base: 400_000.0,
        scores: Scores {
            loss_by_position: vec![
                PositionLoss { from: 0, to: 8192, tokens: 7000, loss: Some(loss) },
                PositionLoss { from: 8192, to: 8400, tokens: 0, loss: None },
                PositionLoss { from: 15360, to: 16384, tokens: 1024, loss: Some(loss + 0.5) },
            ],
            recall: vec![Recall { distance: 14491, first: 3.25, copy: loss }],
            needles: vec![NeedleScore {
                position: 929,
                distance: 13919,
                hit: loss < 1.0,
                margin: 1.0 - loss,
            }],
        },
    };
    let held_out = HeldOut { digest: "sha256:00".into(), documents: 3, tokens: 17000, leaks: 0 };
    let models = vec![
        model(ModelKind::Base, 7.4),
        model(ModelKind::BaseChange, 1.614),
        model(ModelKind::Trained, 0.541),
    ];
    let bytes = Results::new(8192, held_out, models).to_json().unwrap();
    insta::assert_snapshot!(String::from_utf8(bytes).unwrap());
}

#[test]
fn the_report_stands_alone() {
    let times = [PhaseTime { name: "evaluate base <8K>".into(), seconds: 103.25 }];
    let page = html("demo & <run>", &results(), &times).unwrap();
    for absent in ["http:", "https:", "<link", "<script", "src=", "url(", "<run>", "@import"] {
        assert!(!page.contains(absent), "{absent}");
    }
    for present in [
        "demo &amp; &lt;run&gt;",
        "<svg",
        "Adaptation",
        "Reach",
        "window of the model as it came",
        "103.2",
        "evaluate base &lt;8K&gt;",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(present), "{present}");
    }
    assert_eq!(page.matches("<svg").count(), 2);
    assert_eq!(page.matches("class=\"line ").count(), 6, "three lines in each chart");
}
