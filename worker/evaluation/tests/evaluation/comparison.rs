//! Three models side by side: adaptation apart from reach, and nothing unmeasured is a number.

use longstrap_evaluation::{
    Kind, Layout, Measurements, Phase, Request, Results, Scores, html, measure, plan,
};

use crate::toy::{Copier, documents, encode, layout, request, results, results_on};

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
