//! Explanations: their scores are the scores, and they say what decided.

use rewards::{
    BoxFormat, BoxUnits, Explanation, RewardFamily, RewardInput, RewardOptions, RewardSet,
    accuracy_methods, family_of,
};
use serde::Deserialize;
use serde_json::{Map, json};
use testing::golden_cases;

use crate::{both, generic_options, input, rec_options};

#[derive(Debug, Deserialize)]
struct Case {
    completion: String,
    solution: String,
    image_size: Option<[u32; 2]>,
    image_grid_thw: Option<[usize; 3]>,
}

fn corpus(name: &str) -> Vec<Case> {
    golden_cases(&format!("rewards/vlm_r1/{name}.jsonl"), 500)
}

/// Scores a row and explains it; returns whether there was a score.
fn is_explained(set: &RewardSet, row: &RewardInput<'_>) -> bool {
    let scores = set.score(&[*row]);
    let explanations = set.explain(row);
    let (Ok(scores), Ok(explanations)) = (&scores, &explanations) else {
        let (scores, explanations) = (scores.map(drop), explanations.map(drop));
        assert_eq!(scores, explanations, "{row:?}");
        return false;
    };
    for (score, explanation) in scores.per_reward.iter().zip(explanations) {
        let explanation = explanation.as_ref().expect("an explanation");
        let bits = |score: Option<f64>| score.map(f64::to_bits);
        assert_eq!(bits(explanation.score), bits(score[0]), "{explanation:?}: {row:?}");
        assert!(!explanation.reason.is_empty(), "{row:?}");
        for pair in &explanation.matches {
            assert!(pair.predicted < explanation.predicted.len(), "{explanation:?}");
            assert!(pair.truth < explanation.truths.len(), "{explanation:?}");
        }
    }
    true
}

fn in_units(box_units: BoxUnits) -> RewardOptions {
    RewardOptions { box_units, ..generic_options() }
}

const SHARES: BoxUnits =
    BoxUnits { answer: Some(BoxFormat::Relative1000), solution: Some(BoxFormat::ModelInput) };

fn explain_all(cases: &[Case], options: &RewardOptions) -> usize {
    let columns = Map::new();
    let set = both(options);
    let methods = || accuracy_methods().filter(|method| *method != "llm");
    let rows = cases.iter().flat_map(|case| methods().map(move |method| (case, method)));
    let is_scored = |(case, method): &(&Case, &str)| {
        let row = RewardInput {
            accu_reward_method: Some(method),
            ..input(&case.completion, &case.solution, &columns)
        };
        is_explained(&set, &row)
    };
    rows.filter(is_scored).count()
}

#[test]
fn every_method_explains_its_own_score() {
    let (texts, boxes) = (corpus("texts"), corpus("boxes"));
    let num_texts = explain_all(&texts, &generic_options());
    assert!(num_texts > 10_000, "{num_texts}");
    for box_units in [BoxUnits::default(), SHARES] {
        let num_boxes = explain_all(&boxes, &in_units(box_units));
        assert!(num_boxes > 5_000, "{num_boxes}");
    }
}

#[test]
fn rewards_of_one_box_explain_their_own_scores() {
    let columns = Map::new();
    let names = ["giou", "diou", "point_in_box", "click"].map(str::to_owned);
    let mut num_scored = 0;
    for case in corpus("rec") {
        let row = RewardInput {
            image_sizes: case.image_size.as_slice(),
            image_grid_thw: case.image_grid_thw.as_slice(),
            ..input(&case.completion, &case.solution, &columns)
        };
        for family in [family_of("qwen2_5_vl"), family_of("internvl"), family_of("glm4v")] {
            for box_units in [BoxUnits::default(), SHARES] {
                let options = RewardOptions { box_units, ..rec_options(family, 14) };
                let grounding = RewardSet::build(&names, None, &options).expect("all exist");
                for set in [both(&options), grounding] {
                    num_scored += usize::from(is_explained(&set, &row));
                }
            }
        }
    }
    assert!(num_scored > 5_000, "{num_scored}");
}

fn explained(completion: &str, solution: &str, method: &str) -> Explanation {
    let columns = Map::new();
    let row =
        RewardInput { accu_reward_method: Some(method), ..input(completion, solution, &columns) };
    let set = both(&generic_options());
    let mut explanations = set.explain(&row).expect("a good row");
    explanations.swap_remove(0).expect("an explanation")
}

