//! Extractors of evaluation equal `golden/rewards/find.jsonl`, bit for bit.

use rewards::boxes::{find_baseline, find_thinking};
use serde::Deserialize;
use testing::golden_cases;

#[derive(Debug, Deserialize)]
struct FindCase {
    completion: String,
    thinking: Option<[f64; 4]>,
    baseline: Option<[f64; 4]>,
}

#[test]
fn extractors_of_evaluation_equal_python() {
    for case in golden_cases::<FindCase>("rewards/find.jsonl", 200) {
        let thinking = find_thinking(&case.completion).map(<[f64; 4]>::from);
        assert_eq!(thinking, case.thinking, "{case:?}");
        let baseline = find_baseline(&case.completion).map(<[f64; 4]>::from);
        assert_eq!(baseline, case.baseline, "{case:?}");
    }
}
