//! Settings that `grpo` and `sft` share, made once from either configuration.

use std::path::PathBuf;

use config::{GrpoConfig, Interval, LrSchedulerType, ModelSection, SftConfig, TrainingSections};
use data::image::resize_backend;
use data::template::template;
use data::{DataFamily, DataFiles, LoaderOptions, ProcessorOptions, PromptTemplate, RowChecks};
use engine::Decoding;
use models::{Family, FeatureCacheOptions, LoadOptions, LoraOptions, Part, Targets, TrainedParts};
use tch::{Device, Kind};
use torch::{check_kind, num_cards, parse_device};

use crate::TrainError;
use crate::micro_batches::Limits;
use crate::optimizer::OptimizerOptions;
use crate::ranks::Ranks;
use crate::schedule::{Schedule, ScheduleKind};

/// Bytes of prepared images that are kept for later epochs.
const IMAGE_CACHE_BYTES: usize = 1 << 30;

/// The sections that both trainers share, and the options of other crates that follow from them.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) sections: TrainingSections,
    pub(crate) load: LoadOptions,
    /// Adapters to train instead of the weights.
    pub(crate) lora: Option<LoraOptions>,
    /// How completions are sampled.
    pub(crate) decoding: Decoding,
    /// Whether completions of a group share their prompt in a pass.
    pub(crate) share_prompt: bool,
    /// Whether the reference model waits in host memory between its passes.
    pub(crate) offload_reference: bool,
    pub(crate) loader: LoaderOptions,
    pub(crate) processor: ProcessorOptions,
    pub(crate) checks: RowChecks,
    pub(crate) files: DataFiles,
    with_thinking: bool,
    pub(crate) features: FeatureCacheOptions,
    /// How many train together.
    ranks: usize,
}

/// Settings that differ between `grpo` and `sft`.
struct Own<'a> {
    /// Whether the template asks for thinking.
    with_thinking: bool,
    max_prompt_length: Option<usize>,
    reward_method: Option<&'a str>,
    expect_box: bool,
    share_prompt: bool,
    offload_reference: bool,
    cuda_graphs: Option<bool>,
}

impl TryFrom<&GrpoConfig> for Settings {
    type Error = TrainError;

    fn try_from(config: &GrpoConfig) -> Result<Self, TrainError> {
        let own = Own {
            with_thinking: true,
            max_prompt_length: config.sampling.max_prompt_length,
            reward_method: config.scoring.reward_method.as_deref(),
            expect_box: config.rewards.is_reward_customized_from_vlm_module
                && config.data.task_type.as_deref() == Some("rec"),
            share_prompt: config.rollout.share_prompt,
            offload_reference: config.rollout.offload_reference,
            cuda_graphs: config.rollout.cuda_graphs.asked(),
        };
        Self::new(config.training(), &own)
    }
}

impl TryFrom<&SftConfig> for Settings {
    type Error = TrainError;

    fn try_from(config: &SftConfig) -> Result<Self, TrainError> {
        let own = Own {
            with_thinking: config.sft.with_thinking,
            max_prompt_length: None,
            reward_method: None,
            expect_box: false,
            share_prompt: true,
            offload_reference: false,
            cuda_graphs: None,
        };
        Self::new(config.training(), &own)
    }
}

impl Settings {
    /// Those of one of several ranks.
    pub(crate) fn of_grpo(config: &GrpoConfig, ranks: &Ranks) -> Result<Self, TrainError> {
        let mut own = config.clone();
        own.machine.device =
            device_of(&config.machine.device, ranks.world.size(), ranks.local_rank)?;
        Ok(Self { ranks: ranks.world.size(), ..Self::try_from(&own)? })
    }

    /// As [`Self::of_grpo`].
    pub(crate) fn of_sft(config: &SftConfig, ranks: &Ranks) -> Result<Self, TrainError> {
        let mut own = config.clone();
        own.machine.device =
            device_of(&config.machine.device, ranks.world.size(), ranks.local_rank)?;
        Ok(Self { ranks: ranks.world.size(), ..Self::try_from(&own)? })
    }

