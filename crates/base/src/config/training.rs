//! What `grpo` and `sft` take. Names are those of VLM-R1's scripts and of the Hugging Face trainers;
//! a default that differs from theirs says so.

use super::declare::{ColonList, choices};
use super::{ConfigError, Validate};
use crate::config;

choices! {
    /// How the learning rate goes after the warm-up.
    pub enum LrSchedulerType {
        /// Linearly to 0 at the last step.
        Linear = "linear",
        /// Half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Not at all, and no warm-up either.
        Constant = "constant",
        /// Not at all.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choices! {
    /// When checkpoints are written.
    pub enum SaveStrategy {
        /// Every `save_steps` steps and at the end.
        Steps = "steps",
        /// At the end only.
        No = "no",
    }
}

choices! {
    /// When the validation rows are scored.
    pub enum EvalStrategy {
        /// Every `eval_steps` steps and at the end.
        Steps = "steps",
        /// Never.
        No = "no",
    }
}

choices! {
    /// Units of the corners of a box.
    pub enum BoxFormat {
        /// Pixels of the image file.
        Absolute = "absolute",
        /// Pixels of the resized image that the model sees.
        ModelInput = "model_input",
        /// Thousandths of the image's width and height.
        Relative1000 = "relative_1000",
        /// Shares of the image's width and height.
        Relative1 = "relative_1",
    }
}

choices! {
    /// What to do with a bad row of the data.
    pub enum OnBadRow {
        /// The run stops before it starts.
        Stop = "stop",
        /// The row is left out, counted and listed.
        Skip = "skip",
    }
}

choices! {
    /// Whose way of resizing images is followed.
    pub enum ImageProcessor {
        /// transformers 5 on a CPU.
        Torchvision = "torchvision",
        /// transformers 4.49 and VLM-R1.
        Pillow = "pillow",
    }
}

choices! {
    /// Type of the weights and of what is computed from them.
    pub enum DType {
        /// 32 bits.
        Float32 = "float32",
        /// 16 bits with the range of 32.
        BFloat16 = "bfloat16",
    }
}

/// The fields that `grpo` and `sft` share, after those of their own.
macro_rules! with_training_fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        config! {
            $(#[$meta])*
            pub struct $name {
                "model" {
                    /// Model folder in Hugging Face format, or the name of a model on the hub.
                    model_name_or_path: String,
                    /// Whether weights and computation are bf16 (the optimizer keeps f32 copies).
                    bf16: bool = false,
                    /// Leave the vision tower and its merger as they are.
                    freeze_vision_modules: bool = false,
                    /// Leave the vision tower as it is, up to its merger.
                    freeze_vision_tower: bool = false,
                    /// Leave the merger between vision tower and language model as it is.
                    freeze_merger: bool = false,
                    /// Leave the language model as it is.
                    freeze_language_model: bool = false,
                    /// Train low-rank adapters (LoRA) over frozen weights.
                    use_peft: bool = false,
                    /// Rank of the adapters.
                    lora_r: usize = 16,
                    /// The adapters' update is multiplied by `lora_alpha / lora_r`.
                    lora_alpha: f64 = 32.0,
                    /// Share of an adapter's inputs set to 0 while training, 0 to 1.
                    lora_dropout: f64 = 0.05,
                    /// Linear layers with an adapter: names, ends of names or regular expressions; without it, all
                    /// of the language model, as in VLM-R1.
                    lora_target_modules: Vec<String> = Vec::new(),
                    /// Whether targets may lie in the vision tower and its merger.
                    lora_vision: bool = false,
                    /// Whether to recompute activations in the backward pass: less memory, more time.
                    gradient_checkpointing: bool = false,
                }
                "data" {
                    /// Training files in VLM-R1's JSONL, joined by `:`.
                    data_file_paths: ColonList,
                    /// Folders of the images, joined by `:`, one for each training file.
                    image_folders: Option<ColonList> = None,
                    /// Chooses the question template: `rec`, `ic`, `odLength` or any other.
                    task_type: Option<String> = None,
                    /// Question template with `{Question}` in it; without it, that of the task.
                    question_template: Option<String> = None,
                    /// Part of the rows set aside for evaluation during training, 0 to 1.
                    val_split_ratio: f64 = 0.0,
                    /// Pixels above which an image is shrunk.
                    max_pixels: usize = 12_845_056,
                    /// Pixels below which an image is enlarged.
                    min_pixels: usize = 3_136,
                    /// Whose way of resizing images to follow (VLM-R1 ran `pillow`).
                    image_processor: ImageProcessor = ImageProcessor::Torchvision,
                    /// What to do with a bad row: `skip` counts and lists them.
                    on_bad_row: OnBadRow = OnBadRow::Stop,
                }
                "optimisation" {
                    /// Micro-batches that one step adds up.
                    gradient_accumulation_steps: usize = 1,
                    /// Passes over the data; ignored where `max_steps` is given.
                    num_train_epochs: f64 = 1.0,
                    /// Steps of the run; -1 takes as many as `num_train_epochs` needs.
                    max_steps: i64 = -1,
                    /// Steps in which the learning rate rises from 0; over `warmup_ratio` if above 0.
                    warmup_steps: usize = 0,
                    /// AdamW's weight decay.
                    weight_decay: f64 = 0.0,
                    /// AdamW's decay of the first moment.
                    adam_beta1: f64 = 0.9,
                    /// AdamW's decay of the second moment.
                    adam_beta2: f64 = 0.999,
                    /// AdamW's guard against division by zero.
                    adam_epsilon: f64 = 1e-8,
                    /// Norm to which the gradient is clipped.
                    max_grad_norm: f64 = 1.0,
                    /// Seed of the order of the data and of all random draws.
                    seed: u64 = 42,
                }
                "run" {
                    /// Folder of the run; a run that it holds is continued.
                    output_dir: String,
                    /// Name of the run: shown, and kept in config.yaml.
                    run_name: Option<String> = None,
                    /// Steps between two lines of metrics (the Hugging Face trainers: 500).
                    logging_steps: usize = 1,
                    /// Whether checkpoints are written every `save_steps` steps or at the end only.
                    save_strategy: SaveStrategy = SaveStrategy::Steps,
                    /// Steps between two checkpoints; 0: at the end only (the Hugging Face trainers: 500).
                    save_steps: usize = 100,
                    /// Number of checkpoints to keep, the newest ones; without it, all.
                    save_total_limit: Option<usize> = None,
                    /// Whether the validation rows are scored every `eval_steps` steps.
                    eval_strategy: EvalStrategy = EvalStrategy::No,
                    /// Steps between two evaluations; without it, `logging_steps`.
                    eval_steps: Option<usize> = None,
                    /// Whether to continue the run that `output_dir` holds; if false, finding one is an error.
                    resume_from_checkpoint: bool = true,
                    /// Continue although settings that alter the run have changed.
                    allow_changed: bool = false,
                    /// Steps with a loss or gradient that is not finite to pass over, each refused and written to
                    /// `bad_steps`; one more stops the run (0: the first, as it seldom comes alone).
                    max_bad_steps: u64 = 0,
                    /// Print the resolved configuration and stop.
                    dry_run: bool = false,
                }
                "machine" {
                    /// `auto`, `cpu` or `cuda:N`.
                    device: String = "auto".into(),
                    /// Threads that compute; without it, libtorch's choice.
                    num_threads: Option<usize> = None,
                    /// Threads that read and resize images ahead of need.
                    dataloader_num_workers: usize = 2,
                    /// Tokens of one forward and backward pass: a larger group is taken in parts, each with its prompt
                    /// and at least one completion; without it, a micro-batch.
                    max_tokens_per_microbatch: Option<usize> = None,
                    /// Memory of the device for image features while vision tower and merger are frozen, bytes; 0: none.
                    feature_cache_bytes: usize = 1 << 30,
                    /// Folder of image features, for further runs with this tower; without it, memory alone.
                    feature_cache_dir: Option<String> = None,
                }
                $($own)*
            }
        }
    };
}

