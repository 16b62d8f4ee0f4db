//! The rewards of a run, as its configuration names them.

use std::path::{Path, PathBuf};

use base::model_folder::read_family;
use base::run_folder::StopFlag;
use config::GrpoConfig;
use data::DataError;
use data::image::ImageProcessorConfig;
use models::ModelError;
use rewards::{
    BoxUnits, Family, JudgeOptions, OverlongOptions, PluginOptions, RewardError, RewardOptions,
    RewardSet,
};

use crate::TrainError;

/// Builds them for the model of `model_dir`; none waits long once `stop` is raised.
pub(crate) fn build(
    config: &GrpoConfig,
    model_dir: &Path,
    stop: &StopFlag,
) -> Result<RewardSet, TrainError> {
    let family = read_family(model_dir).map_err(ModelError::from)?;
    let options = RewardOptions {
        family: family.parse()?,
        task_type: config.task_type.clone(),
        is_reward_customized_from_vlm_module: config.is_reward_customized_from_vlm_module,
        patch_size: ImageProcessorConfig::from_dir(model_dir).map_err(DataError::from)?.patch_size
            as usize,
        box_units: BoxUnits::from_flags(config.box_format, config.solution_box_format),
        plugins: plugin_options(config, stop),
        overlong: OverlongOptions::new(
            config.overlong_max_tokens.unwrap_or(config.max_completion_length),
            config.overlong_cache_tokens,
        ),
    };
    Ok(RewardSet::build(&config.reward_funcs, config.reward_weights.as_deref(), &options)?)
}

fn plugin_options(config: &GrpoConfig, stop: &StopFlag) -> PluginOptions {
    let path = |text: &Option<String>| text.as_deref().map(PathBuf::from);
    let cache = || Path::new(&config.output_dir).join("judge_cache");
    PluginOptions {
        workers: config.reward_workers,
        batch: config.reward_batch,
        timeout_secs: config.reward_timeout_secs,
        retry_secs: config.reward_retry_secs,
        stop: stop.clone(),
        python: config.reward_python.clone(),
        api_key_file: path(&config.reward_api_key_file),
        judge: JudgeOptions {
            model: config.judge_model.clone(),
            prompt: path(&config.judge_prompt),
            images: config.judge_images,
            concurrency: config.judge_concurrency,
            max_failed: config.judge_max_failed,
            cache: Some(path(&config.judge_cache).unwrap_or_else(cache)),
            ..JudgeOptions::default()
        },
    }
}

/// What is wrong with the rewards that the configuration names, before there is a model: names, weights, and where
/// `starts` those of one's own, each of which is started and ended.
pub fn reward_problems(config: &GrpoConfig, starts: bool) -> Vec<RewardError> {
    let mut options = RewardOptions {
        // The only family that is trained, and its patches.
        family: Family::Qwen2_5Vl,
        task_type: config.task_type.clone(),
        is_reward_customized_from_vlm_module: config.is_reward_customized_from_vlm_module,
        patch_size: 14,
        box_units: BoxUnits::from_flags(config.box_format, config.solution_box_format),
        plugins: plugin_options(config, &StopFlag::new()),
        overlong: OverlongOptions::new(
            config.overlong_max_tokens.unwrap_or(config.max_completion_length),
            config.overlong_cache_tokens,
        ),
    };
    // Nothing is written before the run begins.
    options.plugins.judge.cache = None;
    let names = &config.reward_funcs;
    let built_in = |name: &&String| !name.contains([':', '/']) && *name != "llm";
    let tried = names.iter().filter(|name| starts || built_in(name));
    let build = |name: &String| RewardSet::build(std::slice::from_ref(name), None, &options);
    let mut problems: Vec<RewardError> = tried.filter_map(|name| build(name).err()).collect();
    let repeated = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
    problems.extend(repeated.map(|(_, name)| RewardError::RepeatedReward { name: name.clone() }));
    let weights = config.reward_weights.as_ref().map(Vec::len);
    if let Some(weights) = weights.filter(|weights| *weights != names.len()) {
        let rewards = names.len();
        problems.push(RewardError::WeightCount { weights, rewards });
    }
    if names.is_empty() {
        problems.extend(RewardSet::build(&[], None, &options).err());
    }
    problems
}
