//! The GRPO training loop. Start with [`Trainer::step`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base::run_folder::StopFlag;
use base::{DrawKey, Example};
use config::GrpoConfig;
use data::{EpochOrder, PromptLoader};
use engine::SamplingParams;
use models::VisionLanguageModel;
use rewards::{BoxAnswers, RewardSet};
use serde_json::{Map, Value, json};
use torch::OutOfMemory;

use crate::TrainError;
use crate::bad_step::{NonFinite, TokenRecord, number, numbers};
use crate::grpo::{ClipRange, STD_EPSILON, is_zero_spread, mean_and_std};
use crate::grpo_micro_batch::{CompletionId, GrpoMicroBatch, PolicyStats};
use crate::observer::Observer;
use crate::out_of_memory::{self, catch_oom};
use crate::policy;
use crate::reference::Reference;
use crate::reward_set;
use crate::rollout::{self, Sampling, ScoredGroup, Scoring};
use crate::rollout_rows::logged_groups;
use crate::session::{Dataset, Outcome, Session, Start};
use crate::settings::Settings;
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
    let rewards = reward_set::build(config, model_dir, stop)?;
    train_grpo_with_rewards(config, model_dir, rewards, observer, stop)
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
    let settings = Settings::try_from(config)?;
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
    let completions = settings.rows_per_step();
    let prompts_per_step = completions.div_ceil(config.algorithm.num_generations);
    let order =
        Arc::new(EpochOrder::new(dataset.examples.len(), prompts_per_step, config.optimizer.seed));
    let total = settings.total_steps(order.steps_per_epoch());
    let mut session = Session::open(
        config,
        Start {
            settings,
            model_dir,
            dataset: &dataset,
            total_steps: total,
            steps_per_epoch: order.steps_per_epoch(),
            observer,
            stop: stop.clone(),
        },
    )?;
    let has_adapters = session.model.parameters().lora.is_some();
    let reference = (config.algorithm.beta > 0.0 && !has_adapters)
        .then(|| Reference::load(model_dir, &session.settings, session.model.as_ref()))
        .transpose()?;
    if config.algorithm.beta == 0.0 && session.step == 0 {
        session.log(
            "with --beta 0 the loss of the first update on a batch is 0 by construction: each ratio is 1 and a \
             group's advantages sum to 0; the gradient is not 0",
        );
    }
    let prompts =
        dataset.prompts(&session.settings, &order, session.step..total, 2 * prompts_per_step)?;
    let trainer = Trainer {
        sampling: rollout::sampling_params(config, &dataset.processor),
        clip: ClipRange {
            low: config.algorithm.epsilon,
            high: config.algorithm.epsilon_high.unwrap_or(config.algorithm.epsilon),
        },
        config,
        session,
        dataset,
        order,
        prompts,
        rewards,
        reference,
        has_warned_small_spread: false,
    };
    stop.begin();
    trainer.train()
}

struct Trainer<'a> {
    config: &'a GrpoConfig,
    session: Session<'a>,
    dataset: Dataset,
    order: Arc<EpochOrder>,
    prompts: PromptLoader,
    rewards: RewardSet,
    /// The policy as it was at the start; none where beta is 0, or where it is the policy without its
    /// adapters.
    reference: Option<Reference>,
    sampling: SamplingParams,
    clip: ClipRange,
    has_warned_small_spread: bool,
}