/// The fields of `grpo`, and of what takes the same file.
macro_rules! with_grpo_fields {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        with_training_fields! {
            $(#[$about])*
            pub struct $name {
                "optimisation" {
                    /// Completions of one micro-batch, any number: whole groups are taken, at least one (VLM-R1: a
                    /// multiple of `num_generations`).
                    per_device_train_batch_size: usize = 8,
                    /// Highest learning rate.
                    learning_rate: f64 = 1e-6,
                    /// How the learning rate goes after the warm-up.
                    lr_scheduler_type: LrSchedulerType = LrSchedulerType::Linear,
                    /// Part of the steps in which the learning rate rises from 0.
                    warmup_ratio: f64 = 0.0,
                }
                "rewards" {
                    /// Rewards by name, or where one's own are: `FILE.py:FUNCTION`, `program:COMMAND`,
                    /// `http://HOST/PATH`.
                    reward_funcs: Vec<String> = vec!["accuracy".into(), "format".into()],
                    /// Weights of the rewards, one for each; without it, 1.
                    reward_weights: Option<Vec<f64>> = None,
                    /// Processes (requests) of each reward of one's own among which a batch is split.
                    reward_workers: usize = 1,
                    /// Longest wait for a reward of one's own to score a batch, s.
                    reward_timeout_secs: f64 = 60.0,
                    /// Interpreter of rewards in Python; without it `VLM_R1_PYTHON`, else `python3`.
                    reward_python: Option<String> = None,
                    /// Model of the reward and accuracy method `llm`, at the endpoint of `OPENAI_API_BASE`.
                    judge_model: Option<String> = None,
                    /// File of the judge's prompt: `{answer}`, `{solution}`, `{question}`; without it, ours.
                    judge_prompt: Option<String> = None,
                    /// Show the judge the images of the row.
                    judge_images: bool = false,
                    /// Requests to the judge at a time.
                    judge_concurrency: usize = 8,
                    /// Folder of the judge's replies, which are not asked for again; without it,
                    /// `judge_cache` in `output_dir`.
                    judge_cache: Option<String> = None,
                    /// How `accuracy` compares, joined by `:`, one for each training file; a row's own
                    /// `accu_reward_method` comes first.
                    reward_method: Option<ColonList> = None,
                    /// Take the model family's own rewards for the task.
                    is_reward_customized_from_vlm_module: bool = false,
                    /// Units of the boxes that the model writes; without it, the family's own.
                    box_format: Option<BoxFormat> = None,
                    /// Units of the boxes in solutions; without it, `absolute` where boxes are converted.
                    solution_box_format: Option<BoxFormat> = None,
                    /// Tokens from which the reward `overlong` is -1; without it, `max_completion_length`.
                    overlong_max_tokens: Option<usize> = None,
                    /// Tokens before that over which it falls from 0; without it, a fifth of them.
                    overlong_cache_tokens: Option<usize> = None,
                }
                "policy optimisation" {
                    /// Completions of one prompt: the size of a group.
                    num_generations: usize = 8,
                    /// Optimiser steps on one batch of completions.
                    num_iterations: usize = 1,
                    /// How far the ratio to the old policy may fall before it is clipped.
                    epsilon: f64 = 0.2,
                    /// How far it may rise; without it, `epsilon`.
                    epsilon_high: Option<f64> = None,
                    /// Weight of the divergence from the reference model; 0 needs none.
                    beta: f64 = 0.04,
                }
                "sampling" {
                    /// Longest completion, tokens (VLM-R1's scripts; the Hugging Face trainer: 256).
                    max_completion_length: usize = 2048,
                    /// No end of answer before this many tokens.
                    min_completion_length: usize = 0,
                    /// Longest prompt, tokens: a longer one is an error, nothing is cut; without it, any.
                    max_prompt_length: Option<usize> = None,
                    /// Divides the logits; obeyed here, VLM-R1's trainer fixes it at 1.
                    temperature: f64 = 1.0,
                    /// Keep the likeliest tokens up to this sum.
                    top_p: f64 = 1.0,
                    /// Keep this many likeliest tokens; 0: all (VLM-R1 inherits 50 from transformers).
                    top_k: usize = 0,
                    /// Keep tokens at least this likely, relative to the likeliest; without it, all.
                    min_p: Option<f64> = None,
                    /// Divides the logits of tokens that are already there.
                    repetition_penalty: f64 = 1.0,
                }
                "machine" {
                    /// Completions sampled at the same time.
                    max_concurrent_completions: usize = 256,
                    /// Compute the prompt of a group once; if false, once for each completion: slower, the same results.
                    share_prompt: bool = true,
                }
                $($own)*
            }
        }
    };
}

