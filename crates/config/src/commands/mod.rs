//! What each command takes: sections of settings, and what they demand of one another.

mod data;
mod demo;
mod doctor;
mod eval;
mod evaluations;
mod generate;
mod grpo;
mod launch;
mod logprobs;
mod merge;
mod plan;
mod reward;
mod sft;

pub use data::{DataCheckConfig, DataConvertConfig, DataFormat, RowPer};
pub use demo::{DemoConfig, DemoSection};
pub use doctor::DoctorConfig;
pub use eval::{
    EvalConfig, EvalDecodingSection, EvalModelSection, EvalRewardSection, EvalRunSection,
    EvalSamplingSection, EvalTask, Extractor, LabelList, ScoringSection, TaskSection,
};
pub use evaluations::{NamedEvaluation, read_evaluations};
pub use generate::{
    AskedSection, DecodingSection, GenerateConfig, GenerationSection, QuestionSection,
};
pub use grpo::{GrpoConfig, TrainingSections};
pub use launch::{LaunchConfig, LaunchSection};
pub use logprobs::{LogprobsConfig, RowSection};
pub use merge::MergeConfig;
pub use plan::{PlanConfig, PlanSection};
pub use reward::{RewardConfig, RewardRowSection, RewardTaskSection, ServerSection, ShownSection};
pub use sft::{SftConfig, SftSection};
