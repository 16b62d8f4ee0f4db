//! The commands but `demo` that ask a model: configuration to one call.

mod doctor;
mod dry_run;
mod eval;
mod generate;
mod logprobs;
mod merge;
mod plan;
mod training;

pub use doctor::doctor;
pub use dry_run::{check_eval, check_grpo, check_plan, check_sft};
pub use eval::eval;
pub use generate::generate;
pub use logprobs::logprobs;
pub use merge::merge;
pub use plan::plan;
pub use training::{grpo, sft};

/// Says where a run is to find boxes and no reward looks at them.
fn warn_of_missing_box_reward(config: &config::GrpoConfig) {
    let missing = rewards::missing_box_reward(
        config.data.task_type.as_deref(),
        &config.rewards.reward_funcs,
        config.rewards.is_reward_customized_from_vlm_module,
    );
    // A method of comparison that was chosen is not that of texts by chance.
    if let Some(text) = missing.filter(|_| config.scoring.reward_method.is_none()) {
        base::say!("warning: {text}");
    }
}
