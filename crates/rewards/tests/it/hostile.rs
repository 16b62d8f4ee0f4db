//! Text that no model should write: never a panic, never slow, always a number in range.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rewards::boxes::{find_baseline, find_in_answer, find_thinking};
use rewards::{BoundingBox, RewardInput, family_of};
use serde_json::Map;

use crate::{both, generic_options, input, rec_options};

const FAMILIES: [&str; 6] =
    ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "glm4v", "unheard_of"];

fn score_all(completion: &str) -> Vec<f64> {
    let columns = Map::new();
    let row = input(completion, "<answer> [1, 2, 30, 40] </answer>", &columns);
    let options = FAMILIES
        .map(|family| rec_options(family_of(family), 14))
        .into_iter()
        .chain([generic_options()]);
    options
        .flat_map(|options| {
            let scores = both(&options).score(&[row]).expect("a completion is no error");
            scores.per_reward.into_iter().flatten()
        })
        .map(|score| score.expect("these rewards always apply"))
        .collect()
}

fn assert_in_range(scores: &[f64]) {
    // Quotients of rounded products may end one rounding above 1.
    assert!(scores.iter().all(|s| (0.0..=1.0 + 1e-12).contains(s)), "{scores:?}");
}

#[test]
fn a_hundred_thousand_characters_are_fast() {
    let pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "{",
        "}",
        "[",
        "[1",
        "[1, 1, 1, ",
        "[1, 1, 1, 1]",
        "1",
        " ",
        "\n",
        "<think></think><answer>",
        "<think></think> ",
        "<think></think><answer>{[1, 1, 1, 1]",
        "<answer>{[1, 2, 3, 4",
        "-1.1",
        "[-1.1,",
        ".",
        "٣",
        "é",
    ];
    for piece in pieces {
        for (head, tail) in
            [("", ""), ("<think></think><answer>{", ""), ("<think></think><answer>", "}</answer>")]
        {
            let body = piece.repeat(100_000 / piece.chars().count());
            let text = format!("{head}{body}{tail}");
            let start = Instant::now();
            assert_in_range(&score_all(&text));
            let found = [find_in_answer(&text), find_thinking(&text), find_baseline(&text)];
            let took = start.elapsed();
            assert!(found.iter().flatten().all(is_finite));
            // A quadratic pattern takes minutes.
            assert!(took < Duration::from_secs(3), "{head}{piece}*{tail}: {took:?}");
        }
    }
}

fn is_finite(b: &BoundingBox) -> bool {
    <[f64; 4]>::from(*b).iter().all(|corner| corner.is_finite())
}

/// Texts made of what the patterns look for.
fn near_misses() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<answer>".to_owned()),
        Just("</answer>".to_owned()),
        r"[{}\[\]]",
        r"\[[0-9]{1,4}, ?[0-9]{1,4}, ?[0-9]{1,4}, ?[0-9]{1,4}\]",
        r"[-.0-9,\s]{0,6}",
        any::<String>(),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_scores_in_range(text in near_misses()) {
        assert_in_range(&score_all(&text));
    }

    #[test]
    fn any_box_scores_in_range_and_the_true_box_earns_one(
        x in 0u32..500, y in 0u32..500, width in 2u32..500, height in 2u32..500,
        guess in any::<[u16; 4]>(), grid in [1usize..40, 1usize..40], size in [1u32..3000, 1u32..3000],
    ) {
        let columns = Map::new();
        let truth = [x, y, x + width, y + height];
        let solution = format!("<answer> {truth:?} </answer>");
        let guess = format!("<answer>{{{guess:?}}}</answer>");
        let exact = format!("<answer>{{{truth:?}}}</answer>");
        let grids = [[1, grid[0], grid[1]]];
        let sizes = [size];
        for family in FAMILIES.map(family_of) {
            let set = both(&rec_options(family, 14));
            let row = RewardInput {
                image_sizes: &sizes,
                image_grid_thw: &grids,
                ..input(&guess, &solution, &columns)
            };
            assert_in_range(&set.score(&[row]).expect("scores").total);
            if family.data_alike {
                let row = RewardInput { completion: &exact, ..row };
                prop_assert_eq!(set.score(&[row]).expect("scores").total, [1.0]);
            }
        }
    }
}
