//! GRPO: one step is a rollout, its rewards and advantages, and the updates by its loss. Start with [`Grpo::step`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base::metrics::Command;
use base::run_folder::StopFlag;
use base::{DrawKey, Example};
use config::GrpoConfig;
use data::EpochOrder;
use engine::SamplingParams;
use models::VisionLanguageModel;
use rewards::{BoxAnswers, RewardSet};
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

use crate::TrainError;
use crate::algorithm::Algorithm;
use crate::algorithm::advantage::{GroupRewards, STD_EPSILON, mean_and_std};
use crate::bad_step::{NonFinite, TokenRecord, number, numbers};
use crate::completion_batch::{CompletionBatch, CompletionId, GroupPart};
use crate::dataset::{Dataset, Drawn, PromptSource};
use crate::observer::Observer;
use crate::policy;
use crate::ranks::{Place, Ranks};
use crate::reference::Reference;
use crate::resume::RunShape;
use crate::reward_set;
use crate::rollout::{self, Groups, Sampling, ScoredGroup, Scoring};
use crate::rollout_rows;
use crate::session::{Outcome, Session, Start};
use crate::settings::Settings;
use crate::step_batch::{
    GrpoMicroBatch, KnownLogprobs, Logprobs, PolicyStats, UpdateInputs, choose_tokens,
    counting_parts, update_batches,
};
use crate::step_scores::{self, GroupScores, reward_metrics};
use crate::training_loop::{self, Method};
use crate::validation;

/// Trains the model of `model_dir` by GRPO, from the start or from the newest checkpoint of the run
/// folder, until all steps are done or `stop` is raised.
///
/// # Errors
/// Bad settings, data or weights before the first step; a reward that fails, a number that is not
/// finite, a full disk during it. What was checkpointed stands.
pub fn train_grpo(
    config: &GrpoConfig,
    model_dir: &Path,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    train_grpo_on(&Ranks::alone(), config, model_dir, None, observer, stop)
}

/// As [`train_grpo`], by rewards of one's own; `reward_funcs` and `reward_weights` are not read.
///
/// # Errors
/// As [`train_grpo`].
pub fn train_grpo_with_rewards(
    config: &GrpoConfig,
    model_dir: &Path,
    rewards: RewardSet,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    train_grpo_on(&Ranks::alone(), config, model_dir, Some(rewards), observer, stop)
}

/// As [`train_grpo`], as one of several ranks.
///
/// # Errors
/// As [`train_grpo`], and those of other ranks.
pub fn train_grpo_on(
    ranks: &Ranks,
    config: &GrpoConfig,
    model_dir: &Path,
    rewards: Option<RewardSet>,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    let rewards = rewards.map_or_else(|| reward_set::build(config, model_dir, stop), Ok)?;
    train(ranks, config, model_dir, rewards, observer, stop)
}

