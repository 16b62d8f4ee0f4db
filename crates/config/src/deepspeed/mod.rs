//! A configuration of DeepSpeed, as `--deepspeed` names it: stage and offload of the optimizer are obeyed, settings that
//! we have by flags must be `auto` or the same, what would alter the run otherwise is refused by name, and how fast
//! DeepSpeed would be has no effect.
//!
//! Source: DeepSpeed 0.18's `deepspeed/runtime/config.py` and `zero/config.py`, and what transformers 5.17 makes of
//! `auto` (`integrations/deepspeed.py`).

mod keys;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ranges::demand;
use crate::{ConfigError, Origin, TrainingSections, ZeroStage, ZeroStageSetting, nearest};
use keys::{Keys, Meaning, TOP};

/// What is said in place of a file where the settings themselves were given.
const INLINE: &str = "--deepspeed";

/// A configuration of DeepSpeed.
#[derive(Clone, Debug)]
pub struct DeepSpeedFile {
    place: PathBuf,
    text: String,
    values: Map<String, Value>,
}

impl DeepSpeedFile {
    /// The path that the value of `--deepspeed` names; none where it is the settings themselves.
    pub fn path_of(given: &str) -> Option<&Path> {
        (!given.trim_start().starts_with('{')).then(|| Path::new(given.trim()))
    }

    /// Reads `text`, that of the file or of the flag itself.
    ///
    /// # Errors
    /// On text that is no JSON, or no mapping.
    pub fn parse(path: Option<&Path>, text: &str) -> Result<Self, ConfigError> {
        let place = path.unwrap_or(Path::new(INLINE)).to_owned();
        let wrong = |line, cause| ConfigError::Yaml { file: place.clone(), line, cause };
        let values = serde_json::from_str(text).map_err(|error| {
            wrong(
                Some(error.line() as u64),
                format!("no JSON, as DeepSpeed's settings are: {error}"),
            )
        })?;
        match values {
            Value::Object(values) => Ok(Self { place, text: text.to_owned(), values }),
            _ => Err(wrong(None, "expected settings of DeepSpeed in braces".into())),
        }
    }

    /// Lets `sections` do what the file says, on so many ranks. Gives the keys that have no effect.
    ///
    /// # Errors
    /// The first key that is unknown, that asks for what is not built, or that differs from the flags.
    fn obey(
        &self,
        sections: &mut TrainingSections,
        ranks: usize,
    ) -> Result<Vec<String>, ConfigError> {
        let mut reader = Reader { file: self, sections, ranks, idle: Vec::new() };
        reader.read(TOP, &self.values, "")?;
        Ok(reader.idle)
    }

    /// The file, or the flag.
    pub fn place(&self) -> &Path {
        &self.place
    }
}

struct Reader<'a> {
    file: &'a DeepSpeedFile,
    sections: &'a mut TrainingSections,
    ranks: usize,
    idle: Vec<String>,
}