    fn new(sections: TrainingSections, own: &Own<'_>) -> Result<Self, TrainError> {
        let TrainingSections { model, data, optimizer, machine, .. } = &sections;
        let device = parse_device(&machine.device)?;
        let kind = if model.bf16 { Kind::BFloat16 } else { Kind::Float };
        check_kind(device, kind)?;
        let folders = data.image_folders.as_deref();
        let settings = Self {
            lora: lora(model, optimizer.seed)?,
            load: LoadOptions {
                kind,
                device,
                trained: trained_parts(
                    model,
                    machine.offload_optimizer,
                    &[Part::Vision, Part::Merger],
                ),
            },
            decoding: Decoding::new(own.cuda_graphs, device)?,
            share_prompt: own.share_prompt,
            offload_reference: own.offload_reference,
            loader: LoaderOptions {
                workers: machine.dataloader_num_workers.max(1),
                ahead: 4 * optimizer.per_device_train_batch_size.max(8),
                cache_bytes: IMAGE_CACHE_BYTES,
                on_bad_row: data.on_bad_row,
                digests: false,
            },
            processor: ProcessorOptions {
                resize_backend: resize_backend(data.image_processor),
                min_pixels: Some(data.min_pixels as u64),
                max_pixels: Some(data.max_pixels as u64),
                apply_exif: data.apply_exif,
                max_prompt_length: own.max_prompt_length,
            },
            checks: RowChecks {
                expect_box: own.expect_box,
                follow_links: data.follow_links,
                ..RowChecks::default()
            },
            files: DataFiles::from_lists(&data.data_file_paths, folders, own.reward_method)?,
            with_thinking: own.with_thinking,
            features: FeatureCacheOptions {
                max_bytes: machine.feature_cache_bytes,
                folder: machine.feature_cache_dir.as_deref().map(PathBuf::from),
            },
            ranks: 1,
            sections,
        };
        // A template that there is not is told before a model is read.
        settings.template(DataFamily::WITHOUT_MODEL)?;
        Ok(settings)
    }

    /// What stands round a question to a model of `family`.
    ///
    /// # Errors
    /// A template that is neither a name, nor a text with `{Question}`, nor a file with such a text.
    pub(crate) fn template(&self, family: DataFamily) -> Result<PromptTemplate, TrainError> {
        let data = &self.sections.data;
        let task = data.task_type.as_deref();
        Ok(template(&data.question_template, task, self.with_thinking, family)?)
    }

    /// The learning rate over `total_steps`.
    pub(crate) fn schedule(&self, total_steps: u64) -> Schedule {
        let optimizer = &self.sections.optimizer;
        let peak = optimizer.learning_rate;
        let least = optimizer.lr_scheduler_kwargs.as_ref().and_then(|kwargs| kwargs.rate(peak));
        // As in transformers: a ratio rounds up, and a number of steps comes before it.
        let part = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        let (kind, warms_up) = match optimizer.lr_scheduler_type {
            LrSchedulerType::Linear => (ScheduleKind::Linear, true),
            LrSchedulerType::Cosine | LrSchedulerType::CosineWithMinLr => {
                (ScheduleKind::Cosine, true)
            }
            LrSchedulerType::ConstantWithWarmup => (ScheduleKind::Constant, true),
            LrSchedulerType::Constant => (ScheduleKind::Constant, false),
        };
        let warmup_steps = match optimizer.warmup_steps {
            _ if !warms_up => 0,
            steps if steps >= 1.0 => steps as u64,
            ratio if ratio > 0.0 => part(ratio),
            _ => part(optimizer.warmup_ratio),
        };
        Schedule { kind, peak, warmup_steps, total_steps, least: least.unwrap_or(0.0) }
    }

