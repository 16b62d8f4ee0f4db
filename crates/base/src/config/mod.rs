//! Configuration: one declaration gives the struct, its defaults, its flags and their help.
//!
//! [`config!`](crate::config!) declares, [`resolve`] lays defaults, YAML file, flags and `--set`
//! over each other, and [`VLM_R1`] lists the flags of VLM-R1's run scripts that mean nothing here.
//! Reading the command line is left to the binary.

mod commands;
mod compatibility;
mod data;
mod declare;
mod error;
mod evaluation;
mod evaluations;
mod plan;
mod ranges;
mod resolve;
mod reward_fields;
mod training;
mod training_fields;
mod value;
mod words;

pub use commands::{
    DemoConfig, GenerateConfig, LogprobsConfig, MergeConfig, RewardConfig, RewardFamily,
};
pub use compatibility::{Foreign, ForeignEffect, VLM_R1};
pub use data::{DataCheckConfig, DataConvertConfig, DataFormat, RowPer};
pub use declare::{ColonList, Config, Field, Kind, Setting, Validate};
pub use error::{ConfigError, Origin};
pub use evaluation::{EvalConfig, EvalTask, Extractor, LabelList};
pub use evaluations::{NamedEvaluation, read_evaluations};
pub use resolve::{Change, Layers, Resolved, changed_settings, parse_mapping, resolve, to_yaml};
pub use training::{GrpoConfig, PlanConfig, SftConfig};
pub use words::{
    BoxFormat, DType, EvalStrategy, ImageProcessor, LrSchedulerType, OnBadRow, Optim, RewardBatch,
    SaveStrategy,
};

/// The way `name` is spelled in a declaration: `--data-file-paths` is `--data_file_paths`.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of `valid` that is most like `name`.
pub fn nearest<'a>(name: &str, valid: impl IntoIterator<Item = &'a str>) -> &'a str {
    valid
        .into_iter()
        .min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate))
        .unwrap_or_default()
}
