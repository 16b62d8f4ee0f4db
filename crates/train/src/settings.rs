//! What `grpo` and `sft` have in common, read from either configuration once.

use std::path::PathBuf;

use config::{EvalStrategy, GrpoConfig, Interval, LrSchedulerType, Resume, SftConfig};
use data::image::resize_backend;
use data::template::template;
use data::{DataFiles, LoaderOptions, ProcessorOptions, PromptTemplate, RowChecks};
use engine::Decoding;
use models::{FeatureCacheOptions, LoadOptions, LoraOptions, Targets, TrainedParts};
use tch::Kind;
use torch::parse_device;

use crate::TrainError;
use crate::micro_batches::Limits;
use crate::optimizer::OptimizerOptions;
use crate::schedule::{Schedule, ScheduleKind};

/// Bytes of prepared images that are kept for later epochs.
const IMAGE_CACHE_BYTES: usize = 1 << 30;

/// Settings that both trainers obey.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) output_dir: PathBuf,
    /// The model as the user calls it.
    pub(crate) model_name: String,
    pub(crate) load: LoadOptions,
    /// Adapters to train instead of the weights.
    pub(crate) lora: Option<LoraOptions>,
    /// How completions are sampled.
    pub(crate) decoding: Decoding,
    /// Whether the reference model waits in host memory between its passes.
    pub(crate) offload_reference: bool,
    pub(crate) recompute: bool,
    pub(crate) optimizer: OptimizerOptions,
    pub(crate) schedule_kind: ScheduleKind,
    pub(crate) learning_rate: f64,
    /// The part of it that a schedule ends at.
    pub(crate) least_rate: f64,
    /// Below 1 a part of the steps.
    pub(crate) warmup_steps: f64,
    pub(crate) warmup_ratio: f64,
    pub(crate) epochs: f64,
    pub(crate) max_steps: Option<u64>,
    pub(crate) micro_batch: usize,
    pub(crate) accumulation: usize,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) max_bad_steps: u64,
    pub(crate) seed: u64,
    pub(crate) logging_steps: u64,
    pub(crate) logging_first_step: bool,
    pub(crate) save_every: Option<Interval>,
    pub(crate) save_total_limit: Option<usize>,
    pub(crate) save_optimizer_limit: usize,
    pub(crate) save_only_model: bool,
    pub(crate) verify_checkpoint: bool,
    pub(crate) eval_every: Option<Interval>,
    pub(crate) eval_on_start: bool,
    pub(crate) val_split_ratio: f64,
    pub(crate) resume: Resume,
    pub(crate) allow_changed: bool,
    pub(crate) num_threads: Option<usize>,
    pub(crate) loader: LoaderOptions,
    pub(crate) processor: ProcessorOptions,
    pub(crate) checks: RowChecks,
    pub(crate) files: DataFiles,
    pub(crate) template: PromptTemplate,
    pub(crate) features: FeatureCacheOptions,
}

macro_rules! lora {
    ($config:ident) => {{
        let c = $config;
        if c.lora_vision && c.freeze_vision_modules {
            let cause = "adapters in the vision tower, and --freeze_vision_modules".to_owned();
            return Err(TrainError::Setting { name: "lora_vision", cause });
        }
        let options = || -> Result<LoraOptions, TrainError> {
            Ok(LoraOptions {
                rank: c.lora_r as i64,
                alpha: c.lora_alpha,
                dropout: c.lora_dropout,
                targets: Targets::new(&c.lora_target_modules, c.lora_vision)?,
                seed: c.seed,
            })
        };
        c.use_peft.then(options).transpose()?
    }};
}