impl Trainer<'_> {
    fn train(mut self) -> Result<Outcome, TrainError> {
        match self.steps() {
            Ok(()) => self.session.outcome(),
            Err(error) => Err(self.session.fail(error)),
        }
    }

    fn steps(&mut self) -> Result<(), TrainError> {
        // Before the first step, or where the last process was interrupted.
        self.evaluate()?;
        while self.session.goes_on() {
            let device = self.session.model.compute().1;
            let metrics = out_of_memory::step(device, || self.step())?;
            self.session.finish_step(metrics)?;
            self.evaluate()?;
        }
        Ok(())
    }

    /// One batch of prompts: samples a group of completions for each, scores them, and updates the policy towards the better ones.
    fn step(&mut self) -> Result<Map<String, Value>, TrainError> {
        let groups = self.roll_out()?;
        let mut batches = self.batches(&groups);
        let mut stats = PolicyStats::default();
        match self.learn(&mut batches, &mut stats) {
            Err(TrainError::NonFinite(cause)) => {
                let rows = self.dump(&groups, &batches)?;
                self.session.refuse(*cause, stats.updates(), rows)?;
                self.metrics(&groups, None)
            }
            learnt => learnt.and_then(|()| self.metrics(&groups, Some(&stats))),
        }
    }

    /// The step's updates, counted in `stats` as they are made.
    fn learn(
        &mut self,
        batches: &mut Vec<GrpoMicroBatch<'_>>,
        stats: &mut PolicyStats,
    ) -> Result<(), TrainError> {
        self.score_by_reference(batches)?;
        for _ in 0..self.config.algorithm.num_iterations {
            let mut index = 0;
            while index < batches.len() {
                match self.accumulate(&mut batches[index], index + 1, stats.updates())? {
                    Ok(part) => {
                        stats.add(part);
                        index += 1;
                    }
                    Err(cause) => self.shrink(batches, index, cause)?,
                }
            }
            stats.updated(self.session.update()?);
        }
        Ok(())
    }

    /// Cuts the micro-batches from `index` on, after the first of them ran out of memory.
    fn shrink(
        &mut self,
        batches: &mut Vec<GrpoMicroBatch<'_>>,
        index: usize,
        cause: OutOfMemory,
    ) -> Result<(), TrainError> {
        self.session.shrink(&batches[index].group_lens(), cause)?;
        let limits = self.session.settings.limits(self.config.rollout.share_prompt);
        let rest = batches.split_off(index);
        batches.extend(rest.into_iter().flat_map(|batch| batch.cut(limits)));
        Ok(())
    }

    /// Every completion of a refused step with its tokens' log-probabilities, for the dump.
    fn dump(
        &self,
        groups: &[ScoredGroup],
        batches: &[GrpoMicroBatch<'_>],
    ) -> Result<Vec<Value>, TrainError> {
        let mut records: BTreeMap<CompletionId, TokenRecord> = BTreeMap::new();
        for (index, batch) in batches.iter().enumerate() {
            records.extend(batch.token_records(index + 1)?);
        }
        let indices = groups.iter().map(|scored| scored.group.example_index);
        let examples = self.dataset.read(indices)?;
        let step = self.session.step + 1;
        let logged = logged_groups(groups, &examples, &self.rewards, step);
        let mut rows: Vec<Value> = logged.into_iter().flat_map(|g| g.completions).collect();
        let completion_ids = groups.iter().enumerate().flat_map(|(group, scored)| {
            (0..scored.group.completions.len()).map(move |i| (group, i, &scored.group))
        });
        for (row, (group, i, sampled)) in rows.iter_mut().zip(completion_ids) {
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

    /// Completions of the step's prompts, sampled by the policy, with rewards and advantages.
    fn roll_out(&mut self) -> Result<Vec<ScoredGroup>, TrainError> {
        let count = self.order.indices_of_step(self.session.step).len();
        let prompts = self.session.take_prompts(&mut self.prompts, count)?;
        let examples = self.dataset.read(prompts.iter().map(|(index, _)| *index))?;
        let (session, config) = (&self.session, self.config);
        let sampling = Sampling {
            params: &self.sampling,
            max_concurrent: config.rollout.max_concurrent_completions,
            decoding: session.settings.decoding,
            num_completions: config.algorithm.num_generations,
            share_prompt: config.rollout.share_prompt,
            key: DrawKey {
                seed: config.optimizer.seed,
                step: session.step,
                prompt: 0,
                completion: 0,
            },
        };
        let scoring = Scoring {
            rewards: &self.rewards,
            examples: &examples,
            processor: &self.dataset.processor,
            step: session.step + 1,
        };
        let stop = || session.stop.is_now();
        let rollout =
            rollout::roll_out(session.model.as_ref(), &sampling, &scoring, prompts, &stop)?;
        session.clock.book("rollout", rollout.sampling);
        session.clock.book("reward", rollout.waiting);
        let step = scoring.step;
        let logged = logged_groups(&rollout.groups, scoring.examples, scoring.rewards, step);
        let keep = self.config.rollout.rollouts_keep;
        self.session.run.log_rollouts(step, &logged, keep)?;
        self.warn_small_spread(&rollout.groups);
        let completions = rollout.groups.iter().map(|scored| &scored.group);
        self.session.keep_finite_probe(completions.flat_map(|group| {
            let ids = group.completions.iter().map(|c| c.ids.as_slice());
            ids.map(|ids| (&group.prompt, ids))
        }));
        Ok(rollout.groups)
    }

    /// Warns once of groups whose rewards hardly differ: nothing else shows that they give almost no gradient.
    fn warn_small_spread(&mut self, groups: &[ScoredGroup]) {
        let stds = groups.iter().map(|g| mean_and_std(&g.group.rewards).1);
        let small = stds.filter(|std| *std > 0.0 && *std < STD_EPSILON);
        let Some(std) = small.reduce(f64::max) else {
            return;
        };
        if std::mem::replace(&mut self.has_warned_small_spread, true) {
            return;
        }
        let step = self.session.step + 1;
        self.session.log(&format!(
            "warning: step {step}: the rewards of a group differ by {std:.1e} (their deviation); advantages are divided by \
             it plus {STD_EPSILON}, so they are near 0 and teach next to nothing\nhint: larger --reward_weights"
        ));
    }

    /// Groups in micro-batches. With beta 0 a group whose rewards are all equal has no gradient and is left out, but counts in the
    /// denominator.
    fn batches<'g>(&self, groups: &'g [ScoredGroup]) -> Vec<GrpoMicroBatch<'g>> {
        let completions: usize = groups.iter().map(|g| g.group.completions.len()).sum();
        let has_gradient =
            |g: &ScoredGroup| self.config.algorithm.beta > 0.0 || !is_zero_spread(&g.group.rewards);
        let groups_with_gradient: Vec<(usize, &base::RolloutGroup)> = groups
            .iter()
            .enumerate()
            .filter(|(_, g)| has_gradient(g))
            .map(|(index, g)| (index, &g.group))
            .collect();
        let Session { settings, model, .. } = &self.session;
        GrpoMicroBatch::split(
            &groups_with_gradient,
            completions,
            settings.limits(self.config.rollout.share_prompt),
            model.compute().1,
        )
    }

    fn score_by_reference(
        &mut self,
        batches: &mut Vec<GrpoMicroBatch<'_>>,
    ) -> Result<(), TrainError> {
        if self.config.algorithm.beta == 0.0 {
            return Ok(());
        }
        match self.reference.take() {
            Some(reference) => {
                let scored = reference.with(|model| self.reference_passes(Some(model), batches));
                self.reference = Some(reference);
                scored
            }
            None => self.reference_passes(None, batches),
        }
    }

    /// By `reference` or, where there is none, by the policy without its adapters.
    fn reference_passes(
        &mut self,
        reference: Option<&dyn VisionLanguageModel>,
        batches: &mut Vec<GrpoMicroBatch<'_>>,
    ) -> Result<(), TrainError> {
        let mut index = 0;
        while index < batches.len() {
            match self.reference_pass(reference, &mut batches[index])? {
                Ok(()) => index += 1,
                Err(cause) => self.shrink(batches, index, cause)?,
            }
        }
        Ok(())
    }

    fn reference_pass(
        &self,
        reference: Option<&dyn VisionLanguageModel>,
        batch: &mut GrpoMicroBatch<'_>,
    ) -> Result<Result<(), OutOfMemory>, TrainError> {
        let policy = self.session.model.as_ref();
        let mut score = |model: &dyn VisionLanguageModel| {
            catch_oom(model.compute().1, || {
                batch.score_by_reference(model, self.config.sampling.temperature)
            })
        };
        self.session.clock.time("reference", || match (reference, &policy.parameters().lora) {
            (Some(reference), _) => score(reference),
            (None, Some(lora)) => lora.switched_off(|| score(policy)),
            (None, None) => Ok(Ok(())),
        })
    }

    /// Adds the gradients of micro-batch `index`, after `updates` of the step; adds nothing on OOM.
    fn accumulate(
        &mut self,
        batch: &mut GrpoMicroBatch<'_>,
        index: usize,
        updates: usize,
    ) -> Result<Result<PolicyStats, OutOfMemory>, TrainError> {
        let Session { model, optimizer, clock, settings, step, .. } = &mut self.session;
        let key = [settings.sections.optimizer.seed, *step, index as u64, updates as u64];
        let stats = clock.time("train", || {
            policy::with_dropout(model.as_ref(), &key, || {
                catch_oom(model.compute().1, || {
                    batch.accumulate(
                        model.as_ref(),
                        self.config.sampling.temperature,
                        self.clip,
                        self.config.algorithm.beta,
                        settings.sections.model.gradient_checkpointing,
                    )
                })
            })
        })?;
        if let Ok(stats) = &stats {
            NonFinite::check_loss(stats.loss, index)?;
            optimizer.collect(model.parameters())?;
        }
        Ok(stats)
    }

    fn metrics(
        &mut self,
        groups: &[ScoredGroup],
        stats: Option<&PolicyStats>,
    ) -> Result<Map<String, Value>, TrainError> {
        let mut metrics = rollout::reward_metrics(groups, &self.rewards);
        let lens: Vec<f64> = groups
            .iter()
            .flat_map(|g| g.group.completions.iter().map(|c| c.ids.len() as f64))
            .collect();
        let cut = groups
            .iter()
            .flat_map(|g| &g.group.completions)
            .filter(|c| c.finish_reason == base::FinishReason::Length)
            .count();
        let silent = groups.iter().filter(|g| is_zero_spread(&g.group.rewards)).count();
        let without_reward: usize = groups.iter().map(ScoredGroup::num_zero).sum();
        let tokens: f64 = lens.iter().sum();
        metrics.insert("completion_length".into(), json!(tokens / lens.len().max(1) as f64));
        metrics.insert("cut_off_completions".into(), json!(cut));
        metrics.insert("zero_spread_groups".into(), json!(silent));
        metrics.insert("zero_reward_completions".into(), json!(without_reward));
        metrics.insert("groups".into(), json!(groups.len()));
        metrics.insert("completions".into(), json!(lens.len()));
        if let Some(stats) = stats {
            stats.write(&mut metrics, self.config.algorithm.num_iterations);
        }
        metrics.insert("tokens_per_sec".into(), json!(tokens / self.session.clock.elapsed()));
        metrics.insert(
            "epoch".into(),
            json!((self.session.step + 1) as f64 / self.order.steps_per_epoch() as f64),
        );
        Ok(metrics)
    }

    /// Evaluates where that is due.
    fn evaluate(&mut self) -> Result<(), TrainError> {
        let Trainer { session, dataset, rewards, config, sampling, .. } = self;
        session.evaluate(|session| validation::score(session, dataset, rewards, config, sampling))
    }
}

/// The error of a row that turned out bad during training.
pub(crate) fn bad_row(example: &Example, cause: data::RowCause) -> TrainError {
    TrainError::Row(Box::new(data::RowError { source_line: example.source.clone(), cause }))
}
