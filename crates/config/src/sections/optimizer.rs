//! Optimisation.

use crate::ranges::{FRACTION, NOT_NEGATIVE, POSITIVE, demand};
use crate::{ConfigError, LrSchedulerType, Optim, SchedulerKwargs, section};

/// Rows of one step: they are in memory together.
const MOST_OF_A_STEP: usize = 1 << 20;

section! {
    /// Steps, learning rate and AdamW.
    pub struct OptimizerSection {
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
    }
}

impl OptimizerSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.validate_step()?;
        self.validate_adamw()?;
        self.validate_schedule()
    }

    fn validate_step(&self) -> Result<(), ConfigError> {
        let rows = self.per_device_train_batch_size;
        let micro_batches = self.gradient_accumulation_steps;
        demand(micro_batches > 0, "gradient_accumulation_steps", 0, POSITIVE)?;
        demand(rows > 0, "per_device_train_batch_size", 0, POSITIVE)?;
        let epochs = self.num_train_epochs;
        demand(epochs > 0.0, "num_train_epochs", epochs, "above 0")?;
        let steps = self.max_steps;
        demand(steps == -1 || steps > 0, "max_steps", steps, "-1 or at least 1")?;
        demand(
            rows.saturating_mul(micro_batches) <= MOST_OF_A_STEP,
            "gradient_accumulation_steps",
            format!("{micro_batches} beside `per_device_train_batch_size: {rows}`"),
            "at most 1048576 rows in a step: they are in memory together",
        )
    }

    fn validate_adamw(&self) -> Result<(), ConfigError> {
        let fraction = |key, value: f64| demand((0.0..1.0).contains(&value), key, value, FRACTION);
        let not_negative = |key, value: f64| demand(value >= 0.0, key, value, NOT_NEGATIVE);
        not_negative("learning_rate", self.learning_rate)?;
        not_negative("weight_decay", self.weight_decay)?;
        fraction("adam_beta1", self.adam_beta1)?;
        fraction("adam_beta2", self.adam_beta2)?;
        not_negative("adam_epsilon", self.adam_epsilon)?;
        not_negative("max_grad_norm", self.max_grad_norm)
    }

    fn validate_schedule(&self) -> Result<(), ConfigError> {
        const KEY: &str = "lr_scheduler_kwargs";
        let ratio = self.warmup_ratio;
        demand((0.0..=1.0).contains(&ratio), "warmup_ratio", ratio, "0 to 1")?;
        let steps = self.warmup_steps;
        demand(
            steps >= 0.0 && (steps < 1.0 || steps.fract() == 0.0),
            "warmup_steps",
            steps,
            "a whole number from 0, or a part of the steps below 1",
        )?;
        let kwargs = self.lr_scheduler_kwargs.as_ref();
        let given = kwargs.filter(|kwargs| **kwargs != SchedulerKwargs::default());
        if self.lr_scheduler_type != LrSchedulerType::CosineWithMinLr {
            let got = "`min_lr` or `min_lr_rate`";
            let expected = "nothing: they belong to `--lr_scheduler_type cosine_with_min_lr`";
            return demand(given.is_none(), KEY, got, expected);
        }
        let rate = given.and_then(|kwargs| kwargs.rate(self.learning_rate));
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
}
