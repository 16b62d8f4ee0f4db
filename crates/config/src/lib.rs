//! Settings: one declaration gives the struct, its defaults, its flags and their help.
//!
//! [`section!`](crate::section!) declares settings that belong together, [`command!`](crate::command!) puts sections
//! together to what a command takes, [`resolve`] lays defaults, YAML file, flags and `--set` over each other, and
//! [`VLM_R1`] lists the flags of VLM-R1's run scripts that have no effect here. Reading the command line is left to the
//! program.

mod bounds;
mod commands;
mod compat;
mod declare;
mod deepspeed;
mod enums;
mod error;
mod ranges;
mod resolve;
mod sections;
mod value;
mod yaml;

pub use commands::*;
pub use compat::{
    CompatEffect, CompatFlag, VLM_R1, compat_flags_of_grpo, compat_flags_of_sft, is_of_launcher,
};
pub use declare::{ColonList, Config, Field, Kind, Section, Setting, Validate, count, joined};
pub use deepspeed::DeepSpeedFile;
pub use enums::{
    AdvantageEstimator, BoxFormat, CudaGraphs, DType, EvalStrategy, ImageProcessor, Interval,
    KlEstimator, LossType, LrSchedulerType, MultiObjectiveAggregation, OnBadRow, Optim, RatioLevel,
    Resume, RewardBatch, SamplerCorrection, SaveStrategy, ScaleRewards, SchedulerKwargs, ZeroStage,
    ZeroStageSetting,
};
pub use error::{ConfigError, Origin};
pub use resolve::{Change, Layers, Resolved, changed_settings, resolve, to_yaml};
pub use sections::*;
pub use yaml::parse_mapping;

/// The way `name` is spelled in a declaration: `--data-file-paths` is `--data_file_paths`.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of `valid` that is most like `name`, where one is near enough to have been meant: few letters differ, or the
/// one is the other with further words.
pub fn nearest<'a>(name: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let valid: Vec<&str> = valid.into_iter().collect();
    let by_distance = valid.iter().map(|candidate| {
        let distance = strsim::damerau_levenshtein(name, candidate);
        (distance, *candidate)
    });
    let (distance, closest) = by_distance.min_by_key(|(distance, _)| *distance)?;
    let letters = name.chars().count().min(closest.chars().count());
    if 4 * distance <= letters.max(4) {
        return Some(closest);
    }
    let words: Vec<&str> = name.split('_').collect();
    let is_longer = |candidate: &&&str| {
        let of_candidate: Vec<&str> = candidate.split('_').collect();
        of_candidate.windows(words.len()).any(|part| part == words)
    };
    let longer: Vec<&str> = valid.iter().filter(is_longer).copied().collect();
    match longer.as_slice() {
        [one] => Some(one),
        // Of several the first that begins so, where that much is said.
        several if name.len() > 4 => {
            several.iter().find(|candidate| candidate.starts_with(name)).copied()
        }
        _ => None,
    }
}
