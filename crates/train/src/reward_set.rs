//! The rewards of a run, as its configuration names them.

use std::path::{Path, PathBuf};

use base::model_folder::read_family;
use base::run_folder::StopFlag;
use config::GrpoConfig;
use data::DataError;
use data::image::{ImageOptions, ImageProcessor, resize_backend};
use models::ModelError;
use rewards::{RewardError, RewardFamily, RewardOptions, RewardSet, family_of};

use crate::TrainError;

/// Builds them for the model of `model_dir`; none waits long once `stop` is raised.
pub(crate) fn build(
    config: &GrpoConfig,
    model_dir: &Path,
    stop: &StopFlag,
) -> Result<RewardSet, TrainError> {
    let family = family_of(&read_family(model_dir).map_err(ModelError::from)?);
    let image_options = ImageOptions::new(resize_backend(config.data.image_processor));
    let images = ImageProcessor::from_dir(model_dir, &image_options).map_err(DataError::from)?;
    let mut options = options(config, family, images.kind().patch_size() as usize);
    options.plugins.stop = stop.clone();
    let rewards = &config.rewards;
    Ok(RewardSet::build(&rewards.reward_funcs, rewards.reward_weights.as_deref(), &options)?)
}

fn options(config: &GrpoConfig, family: RewardFamily, patch_size: usize) -> RewardOptions {
    let scoring = &config.scoring;
    let most = scoring.overlong_max_tokens.unwrap_or(config.sampling.max_completion_length);
    let mut options = RewardOptions::new(&config.rewards, family, patch_size, most);
    options.task_type = config.data.task_type.clone();
    options.plugins.batch = scoring.reward_batch;
    let cache = scoring.judge_cache.as_deref().map(PathBuf::from);
    let of_run = || Path::new(&config.run.output_dir).join("judge_cache");
    options.plugins.judge.cache = Some(cache.unwrap_or_else(of_run));
    options
}

/// What is wrong with the rewards that the configuration names, before there is a model: names, weights, and where
/// `starts` those of one's own, each of which is started and ended.
pub fn reward_problems(config: &GrpoConfig, starts: bool) -> Vec<RewardError> {
    // Names and weights are the same whatever the model.
    let mut options = options(config, RewardFamily::WITHOUT_MODEL, 14);
    // Nothing is written before the run begins.
    options.plugins.judge.cache = None;
    let names = &config.rewards.reward_funcs;
    let built_in = |name: &&String| !name.contains([':', '/']) && *name != "llm";
    let tried = names.iter().filter(|name| starts || built_in(name));
    let build = |name: &String| RewardSet::build(std::slice::from_ref(name), None, &options);
    let mut problems: Vec<RewardError> = tried.filter_map(|name| build(name).err()).collect();
    let repeated = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
    problems.extend(repeated.map(|(_, name)| RewardError::RepeatedReward { name: name.clone() }));
    let weights = config.rewards.reward_weights.as_ref().map(Vec::len);
    if let Some(weights) = weights.filter(|weights| *weights != names.len()) {
        let rewards = names.len();
        problems.push(RewardError::WeightCount { weights, rewards });
    }
    if names.is_empty() {
        problems.extend(RewardSet::build(&[], None, &options).err());
    }
    problems
}
