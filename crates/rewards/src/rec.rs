//! Rewards of referring-expression comprehension, customised by model family as in VLM-R1.
//!
//! | family | box in | IoU | format |
//! |---|---|---|---|
//! | Qwen | pixels of the model's input, scaled to the image | `iou_vlm_r1` | box in braces |
//! | InternVL | units of the data (0-1000) | `iou_vlm_r1` | box |
//! | GLM | units of the data | `iou_plain` | think, then answer |
//!
//! Units are those of the family unless [`BoxUnits`](crate::BoxUnits) says otherwise.

use std::sync::LazyLock;

use python::text::strip;

use crate::answer::first_answer;
use crate::box_format::Comparison;
use crate::boxes::{
    BoundingBox, find_decimals_in_answer, find_in_answer, iou_plain, iou_vlm_r1, parse_solution,
    solution_text,
};
use crate::error::{RewardError, shortened};
use crate::explain::{Explanation, FoundBox, MatchedBoxes};
use crate::format_pattern::FormatPattern;
use crate::registry::{Reward, RewardInput};
use config::Family;

/// IoU of the first box in the first answer with the true box; 0 where none is found.
pub(crate) struct RecAccuracy {
    pub(crate) family: Family,
    pub(crate) units: Comparison,
}

/// The box of an answer and the true one, in the units in which they are compared.
pub(crate) struct BoxPair {
    pub(crate) found: Option<BoundingBox>,
    pub(crate) truth: BoundingBox,
}

impl BoxPair {
    /// The pair with what became of it.
    pub(crate) fn explained(
        &self,
        input: &RewardInput<'_>,
        score: f64,
        reason: String,
    ) -> Explanation {
        let boxed = |corners| FoundBox { corners, label: String::new() };
        let answer = first_answer(input.completion);
        Explanation {
            score: Some(score),
            answer: answer.map(|text| strip(text).to_owned()),
            truth: Some(solution_text(input.solution).to_owned()),
            reason: match answer {
                Some(_) => reason,
                None => "no `<answer>...</answer>`".to_owned(),
            },
            predicted: self.found.map(boxed).into_iter().collect(),
            truths: vec![boxed(self.truth)],
            matches: Vec::new(),
        }
    }
}

/// The first box of the first answer, in whole numbers unless the units need decimals.
pub(crate) fn find(units: &Comparison, completion: &str) -> Option<BoundingBox> {
    match units.has_decimals() {
        true => find_decimals_in_answer(completion),
        false => find_in_answer(completion),
    }
}

impl RecAccuracy {
    fn true_box(&self, row: usize, solution: &str) -> Result<BoundingBox, RewardError> {
        parse_solution(solution).map_err(|reason| RewardError::Solution {
            reward: self.name().to_owned(),
            row,
            solution: shortened(solution),
            reason,
        })
    }

    fn compare(&self, row: usize, input: &RewardInput<'_>) -> Result<(BoxPair, f64), RewardError> {
        let truth = self.true_box(row, input.solution)?;
        let units = self.units.of_row(self.name(), row, input)?;
        let pair = BoxPair {
            found: find(&self.units, input.completion).map(|b| units.answer.apply(b)),
            truth: units.solution.apply(truth),
        };
        let iou = match self.family {
            Family::Qwen2_5Vl | Family::InternVl => iou_vlm_r1,
            Family::Glm4v => iou_plain,
        };
        let iou = pair.found.map_or(0.0, |found| iou(found, pair.truth));
        Ok((pair, iou))
    }
}

impl Reward for RecAccuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter().enumerate().map(|(row, input)| Ok(Some(self.compare(row, input)?.1))).collect()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let (pair, iou) = self.compare(0, row)?;
        let reason = match pair.found {
            Some(_) => format!("IoU {iou:.3} in {}", self.units.described()),
            None => "no box in the answer".to_owned(),
        };
        let mut explanation = pair.explained(row, iou, reason);
        explanation.matches =
            pair.found.map(|_| MatchedBoxes { predicted: 0, truth: 0, iou }).into_iter().collect();
        Ok(Some(explanation))
    }

    fn check(
        &self,
        row: usize,
        solution: &str,
        _accu_reward_method: Option<&str>,
    ) -> Result<(), RewardError> {
        self.true_box(row, solution).map(drop)
    }
}

/// 1 where the family's pattern is found anywhere in the completion, else 0.
pub(crate) struct RecFormat {
    pub(crate) family: Family,
    /// Whether the model writes decimals.
    pub(crate) has_decimals: bool,
}

const THOUGHT: [(&str, &str); 3] = [
    ("<think>", "no `<think>`"),
    (".*?</think>", "no `</think>` after `<think>`"),
    ("SPACES<answer>", "no `<answer>` right after `</think>`"),
];
const IN_BRACES: [(&str, &str); 1] = [(r".*?\{", "no `{` in the answer")];
const BOX: [(&str, &str); 1] = [(".*INTEGERS", "no box of four whole numbers where it belongs")];
const DECIMAL_BOX: [(&str, &str); 1] = [(".*NUMBERS", "no box of four numbers where it belongs")];
const LAZY_BOX: [(&str, &str); 1] = [(".*?INTEGERS", BOX[0].1)];
const LAZY_DECIMAL_BOX: [(&str, &str); 1] = [(".*?NUMBERS", DECIMAL_BOX[0].1)];
const BRACES_CLOSE: [(&str, &str); 1] = [(r".*\}", "no `}` after the box")];
const CLOSE: [(&str, &str); 1] = [(".*?</answer>", "no `</answer>` after it")];

static QWEN: LazyLock<[FormatPattern; 2]> = LazyLock::new(|| {
    [&BOX, &DECIMAL_BOX].map(|bracket| {
        let links = [&THOUGHT[..], &IN_BRACES, bracket, &BRACES_CLOSE, &CLOSE];
        FormatPattern::new(&links.concat())
    })
});
static INTERNVL: LazyLock<[FormatPattern; 2]> = LazyLock::new(|| {
    [&LAZY_BOX, &LAZY_DECIMAL_BOX]
        .map(|bracket| FormatPattern::new(&[&THOUGHT[..], bracket, &CLOSE].concat()))
});
static GLM: LazyLock<FormatPattern> = LazyLock::new(|| {
    let links = [THOUGHT[0], (".*?<answer>", "no `<answer>` after `<think>`")];
    FormatPattern::new(&[&links[..], &CLOSE].concat())
});

impl RecFormat {
    fn pattern(&self) -> &'static FormatPattern {
        let index = usize::from(self.has_decimals);
        match self.family {
            Family::Qwen2_5Vl => &QWEN[index],
            Family::InternVl => &INTERNVL[index],
            Family::Glm4v => &GLM,
        }
    }
}

impl Reward for RecFormat {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let pattern = self.pattern();
        let scores = rows.iter().map(|row| Some(pattern.score(row.completion)));
        Ok(scores.collect())
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        Ok(Some(self.pattern().explained(row.completion)))
    }
}