#[test]
fn rules_of_text_by_hand() {
    for (completion, solution, method, reason) in [
        ("<answer>B.</answer>", "C", "mcq", "letters B and C differ"),
        ("b", "B", "mcq", "both choose the letter B"),
        ("none", "B", "mcq", "no letter in the answer"),
        ("yes", "No.", "yes_no", "yes and no differ"),
        ("maybe", "no", "yes_no", "neither yes nor no in the answer"),
        ("<answer>0.5</answer>", "1/2", "default", "equal as expressions"),
        ("0.25", "0.5", "default", "different numbers"),
        ("red cat", "red hat", "default", "likeness 0.857 of the texts"),
        ("A.", "B.", "default", "letters A and B differ"),
        ("a", "A.", "math", "the same text"),
        ("5 \\text{ cm}", "x = 5", "math", "equal as expressions"),
        ("x", "y", "math", "neither text, meaning nor LaTeX is the same"),
        ("x", "y", "all_match", "different texts"),
    ] {
        let got = explained(completion, solution, method);
        assert_eq!(got.reason, reason, "{method}: {completion} {solution}");
    }
    let got = explained("<answer> B. </answer>", "<answer> C </answer>", "mcq");
    assert_eq!(got.answer.as_deref(), Some("B."));
    assert_eq!(got.truth.as_deref(), Some("C"));
}

const A: &str = "{\"bbox_2d\": [0, 0, 10, 10], \"label\": \"cat\"}";
const NEAR_A: &str = "{\"bbox_2d\": [0, 0, 10, 8], \"label\": \"cat\"}";
const B: &str = "{\"bbox_2d\": [50, 50, 60, 60], \"label\": \"dog\"}";
const NO_BOX: &str = "{\"label\": \"cat\"}";

fn listed(items: &[&str]) -> String {
    format!("<answer>```json\n[{}]\n```</answer>", items.join(", "))
}

#[test]
fn lists_of_boxes_by_hand() {
    let truth = listed(&[A, B]);
    let got = explained(&listed(&[NO_BOX, B, B, NEAR_A]), &truth, "odLength");
    // The cat fits at 7 of 10 thresholds, the dog at all.
    let counts = "2 true boxes, 4 predicted, 1 of them without corners";
    assert_eq!(got.reason, format!("AP 0.850 x length 0.500; {counts}"));
    assert!((got.score.expect("a score") - 0.425).abs() < 1e-12, "{got:?}");
    let labels: Vec<&str> = got.predicted.iter().map(|found| found.label.as_str()).collect();
    assert_eq!(labels, ["dog", "dog", "cat"]);
    let mut matches: Vec<_> = got.matches.iter().map(|m| (m.predicted, m.truth, m.iou)).collect();
    matches.sort_by_key(|&(predicted, ..)| predicted);
    assert_eq!(matches, [(0, 1, 1.0), (2, 0, 0.8)]);
    let json = got.to_json();
    assert!(json["matches"][0]["iou"].is_f64());
    assert_eq!(json["truths"][1], json!({"bbox_2d": [50.0, 50.0, 60.0, 60.0], "label": "dog"}));

    let got = explained(&listed(&[NEAR_A]), &truth, "weighted_sum");
    assert_eq!(
        got.reason,
        "0.7 x IoU 0.400 + 0.3 x completeness 0.750; 2 true boxes, 1 predicted, 1 matched, 0 of them by \
         another label"
    );
    assert_eq!(got.matches.len(), 1);
    for (completion, method, reason) in [
        ("no tags".to_owned(), "od_ap", "no `<answer>...</answer>`"),
        ("<answer>x</answer>".to_owned(), "od_ap", "no ```json block, 2 boxes in the solution"),
        (listed(&["x"]), "map", "the ```json block cannot be read, 2 boxes in the solution"),
        (listed(&[]), "map", "an empty list, 2 boxes in the solution"),
        (listed(&[B]), "od_ap50", "AP 0.500 at IoU 0.50; 2 true boxes, 1 predicted"),
        (
            listed(&[A, B, "{\"bbox_2d\": [0, 0, 9, 9], \"label\": \"cow\"}"]),
            "map_strict",
            "AP 1.000 x 2 of 3 labels, the rest not in the solution; 2 true boxes, 3 predicted",
        ),
    ] {
        assert_eq!(explained(&completion, &truth, method).reason, reason, "{method}");
    }
}

