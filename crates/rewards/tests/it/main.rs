//! Rewards against Python, by hand, and on hostile text.

mod choice;
mod detection;
mod detection_golden;
mod explain;
mod fuzz;
mod golden;
mod grounding;
mod hostile;
mod http;
mod judge;
mod orphans;
mod plugin_errors;
mod plugins;
mod registry;
mod stream;
mod units;
mod untrusted;
mod vlm_r1;

use rewards::{
    BoxUnits, OverlongOptions, PluginOptions, RewardFamily, RewardInput, RewardOptions, RewardSet,
};
use serde_json::{Map, Value};

pub(crate) fn rec_options(family: RewardFamily, patch_size: usize) -> RewardOptions {
    RewardOptions {
        family,
        task_type: Some("rec".to_owned()),
        is_reward_customized_from_vlm_module: true,
        patch_size,
        box_units: BoxUnits::default(),
        plugins: PluginOptions::default(),
        overlong: OverlongOptions::default(),
    }
}

pub(crate) fn generic_options() -> RewardOptions {
    RewardOptions {
        family: RewardFamily::WITHOUT_MODEL,
        task_type: None,
        is_reward_customized_from_vlm_module: false,
        patch_size: 14,
        box_units: BoxUnits::default(),
        plugins: PluginOptions::default(),
        overlong: OverlongOptions::default(),
    }
}

pub(crate) fn both(options: &RewardOptions) -> RewardSet {
    RewardSet::build(&["accuracy".to_owned(), "format".to_owned()], None, options)
        .expect("both rewards exist")
}

pub(crate) fn input<'a>(
    completion: &'a str,
    solution: &'a str,
    columns: &'a Map<String, Value>,
) -> RewardInput<'a> {
    RewardInput {
        accu_reward_method: Some("all_match"),
        image_sizes: &[[112, 112]],
        image_grid_thw: &[[1, 8, 8]],
        ..RewardInput::new(completion, solution, columns)
    }
}
