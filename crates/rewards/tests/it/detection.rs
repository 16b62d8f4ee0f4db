//! Detection rewards through the accuracy table: the paper's vector, loopholes, bad solutions,
//! hostile completions.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rewards::detection::{map, map_strict, od_ap, od_ap50, od_length, weighted_sum};
use rewards::{RewardError, RewardInput};
use serde_json::Map;

use crate::{both, generic_options, input};

const METHODS: [&str; 6] = ["od_ap", "od_ap50", "odLength", "map", "map_strict", "weighted_sum"];

fn item(corners: [f64; 4], label: &str) -> String {
    format!("{{\"bbox_2d\": {corners:?}, \"label\": \"{label}\"}}")
}

fn answer(items: &[String]) -> String {
    format!("<think>t</think><answer>```json\n[{}]\n```</answer>", items.join(", "))
}

fn score(method: &str, completion: &str, solution: &str) -> Result<f64, RewardError> {
    let columns = Map::new();
    let row =
        RewardInput { accu_reward_method: Some(method), ..input(completion, solution, &columns) };
    let scores = both(&generic_options()).score(&[row])?;
    Ok(scores.per_reward[0][0].expect("accuracy always applies"))
}

fn scored(method: &str, completion: &str, solution: &str) -> f64 {
    score(method, completion, solution).expect("a readable solution")
}

const DOGS: [[f64; 4]; 3] =
    [[0.0, 0.0, 100.0, 100.0], [200.0, 0.0, 300.0, 100.0], [400.0, 0.0, 500.0, 100.0]];

fn dogs() -> Vec<String> {
    DOGS.map(|corners| item(corners, "dog")).to_vec()
}

#[test]
fn the_papers_vector_falls_from_0_99_to_0_12() {
    // 24 predictions for 3 truths: the third is hit a little off, then exactly, then 20 labels that
    // no truth has.
    let mut predictions = dogs();
    predictions.insert(2, item([400.0, 0.0, 500.0, 92.0], "dog"));
    predictions.extend((0..20).map(|n| item(DOGS[n % 3], &format!("label {n}"))));
    assert_eq!(predictions.len(), 24);
    let (completion, solution) = (answer(&predictions), answer(&dogs()));
    let hundredths = |method| (scored(method, &completion, &solution) * 100.0).round();
    assert_eq!(hundredths("od_ap"), 99.0);
    assert_eq!(hundredths("od_ap50"), 100.0);
    assert_eq!(hundredths("odLength"), 12.0);
    assert_eq!(hundredths("map"), 99.0);
    // One label of 21.
    assert_eq!(hundredths("map_strict"), 5.0);
}

fn assert_near(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
}

#[test]
fn map_strict_counts_what_coco_drops() {
    let truth = answer(&dogs());
    let with = |extra: &[&str]| {
        let mut items = dogs();
        items.extend(extra.iter().map(|&text| text.to_owned()));
        scored("map_strict", &answer(&items), &truth)
    };
    let cat = item(DOGS[0], "cat");
    assert_near(with(&[]), 1.0);
    assert_near(with(&[&cat]), 1.0 / 2.0);
    // Labels count once each, and so does the lack of one.
    assert_near(with(&[&cat, &cat]), 1.0 / 2.0);
    assert_near(with(&[&cat, "7", "{\"bbox_2d\": [1, 2, 3, 4]}"]), 1.0 / 3.0);
    // False ones of the truths' own label cost where they rank before true ones.
    let false_first = |bad: &str| {
        let items = [vec![bad.to_owned()], dogs()].concat();
        let completion = answer(&items);
        let strict = scored("map_strict", &completion, &truth);
        assert_near(scored("map", &completion, &truth), 1.0);
        assert_near(strict, 0.75);
    };
    false_first("{\"bbox_2d\": \"here\", \"label\": \"dog\"}");
    false_first("{\"bbox_2d\": [9, 0, 0, 9], \"label\": \"dog\"}");
    // What cannot be read is no way to say that there is nothing.
    let nothing = "<answer> None </answer>";
    assert_near(scored("map", "```json\n[{]\n```", nothing), 1.0);
    assert_near(scored("map_strict", "```json\n[{]\n```", nothing), 0.0);
    assert_near(scored("map_strict", "```json\n[]\n```", nothing), 1.0);
    assert_near(scored("map_strict", "None", nothing), 1.0);
    assert_near(scored("map_strict", &answer(&[cat]), nothing), 0.0);
}

#[test]
fn a_number_that_is_none_matches_nothing() {
    let solution = answer(&dogs()[..1]);
    for corners in ["[NaN, NaN, NaN, NaN]", "[0, 0, Infinity, 100]", "[0, 0, 1e999, 100]"] {
        let completion = answer(&[format!("{{\"bbox_2d\": {corners}, \"label\": \"dog\"}}")]);
        for method in ["od_ap", "od_ap50", "odLength", "map", "map_strict"] {
            assert_eq!(scored(method, &completion, &solution), 0.0, "{corners}");
        }
    }
}