macro_rules! settings {
    ($config:expr, $template:expr, $max_prompt:expr, $method:expr, $expect_box:expr, $offload_reference:expr, $cuda_graphs:expr) => {{
        let c = $config;
        let device = parse_device(&c.device)?;
        Ok(Settings {
            output_dir: PathBuf::from(&c.output_dir),
            model_name: c.model_name_or_path.clone(),
            lora: lora!(c),
            load: LoadOptions {
                kind: if c.bf16 { Kind::BFloat16 } else { Kind::Float },
                device,
                trained: TrainedParts {
                    vision: c.use_peft || !(c.freeze_vision_modules || c.freeze_vision_tower),
                    merger: c.use_peft || !(c.freeze_vision_modules || c.freeze_merger),
                    language: c.use_peft || !c.freeze_language_model,
                    masters_on_host: c.offload_optimizer,
                },
            },
            decoding: Decoding::new($cuda_graphs, device)?,
            offload_reference: $offload_reference,
            recompute: c.gradient_checkpointing,
            optimizer: OptimizerOptions {
                beta1: c.adam_beta1,
                beta2: c.adam_beta2,
                eps: c.adam_epsilon,
                weight_decay: c.weight_decay,
                max_grad_norm: c.max_grad_norm,
                in_8bit: c.optim.is_8bit(),
            },
            schedule_kind: match c.lr_scheduler_type {
                LrSchedulerType::Linear => ScheduleKind::Linear,
                LrSchedulerType::Cosine | LrSchedulerType::CosineWithMinLr => ScheduleKind::Cosine,
                LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => {
                    ScheduleKind::Constant
                }
            },
            learning_rate: c.learning_rate,
            least_rate: (c.lr_scheduler_kwargs.as_ref())
                .and_then(|kwargs| kwargs.rate(c.learning_rate))
                .unwrap_or(0.0),
            warmup_steps: if c.lr_scheduler_type == LrSchedulerType::Constant {
                0.0
            } else {
                c.warmup_steps
            },
            warmup_ratio: if c.lr_scheduler_type == LrSchedulerType::Constant {
                0.0
            } else {
                c.warmup_ratio
            },
            epochs: c.num_train_epochs,
            max_steps: u64::try_from(c.max_steps).ok(),
            micro_batch: c.per_device_train_batch_size,
            accumulation: c.gradient_accumulation_steps,
            max_tokens: c.max_tokens_per_microbatch,
            max_bad_steps: c.max_bad_steps,
            seed: c.seed,
            logging_steps: c.logging_steps as u64,
            logging_first_step: c.logging_first_step,
            save_every: c.save_strategy.interval(c.save_steps),
            save_total_limit: c.save_total_limit,
            save_optimizer_limit: c.save_optimizer_limit,
            save_only_model: c.save_only_model,
            verify_checkpoint: c.verify_checkpoint,
            eval_every: EvalStrategy::interval(c.eval_strategy, c.eval_steps, c.logging_steps),
            eval_on_start: c.eval_on_start,
            val_split_ratio: c.val_split_ratio,
            resume: c.resume_from_checkpoint.clone(),
            allow_changed: c.allow_changed,
            num_threads: c.num_threads,
            loader: LoaderOptions {
                workers: c.dataloader_num_workers.max(1),
                ahead: 4 * c.per_device_train_batch_size.max(8),
                cache_bytes: IMAGE_CACHE_BYTES,
                on_bad_row: c.on_bad_row,
                digests: false,
            },
            processor: ProcessorOptions {
                resize_backend: resize_backend(c.image_processor),
                min_pixels: Some(c.min_pixels as u64),
                max_pixels: Some(c.max_pixels as u64),
                apply_exif: c.apply_exif,
                max_prompt_length: $max_prompt,
            },
            checks: RowChecks {
                expect_box: $expect_box,
                follow_links: c.follow_links,
                ..RowChecks::default()
            },
            files: DataFiles::from_lists(&c.data_file_paths, c.image_folders.as_deref(), $method)?,
            template: $template,
            features: FeatureCacheOptions {
                max_bytes: c.feature_cache_bytes,
                folder: c.feature_cache_dir.as_deref().map(PathBuf::from),
            },
        })
    }};
}

impl TryFrom<&GrpoConfig> for Settings {
    type Error = TrainError;

    fn try_from(config: &GrpoConfig) -> Result<Self, TrainError> {
        let template = template(&config.question_template, config.task_type.as_deref(), true)?;
        let method = config.reward_method.as_ref().map(|m| m.0.as_str());
        let expect_box = config.is_reward_customized_from_vlm_module
            && config.task_type.as_deref() == Some("rec");
        settings!(
            config,
            template,
            config.max_prompt_length,
            method,
            expect_box,
            config.offload_reference,
            config.cuda_graphs
        )
    }
}

impl TryFrom<&SftConfig> for Settings {
    type Error = TrainError;

    fn try_from(config: &SftConfig) -> Result<Self, TrainError> {
        let template =
            template(&config.question_template, config.task_type.as_deref(), config.with_thinking)?;
        settings!(config, template, None, None, false, false, false)
    }
}

impl Settings {
    /// The learning rate over `total_steps`.
    pub(crate) fn schedule(&self, total_steps: u64) -> Schedule {
        // As transformers: a ratio rounds up, and gives way to a number of steps.
        let part = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        Schedule {
            kind: self.schedule_kind,
            peak: self.learning_rate,
            warmup_steps: match self.warmup_steps {
                steps if steps >= 1.0 => steps as u64,
                ratio if ratio > 0.0 => part(ratio),
                _ => part(self.warmup_ratio),
            },
            total_steps,
            least: self.least_rate,
        }
    }

    /// What bounds a micro-batch.
    pub(crate) fn limits(&self, share_prompt: bool) -> Limits {
        Limits { completions: self.micro_batch, tokens: self.max_tokens, share_prompt }
    }

    /// Steps of the run, given those of an epoch.
    pub(crate) fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        let by_epochs = (self.epochs * steps_per_epoch as f64).ceil() as u64;
        self.max_steps.unwrap_or(by_epochs).max(1)
    }
}