with_grpo_fields! {
    /// Group relative policy optimisation.
    pub struct GrpoConfig {}
}

with_grpo_fields! {
    /// A run of `grpo` as it would be, with the flags and files of that command.
    pub struct PlanConfig {
        "plan" {
            /// Memory to fit into, as `24GB`, `80GiB` or bytes, several of them side by side; without it, that of
            /// this machine (a GPU's must be given).
            memory: Vec<String> = Vec::new(),
            /// Price of the machine; the cost of the run is told in the same money.
            cost_per_hour: Option<f64> = None,
        }
    }
}

impl PlanConfig {
    /// The run's own settings.
    ///
    /// # Errors
    /// None, unless a field cannot be written as JSON.
    pub fn grpo(&self) -> Result<GrpoConfig, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        if let Some(fields) = value.as_object_mut() {
            fields.remove("memory");
            fields.remove("cost_per_hour");
        }
        serde_json::from_value(value)
    }

    /// Bytes of each `memory`.
    ///
    /// # Errors
    /// On anything but a number with or without a unit.
    pub fn memory_bytes(&self) -> Result<Vec<u64>, ConfigError> {
        self.memory.iter().map(|text| bytes(text)).collect()
    }
}

fn bytes(text: &str) -> Result<u64, ConfigError> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor = match unit.trim() {
        "" | "B" => Some(1.0),
        "MB" => Some(1e6),
        "GB" => Some(1e9),
        "MiB" => Some(f64::from(1 << 20)),
        "GiB" => Some(f64::from(1 << 30)),
        _ => None,
    };
    match (number.parse::<f64>(), factor) {
        (Ok(number), Some(factor)) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err(ConfigError::OutOfRange {
            key: "memory",
            got: text.to_owned(),
            expected: "a number above 0 with MB, GB, MiB, GiB or nothing behind it",
        }),
    }
}

