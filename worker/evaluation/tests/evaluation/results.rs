//! `results.json`: it comes back as it was, and its form is fixed.

use longstrap_evaluation::{
    EvaluationError, HeldOut, ModelKind, ModelResult, NeedleScore, PositionLoss, Recall, Results, Scores,
};

use crate::toy::results;

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
