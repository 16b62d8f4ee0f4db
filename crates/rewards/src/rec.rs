//! Rewards of referring-expression comprehension, customised by model family as in VLM-R1.
//!
//! | family | box in | IoU | format |
//! |---|---|---|---|
//! | Qwen | pixels of the model's input, scaled to the image | `iou_vlm_r1` | box in braces |
//! | InternVL | units of the data (0-1000) | `iou_vlm_r1` | box |
//! | GLM | units of the data | `iou_plain` | think, then answer |

use std::sync::LazyLock;

use regex::Regex;

use crate::box_format::{BoxFormat, ImageSizes};
use crate::boxes::{
    BoundingBox, find_in_answer, input_size, iou_plain, iou_vlm_r1, parse_solution,
};
use crate::error::{RewardError, shortened};
use crate::registry::{Family, Reward, RewardInput};

/// IoU of the first box in the first answer with the true box; 0 where none is found.
pub(crate) struct RecAccuracy {
    pub(crate) family: Family,
    pub(crate) patch_size: usize,
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

    fn score_row(&self, row: usize, input: &RewardInput<'_>) -> Result<f64, RewardError> {
        let truth = self.true_box(row, input.solution)?;
        let sizes = match self.family {
            Family::Qwen2_5Vl => Some(image_sizes(self.name(), self.patch_size, row, input)?),
            Family::InternVl | Family::Glm4v => None,
        };
        let Some(found) = find_in_answer(input.completion) else {
            return Ok(0.0);
        };
        Ok(match (self.family, sizes) {
            (Family::Glm4v, _) => iou_plain(found, truth),
            (_, Some(sizes)) => {
                let found = BoxFormat::ModelInput.convert(found, BoxFormat::Absolute, sizes);
                iou_vlm_r1(found, truth)
            }
            (_, None) => iou_vlm_r1(found, truth),
        })
    }
}

/// Sizes of a row's first image, as file and as the model saw it.
///
/// # Errors
/// Where the row lacks what they follow from, or a side is 0. `reward` is for the message.
pub(crate) fn image_sizes(
    reward: &str,
    patch_size: usize,
    row: usize,
    input: &RewardInput<'_>,
) -> Result<ImageSizes, RewardError> {
    let missing = |what| RewardError::NoSize {
        reward: reward.to_owned(),
        row,
        what,
    };
    let grid = *input
        .image_grid_thw
        .first()
        .ok_or_else(|| missing("image_grid_thw"))?;
    let original = *input
        .image_sizes
        .first()
        .ok_or_else(|| missing("image_size"))?;
    let empty = |what, width, height| RewardError::EmptySize {
        reward: reward.to_owned(),
        row,
        what,
        width,
        height,
    };
    let seen = input_size(grid, patch_size)
        .filter(|side| !side.contains(&0))
        .ok_or_else(|| {
            let side = |patches: usize| patches.saturating_mul(patch_size) as u64;
            empty("the model's input", side(grid[2]), side(grid[1]))
        })?;
    if original.contains(&0) {
        return Err(empty("the image", original[0].into(), original[1].into()));
    }
    Ok(ImageSizes {
        original,
        input: seen,
    })
}

impl Reward for RecAccuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        rows.iter()
            .enumerate()
            .map(|(row, input)| self.score_row(row, input).map(Some))
            .collect()
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
}

static QWEN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"<think>.*?</think>SPACES<answer>.*?\{.*INTEGERS.*\}.*?</answer>"));
static INTERNVL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"<think>.*?</think>SPACES<answer>.*?INTEGERS.*?</answer>"));
static GLM: LazyLock<Regex> = LazyLock::new(|| pattern(r"<think>.*?<answer>.*?</answer>"));

fn pattern(template: &str) -> Regex {
    let integers = r"\[\d+,SPACES\d+,SPACES\d+,SPACES\d+\]";
    let pattern = template
        .replace("INTEGERS", integers)
        .replace("SPACES", crate::boxes::SPACES);
    Regex::new(&format!("(?s){pattern}")).expect("the pattern is valid")
}

impl Reward for RecFormat {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let pattern = match self.family {
            Family::Qwen2_5Vl => &QWEN,
            Family::InternVl => &INTERNVL,
            Family::Glm4v => &GLM,
        };
        Ok(rows
            .iter()
            .map(|row| Some(f64::from(pattern.is_match(row.completion))))
            .collect())
    }
}