with_training_fields! {
    /// Supervised fine-tuning on the true answers.
    pub struct SftConfig {
        "optimisation" {
            /// Rows of one micro-batch.
            per_device_train_batch_size: usize = 8,
            /// Highest learning rate (VLM-R1's baseline; the Hugging Face trainer: 2e-5).
            learning_rate: f64 = 1e-6,
            /// How the learning rate goes after the warm-up (the Hugging Face trainer: `linear`).
            lr_scheduler_type: LrSchedulerType = LrSchedulerType::Cosine,
            /// Part of the steps in which the learning rate rises from 0 (VLM-R1's baseline).
            warmup_ratio: f64 = 0.1,
        }
        "data" {
            /// Ask with the template that wants thinking, as `grpo` does; else with that of plain answers.
            with_thinking: bool = false,
            /// Longest row, tokens: a longer one is an error, nothing is cut; without it, any.
            max_seq_length: Option<usize> = None,
        }
    }
}

/// One demand on one value.
pub(super) fn demand(
    holds: bool,
    key: &'static str,
    got: impl ToString,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange {
            key,
            got: got.to_string(),
            expected,
        })
    }
}

const POSITIVE: &str = "at least 1";
const NOT_NEGATIVE: &str = "at least 0";
const FRACTION: &str = "at least 0 and below 1";

macro_rules! validate_training_fields {
    ($config:ident) => {{
        let c = $config;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        demand(c.lora_r > 0, "lora_r", 0, POSITIVE)?;
        demand(c.lora_alpha > 0.0, "lora_alpha", c.lora_alpha, "above 0")?;
        demand(
            fraction(c.lora_dropout),
            "lora_dropout",
            c.lora_dropout,
            FRACTION,
        )?;
        demand(
            c.val_split_ratio >= 0.0 && c.val_split_ratio < 1.0,
            "val_split_ratio",
            c.val_split_ratio,
            FRACTION,
        )?;
        demand(
            c.max_pixels >= c.min_pixels,
            "max_pixels",
            c.max_pixels,
            "at least `min_pixels`",
        )?;
        demand(
            c.gradient_accumulation_steps > 0,
            "gradient_accumulation_steps",
            0,
            POSITIVE,
        )?;
        demand(
            c.per_device_train_batch_size > 0,
            "per_device_train_batch_size",
            0,
            POSITIVE,
        )?;
        demand(
            c.num_train_epochs > 0.0,
            "num_train_epochs",
            c.num_train_epochs,
            "above 0",
        )?;
        demand(
            c.max_steps == -1 || c.max_steps > 0,
            "max_steps",
            c.max_steps,
            "-1 or at least 1",
        )?;
        demand(
            c.learning_rate >= 0.0,
            "learning_rate",
            c.learning_rate,
            NOT_NEGATIVE,
        )?;
        demand(
            (0.0..=1.0).contains(&c.warmup_ratio),
            "warmup_ratio",
            c.warmup_ratio,
            "0 to 1",
        )?;
        demand(
            c.weight_decay >= 0.0,
            "weight_decay",
            c.weight_decay,
            NOT_NEGATIVE,
        )?;
        demand(fraction(c.adam_beta1), "adam_beta1", c.adam_beta1, FRACTION)?;
        demand(fraction(c.adam_beta2), "adam_beta2", c.adam_beta2, FRACTION)?;
        demand(
            c.adam_epsilon >= 0.0,
            "adam_epsilon",
            c.adam_epsilon,
            NOT_NEGATIVE,
        )?;
        demand(
            c.max_grad_norm > 0.0,
            "max_grad_norm",
            c.max_grad_norm,
            "above 0",
        )?;
        demand(c.logging_steps > 0, "logging_steps", 0, POSITIVE)?;
        demand(
            c.save_total_limit != Some(0),
            "save_total_limit",
            0,
            POSITIVE,
        )?;
        demand(c.eval_steps != Some(0), "eval_steps", 0, POSITIVE)?;
        demand(c.num_threads != Some(0), "num_threads", 0, POSITIVE)?;
        demand(
            c.dataloader_num_workers > 0,
            "dataloader_num_workers",
            0,
            POSITIVE,
        )?;
        demand(
            c.max_tokens_per_microbatch != Some(0),
            "max_tokens_per_microbatch",
            0,
            POSITIVE,
        )
    }};
}

