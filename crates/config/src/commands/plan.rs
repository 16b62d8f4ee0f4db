//! What `plan` takes: the settings of `grpo`, and a few of its own.

use crate::ranges::{NOT_NEGATIVE, POSITIVE, demand};
use crate::{ConfigError, DeepSpeedFile, GrpoConfig, Validate, command, section};

section! {
    /// What a plan is made for.
    pub struct PlanSection {
        "plan" {
            /// Memory to fit into, as `24GB`, `80GiB` or bytes, several of them side by side; without it, that of
            /// this machine (a GPU's must be given), or of the card that `--device` names: H200, H100, A100 or
            /// RTX4090, for which time is then predicted, wherever the plan is made.
            memory: Vec<String> = Vec::new(),
            /// Ranks to plan for: a step has `per_device_train_batch_size` x `gradient_accumulation_steps` completions
            /// for each of them, and memory is that of one.
            ranks: usize = 1,
            /// Price of the machine, or of all of them; the cost of the run is told in the same money.
            cost_per_hour: Option<f64> = None,
        }
    }
}

command! {
    /// A run of `grpo` as it would be, with the flags and files of that command.
    pub struct PlanConfig {
        grpo: GrpoConfig,
        plan: PlanSection,
    }
}

impl PlanSection {
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

impl Validate for PlanConfig {
    fn deepspeed(&self) -> Option<&str> {
        self.grpo.deepspeed()
    }

    /// The ranks are those that are planned for.
    fn fit_to_ranks(
        &mut self,
        _ranks: usize,
        file: Option<&DeepSpeedFile>,
    ) -> Result<Vec<String>, ConfigError> {
        self.grpo.fit_to_ranks(self.plan.ranks, file)
    }

    fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        self.grpo.inactive_fields()
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.plan.memory_bytes()?;
        demand(self.plan.ranks > 0, "ranks", 0, POSITIVE)?;
        let cost = self.plan.cost_per_hour.unwrap_or_default();
        demand(cost >= 0.0, "cost_per_hour", cost, NOT_NEGATIVE)?;
        self.grpo.validate()
    }
}
