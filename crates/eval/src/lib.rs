//! Evaluation: a model answers questions, and rewards score its completions.
//!
//! [`questions`] reads the rows, the crate `eval-runner` samples, [`completions`] stores the completions
//! line by line, [`scoring`] scores them, [`results`] and [`summary`] hold the metrics, [`findings`]
//! warns where these are doubtful, and [`compare`] compares two evaluations. [`evaluation`] joins them.
//!
//! [`rec`] is referring-expression comprehension as VLM-R1 evaluates it; [`baselines`] are the scores
//! that a useful model must beat. No libtorch here.

pub mod baselines;
mod box_units;
pub mod coco_file;
pub mod compare;
pub mod completions;
pub mod defaults;
pub mod detection;
mod detection_rows;
pub mod evaluation;
pub mod findings;
mod paired;
mod paired_metrics;
pub mod questions;
pub mod rec;
pub mod results;
pub mod scoring;
pub mod setting_differences;
pub mod summary;
mod unread_reason;

pub use baselines::{best_constant_box, constant_box_ious, shuffled_images, true_boxes};
pub use box_units::Reading;
pub use compare::{Comparison, compare};
pub use defaults::default_template;
pub use evaluation::{Evaluation, Outcome};
pub use findings::{Doubt, Findings, Warning};
pub use rec::{RecCompletion, RecEvaluation, RecSummary};
pub use results::{Results, Scored, ShownBox};
pub use setting_differences::{SettingDifferences, SettingPair};
pub use summary::{Metric, Summary};

use std::path::PathBuf;

/// Why an evaluation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Nothing to evaluate.
    #[error("nothing to evaluate: no rows")]
    NoRows,
    /// No row that can be asked.
    #[error("no row can be asked: {rows} rows, all bad; the first: {place}: {cause}")]
    AllBad {
        /// How many there are.
        rows: usize,
        /// File and line of the first.
        place: String,
        /// What is wrong with it.
        cause: String,
    },
    /// No completions asked for.
    #[error("`completions_per_question`: got 0, expected 1 or more")]
    NoCompletions,
    /// A row that this benchmark cannot use.
    #[error("{line}: {cause}")]
    Row {
        /// File and line.
        line: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A setting that does not go with the others.
    #[error("`{name}`: {cause}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// Settings that alter the completions are not those of the completions that the folder holds.
    #[error(
        "{}: settings differ from those of the completions there:\n  {}\nhint: take another `--output_dir`, or go on with `--allow_changed true`",
        folder.display(),
        changes.join("\n  ")
    )]
    Changed {
        /// The folder.
        folder: PathBuf,
        /// The settings: before and now.
        changes: Vec<String>,
    },
    /// A line that is no completion to the question of its row.
    #[error(
        "{}:{line}: {cause}\nhint: take another `--output_dir`, or remove that file to ask all questions again",
        path.display()
    )]
    CompletionLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        cause: String,
    },
    /// A file of detection that cannot be used.
    #[error("{}: {cause}", path.display())]
    Coco {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A reward failed.
    #[error("{place}: {source}")]
    Scoring {
        /// The row.
        place: String,
        /// The cause.
        source: Box<rewards::RewardError>,
    },
    /// A score that is no number.
    #[error("{place}: `{name}` is not finite")]
    NotFinite {
        /// The row.
        place: String,
        /// The score.
        name: String,
    },
    /// A metric that has no meaning for the rows.
    #[error("{subset}: `{metric}` has no value: {cause}")]
    Undefined {
        /// The file.
        subset: String,
        /// The metric.
        metric: &'static str,
        /// Why.
        cause: &'static str,
    },
    /// A folder without results.
    #[error("{}: no results\nhint: an evaluation that was stopped has none: run it again to the end", path.display())]
    NoResults {
        /// The file that is missing.
        path: PathBuf,
    },
    /// Two results that have nothing in common.
    #[error("nothing to compare: {cause}")]
    Unpaired {
        /// Why.
        cause: String,
    },
    /// The folder of results.
    #[error(transparent)]
    Run(#[from] base::run_folder::RunError),
    /// The settings.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Results that JSON cannot hold.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A file of COCO's form.
    #[error(transparent)]
    Source(#[from] data::convert::ConvertError),
    /// The rewards.
    #[error(transparent)]
    Reward(#[from] rewards::RewardError),
    /// Intervals.
    #[error(transparent)]
    Report(#[from] report::ReportError),
}
