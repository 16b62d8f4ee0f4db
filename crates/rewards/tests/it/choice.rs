//! `math` by hand; `mcq`, `yes_no`, `default` and `math` on hostile text.

use std::time::{Duration, Instant};

use rewards::RewardInput;
use serde_json::Map;

use crate::{both, generic_options, input};

fn accuracy(method: &str, completion: &str, solution: &str) -> f64 {
    let columns = Map::new();
    let row =
        RewardInput { accu_reward_method: Some(method), ..input(completion, solution, &columns) };
    let scores = both(&generic_options()).score(&[row]).expect("scores");
    scores.per_reward[0][0].expect("accuracy always applies")
}

#[test]
fn math_by_hand() {
    for (completion, solution, expected) in [
        (r"<answer>\boxed{\frac{1}{2}}</answer>", "<answer> 0.5 </answer>", 1.0),
        (r"so $\boxed{7}$", "$7$", 1.0),
        (r"\boxed{x = 3\text{ cm}}", "3", 1.0),
        (r"\boxed{8}", "7", 0.0),
        ("Same words", "same words.", 1.0),
    ] {
        assert_eq!(accuracy("math", completion, solution), expected, "{completion}");
    }
}

/// Unoptimised tests run a few times slower than the 10 ms that the optimised build keeps to.
#[test]
fn a_hundred_thousand_characters_are_fast() {
    let truth = format!("<answer> {} </answer>", "ab, ".repeat(250));
    for piece in
        ["a", "A.", "A ", "yes", "\n", "<answer>", "</answer>", "\\boxed{", "/", "=", "\\frac", "9"]
    {
        let text = piece.repeat(100_000 / piece.len());
        for method in ["mcq", "yes_no", "default", "math"] {
            let start = Instant::now();
            let score = accuracy(method, &text, &truth);
            let took = start.elapsed();
            assert!((0.0..=1.0).contains(&score));
            assert!(took < Duration::from_millis(500), "{method} {piece}: {took:?}");
        }
    }
}