fn train(
    ranks: &Ranks,
    config: &GrpoConfig,
    model_dir: &Path,
    rewards: RewardSet,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    let settings = Settings::of_grpo(config, ranks)?;
    let boxes = BoxAnswers::new(
        config.data.task_type.as_deref(),
        &config.rewards.reward_funcs,
        config.rewards.is_reward_customized_from_vlm_module,
    );
    let check = |example: &Example| {
        let method = example.accu_reward_method.as_deref();
        boxes.add(&example.solution, method);
        rewards.check(example.source.line, &example.solution, method).map_err(|source| {
            TrainError::Scoring { row: example.source.to_string(), source: Box::new(source) }
        })
    };
    let mut dataset = Dataset::load(&settings, model_dir, check)?;
    dataset.notices.extend(boxes.warning().map(|text| format!("warning: {text}")));
    dataset.processor.expect_answers(config.sampling.max_completion_length);
    let shape = StepShape::of(config, ranks.world.size());
    let order = Arc::new(EpochOrder::new(
        dataset.examples.len(),
        shape.prompts_per_step(),
        config.optimizer.seed,
    ));
    let total = settings.total_steps(order.steps_per_epoch());
    let algorithm = Algorithm::new(config, rewards.weights().to_vec());
    let mut session = Session::open(
        config,
        Start {
            settings,
            model_dir,
            dataset: &dataset,
            total_steps: total,
            shape: shape.of_run(config, ranks.world.size()),
            order: &order,
            observer,
            stop: stop.clone(),
            ranks: ranks.clone(),
            command: Command::Grpo,
        },
    )?;
    let has_adapters = session.model.parameters().lora.is_some();
    let reference = (algorithm.needs_reference && !has_adapters)
        .then(|| {
            let stage = session.settings.sections.zero_stage(ranks.world.size());
            let ranks = (ranks.tensors.clone(), stage);
            Reference::load(model_dir, &session.settings, session.model.as_ref(), ranks)
        })
        .transpose()?;
    if algorithm.first_loss_is_zero() && session.progress.step == 0 {
        session.log(
            "with --beta 0 the loss of the first update on a batch is 0 by construction: each ratio is 1 and a \
             group's advantages sum to 0; the gradient is not 0",
        );
    }
    let left = total - session.progress.step.min(total);
    let bound = (algorithm.resamples == 0).then_some(left);
    let per_row = config.algorithm.num_generations;
    let prompts = PromptSource::new(&dataset, &session, order, bound, per_row)?;
    if let Some(reference) = reference.as_ref().filter(|_| config.algorithm.sync_ref_model) {
        session.checkpoints.save_reference(reference)?;
    }
    let mut grpo = Grpo {
        sampling: rollout::sampling_params(config, &dataset.processor),
        config,
        algorithm,
        shape,
        dataset,
        prompts,
        rewards,
        reference,
        has_warned_small_spread: false,
    };
    training_loop::train(session, &mut grpo)
}

/// Prompts of a step, on all ranks.
#[derive(Clone, Copy)]
pub(crate) struct StepShape {
    /// Of an update.
    per_update: usize,
    /// Of a rollout: what statistics over a batch are taken of.
    per_rollout: usize,
}

impl StepShape {
    /// That of `ranks` ranks, each of which gives its completions.
    pub fn of(config: &GrpoConfig, ranks: usize) -> Self {
        let micro_batch = config.optimizer.per_device_train_batch_size.saturating_mul(ranks);
        let accumulation = config.optimizer.gradient_accumulation_steps;
        let generation = config.algorithm.steps_per_generation.unwrap_or(accumulation);
        let prompts =
            |passes: usize| (micro_batch * passes).div_ceil(config.algorithm.num_generations);
        StepShape { per_update: prompts(accumulation), per_rollout: prompts(generation) }
    }

    fn of_run(self, config: &GrpoConfig, ranks: usize) -> RunShape {
        let completions = |prompts: usize| (prompts * config.algorithm.num_generations) as u64;
        RunShape {
            ranks: ranks as u64,
            per_update: completions(self.per_update),
            per_rollout: completions(self.per_rollout),
        }
    }

    fn updates_per_step(self) -> usize {
        self.prompts_per_step().div_ceil(self.per_update)
    }

    /// A step is a rollout with its updates, or an update with its rollouts.
    pub fn prompts_per_step(self) -> usize {
        self.per_update.max(self.per_rollout)
    }
}

struct Grpo<'a> {
    config: &'a GrpoConfig,
    algorithm: Algorithm,
    shape: StepShape,
    dataset: Dataset,
    prompts: PromptSource,
    rewards: RewardSet,
    /// The policy as it was at the start; none where there is no divergence, or where it is the policy without its
    /// adapters.
    reference: Option<Reference>,
    sampling: SamplingParams,
    has_warned_small_spread: bool,
}

