//! What `plan` takes: the fields of `grpo`, and a few of its own.

use super::ranges::{NOT_NEGATIVE, demand};
use super::{ConfigError, GrpoConfig, PlanConfig, Validate};

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

impl Validate for PlanConfig {
    fn idle_fields(&self) -> Vec<(&'static str, &'static str)> {
        self.grpo().map(|config| config.idle_fields()).unwrap_or_default()
    }

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
