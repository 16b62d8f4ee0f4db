//! The fields of training, and what is demanded of them.

use super::ranges::demand;
use super::{ConfigError, LrSchedulerType, SchedulerKwargs};

/// The fields that `grpo` and `sft` share, after those of their own.
macro_rules! with_training_fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($own:tt)* }) => {
        config! {
            $(#[$meta])*
            pub struct $name {
                "model" {
                    /// Model folder in Hugging Face format, a run's folder (its newest checkpoint; `RUN@100`, `RUN@best`),
                    /// or the name of a model on the hub.
                    model_name_or_path: String,
                    /// Branch, tag or commit of a model on the hub; without it, `main`.
                    model_revision: Option<String> = None,
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
                    /// Turn images as their EXIF orientation says, as transformers' `load_image` does; VLM-R1 does not.
                    apply_exif: bool = false,
                    /// Read images where links in an image folder lead to, outside of it.
                    follow_links: bool = false,
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
                    /// Steps in which the learning rate rises from 0; below 1, part of the steps; over `warmup_ratio` if
                    /// above 0.
                    warmup_steps: f64 = 0.0,
                    /// What `cosine_with_min_lr` ends at: `{"min_lr": 1e-7}` or `{"min_lr_rate": 0.1}`.
                    lr_scheduler_kwargs: Option<SchedulerKwargs> = None,
                    /// AdamW with moments in 32 bits, or in 8 (`adamw_8bit`, `adamw_bnb_8bit`).
                    optim: Optim = Optim::AdamwTorch,
                    /// AdamW's weight decay.
                    weight_decay: f64 = 0.0,
                    /// AdamW's decay of the first moment.
                    adam_beta1: f64 = 0.9,
                    /// AdamW's decay of the second moment.
                    adam_beta2: f64 = 0.999,
                    /// AdamW's guard against division by zero.
                    adam_epsilon: f64 = 1e-8,
                    /// Norm to which the gradient is clipped; 0: not at all.
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
                    /// Write the metrics of the first step too.
                    logging_first_step: bool = false,
                    /// Whether checkpoints are written every `save_steps` steps, after every epoch, or at the end only.
                    save_strategy: SaveStrategy = SaveStrategy::Steps,
                    /// Steps between two checkpoints; 0: at the end only (the Hugging Face trainers: 500).
                    save_steps: usize = 100,
                    /// Number of checkpoints to keep, the newest ones; without it, all.
                    save_total_limit: Option<usize> = None,
                    /// Number of checkpoints that keep what going on needs, the newest ones; older ones keep the model
                    /// alone, which is a fraction of it.
                    save_optimizer_limit: usize = 1,
                    /// Write the model alone: a run that is stopped cannot go on.
                    save_only_model: bool = false,
                    /// Whether the files of a checkpoint are compared with their sums before a run goes on from it.
                    verify_checkpoint: bool = true,
                    /// Whether the policy is evaluated every `eval_steps` steps (or after every epoch) and at the end, on
                    /// held-out rows and by `eval_config`; without it, where `eval_steps` is given.
                    eval_strategy: Option<EvalStrategy> = None,
                    /// Steps between two evaluations; with `eval_strategy` alone, `logging_steps`.
                    eval_steps: Option<usize> = None,
                    /// Evaluate before the first step too.
                    eval_on_start: bool = false,
                    /// YAML file of evaluations: names, and below each the settings of `vlm-r1 eval`.
                    eval_config: Option<String> = None,
                    /// Whether to continue the run that `output_dir` holds; if false, finding one is an error. The folder
                    /// of a checkpoint: go on from that one.
                    resume_from_checkpoint: Resume = Resume::Newest(true),
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
                    /// Threads that read and resize images ahead of need; 0 is 1.
                    dataloader_num_workers: usize = 2,
                    /// Tokens of one forward and backward pass: a larger group is taken in parts, each with its prompt
                    /// and at least one completion; without it, a micro-batch.
                    max_tokens_per_microbatch: Option<usize> = None,
                    /// Keep f32 weights, moments and summed gradients in host memory, and update there.
                    offload_optimizer: bool = false,
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

macro_rules! validate_training_fields {
    ($config:ident) => {{
        let c = $config;
        let fraction = |value: f64| (0.0..1.0).contains(&value);
        validate_task_type(c.task_type.as_deref())?;
        demand(c.lora_r > 0, "lora_r", 0, POSITIVE)?;
        demand(c.lora_alpha > 0.0, "lora_alpha", c.lora_alpha, "above 0")?;
        demand(fraction(c.lora_dropout), "lora_dropout", c.lora_dropout, FRACTION)?;
        demand(
            c.val_split_ratio >= 0.0 && c.val_split_ratio < 1.0,
            "val_split_ratio",
            c.val_split_ratio,
            FRACTION,
        )?;
        demand(c.max_pixels >= c.min_pixels, "max_pixels", c.max_pixels, "at least `min_pixels`")?;
        demand(c.gradient_accumulation_steps > 0, "gradient_accumulation_steps", 0, POSITIVE)?;
        demand(c.per_device_train_batch_size > 0, "per_device_train_batch_size", 0, POSITIVE)?;
        demand(c.num_train_epochs > 0.0, "num_train_epochs", c.num_train_epochs, "above 0")?;
        demand(c.max_steps == -1 || c.max_steps > 0, "max_steps", c.max_steps, "-1 or at least 1")?;
        demand(c.learning_rate >= 0.0, "learning_rate", c.learning_rate, NOT_NEGATIVE)?;
        demand((0.0..=1.0).contains(&c.warmup_ratio), "warmup_ratio", c.warmup_ratio, "0 to 1")?;
        demand(c.weight_decay >= 0.0, "weight_decay", c.weight_decay, NOT_NEGATIVE)?;
        demand(fraction(c.adam_beta1), "adam_beta1", c.adam_beta1, FRACTION)?;
        demand(fraction(c.adam_beta2), "adam_beta2", c.adam_beta2, FRACTION)?;
        demand(c.adam_epsilon >= 0.0, "adam_epsilon", c.adam_epsilon, NOT_NEGATIVE)?;
        demand(c.max_grad_norm >= 0.0, "max_grad_norm", c.max_grad_norm, NOT_NEGATIVE)?;
        demand(c.logging_steps > 0, "logging_steps", 0, POSITIVE)?;
        demand(c.save_total_limit != Some(0), "save_total_limit", 0, POSITIVE)?;
        demand(
            c.save_optimizer_limit > 0,
            "save_optimizer_limit",
            0,
            "at least 1; `save_only_model` keeps none",
        )?;
        demand(c.eval_steps != Some(0), "eval_steps", 0, POSITIVE)?;
        let interval = EvalStrategy::interval(c.eval_strategy, c.eval_steps, c.logging_steps);
        let evaluates = interval.is_some() || c.eval_on_start;
        demand(
            !evaluates || c.eval_config.is_some() || c.val_split_ratio > 0.0,
            if c.eval_steps.is_some() { "eval_steps" } else { "eval_strategy" },
            "nothing to evaluate",
            "`eval_config` or `val_split_ratio` beside it",
        )?;
        demand(
            evaluates || c.eval_config.is_none() || c.eval_strategy == Some(EvalStrategy::No),
            "eval_config",
            "no step to evaluate at",
            "`eval_steps` beside it",
        )?;
        demand(c.num_threads != Some(0), "num_threads", 0, POSITIVE)?;
        demand(
            c.warmup_steps >= 0.0 && (c.warmup_steps < 1.0 || c.warmup_steps.fract() == 0.0),
            "warmup_steps",
            c.warmup_steps,
            "a whole number from 0, or a part of the steps below 1",
        )?;
        validate_scheduler(c.lr_scheduler_type, c.lr_scheduler_kwargs.as_ref(), c.learning_rate)?;
        demand(
            c.per_device_train_batch_size.saturating_mul(c.gradient_accumulation_steps)
                <= MOST_OF_A_STEP,
            "gradient_accumulation_steps",
            format!(
                "{} beside `per_device_train_batch_size: {}`",
                c.gradient_accumulation_steps, c.per_device_train_batch_size
            ),
            "at most 1048576 rows in a step: they are in memory together",
        )?;
        demand(!c.output_dir.trim().is_empty(), "output_dir", "nothing", "a folder")?;
        demand(
            !c.model_name_or_path.trim().is_empty(),
            "model_name_or_path",
            "nothing",
            "a model",
        )?;
        demand(c.max_tokens_per_microbatch != Some(0), "max_tokens_per_microbatch", 0, POSITIVE)
    }};
}

/// Rows of one step.
pub(super) const MOST_OF_A_STEP: usize = 1 << 20;

/// What a schedule is told beside its name.
pub(super) fn validate_scheduler(
    kind: LrSchedulerType,
    kwargs: Option<&SchedulerKwargs>,
    learning_rate: f64,
) -> Result<(), ConfigError> {
    const KEY: &str = "lr_scheduler_kwargs";
    let given = kwargs.filter(|kwargs| **kwargs != SchedulerKwargs::default());
    if kind != LrSchedulerType::CosineWithMinLr {
        let got = "`min_lr` or `min_lr_rate`";
        let expected = "nothing: they belong to `--lr_scheduler_type cosine_with_min_lr`";
        return demand(given.is_none(), KEY, got, expected);
    }
    let rate = given.and_then(|kwargs| kwargs.rate(learning_rate));
    let got = match (given, rate) {
        (None, _) => "nothing".to_owned(),
        (Some(_), None) => "both `min_lr` and `min_lr_rate`".to_owned(),
        (Some(_), Some(rate)) => format!("{rate} of the highest rate"),
    };
    demand(
        rate.is_some_and(|rate| (0.0..=1.0).contains(&rate)),
        KEY,
        got,
        "`min_lr`, at most `learning_rate`, or `min_lr_rate`, 0 to 1",
    )
}

/// The settings of LoRA where there is none, and of evaluations.
macro_rules! idle_training_fields {
    ($config:ident) => {{
        const LORA: [&str; 5] =
            ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_vision"];
        let mut idle = Vec::new();
        if !$config.use_peft {
            idle.extend(LORA.map(|name| (name, "it counts with `--use_peft true`")));
        }
        if $config.eval_strategy == Some(EvalStrategy::Epoch) {
            idle.push(("eval_steps", "there is `--eval_strategy epoch`"));
        }
        if $config.save_strategy != SaveStrategy::Steps {
            idle.push(("save_steps", "it counts with `--save_strategy steps`"));
        }
        if $config.save_only_model {
            idle.push(("save_optimizer_limit", "there is `--save_only_model true`"));
        }
        if $config.eval_strategy == Some(EvalStrategy::No) {
            idle.push(("eval_steps", "there is `--eval_strategy no`"));
            if !$config.eval_on_start {
                idle.push(("eval_config", "there is `--eval_strategy no`"));
            }
        }
        idle
    }};
}

pub(super) use {idle_training_fields, validate_training_fields, with_training_fields};