impl Method for Grpo<'_> {
    /// One batch of prompts: samples a group of completions for each, scores them, and updates the policy towards the better ones.
    fn step(&mut self, session: &mut Session<'_>) -> Result<Map<String, Value>, TrainError> {
        let (mut groups, resampled) = self.rollout(session)?; // completions and their rewards
        let known = self.known_logprobs(session, &groups.own); // of reference and old policy, where they are needed
        let known = session.agree("log-probabilities", known)?;
        let kl_in_reward = self.set_advantages(session, &mut groups, &known)?;
        self.log_rollouts(session, &groups)?;
        let mut updates =
            session.together("micro-batches", || self.update_batches(session, &groups, &known))?;
        let mut stats = PolicyStats::default();
        let learnt = self.learn(session, &mut updates, &mut stats); // ratio, loss, gradient, update
        let is_applied = session.applied(learnt, stats.updates(), |session| {
            self.dump(session, &groups.own, &updates)
        })?;
        let mut metrics = self.metrics(session, &groups, is_applied.then_some(&stats));
        metrics.insert("resampled_groups".into(), json!(resampled));
        metrics.extend(kl_in_reward.map(|kl| ("kl".to_owned(), json!(kl))));
        Ok(metrics)
    }

    fn validate(&mut self, session: &Session<'_>) -> Result<Map<String, Value>, TrainError> {
        let Grpo { dataset, rewards, config, sampling, .. } = self;
        validation::score(session, dataset, rewards, config, sampling)
    }

    fn cursor(&self) -> u64 {
        self.prompts.cursor()
    }
}

