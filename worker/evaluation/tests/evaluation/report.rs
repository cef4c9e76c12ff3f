//! The page: it stands alone and says what was not measured.

use longstrap_evaluation::{HeldOut, ModelKind, ModelResult, PhaseTime, Results, html};

use crate::toy::{held_out, model_on, request, results};

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
