//! Prompts to scored groups: sampling, decoding, rewards, advantages.

use std::sync::Arc;

use base::config::GrpoConfig;
use base::{DrawKey, PreparedImage, Prompt, RolloutGroup, Sample};
use data::Processor;
use engine::{EngineError, Request, Sampler, SamplingParams};
use models::VisionLanguageModel;
use rewards::{RewardInput, RewardSet};
use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::grpo;

/// A group with the texts and single rewards of its completions, as `rollouts/` shows it.
pub(crate) struct ScoredGroup {
    pub group: RolloutGroup,
    /// `G` decoded answers, end-of-turn left out.
    pub texts: Vec<String>,
    /// `[rewards][G]`.
    pub per_reward: Vec<Vec<Option<f64>>>,
}

/// Sampling as the configuration wants it, with the ends and placeholders of the model folder.
pub(crate) fn sampling_params(config: &GrpoConfig, processor: &Processor) -> SamplingParams {
    let tokenizer = processor.tokenizer();
    SamplingParams {
        temperature: config.temperature,
        top_k: (config.top_k > 0).then_some(config.top_k),
        top_p: config.top_p,
        min_p: config.min_p.unwrap_or(0.0),
        repetition_penalty: config.repetition_penalty,
        max_new_tokens: config.max_completion_length,
        min_new_tokens: config.min_completion_length,
        eos_ids: tokenizer.eos_ids().to_vec(),
        forbidden_ids: tokenizer.placeholder_ids().to_vec(),
    }
}

/// How groups are sampled.
pub(crate) struct Sampling<'a> {
    pub params: &'a SamplingParams,
    pub max_concurrent: usize,
    /// Size of a group.
    pub num_completions: usize,
    pub share_prompt: bool,
    pub key: DrawKey,
}

impl Sampling<'_> {
    /// One request for a group or, where prompts are not shared, for each of its completions. The
    /// draws are the same.
    fn requests(&self, index: usize, prompt: &Prompt) -> Vec<Request> {
        let key = DrawKey {
            prompt: index as u64,
            ..self.key
        };
        let one = |completion: usize| Request {
            prompt: unshared(prompt),
            num_completions: 1,
            key: DrawKey {
                completion: key.completion + completion as u64,
                ..key
            },
        };
        if self.share_prompt {
            let (prompt, num_completions) = (prompt.clone(), self.num_completions);
            vec![Request {
                prompt,
                num_completions,
                key,
            }]
        } else {
            (0..self.num_completions).map(one).collect()
        }
    }
}

/// A copy whose pictures are its own, so that nothing is computed once for it and another.
pub(crate) fn unshared(prompt: &Prompt) -> Prompt {
    let own = |image: &Arc<PreparedImage>| Arc::new(PreparedImage::clone(image));
    Prompt {
        ids: prompt.ids.clone(),
        images: prompt.images.iter().map(own).collect(),
    }
}

/// Samples a group of answers to every prompt.
pub(crate) fn sample(
    model: &dyn VisionLanguageModel,
    sampling: &Sampling<'_>,
    prompts: Vec<(usize, Prompt)>,
    cancel: &dyn Fn() -> bool,
) -> Result<Vec<RolloutGroup>, TrainError> {
    let sampler = Sampler::new(model, sampling.params.clone(), sampling.max_concurrent)?;
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .flat_map(|(index, (_, prompt))| sampling.requests(index, prompt))
        .collect();
    let generation = match sampler.generate(&requests, &mut |_, _, _| (), cancel) {
        Err(EngineError::Cancelled { .. }) => return Err(TrainError::Stopped),
        other => other?,
    };
    let mut completions = generation.completions.into_iter().flatten();
    let groups = prompts.into_iter().map(|prompt| {
        let group: Vec<_> = completions
            .by_ref()
            .take(sampling.num_completions)
            .collect();
        (prompt, group)
    });
    Ok(groups
        .map(|((sample_index, prompt), completions)| RolloutGroup {
            sample_index,
            prompt,
            completions,
            rewards: Vec::new(),
            advantages: Vec::new(),
        })
        .collect())
}

/// What the rewards are told of the completions of one group.
struct Decoded {
    texts: Vec<String>,
    num_tokens: Vec<usize>,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
    source: String,
}

impl Decoded {
    fn read(
        group: &RolloutGroup,
        sample: &Sample,
        processor: &Processor,
    ) -> Result<Self, TrainError> {
        let decode = |c: &base::Completion| processor.tokenizer().decode(&c.ids, true);
        let images = &group.prompt.images;
        Ok(Self {
            texts: group
                .completions
                .iter()
                .map(decode)
                .collect::<Result<Vec<_>, _>>()?,
            num_tokens: group.completions.iter().map(num_tokens).collect(),
            image_sizes: images.iter().map(|i| i.original_size).collect(),
            image_grid_thw: images.iter().map(|i| i.grid_thw).collect(),
            source: sample.source.to_string(),
        })
    }

    fn rows<'a>(&'a self, sample: &'a Sample, step: u64) -> impl Iterator<Item = RewardInput<'a>> {
        let completions = self.texts.iter().zip(&self.num_tokens);
        completions.map(move |(text, &num_tokens)| RewardInput {
            completion: text,
            solution: &sample.solution,
            problem: Some(&sample.problem),
            accu_reward_method: sample.accu_reward_method.as_deref(),
            images: &sample.images,
            image_sizes: &self.image_sizes,
            image_grid_thw: &self.image_grid_thw,
            columns: &sample.columns,
            sample: Some(&self.source),
            step: Some(step),
            completion_tokens: Some(num_tokens),
        })
    }
}