impl Grpo<'_> {
    /// The step's updates, counted in `stats` as they are made.
    fn learn(
        &self,
        session: &mut Session<'_>,
        updates: &mut [Vec<GrpoMicroBatch<'_>>],
        stats: &mut PolicyStats,
    ) -> Result<(), TrainError> {
        // A short step at the end of an epoch counts as a whole one: counted by its own updates, numbers would come twice.
        let per_step = self.config.algorithm.num_iterations * self.shape.updates_per_step();
        let first = session.progress.step * per_step as u64;
        for _ in 0..self.config.algorithm.num_iterations {
            for micro_batches in &mut *updates {
                self.choose_tokens(session, micro_batches)?;
                let done = stats.updates();
                session.for_each_trained_batch(
                    micro_batches,
                    |session, index, batch| self.backward(session, batch, index, done),
                    |session, index, part| {
                        NonFinite::check_loss(part.loss, index)?;
                        session.optimizer.collect(session.model.parameters())?;
                        stats.add(part);
                        Ok(())
                    },
                )?;
                stats.updated(session.update()?);
                self.sync_reference(session, first + stats.updates() as u64)?;
            }
        }
        Ok(())
    }

    /// The gradients of micro-batch `index`, after `updates` of the step.
    fn backward(
        &self,
        session: &Session<'_>,
        batch: &mut GrpoMicroBatch<'_>,
        index: usize,
        updates: usize,
    ) -> Result<PolicyStats, TrainError> {
        let sections = &session.settings.sections;
        let index = session.micro_batch_key(index);
        let key = [sections.optimizer.seed, session.progress.step, index, updates as u64];
        let (model, temperature) = (session.model.as_ref(), self.config.sampling.temperature);
        policy::with_dropout(model, &key, || {
            let recompute = sections.model.gradient_checkpointing;
            batch.backward(model, temperature, &self.algorithm.objective, recompute)
        })
    }

    /// Completions of the step's prompts, sampled by the policy and scored, and how many groups took the place of others whose rewards
    /// were all equal.
    fn rollout(&mut self, session: &mut Session<'_>) -> Result<(Groups, usize), TrainError> {
        let drawn = self.prompts.next_step(session)?;
        let mut sampled = drawn.ready;
        let mut groups = self.sample_and_score(session, drawn, 0)?;
        let mut resampled = 0;
        for _ in 0..self.algorithm.resamples {
            let silent: Vec<usize> =
                (0..groups.all.len()).filter(|&index| groups.all[index].is_zero_spread()).collect();
            if silent.is_empty() {
                break;
            }
            let drawn = self.prompts.take_more(session, silent.len())?;
            let count = drawn.ready;
            let found = self.sample_and_score(session, drawn, sampled)?;
            sampled += count;
            resampled += groups.replace(&silent, found);
        }
        self.warn_small_spread(session, &groups.all);
        Ok((groups, resampled))
    }

    /// A group of completions for each prompt; `first` prompts of the step were sampled before.
    fn sample_and_score(
        &self,
        session: &Session<'_>,
        drawn: Drawn,
        first: usize,
    ) -> Result<Groups, TrainError> {
        let config = self.config;
        let sampling = Sampling {
            params: &self.sampling,
            max_concurrent: config.rollout.max_concurrent_completions,
            decoding: session.settings.decoding,
            num_completions: config.algorithm.num_generations,
            share_prompt: config.rollout.share_prompt,
            key: DrawKey {
                seed: config.optimizer.seed,
                step: session.progress.step,
                prompt: first as u64,
                completion: 0,
            },
        };
        let scoring = Scoring {
            rewards: &self.rewards,
            dataset: &self.dataset,
            examples: &self.dataset.examples,
            step: session.progress.step + 1,
        };
        rollout::roll_out(session, &sampling, &scoring, drawn, &|| session.stop.is_now())
    }

    /// Log-probabilities that must be known before the first update: those of the reference where there is a divergence, those of the old
    /// policy where the first update would come too late for them.
    fn known_logprobs(
        &self,
        session: &mut Session<'_>,
        groups: &[ScoredGroup],
    ) -> Result<KnownLogprobs, TrainError> {
        let parts = counting_parts(self.algorithm.choice, groups);
        let mut known = KnownLogprobs::default();
        if self.algorithm.needs_old_logprobs {
            known.old = self.logprobs(session, "old_policy", &parts, |session, batch| {
                self.scores(session.model.as_ref(), batch)
            })?;
        }
        if self.algorithm.needs_reference {
            known.reference = self.reference_logprobs(session, &parts)?;
        }
        Ok(known)
    }

    /// By the reference or, with adapters, by the policy without them.
    fn reference_logprobs(
        &self,
        session: &mut Session<'_>,
        parts: &[GroupPart<'_>],
    ) -> Result<Logprobs, TrainError> {
        match &self.reference {
            Some(reference) => reference.with(|model| {
                self.logprobs(session, "reference", parts, |_, batch| self.scores(model, batch))
            }),
            None => self.logprobs(session, "reference", parts, |session, batch| {
                let policy = session.model.as_ref();
                match &policy.parameters().lora {
                    Some(lora) => lora.switched_off(|| self.scores(policy, batch)),
                    None => self.scores(policy, batch),
                }
            }),
        }
    }

    fn scores(
        &self,
        model: &dyn VisionLanguageModel,
        batch: &CompletionBatch<'_>,
    ) -> Result<Tensor, TrainError> {
        Ok(batch.scores(model, self.config.sampling.temperature)?.logprobs)
    }

    /// The log-probabilities of all completions of `parts` that `pass` gives.
    fn logprobs(
        &self,
        session: &mut Session<'_>,
        phase: &'static str,
        parts: &[GroupPart<'_>],
        pass: impl Fn(&Session<'_>, &CompletionBatch<'_>) -> Result<Tensor, TrainError>,
    ) -> Result<Logprobs, TrainError> {
        let mut batches = CompletionBatch::split(parts, session.settings.limits());
        let mut logprobs = Logprobs::new();
        session.for_each_micro_batch(
            phase,
            &mut batches,
            |session, _, batch| {
                let lens: Vec<i64> = batch.lens.iter().map(|&len| len as i64).collect();
                let scores = pass(session, batch)?.split_with_sizes(lens, 0);
                Ok(batch.ids.iter().copied().zip(scores).collect::<Vec<_>>())
            },
            |_, _, scores| {
                logprobs.extend(scores);
                Ok(())
            },
        )?;
        Ok(logprobs)
    }

    /// Rewards to advantages, over each rollout. Returns the mean divergence where it is taken off the reward; on ranks above 0 it is 0, as
    /// metrics sum it over ranks.
    fn set_advantages(
        &self,
        session: &Session<'_>,
        groups: &mut Groups,
        known: &KnownLogprobs,
    ) -> Result<Option<f64>, TrainError> {
        let rule = &self.algorithm.advantages;
        let kl = match rule.kl {
            Some(term) => {
                Some(self.divergences(session, groups, |id| known.divergence(id, term.estimator))?)
            }
            None => None,
        };
        let mut first = 0;
        for rollout in groups.all.chunks_mut(self.shape.per_rollout) {
            let off = kl.as_ref().map(|kl| &kl[first..first + rollout.len()]);
            let rewards: Vec<GroupRewards<'_>> = rollout.iter().map(GroupScores::rewards).collect();
            let advantages = rule.advantages(&rewards, off);
            for (group, advantages) in rollout.iter_mut().zip(advantages) {
                group.advantages = advantages;
            }
            first += rollout.len();
        }
        for own in &mut groups.own {
            let all = &groups.all[own.index].advantages;
            own.group.advantages = all[own.first..own.first + own.texts.len()].to_vec();
        }
        let is_main = session.ranks.world.is_main();
        Ok(kl.map(|kl| if is_main { mean_and_std(&kl.concat()).0 } else { 0.0 }))
    }

    /// `[groups][G]`: the divergence of each completion of the step.
    fn divergences(
        &self,
        session: &Session<'_>,
        groups: &Groups,
        of: impl Fn(CompletionId) -> f64,
    ) -> Result<Vec<Vec<f64>>, TrainError> {
        let places = groups.own.iter().enumerate().map(|(own, scored)| (scored.index, own));
        let own_of: BTreeMap<usize, usize> = places.collect();
        let shape = (groups.all.len(), self.config.algorithm.num_generations);
        let value =
            |scored: &ScoredGroup, completion: usize| vec![of((own_of[&scored.index], completion))];
        let all = step_scores::gather_values(session, "divergences", &groups.own, shape, value)?;
        Ok(all.into_iter().map(|group| group.concat()).collect())
    }

    fn update_batches<'g>(
        &self,
        session: &Session<'_>,
        groups: &'g Groups,
        known: &KnownLogprobs,
    ) -> Result<Vec<Vec<GrpoMicroBatch<'g>>>, TrainError> {
        let inputs = UpdateInputs {
            groups,
            known,
            algorithm: &self.algorithm,
            limits: session.settings.limits(),
            device: session.model.compute().1,
        };
        Ok(update_batches(&inputs, self.shape.per_update))
    }

    /// Lets only the tokens of the highest entropy count, by the policy before this update, where the algorithm asks for that.
    fn choose_tokens(
        &self,
        session: &mut Session<'_>,
        batches: &mut Vec<GrpoMicroBatch<'_>>,
    ) -> Result<(), TrainError> {
        let choice = self.algorithm.choice;
        if !choice.needs_entropies() {
            return Ok(());
        }
        let (temperature, mut entropies) = (self.config.sampling.temperature, Vec::new());
        let passed = session.for_each_micro_batch(
            "entropy",
            batches,
            |session, _, batch| batch.entropies(session.model.as_ref(), temperature),
            |_, _, of_batch| {
                entropies.push(of_batch);
                Ok(())
            },
        );
        session.agree("entropies", passed)?;
        let mut own = Vec::new();
        for of_batch in &entropies {
            own.extend(
                Vec::<f32>::try_from(of_batch.to_device(Device::Cpu))?.into_iter().map(f64::from),
            );
        }
        let all = session.ranks.world.gather_numbers("entropies of an update", &own)?;
        let all = all.into_iter().flatten().map(|entropy| entropy as f32).collect();
        choose_tokens(choice, batches, &entropies, all);
        Ok(())
    }

    /// Moves the reference after `updates` of the run where that is due.
    fn sync_reference(&self, session: &Session<'_>, updates: u64) -> Result<(), TrainError> {
        let section = &self.config.algorithm;
        match &self.reference {
            Some(reference)
                if section.sync_ref_model
                    && updates.is_multiple_of(section.ref_model_sync_steps as u64) =>
            {
                reference.mix(session.model.as_ref(), section.ref_model_mixup_alpha)
            }
            _ => Ok(()),
        }
    }

    /// Writes the completions of the step with their scores, and keeps one to test weights with.
    fn log_rollouts(&self, session: &mut Session<'_>, groups: &Groups) -> Result<(), TrainError> {
        let step = session.progress.step + 1;
        let rows = rollout_rows::rows(&groups.own, &self.rewards, step);
        let rows = session.ranks.rows_of_all("completions", rows)?;
        let keep = self.config.rollout.rollouts_keep;
        let written = session.run.write(|folder| {
            folder.log_rollouts(step, &rollout_rows::logged_groups(rows, &groups.all), keep)
        });
        session.agree("completions are written", written)?;
        let completions = groups.own.iter().map(|scored| &scored.group);
        session.keep_finite_probe(completions.flat_map(|group| {
            let ids = group.completions.iter().map(|c| c.ids.as_slice());
            ids.map(|ids| (&group.prompt, ids))
        }));
        Ok(())
    }

    /// Every completion of a refused step with its tokens' log-probabilities, for the dump.
    fn dump(
        &self,
        session: &Session<'_>,
        groups: &[ScoredGroup],
        updates: &[Vec<GrpoMicroBatch<'_>>],
    ) -> Result<Vec<(Place, Value)>, TrainError> {
        let mut records: BTreeMap<CompletionId, TokenRecord> = BTreeMap::new();
        for micro_batches in updates {
            for (index, batch) in micro_batches.iter().enumerate() {
                records.extend(batch.token_records(index + 1)?);
            }
        }
        let mut rows = rollout_rows::rows(groups, &self.rewards, session.progress.step + 1);
        let completion_ids = groups.iter().enumerate().flat_map(|(group, scored)| {
            (0..scored.group.completions.len()).map(move |i| (group, i, &scored.group))
        });
        for ((_, row), (group, i, sampled)) in rows.iter_mut().zip(completion_ids) {
            let Value::Object(row) = row else { continue };
            let completion = &sampled.completions[i];
            row.insert("reward".into(), number(sampled.rewards[i]));
            row.insert("advantage".into(), number(sampled.advantages[i]));
            row.insert("prompt_ids".into(), json!(sampled.prompt.ids));
            row.insert("ids".into(), json!(completion.ids));
            let logprobs = numbers(&completion.sampled_logprobs);
            row.insert("sampled_logprobs".into(), logprobs);
            records.remove(&(group, i)).unwrap_or_default().write(row);
        }
        Ok(rows)
    }

    /// Warns once of groups whose rewards hardly differ: nothing else shows that they give almost no gradient.
    fn warn_small_spread(&mut self, session: &mut Session<'_>, groups: &[GroupScores]) {
        let stds = groups.iter().map(|group| mean_and_std(&group.rewards).1);
        let small = stds.filter(|std| *std > 0.0 && *std < STD_EPSILON);
        let Some(std) = small.reduce(f64::max) else {
            return;
        };
        if std::mem::replace(&mut self.has_warned_small_spread, true) {
            return;
        }
        let step = session.progress.step + 1;
        session.log(&format!(
            "warning: step {step}: the rewards of a group differ by {std:.1e} (their deviation); advantages are divided by \
             it plus {STD_EPSILON}, so they are near 0 and teach next to nothing\nhint: larger --reward_weights"
        ));
    }

    fn metrics(
        &self,
        session: &Session<'_>,
        groups: &Groups,
        stats: Option<&PolicyStats>,
    ) -> Map<String, Value> {
        let all = &groups.all;
        let mut metrics = reward_metrics(all, &self.rewards);
        let lens = || all.iter().flat_map(|group| &group.lens);
        let (tokens, completions) = (lens().sum::<usize>() as f64, lens().count());
        let cut = all.iter().flat_map(|group| &group.cut_off).filter(|cut| **cut).count();
        let silent = all.iter().filter(|group| group.is_zero_spread()).count();
        let without_reward: usize = all.iter().map(GroupScores::num_zero).sum();
        metrics.insert("completion_length".into(), json!(tokens / completions.max(1) as f64));
        metrics.insert("cut_off_completions".into(), json!(cut));
        metrics.insert("zero_spread_groups".into(), json!(silent));
        metrics.insert("zero_reward_completions".into(), json!(without_reward));
        metrics.insert("groups".into(), json!(all.len()));
        metrics.insert("completions".into(), json!(completions));
        if let Some(stats) = stats {
            stats.write(&mut metrics, &self.algorithm.objective);
        }
        let own = groups.own.iter().flat_map(|scored| &scored.group.completions);
        let tokens: usize = own.map(|completion| completion.ids.len()).sum();
        metrics.insert("tokens_per_sec".into(), json!(tokens as f64 / session.clock.elapsed()));
        metrics.insert("epoch".into(), json!(self.prompts.epoch()));
        metrics
    }
}