fn of_rec(family: RewardFamily, name: &str, completion: &str) -> Explanation {
    let columns = Map::new();
    let row = RewardInput {
        image_sizes: &[[224, 224]],
        ..input(completion, "<answer> [20, 20, 40, 40] </answer>", &columns)
    };
    let set = RewardSet::build(&[name.to_owned()], None, &rec_options(family, 14));
    let explanations = set.expect("it exists").explain(&row).expect("a good row");
    explanations.into_iter().next().flatten().expect("an explanation")
}

#[test]
fn one_box_by_hand() {
    // The model saw 112 x 112 of a 224 x 224 image.
    let got = of_rec(family_of("qwen2_5_vl"), "accuracy", "<answer>{[10, 10, 20, 15]}</answer>");
    assert_eq!(got.reason, "IoU 0.500 in pixels of the image");
    assert_eq!(<[f64; 4]>::from(got.predicted[0].corners), [20.0, 20.0, 40.0, 30.0]);
    assert_eq!(got.matches[0].iou, 0.5);
    assert_eq!(got.truth.as_deref(), Some("[20, 20, 40, 40]"));
    for (family, name, completion, reason) in [
        (
            family_of("internvl"),
            "accuracy",
            "<answer>[20, 20, 40, 40]</answer>",
            "IoU 1.000 in units of the data",
        ),
        (family_of("qwen2_5_vl"), "accuracy", "[10, 10, 20, 20]", "no `<answer>...</answer>`"),
        (family_of("qwen2_5_vl"), "accuracy", "<answer>here</answer>", "no box in the answer"),
        (
            family_of("qwen2_5_vl"),
            "giou",
            "<answer>[10, 10, 20, 15]</answer>",
            "generalised IoU 0.500 in pixels of the image",
        ),
        (
            family_of("qwen2_5_vl"),
            "click",
            "<answer>click(15, 15)</answer>",
            "clicks inside the box at (30.0, 30.0), in pixels of the image",
        ),
        (
            family_of("qwen2_5_vl"),
            "point_in_box",
            "<answer>(1, 2)</answer>",
            "(2.0, 4.0) is outside the box, in pixels of the image",
        ),
        (family_of("qwen2_5_vl"), "click", "<answer>(1, 2)</answer>", "no click in the answer"),
    ] {
        assert_eq!(of_rec(family, name, completion).reason, reason, "{name}: {completion}");
    }
}

#[test]
fn a_form_is_followed_to_where_it_breaks() {
    let whole = "<think>a</think>\n<answer>{[1, 2, 3, 4]}</answer>";
    let columns = Map::new();
    let set = both(&generic_options());
    for (completion, reason) in [
        (whole.to_owned(), "well-formed"),
        (format!(" {whole}"), "no `<think>` at the start"),
        ("<think>a".to_owned(), "no `</think>`"),
        ("<think>a</think> so <answer>".to_owned(), "no `<answer>` right after `</think>`"),
        ("<think>a</think><answer>b".to_owned(), "no `</answer>` after `<answer>`"),
        (format!("{whole}."), "text after `</answer>`"),
    ] {
        let row = input(&completion, "x", &columns);
        let explanations = set.explain(&row).expect("a good row");
        let got = explanations[1].as_ref().expect("an explanation");
        assert_eq!(got.reason, reason, "{completion}");
    }
    for (family, completion, reason) in [
        (family_of("qwen2_5_vl"), whole, "well-formed"),
        (
            family_of("qwen2_5_vl"),
            "<think>a</think><answer>[1, 2, 3, 4]</answer>",
            "no `{` in the answer",
        ),
        (
            family_of("qwen2_5_vl"),
            "<think>a</think><answer>{1, 2}</answer>",
            "no box of four whole numbers where it belongs",
        ),
        (
            family_of("qwen2_5_vl"),
            "<think>a</think><answer>{[1, 2, 3, 4]</answer>",
            "no `}` after the box",
        ),
        (family_of("internvl"), "<think>a</think><answer>[1, 2, 3, 4]", "no `</answer>` after it"),
        (family_of("glm4v"), "<think>a", "no `<answer>` after `<think>`"),
        (family_of("glm4v"), "a", "no `<think>`"),
    ] {
        assert_eq!(of_rec(family, "format", completion).reason, reason, "{completion}");
    }
}