/// Tokens without the one that ends the answer.
fn num_tokens(completion: &base::Completion) -> usize {
    let is_ended = completion.finish_reason == base::FinishReason::Stop;
    completion.ids.len() - usize::from(is_ended)
}

/// Decodes and scores groups, all in one batch, so that a reward of the user's own is asked once a
/// step; advantages are taken within each group.
pub(crate) fn score(
    groups: Vec<RolloutGroup>,
    samples: &[Sample],
    processor: &Processor,
    rewards: &RewardSet,
    step: u64,
) -> Result<Vec<ScoredGroup>, TrainError> {
    let sample_of = |group: &RolloutGroup| &samples[group.sample_index];
    let decoded: Vec<Decoded> = groups
        .iter()
        .map(|group| Decoded::read(group, sample_of(group), processor))
        .collect::<Result<_, _>>()?;
    let rows: Vec<RewardInput<'_>> = groups
        .iter()
        .zip(&decoded)
        .flat_map(|(group, decoded)| decoded.rows(sample_of(group), step))
        .collect();
    let scores = rewards.score(&rows).map_err(|source| {
        match source.row().and_then(|row| rows.get(row)?.sample) {
            Some(row) => TrainError::Scoring {
                row: row.to_owned(),
                source: Box::new(source),
            },
            None => source.into(),
        }
    })?;
    drop(rows);
    let mut scored = Vec::with_capacity(groups.len());
    let mut start = 0;
    for (mut group, decoded) in groups.into_iter().zip(decoded) {
        let range = start..start + decoded.texts.len();
        start = range.end;
        group.rewards = scores.total[range.clone()].to_vec();
        group.advantages = grpo::advantages(&group.rewards);
        scored.push(ScoredGroup {
            group,
            texts: decoded.texts,
            per_reward: scores
                .per_reward
                .iter()
                .map(|each| each[range.clone()].to_vec())
                .collect(),
        });
    }
    Ok(scored)
}

/// Mean reward, spread, each reward's own mean and what it counted since the start, as metrics.
pub(crate) fn reward_metrics(groups: &[ScoredGroup], rewards: &RewardSet) -> Map<String, Value> {
    let all: Vec<f64> = groups
        .iter()
        .flat_map(|g| g.group.rewards.clone())
        .collect();
    let spreads: Vec<f64> = groups
        .iter()
        .map(|g| grpo::mean_and_std(&g.group.rewards).1)
        .collect();
    let mut metrics = Map::new();
    // Of a step whose rows were all skipped there is no mean.
    let mean = |values: &[f64]| {
        if values.is_empty() {
            Value::Null
        } else {
            json!(grpo::mean_and_std(values).0)
        }
    };
    metrics.insert("reward".into(), mean(&all));
    metrics.insert("reward_std".into(), mean(&spreads));
    for (index, name) in rewards.names().enumerate() {
        let values: Vec<f64> = groups
            .iter()
            .flat_map(|g| g.per_reward[index].iter().flatten().copied())
            .collect();
        metrics.insert(format!("rewards/{name}"), mean(&values));
    }
    for (reward, counter, count) in rewards.counters() {
        metrics.insert(format!("rewards/{reward}/{counter}"), json!(count));
    }
    metrics
}

/// One line per completion for `rollouts/`.
pub(crate) fn rollout_rows(
    groups: &[ScoredGroup],
    samples: &[Sample],
    rewards: &RewardSet,
) -> Vec<Value> {
    let mut rows = Vec::new();
    for (index, scored) in groups.iter().enumerate() {
        let sample = &samples[scored.group.sample_index];
        for (i, completion) in scored.group.completions.iter().enumerate() {
            let single: Map<String, Value> = rewards
                .names()
                .zip(&scored.per_reward)
                .map(|(name, list)| (name.into(), json!(list[i])))
                .collect();
            rows.push(json!({
                "group": index,
                "completion_index": i,
                "sample": sample.source.to_string(),
                "images": sample.images,
                "image_sizes": scored.group.prompt.images.iter().map(|i| i.original_size).collect::<Vec<_>>(),
                "input_sizes": scored.group.prompt.images.iter().map(|i| i.input_size).collect::<Vec<_>>(),
                "prompt": sample.problem,
                "solution": sample.solution,
                "completion": scored.texts[i],
                "tokens": completion.ids.len(),
                "finish_reason": completion.finish_reason,
                "rewards": single,
                "reward": scored.group.rewards[i],
                "advantage": scored.group.advantages[i],
            }));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshared_prompts_are_requests_of_their_own_with_the_same_draws() {
        let image = PreparedImage::new(vec![0.0], [1, 1, 1], [1, 1], [1, 1]);
        let prompt = Prompt {
            ids: vec![1, 2],
            images: vec![Arc::new(image)],
        };
        let params = SamplingParams::default();
        let sampling = |share_prompt| Sampling {
            params: &params,
            max_concurrent: 8,
            num_completions: 3,
            share_prompt,
            key: DrawKey {
                seed: 1,
                step: 2,
                prompt: 0,
                completion: 0,
            },
        };
        let shared = sampling(true).requests(5, &prompt);
        assert_eq!((shared.len(), shared[0].num_completions), (1, 3));
        let own = sampling(false).requests(5, &prompt);
        assert_eq!(own.len(), 3);
        for (index, request) in own.iter().enumerate() {
            let expected = DrawKey {
                completion: index as u64,
                ..shared[0].key
            };
            assert_eq!(request.key, expected);
            assert_eq!(
                (request.num_completions, &request.prompt.ids),
                (1, &prompt.ids)
            );
            assert!(!Arc::ptr_eq(&request.prompt.images[0], &prompt.images[0]));
        }
    }
}
