//! Rewards: scores of completions, given the true answers.
//!
//! [`RewardSet`] is built from the names of `--reward_funcs` and scores rows; [`boxes`] holds the
//! box arithmetic and the extractors that evaluation shares. Semantics are those of VLM-R1
//! (commit 90052f4) where it has the reward; Python's regex and string rules are kept, because
//! the same completion must earn the same reward. All patterns run in linear time.

pub mod answer;
mod box_format;
mod box_reward;
mod box_warning;
pub mod boxes;
mod choice;
mod count;
pub mod detection;
mod error;
mod explain;
mod families;
mod format_pattern;
mod generic;
pub mod grounding;
mod json_repair;
mod json_valid;
pub mod length;
mod overlong;
mod plugins;
mod rec;
mod registry;
pub mod repetition;
pub mod similarity;
mod stream;
mod text;
mod verdict;

pub use box_format::{BoxUnits, ImageSizes};
pub use box_warning::{BoxAnswers, compares_boxes, missing_box_reward};
pub use boxes::BoundingBox;
pub use config::{BoxFormat, RewardBatch};
pub use error::RewardError;
pub use explain::{Explanation, FoundBox, MatchedBoxes};
pub use families::{BoxForm, BoxIou, RewardFamily, family_of};
pub use overlong::{OverlongOptions, overlong};
pub use plugins::{ApiKey, JudgeOptions, PluginOptions};
pub use registry::{
    Reward, RewardInput, RewardOptions, RewardSet, Scores, ScoringTime, accuracy_methods,
};
pub use stream::{AskedScores, ScoringQueue, StepSize};
