//! Extractors of evaluation equal `golden/rewards/find.jsonl`, bit for bit; the reading of such files.

use std::fmt::Debug;
use std::path::Path;

use rewards::boxes::{find_baseline, find_thinking};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub(crate) fn cases<T: DeserializeOwned + Debug>(name: &str, at_least: usize) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/rewards").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<T> =
        text.lines().map(|line| serde_json::from_str(line).expect("a golden case")).collect();
    assert!(cases.len() >= at_least, "{name}: {} cases", cases.len());
    cases
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
