//! Equality with `golden/rewards`, bit for bit.

use std::fmt::Debug;
use std::path::Path;

use rewards::answer::clean_text;
use rewards::boxes::{find_baseline, find_thinking};
use rewards::{Family, RewardInput};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Map;

use crate::{both, generic_options, input, rec_options};

pub(crate) fn cases<T: DeserializeOwned + Debug>(name: &str, at_least: usize) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../golden/rewards")
        .join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<T> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a golden case"))
        .collect();
    assert!(cases.len() >= at_least, "{name}: {} cases", cases.len());
    cases
}

#[derive(Debug, Deserialize)]
struct RecCase {
    family: String,
    completion: String,
    solution: String,
    image_size: [u32; 2],
    image_grid_thw: [usize; 3],
    patch_size: usize,
    accuracy: f64,
    format: f64,
}

#[test]
fn rec_rewards_equal_python() {
    let columns = Map::new();
    for case in cases::<RecCase>("rec.jsonl", 300) {
        let family: Family = case.family.parse().expect("a known family");
        let row = RewardInput {
            image_sizes: &[case.image_size],
            image_grid_thw: &[case.image_grid_thw],
            ..input(&case.completion, &case.solution, &columns)
        };
        let scores = both(&rec_options(family, case.patch_size))
            .score(&[row])
            .expect("scores");
        let got = [scores.per_reward[0][0], scores.per_reward[1][0]];
        assert_eq!(got, [Some(case.accuracy), Some(case.format)], "{case:?}");
        assert_eq!(scores.total, [case.accuracy + case.format]);
    }
}

#[derive(Debug, Deserialize)]
struct TextCase {
    completion: String,
    solution: String,
    cleaned: String,
    all_match: f64,
    format: f64,
}

#[test]
fn text_rewards_equal_python() {
    let set = both(&generic_options());
    let columns = Map::new();
    for case in cases::<TextCase>("text.jsonl", 250) {
        assert_eq!(clean_text(&case.completion), case.cleaned, "{case:?}");
        let scores = set
            .score(&[input(&case.completion, &case.solution, &columns)])
            .expect("scores");
        let got = [scores.per_reward[0][0], scores.per_reward[1][0]];
        assert_eq!(got, [Some(case.all_match), Some(case.format)], "{case:?}");
    }
}

#[derive(Debug, Deserialize)]
struct FindCase {
    completion: String,
    thinking: Option<[f64; 4]>,
    baseline: Option<[f64; 4]>,
}

#[test]
fn extractors_of_evaluation_equal_python() {
    for case in cases::<FindCase>("find.jsonl", 200) {
        let thinking = find_thinking(&case.completion).map(<[f64; 4]>::from);
        assert_eq!(thinking, case.thinking, "{case:?}");
        let baseline = find_baseline(&case.completion).map(<[f64; 4]>::from);
        assert_eq!(baseline, case.baseline, "{case:?}");
    }
}