    /// AdamW's settings.
    pub(crate) fn optimizer(&self) -> OptimizerOptions {
        let optimizer = &self.sections.optimizer;
        OptimizerOptions {
            beta1: optimizer.adam_beta1,
            beta2: optimizer.adam_beta2,
            eps: optimizer.adam_epsilon,
            weight_decay: optimizer.weight_decay,
            max_grad_norm: optimizer.max_grad_norm,
            in_8bit: optimizer.optim.is_8bit(),
        }
    }

    /// Rows, or completions, of one step on all ranks.
    pub(crate) fn rows_per_step(&self) -> usize {
        let optimizer = &self.sections.optimizer;
        optimizer.per_device_train_batch_size * optimizer.gradient_accumulation_steps * self.ranks
    }

    /// The bounds of a micro-batch.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            completions: self.sections.optimizer.per_device_train_batch_size,
            tokens: self.sections.machine.max_tokens_per_microbatch,
            share_prompt: self.share_prompt,
        }
    }

    /// Steps or epochs between two checkpoints; `None` where only the end has one.
    pub(crate) fn save_interval(&self) -> Option<Interval> {
        self.sections.save.save_strategy.interval(self.sections.save.save_steps)
    }

    /// Steps or epochs between two evaluations; `None` where there are none.
    pub(crate) fn eval_interval(&self) -> Option<Interval> {
        self.sections.eval.interval(self.sections.run.logging_steps)
    }

    /// How a model of the family is loaded: what `--freeze_vision_modules` freezes differs.
    pub(crate) fn load_options(&self, family: &Family) -> LoadOptions {
        let offloads = self.sections.machine.offload_optimizer;
        let trained = trained_parts(&self.sections.model, offloads, family.vision_modules);
        LoadOptions { trained, ..self.load }
    }

    /// Steps of the run, given the steps of an epoch.
    pub(crate) fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        let optimizer = &self.sections.optimizer;
        let by_epochs = (optimizer.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        u64::try_from(optimizer.max_steps).unwrap_or(by_epochs).max(1)
    }
}

/// The device of a rank of several: each on a machine has a card, unless each sees its own alone.
///
/// # Errors
/// A card by its number, and a device that is not there.
pub fn device_of(name: &str, ranks: usize, local_rank: usize) -> Result<String, TrainError> {
    if ranks == 1 || name == "cpu" {
        return Ok(name.to_owned());
    }
    if name.starts_with("cuda:") {
        let cause = format!(
            "is `{name}`, but each rank takes the card of its LOCAL_RANK\nhint: --device cuda"
        );
        return Err(TrainError::Setting { name: "device", cause });
    }
    match parse_device(name)? {
        Device::Cuda(_) if num_cards() > 1 => Ok(format!("cuda:{local_rank}")),
        Device::Cuda(_) => Ok("cuda:0".to_owned()),
        _ => Ok("cpu".to_owned()),
    }
}

fn lora(model: &ModelSection, seed: u64) -> Result<Option<LoraOptions>, TrainError> {
    if model.lora_vision && model.freeze_vision_modules {
        let cause = "adapters in the vision tower, which --freeze_vision_modules freezes; give one of the two".to_owned();
        return Err(TrainError::Setting { name: "lora_vision", cause });
    }
    if !model.use_peft {
        return Ok(None);
    }
    Ok(Some(LoraOptions {
        rank: model.lora_r as i64,
        alpha: model.lora_alpha,
        dropout: model.lora_dropout,
        targets: Targets::new(&model.lora_target_modules, model.lora_vision)?,
        seed,
    }))
}

/// `vision_modules`: what `--freeze_vision_modules` freezes.
fn trained_parts(
    model: &ModelSection,
    masters_on_host: bool,
    vision_modules: &[Part],
) -> TrainedParts {
    let freezes = |part| model.freeze_vision_modules && vision_modules.contains(&part);
    let tower = freezes(Part::Vision) || model.freeze_vision_tower;
    let merger = freezes(Part::Merger) || model.freeze_merger;
    TrainedParts {
        vision: model.use_peft || !tower,
        merger: model.use_peft || !merger,
        language: model.use_peft || !model.freeze_language_model,
        masters_on_host,
    }
}
