//! The validation rows, scored by the rewards of the run.

use base::DrawKey;
use config::GrpoConfig;
use data::{ImageCache, load_prompt};
use engine::SamplingParams;
use rewards::RewardSet;
use serde_json::{Map, Value};

use crate::TrainError;
use crate::dataset::{Dataset, Drawn, OwnPrompt, bad_row};
use crate::rollout::{self, Sampling, Scoring};
use crate::session::Session;
use crate::step_scores::reward_metrics;

/// Scores greedy completions of the validation rows; nothing without any.
///
/// # Errors
/// [`TrainError::Stopped`] where the run is to end.
pub(crate) fn score(
    session: &Session<'_>,
    dataset: &Dataset,
    rewards: &RewardSet,
    config: &GrpoConfig,
    sampling: &SamplingParams,
) -> Result<Map<String, Value>, TrainError> {
    if dataset.validation.is_empty() {
        return Ok(Map::new());
    }
    let cache = ImageCache::new(0);
    let greedy = SamplingParams { temperature: 0.0, ..sampling.clone() };
    let sampling = Sampling {
        params: &greedy,
        max_concurrent: config.rollout.max_concurrent_completions,
        decoding: session.settings.decoding,
        num_completions: 1,
        share_prompt: true,
        key: DrawKey { seed: config.optimizer.seed, step: 0, prompt: 0, completion: 0 },
    };
    let stop = || session.stop.is_raised();
    let mut groups = Vec::with_capacity(dataset.validation.len());
    // No more prompts in memory than completions in a batch.
    let validation = &dataset.validation;
    let template = session.settings.template(dataset.processor.family())?;
    let scoring = Scoring { rewards, dataset, examples: validation, step: session.progress.step };
    for start in (0..validation.len()).step_by(sampling.max_concurrent.max(1)) {
        let rows = validation.len().min(start + sampling.max_concurrent.max(1)) - start;
        let portions = session.deal(1).portions(rows);
        let own = session.together("validation rows", || {
            let own = portions.into_iter().map(|portion| {
                let example = validation.get(start + portion.row)?;
                let prompt = load_prompt(&example, &dataset.processor, &template, &cache)
                    .map_err(|cause| bad_row(&example, cause))?;
                Ok(OwnPrompt {
                    index: portion.row,
                    completions: portion.completions,
                    example_index: start + portion.row,
                    prompt,
                })
            });
            own.collect::<Result<Vec<_>, TrainError>>()
        })?;
        let drawn = Drawn { own, ready: rows, rows };
        groups.extend(rollout::roll_out(session, &sampling, &scoring, drawn, &stop)?.all);
    }
    let mut scores = reward_metrics(&groups, rewards);
    scores.remove("reward_std");
    let named = scores.into_iter();
    Ok(named.map(|(name, value)| (format!("eval/{name}"), value)).collect())
}
