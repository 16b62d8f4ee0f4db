//! What a configuration, a model's `config.json` and a sample of the rows say of a run.

use std::path::Path;
use std::rc::Rc;

use config::{GrpoConfig, OnBadRow};
use data::{EpochOrder, ImageCache, load_prompt};
use models::{Family, FamilyConfig, family_of};
use tch::Device;

use super::{Choice, Load, Probe, Ranks, Shape, Trained, Work};
use crate::TrainError;
use crate::dataset::{Dataset, bad_row};
use crate::rollout_rows::empty_row_bytes;
use crate::settings::Settings;
use crate::trainer::StepShape;

/// Rows that are looked at.
const SAMPLED_ROWS: usize = 32;
/// Of a token in a text, on the whole.
const TOKEN_BYTES: u64 = 4;
/// Of a line of the rollouts' index.
const INDEX_LINE_BYTES: u64 = 250;

/// A run in numbers.
#[derive(Clone, Debug)]
pub struct PlanInputs {
    config: Rc<dyn FamilyConfig>,
    settings: Settings,
    /// Sizes of the model.
    pub shape: Shape,
    /// As configured; of a partly frozen model, the nearest that needs no less.
    pub choice: Choice,
    /// Rank for comparison.
    pub lora: Trained,
    /// The longest prompt and most patches of the sample, with as many completions as a micro-batch takes.
    pub micro_batch: Load,
    /// Prompts of a step of all ranks.
    pub prompts: u64,
    /// Its completions.
    pub completions: u64,
    /// As `micro_batch`, for all of a rank's part of a step.
    pub step: Load,
    /// That part by the means of the sample.
    pub mean_step: Load,
    /// Completions sampled at once.
    pub sampled: Load,
    /// Completions of one copy of a prompt.
    pub group: u64,
    /// Updates per batch of completions.
    pub iterations: u64,
    /// Steps of the run.
    pub steps: u64,
    /// What `rollouts/` takes.
    pub rollouts: RolloutBytes,
    /// Where.
    pub device: Device,
    /// Rows looked at.
    pub rows: usize,
}

/// The size of rollouts on disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RolloutBytes {
    /// Files of a step whose completions all have the longest length.
    pub step: u64,
    /// Steps whose files stay.
    pub steps_kept: u64,
    /// The index of the whole run.
    pub index: u64,
}

/// A step has as much of each rank as it has of one.
fn prompts_per_step(config: &GrpoConfig, ranks: usize) -> usize {
    let mut of_all = config.clone();
    let of_rank = config.optimizer.per_device_train_batch_size;
    of_all.optimizer.per_device_train_batch_size = of_rank.saturating_mul(ranks);
    StepShape::of(&of_all).prompts_per_step()
}

/// Reads settings, `config.json`, and up to 32 rows spread over the data, with their images.
///
/// # Errors
/// Settings, a `config.json` or rows that `grpo` would refuse; adapters in the vision tower, which are
/// not counted.
pub fn plan_inputs(
    config: &GrpoConfig,
    ranks: usize,
    model_dir: &Path,
) -> Result<PlanInputs, TrainError> {
    let settings = Settings::try_from(config)?;
    if config.model.use_peft && config.model.lora_vision {
        return Err(TrainError::Setting {
            name: "lora_vision",
            cause: "adapters in the vision tower are not planned for".into(),
        });
    }
    let model = family_of(model_dir)?.config(model_dir)?;
    let shape = Shape::of(&*model)?;
    let dataset = Dataset::load(&settings, model_dir, |_| Ok(()))?;
    let seen = Seen::of(&dataset, &settings, &config.rewards.reward_funcs)?;
    let generations = config.algorithm.num_generations as u64;
    let group = if config.rollout.share_prompt { generations } else { 1 };
    let prompts = prompts_per_step(config, ranks);
    let order = EpochOrder::new(dataset.examples.len(), prompts, config.optimizer.seed);
    let with_completions = |(prompt_tokens, patches): (u64, u64), completions: u64| {
        let load = Load {
            prompts: 1,
            completions,
            prompt_tokens,
            completion_tokens: config.sampling.max_completion_length as u64,
            patches,
        };
        load.of_completions(completions, group)
    };
    // Of the slowest rank.
    let in_step = (prompts as u64 * generations).div_ceil(ranks as u64);
    let step = with_completions(seen.most, in_step);
    let micro_batch = micro_batch(&step, (generations, group), &settings);
    let at_once = in_step.min(config.rollout.max_concurrent_completions as u64);
    let accumulates = micro_batch.completions < in_step;
    let steps = settings.total_steps(order.steps_per_epoch());
    Ok(PlanInputs {
        choice: Choice {
            accumulates,
            feature_cache: feature_bytes(&shape, &seen, &dataset, config),
            ranks: Ranks { count: ranks as u64, stage: config.shards.zero_stage },
            ..choice(config, &settings, model.family())
        },
        lora: lora(config),
        shape,
        micro_batch,
        sampled: with_completions(seen.most, at_once),
        prompts: prompts as u64,
        completions: prompts as u64 * generations,
        step,
        mean_step: with_completions(seen.mean, in_step),
        group,
        iterations: config.algorithm.num_iterations as u64,
        rollouts: rollout_bytes(config, &seen, steps, prompts as u64),
        steps,
        device: settings.load.device,
        rows: seen.rows,
        config: model.into(),
        settings,
    })
}

