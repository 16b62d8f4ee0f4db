//! Rewards that compare the box, point or click of a completion with one true box: REC's `accuracy`
//! and the rewards of [`crate::grounding`].

use python::text::strip;

use crate::answer::first_answer;
use crate::box_format::Comparison;
use crate::boxes::{
    BoundingBox, find_decimals_in_answer, find_in_answer, parse_solution, solution_text,
};
use crate::error::{RewardError, shortened};
use crate::explain::{Explanation, FoundBox, MatchedBoxes};
use crate::families::BoxIou;
use crate::grounding::{contains, diou, find_click, find_point, giou};
use crate::registry::{Reward, RewardInput};

/// What a reward reads from the completion and how it compares it with the true box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// As the model family counts it; 0 where no box is found.
    Iou(BoxIou),
    Giou,
    Diou,
    PointInBox,
    Click,
}

/// Names of the rewards beyond VLM-R1's.
pub(crate) const NAMES: [&str; 4] = ["giou", "diou", "point_in_box", "click"];

const RULES: [Rule; 4] = [Rule::Giou, Rule::Diou, Rule::PointInBox, Rule::Click];

/// A reward of [`NAMES`], or the `accuracy` of REC.
pub(crate) struct BoxReward {
    name: &'static str,
    rule: Rule,
    units: Comparison,
}

impl BoxReward {
    /// The reward called `name`; none where it is not one of [`NAMES`].
    pub(crate) fn by_name(
        name: &str,
        units: Comparison,
    ) -> Option<Result<Box<dyn Reward>, RewardError>> {
        let index = NAMES.iter().position(|known| *known == name)?;
        Some(Self::boxed(NAMES[index], RULES[index], units))
    }

    /// IoU of the first box in the first answer with the true box; 0 where none is found.
    pub(crate) fn rec_accuracy(
        iou: BoxIou,
        units: Comparison,
    ) -> Result<Box<dyn Reward>, RewardError> {
        Self::boxed("accuracy", Rule::Iou(iou), units)
    }

    fn boxed(
        name: &'static str,
        rule: Rule,
        units: Comparison,
    ) -> Result<Box<dyn Reward>, RewardError> {
        Ok(Box::new(Self { name, rule, units: units.checked()? }))
    }

    fn true_box(&self, row: usize, solution: &str) -> Result<BoundingBox, RewardError> {
        let is_usable =
            |b: &BoundingBox| matches!(self.rule, Rule::Iou(_)) || b.x1 < b.x2 && b.y1 < b.y2;
        let parsed = parse_solution(solution)
            .and_then(|b| is_usable(&b).then_some(b).ok_or("a box without area".into()));
        parsed.map_err(|reason| RewardError::Solution {
            reward: self.name.to_owned(),
            row,
            solution: shortened(solution),
            reason,
        })
    }

    fn find(&self, completion: &str) -> Option<BoundingBox> {
        match self.rule {
            Rule::Iou(_) | Rule::Giou | Rule::Diou if self.units.has_decimals() => {
                find_decimals_in_answer(completion)
            }
            Rule::Iou(_) | Rule::Giou | Rule::Diou => find_in_answer(completion),
            Rule::PointInBox => find_point(completion).map(point),
            Rule::Click => find_click(completion).map(point),
        }
    }

    fn compare(&self, row: usize, input: &RewardInput<'_>) -> Result<(BoxPair, f64), RewardError> {
        let truth = self.true_box(row, input.solution)?;
        let units = self.units.of_row(self.name, row, input)?;
        let truth = units.solution.apply(truth);
        let found = self.find(input.completion).map(|found| units.answer.apply(found));
        let score = match self.rule {
            Rule::Iou(iou) => found.map_or(0.0, |found| iou.of(found, truth)),
            Rule::Giou => found.map_or(-1.0, |found| giou(found, truth)),
            Rule::Diou => found.map_or(-1.0, |found| diou(found, truth)),
            Rule::PointInBox | Rule::Click => {
                f64::from(found.is_some_and(|found| contains(truth, [found.x1, found.y1])))
            }
        };
        Ok((BoxPair { found, truth }, score))
    }

    fn reason(&self, found: Option<BoundingBox>, score: f64) -> String {
        let units = self.units.described();
        let Some(BoundingBox { x1: x, y1: y, .. }) = found else {
            let what = match self.rule {
                Rule::Iou(_) | Rule::Giou | Rule::Diou => "box",
                Rule::PointInBox => "point",
                Rule::Click => "click",
            };
            return format!("no {what} in the answer");
        };
        let place = if score > 0.0 { "inside" } else { "outside" };
        match self.rule {
            Rule::Iou(_) => format!("IoU {score:.3} in {units}"),
            Rule::Giou => format!("generalised IoU {score:.3} in {units}"),
            Rule::Diou => format!("distance IoU {score:.3} in {units}"),
            Rule::PointInBox => format!("({x:.1}, {y:.1}) is {place} the box, in {units}"),
            Rule::Click => format!("clicks {place} the box at ({x:.1}, {y:.1}), in {units}"),
        }
    }
}

impl Reward for BoxReward {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter().enumerate().map(|(row, input)| Ok(Some(self.compare(row, input)?.1))).collect()
    }

    fn explain(&self, row: &RewardInput<'_>) -> Result<Option<Explanation>, RewardError> {
        let (pair, score) = self.compare(0, row)?;
        let mut explanation = pair.explained(row, score, self.reason(pair.found, score));
        if let (Rule::Iou(_), Some(_)) = (self.rule, pair.found) {
            explanation.matches = vec![MatchedBoxes { predicted: 0, truth: 0, iou: score }];
        }
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

/// A box of no size.
fn point([x, y]: [f64; 2]) -> BoundingBox {
    [x, y, x, y].into()
}

/// The box of an answer and the true one, in the units in which they are compared.
struct BoxPair {
    found: Option<BoundingBox>,
    truth: BoundingBox,
}

impl BoxPair {
    /// The explanation of this pair.
    fn explained(&self, input: &RewardInput<'_>, score: f64, reason: String) -> Explanation {
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