impl Validate for PlanConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        self.memory_bytes()?;
        let cost = self.cost_per_hour.unwrap_or_default();
        demand(cost >= 0.0, "cost_per_hour", cost, NOT_NEGATIVE)?;
        match self.grpo() {
            Ok(config) => config.validate(),
            Err(error) => demand(false, "plan", error, "the settings of `grpo`"),
        }
    }
}

impl Validate for GrpoConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        validate_training_fields!(self)?;
        demand(
            self.num_generations > 1,
            "num_generations",
            self.num_generations,
            "at least 2",
        )?;
        demand(self.num_iterations > 0, "num_iterations", 0, POSITIVE)?;
        demand(self.epsilon >= 0.0, "epsilon", self.epsilon, NOT_NEGATIVE)?;
        let epsilon_high = self.epsilon_high.unwrap_or_default();
        demand(
            epsilon_high >= 0.0,
            "epsilon_high",
            epsilon_high,
            NOT_NEGATIVE,
        )?;
        demand(self.beta >= 0.0, "beta", self.beta, NOT_NEGATIVE)?;
        demand(
            self.max_completion_length > 0,
            "max_completion_length",
            0,
            POSITIVE,
        )?;
        demand(
            self.min_completion_length <= self.max_completion_length,
            "min_completion_length",
            self.min_completion_length,
            "at most `max_completion_length`",
        )?;
        let overlong_max = self
            .overlong_max_tokens
            .unwrap_or(self.max_completion_length);
        validate_overlong(overlong_max, self.overlong_cache_tokens)?;
        demand(
            self.temperature > 0.0,
            "temperature",
            self.temperature,
            "above 0",
        )?;
        demand(
            self.max_concurrent_completions > 0,
            "max_concurrent_completions",
            0,
            POSITIVE,
        )?;
        validate_filters(self.top_p, self.min_p, self.repetition_penalty)
    }
}

impl Validate for SftConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        validate_training_fields!(self)
    }
}

/// The ranges of the reward `overlong`.
pub(super) fn validate_overlong(
    max_tokens: usize,
    cache_tokens: Option<usize>,
) -> Result<(), ConfigError> {
    demand(max_tokens > 0, "overlong_max_tokens", 0, POSITIVE)?;
    let cache_tokens = cache_tokens.unwrap_or_default();
    demand(
        cache_tokens <= max_tokens,
        "overlong_cache_tokens",
        cache_tokens,
        "at most `overlong_max_tokens`",
    )
}

/// The ranges of what narrows a distribution.
pub(super) fn validate_filters(
    top_p: f64,
    min_p: Option<f64>,
    repetition_penalty: f64,
) -> Result<(), ConfigError> {
    let min_p = min_p.unwrap_or_default();
    demand(
        top_p > 0.0 && top_p <= 1.0,
        "top_p",
        top_p,
        "above 0 and at most 1",
    )?;
    demand((0.0..=1.0).contains(&min_p), "min_p", min_p, "0 to 1")?;
    demand(
        repetition_penalty > 0.0,
        "repetition_penalty",
        repetition_penalty,
        "above 0",
    )
}