impl PlanInputs {
    /// What times the parts of a step.
    pub fn probe(&self) -> Probe<'_> {
        Probe::new(&*self.config, self.shape, &self.settings, self.mean_step, self.sampled)
    }

    /// A step of the sample's means.
    pub fn work(&self) -> Work {
        Work {
            step: self.mean_step,
            micro_batch: self.micro_batch.completions,
            sampled: self.sampled.completions,
            iterations: self.iterations,
        }
    }
}

fn lora(config: &GrpoConfig) -> Trained {
    Trained::Lora { rank: config.model.lora_r as u64, dropout: config.model.lora_dropout > 0.0 }
}

fn choice(config: &GrpoConfig, settings: &Settings, family: &Family) -> Choice {
    let trained = settings.load_options(family).trained;
    Choice {
        trained: match (config.model.use_peft, trained.vision || trained.merger) {
            (true, _) => lora(config),
            (false, true) => Trained::Full,
            (false, false) => Trained::FrozenVision,
        },
        bf16: config.model.bf16,
        recompute: config.model.gradient_checkpointing,
        reference: config.algorithm.beta > 0.0,
        accumulates: false,
        feature_cache: 0,
        in_8bit: config.optimizer.optim.is_8bit(),
        offload_optimizer: config.machine.offload_optimizer,
        offload_reference: config.rollout.offload_reference && config.algorithm.beta > 0.0,
        cpu_kernels: settings.load.device == Device::Cpu,
        ranks: Ranks::ONE,
    }
}

/// Bytes of the features of all images, up to the cache's limit.
fn feature_bytes(shape: &Shape, seen: &Seen, dataset: &Dataset, config: &GrpoConfig) -> u64 {
    let size = if config.model.bf16 { 2 } else { 4 };
    let a_row = seen.mean.1 / shape.merged * shape.features * shape.hidden * size;
    let all = a_row * dataset.examples.len() as u64;
    all.min(config.machine.feature_cache_bytes as u64)
}

fn rollout_bytes(config: &GrpoConfig, seen: &Seen, steps: u64, prompts: u64) -> RolloutBytes {
    let text = config.sampling.max_completion_length as u64 * TOKEN_BYTES;
    RolloutBytes {
        step: prompts * config.algorithm.num_generations as u64 * (seen.row_bytes + text),
        steps_kept: config.rollout.rollouts_keep.map_or(steps, |keep| keep.min(steps)),
        index: steps * prompts * INDEX_LINE_BYTES,
    }
}

/// What the rows looked at are like: tokens and patches of a prompt.
struct Seen {
    /// Of a completion in `rollouts/` without its text, by the mean.
    row_bytes: u64,
    most: (u64, u64),
    mean: (u64, u64),
    rows: usize,
}

impl Seen {
    fn of(dataset: &Dataset, settings: &Settings, rewards: &[String]) -> Result<Self, TrainError> {
        let cache = ImageCache::new(0);
        let template = settings.template(dataset.processor.family())?;
        let stride = dataset.examples.len().div_ceil(SAMPLED_ROWS).max(1);
        let (mut most, mut sum, mut rows, mut skipped) = ((0, 0), (0, 0), 0, 0);
        let mut bytes = 0;
        for index in (0..dataset.examples.len()).step_by(stride) {
            let example = &dataset.examples.get(index)?;
            let prompt = match load_prompt(example, &dataset.processor, &template, &cache) {
                Ok(prompt) => prompt,
                Err(_) if settings.loader.on_bad_row == OnBadRow::Skip => {
                    skipped += 1;
                    continue;
                }
                Err(cause) => return Err(bad_row(example, cause)),
            };
            let tokens = prompt.ids.len() as u64;
            let patches = prompt.images.iter().map(|image| image.layout.num_patches() as u64);
            let patches = patches.sum::<u64>();
            most = (tokens.max(most.0), patches.max(most.1));
            sum = (sum.0 + tokens, sum.1 + patches);
            bytes += empty_row_bytes(example, &prompt.images, rewards) as u64;
            rows += 1;
        }
        if rows == 0 {
            return Err(TrainError::NoRows { skipped });
        }
        let mean = |sum: u64| sum.div_ceil(rows as u64);
        Ok(Seen { row_bytes: mean(bytes), most, mean: (mean(sum.0), mean(sum.1)), rows })
    }
}

