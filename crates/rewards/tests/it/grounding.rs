//! `giou`, `diou`, `point_in_box` and `click` through the registry.

use std::time::{Duration, Instant};

use rewards::{RewardError, RewardFamily, RewardInput, RewardSet, family_of};
use serde_json::Map;

use crate::{generic_options, input};

const NAMES: [&str; 4] = ["giou", "diou", "point_in_box", "click"];

fn set(family: RewardFamily, patch_size: usize) -> Result<RewardSet, RewardError> {
    let names = NAMES.map(str::to_owned);
    let options = rewards::RewardOptions { family, patch_size, ..generic_options() };
    RewardSet::build(&names, None, &options)
}

fn scores(family: RewardFamily, answer: &str) -> Vec<f64> {
    let columns = Map::new();
    let completion = format!("<think>t</think><answer>{answer}</answer>");
    // The model saw 112 x 112 of a 224 x 224 image.
    let row = RewardInput {
        image_sizes: &[[224, 224]],
        ..input(&completion, "<answer> [20, 20, 40, 40] </answer>", &columns)
    };
    let scores = set(family, 14).expect("all exist").score(&[row]);
    let scores = scores.expect("scores").per_reward;
    scores.iter().map(|of_row| of_row[0].expect("applies")).collect()
}

#[test]
fn answers_are_scored_in_the_units_of_the_family() {
    assert_eq!(scores(family_of("qwen2_5_vl"), "[10, 10, 20, 20]"), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(scores(family_of("internvl"), "[20, 20, 40, 40]"), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(scores(family_of("qwen2_5_vl"), "click(15, 15)"), [-1.0, -1.0, 1.0, 1.0]);
    assert_eq!(scores(family_of("glm4v"), "click(15, 15)"), [-1.0, -1.0, 0.0, 0.0]);
    assert_eq!(scores(family_of("glm4v"), "no box"), [-1.0, -1.0, 0.0, 0.0]);
}

#[test]
fn what_is_missing_or_bad_is_an_error() {
    assert_eq!(set(family_of("qwen2_5_vl"), 0).err(), Some(RewardError::PatchSize));
    let set = set(family_of("qwen2_5_vl"), 14).expect("all exist");
    let error = set.check(3, "<answer> [20, 20, 20, 40] </answer>", None);
    let text = error.expect_err("no area").to_string();
    assert!(text.contains("reward `giou`, row 3: solution"), "{text}");
    assert!(text.contains("a box without area"), "{text}");
    let columns = Map::new();
    let row = RewardInput { image_grid_thw: &[], ..input("no box", "[20, 20, 40, 40]", &columns) };
    let text = set.score(&[row]).expect_err("no grid").to_string();
    assert!(text.contains("reward `giou`, row 0: no image_grid_thw"), "{text}");
}

#[test]
fn a_hundred_thousand_characters_are_fast() {
    for piece in
        ["click", "click(1", "[1, 2, ", "(", "1", " ", "-1.", "[1, 2, 3, 4", "click 1 a", "9"]
    {
        let answer = piece.repeat(100_000 / piece.len());
        let start = Instant::now();
        let scores = scores(family_of("qwen2_5_vl"), &answer);
        let took = start.elapsed();
        assert!(scores.iter().all(|score| (-1.0..=1.0).contains(score)), "{scores:?}");
        // A quadratic pattern takes minutes.
        assert!(took < Duration::from_secs(1), "{piece}: {took:?}");
    }
}