#[test]
fn bad_solutions_are_errors_before_training() {
    let set = both(&generic_options());
    let bad = "<answer>```json\n[{\"bbox_2d\": [1, 2, 3], \"label\": \"dog\"}]\n```</answer>";
    for method in METHODS {
        let error = set.check(4, bad, Some(method)).expect_err("three numbers");
        assert_eq!(error.row(), Some(4));
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("accuracy method `{method}`, row 4: solution `<answer>"))
        );
        assert!(text.ends_with("expected `[x1, y1, x2, y2]`"), "{text}");
        let columns = Map::new();
        let row = RewardInput {
            accu_reward_method: Some(method),
            ..input("<answer>None</answer>", bad, &columns)
        };
        assert!(matches!(set.score(&[row]), Err(RewardError::MethodSolution { row: 0, .. })));
        assert_eq!(set.check(4, &answer(&dogs()), Some(method)), Ok(()));
        assert_eq!(set.check(4, "<answer> None </answer>", Some(method)), Ok(()));
    }
    let error = set.check(0, "None", Some("od_ap")).expect_err("no tags");
    assert!(error.to_string().ends_with("no `<answer>...</answer>`"));
}

/// A truth of at most 1,000 characters.
fn long_truth() -> String {
    let items: Vec<String> = (0..21)
        .map(|n| format!("{{\"bbox_2d\": [{n}, 0, {}, 9], \"label\": \"l{n}\"}}", n + 9))
        .collect();
    let text = answer(&items);
    assert!((900..=1000).contains(&text.len()), "{}", text.len());
    text
}

#[test]
fn a_hundred_thousand_characters_are_fast() {
    let solution = long_truth();
    let pieces = [
        "{\"bbox_2d\":[0,0,9,9],\"label\":\"l0\"},",
        "{\"bbox_2d\":[5,0,14,9],\"label\":\"x\"},",
        "{},",
        "1,",
        "[",
        "{\"a\":",
        "\"",
        "\\",
        "\\u0041",
        "```json",
        "```",
        "<answer>",
        "</answer>",
        "\n",
        " ",
        "-",
        "9",
        "NaN,",
        "{\"label\":\"l1\"},",
    ];
    for piece in pieces {
        let body = piece.repeat(100_000 / piece.len());
        for completion in [
            format!("<answer>```json\n[{body}0]\n```</answer>"),
            format!("<answer>```json\n[\"{body}\"]\n```</answer>"),
            format!("<answer>{body}</answer>"),
        ] {
            for method in METHODS {
                let start = Instant::now();
                let score = scored(method, &completion, &solution);
                let took = start.elapsed();
                assert!((0.0..=1.0).contains(&score), "{score}");
                // Release takes less than 10 ms; what is quadratic takes minutes.
                assert!(took < Duration::from_secs(1), "{method}, {piece}: {took:?}");
            }
        }
    }
}

/// Lists of boxes with what a model may get wrong.
fn near_lists() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        (-50i32..600).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| format!("{x:?}")),
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("-Infinity".to_owned()),
        Just("1e308".to_owned()),
        Just("-1e308".to_owned()),
    ];
    let item = (
        prop::collection::vec(number, 3..6),
        prop_oneof![Just("\"dog\""), Just("\"cat\""), Just("null"), Just("[]"), Just("1e999")],
    )
        .prop_map(|(corners, label)| {
            format!("{{\"bbox_2d\": [{}], \"label\": {label}}}", corners.join(","))
        });
    let items = prop::collection::vec(prop_oneof![9 => item, 1 => any::<String>()], 0..8);
    items.prop_map(|items| answer(&items))
}

proptest! {
    #[test]
    fn any_list_scores_in_range(completion in near_lists(), truth in prop::array::uniform4(0u32..500)) {
        let [x, y, width, height] = truth.map(f64::from);
        let mut truths = dogs();
        truths.push(item([x, y, x + width, y + height], "cat"));
        let solution = answer(&truths);
        let methods = [od_ap, od_ap50, od_length, map, map_strict, weighted_sum];
        let mut scores = [0.0; 6];
        for (score, method) in scores.iter_mut().zip(methods) {
            *score = method(&completion, &solution).expect("a readable solution");
            prop_assert!((0.0..=1.0 + 1e-12).contains(score), "{}", score);
        }
        let [ap, ap50, length, plain, strict, _] = scores;
        prop_assert!(ap <= ap50 + 1e-12 && length <= ap && strict <= plain + 1e-12);
        prop_assert_eq!(ap, plain);
    }
}