/// Whole groups up to `per_device_train_batch_size`, a larger group alone, cut only over the bound on
/// tokens.
fn micro_batch(step: &Load, (generations, group): (u64, u64), settings: &Settings) -> Load {
    let whole = (settings.sections.optimizer.per_device_train_batch_size as u64 / generations
        * generations)
        .max(generations);
    let mut batch = step.of_completions(whole.min(step.completions), group);
    let most =
        settings.sections.machine.max_tokens_per_microbatch.map_or(u64::MAX, |max| max as u64);
    while batch.completions > 1 && batch.tokens() > most {
        let fewer = if batch.completions > generations { generations } else { 1 };
        batch = batch.of_completions(batch.completions - fewer, group);
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::fs;

    use config::ColonList;
    use tempfile::TempDir;

    use super::*;

    fn inputs(change: impl Fn(&mut GrpoConfig)) -> PlanInputs {
        inputs_of(1, change)
    }

    fn inputs_of(ranks: usize, change: impl Fn(&mut GrpoConfig)) -> PlanInputs {
        let golden = testing::golden("parity");
        let dir = TempDir::new().unwrap();
        let rows = dir.path().join("rows.jsonl");
        let row = |image: &str| {
            let turns =
                r#"[{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "a"}]"#;
            format!("{{\"image\": \"{image}\", \"conversations\": {turns}}}\n")
        };
        fs::write(&rows, row("scene.png") + &row("small.png")).unwrap();
        let mut config = GrpoConfig::default().with(|c| {
            c.data.data_file_paths = ColonList(rows.display().to_string());
            c.data.image_folders = Some(ColonList(golden.join("images").display().to_string()));
            c.algorithm.num_generations = 4;
            c.optimizer.per_device_train_batch_size = 9;
            c.optimizer.gradient_accumulation_steps = 2;
            c.sampling.max_completion_length = 16;
            c.rollout.max_concurrent_completions = 6;
            c.model.freeze_vision_modules = true;
            c.machine.device = "cpu".into();
        });
        change(&mut config);
        plan_inputs(&config, ranks, &golden.join("checkpoints/nested")).unwrap()
    }

    #[test]
    fn a_run_in_numbers() {
        let plan = inputs(|_| ());
        let sizes = |load: Load| (load.prompts, load.completions);
        assert_eq!(sizes(plan.step), (5, 20));
        assert_eq!(sizes(plan.micro_batch), (2, 8));
        assert_eq!(sizes(plan.sampled), (2, 6));
        assert_eq!((plan.group, plan.rows), (4, 2));
        assert_eq!(plan.choice.trained, Trained::FrozenVision);
        assert!(plan.choice.accumulates && plan.choice.reference);
        assert!(plan.mean_step.patches > 0 && plan.mean_step.patches < plan.step.patches);
        // Two rows, 32 channels, f32, four patches a token.
        let features = plan.mean_step.patches / 4 * 32 * 4 * 2;
        assert_eq!(plan.choice.feature_cache, features);
        assert_eq!(inputs(|c| c.machine.feature_cache_bytes = 7).choice.feature_cache, 7);
        // 20 completions of 16 tokens, each in a row with its question, image and columns.
        let rollouts = plan.rollouts;
        assert_eq!(rollouts.steps_kept, plan.steps);
        let row = rollouts.step / 20 - 16 * 4;
        assert!((500..1500).contains(&row), "{row}");
        let few = inputs(|c| c.rollout.rollouts_keep = Some(1)).rollouts;
        assert_eq!((few.step, few.steps_kept, few.index), (rollouts.step, 1, rollouts.index));
        let one_batch = inputs(|c| c.optimizer.gradient_accumulation_steps = 1);
        assert_eq!(sizes(one_batch.step), (3, 12));
    }

    #[test]
    fn each_rank_adds_as_much_to_a_step() {
        let sizes = |plan: &PlanInputs| (plan.prompts, plan.completions, plan.step.completions);
        let one = inputs(|_| ());
        assert_eq!(sizes(&one), (5, 20, 20));
        // 9 x 2 completions a rank are 18, 36 and 144, of which groups of 4 make 5, 9 and 36.
        assert_eq!(sizes(&inputs_of(2, |_| ())), (9, 36, 18));
        let eight = inputs_of(8, |_| ());
        assert_eq!(sizes(&eight), (36, 144, 18));
        assert_eq!((eight.steps, eight.choice.ranks.count), (1, 8));
        // More ranks than groups: parts of them.
        let parts = inputs_of(8, |c| {
            c.optimizer.per_device_train_batch_size = 1;
            c.optimizer.gradient_accumulation_steps = 1;
        });
        assert_eq!((sizes(&parts), parts.micro_batch.completions), ((2, 8, 1), 1));
        assert_eq!(eight.rollouts.step, one.rollouts.step / 20 * 144);
    }

    #[test]
    fn prompts_that_are_not_shared_and_groups_that_are_cut() {
        let plan = inputs(|c| c.rollout.share_prompt = false);
        assert_eq!((plan.micro_batch.prompts, plan.sampled.prompts), (8, 6));
        let prompt = plan.step.prompt_tokens as usize;
        let plan = inputs(|c| c.machine.max_tokens_per_microbatch = Some(prompt + 2 * 16));
        assert_eq!(plan.micro_batch.completions, 2);
        assert_eq!(plan.micro_batch.prompts, 1);
    }
}