impl Reader<'_> {
    /// Reads a mapping whose keys stand behind `before`.
    fn read(
        &mut self,
        keys: Keys,
        values: &Map<String, Value>,
        before: &str,
    ) -> Result<(), ConfigError> {
        for (key, value) in values {
            let path = format!("{before}{key}");
            let known = keys.iter().find(|(known, _)| known == key);
            let Some(&(_, meaning)) = known else {
                return Err(ConfigError::UnknownKey {
                    origin: self.origin(&path),
                    key: path,
                    nearest: nearest(key, keys.iter().map(|(known, _)| *known)).map(str::to_owned),
                });
            };
            self.read_one(meaning, &path, value)?;
        }
        Ok(())
    }

    fn read_one(&mut self, meaning: Meaning, path: &str, value: &Value) -> Result<(), ConfigError> {
        match meaning {
            Meaning::Silent => Ok(()),
            Meaning::Idle => {
                self.idle.extend(asks_for_something(value).then(|| path.to_owned()));
                Ok(())
            }
            Meaning::In(keys) => match value {
                Value::Null => Ok(()),
                Value::Object(values) => self.read(keys, values, &format!("{path}.")),
                _ => Err(self.wrong(path, value, "settings in braces".into())),
            },
            Meaning::Off(reason) if asks_for_something(value) => {
                Err(self.not_built(path, value, reason))
            }
            Meaning::Off(_) => Ok(()),
            Meaning::As(ours, flag) => {
                self.same(path, value, &ours(self.sections, self.ranks), flag)
            }
            Meaning::Stage => self.stage(path, value),
            Meaning::OptimizerDevice => self.optimizer_device(path, value),
            Meaning::WeightDevice => match device(value) {
                Some("none") => Ok(()),
                _ => Err(self.not_built(path, value, "weights are whole on each rank; `none`")),
            },
        }
    }

    fn stage(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        let stage = match value.as_u64() {
            Some(0) => ZeroStageSetting::Zero,
            Some(1) => ZeroStageSetting::One,
            Some(2) => ZeroStageSetting::Two,
            Some(3) => ZeroStageSetting::Three,
            _ => return Err(self.wrong(path, value, "0, 1, 2 or 3".into())),
        };
        match self.sections.shards.zero_stage {
            asked if asked == stage => Ok(()),
            ZeroStageSetting::Auto => {
                self.sections.shards.zero_stage = stage;
                Ok(())
            }
            asked => {
                let expected = format!("{}, as `--zero_stage` has it", asked.word());
                Err(self.wrong(path, value, expected))
            }
        }
    }

    fn optimizer_device(&mut self, path: &str, value: &Value) -> Result<(), ConfigError> {
        match (device(value), self.sections.machine.offload_optimizer) {
            (Some("none"), false) => Ok(()),
            (Some("none"), true) => {
                let expected = "`cpu`, as `--offload_optimizer true` has it";
                Err(self.wrong(path, value, expected.into()))
            }
            (Some("cpu"), _) => {
                self.sections.machine.offload_optimizer = true;
                Ok(())
            }
            (Some("nvme"), _) => Err(self.not_built(
                path,
                value,
                "the optimizer's state lies on the device, or in host memory: `cpu`",
            )),
            _ => Err(self.wrong(path, value, "`none` or `cpu`".into())),
        }
    }

    /// Refuses what is neither `auto` nor ours.
    fn same(
        &self,
        path: &str,
        value: &Value,
        ours: &Value,
        flag: &'static str,
    ) -> Result<(), ConfigError> {
        if value.is_null() || value == "auto" || is_same(value, ours) {
            return Ok(());
        }
        let by = if flag.starts_with("--") { format!("as `{flag}` has it") } else { flag.into() };
        Err(self.wrong(path, value, format!("`auto` or {}: {by}", shown(ours))))
    }

    fn origin(&self, key: &str) -> Origin {
        Origin::File(self.file.place.clone(), line_of(&self.file.text, key))
    }

    fn wrong(&self, path: &str, value: &Value, expected: String) -> ConfigError {
        let (origin, key, got) = (self.origin(path), path.to_owned(), shown(value));
        ConfigError::WrongType { origin, key, got, expected }
    }

    fn not_built(&self, path: &str, value: &Value, reason: &'static str) -> ConfigError {
        let (origin, key, value) = (self.origin(path), path.to_owned(), plain(value));
        ConfigError::NotBuilt { origin, key, value, reason }
    }
}

impl TrainingSections {
    /// See [`Validate::fit_to_ranks`](crate::Validate::fit_to_ranks).
    pub(crate) fn fit_to_ranks(
        &mut self,
        ranks: usize,
        file: Option<&DeepSpeedFile>,
    ) -> Result<Vec<String>, ConfigError> {
        let idle = file.map_or(Ok(Vec::new()), |file| file.obey(self, ranks))?;
        let is_whole = self.zero_stage(ranks) == ZeroStage::Zero && !self.model.use_peft;
        demand(
            !(self.machine.offload_optimizer && ranks > 1 && is_whole),
            "offload_optimizer",
            "true with `zero_stage: 0` above one rank",
            "`false`, or `zero_stage: 2`: else every rank keeps the whole state in host memory",
        )?;
        Ok(idle)
    }
}

/// The line, from 1, of a key by its path, each part of which stands behind the one before; none where all is one line.
fn line_of(text: &str, path: &str) -> Option<usize> {
    let mut at = 0;
    for part in path.split('.') {
        at += text.get(at..)?.find(&format!("\"{part}\""))? + 1;
    }
    text.trim().contains('\n').then(|| text[..at].matches('\n').count() + 1)
}

/// Where something lies; null is DeepSpeed's `none`.
fn device(value: &Value) -> Option<&str> {
    if value.is_null() { Some("none") } else { value.as_str() }
}

/// Whether a value asks for anything: `auto` takes it from the flags.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !["auto", "none", ""].contains(&text.as_str()),
        Value::Object(fields) => match fields.get("enabled") {
            Some(enabled) => asks_for_something(enabled),
            None => fields.values().any(asks_for_something),
        },
        _ => true,
    }
}

fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| is_same(l, r))
        }
        _ => left == right || left.is_number() && left.as_f64() == right.as_f64(),
    }
}

/// In backquotes.
fn shown(value: &Value) -> String {
    format!("`{}`", plain(value))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
