//! Training: GRPO and SFT over packed batches.
//!
//! Read first: `trainer.rs` (a step of GRPO), then `algorithm/` (the formulas) and `training_loop.rs`.

mod alerts;
pub mod algorithm;
mod bad_step;
pub mod batch;
mod checkpoint;
mod clock;
mod completion_batch;
mod dataset;
mod deal;
mod evaluation;
mod features;
pub mod logprobs;
mod micro_batches;
mod moments;
mod observer;
pub mod optimizer;
mod out_of_memory;
pub mod plan;
mod policy;
mod ranks;
mod reference;
mod resume;
mod reward_inbox;
mod reward_set;
mod rollout;
mod rollout_rows;
pub mod schedule;
mod session;
pub mod settings;
mod sft;
mod shards;
mod shared_rewards;
mod step_batch;
mod step_scores;
mod trainer;
mod training_loop;
mod validation;

pub use alerts::{Alert, Alerts};
pub use bad_step::NonFinite;
pub use observer::{EvalMetrics, EvaluationError, Observer, PolicyAt, ResultsAt};
pub use ranks::Ranks;
pub use reward_set::reward_problems;
pub use session::Outcome;
pub use settings::{Settings, device_of};
pub use sft::{train_sft, train_sft_on};
pub use trainer::{train_grpo, train_grpo_on, train_grpo_with_rewards};

use std::path::PathBuf;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A loss or gradient that is not finite; it was not applied.
    #[error("{0}; the update was not applied")]
    NonFinite(Box<NonFinite>),
    /// One refused step more than `max_bad_steps`.
    #[error(
        "step {step}: {cause}; the update was not applied, the batch is in {dump}\nhint: look at the batch, lower --learning_rate, or pass over such steps by --max_bad_steps"
    )]
    BadStep {
        /// The step.
        step: u64,
        /// What was not finite.
        cause: Box<NonFinite>,
        /// The dump of its batch.
        dump: PathBuf,
    },
    /// A single completion with its prompt that runs out of memory.
    #[error(
        "no memory for a single completion with its prompt, {tokens} tokens: {cause}\nhint: {hint}"
    )]
    TooLargeForMemory {
        /// Tokens of both.
        tokens: usize,
        /// libtorch's message.
        cause: torch::OutOfMemory,
        /// Flags that need less.
        hint: String,
    },
    /// Out of memory in sampling or in the update.
    #[error(
        "no memory for sampling or the update: {cause}\nhint: a lower --max_concurrent_completions needs less for sampling; --use_peft true or --freeze_vision_modules true for the update"
    )]
    OutOfMemory {
        /// libtorch's message.
        cause: torch::OutOfMemory,
    },
    /// An answer without a token.
    #[error("an answer without tokens cannot be trained on")]
    EmptyAnswer,
    /// Settings that contradict one another.
    #[error("`{name}`: {cause}")]
    Setting {
        /// The flag.
        name: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// Saved trainer state that does not fit.
    #[error("trainer state: {cause}")]
    State {
        /// What is wrong.
        cause: String,
    },
    /// A file of a checkpoint that is not as it was written.
    #[error("{}: damaged: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Checkpoints, all of them damaged.
    #[error(
        "{}: damaged: {cause}, and there is no other checkpoint to go on from\nhint: bring the file back from a copy; or train \
         from an older checkpoint's model by --model_name_or_path in another --output_dir; --verify_checkpoint false goes \
         on without looking at sums", path.display()
    )]
    NoWholeCheckpoint {
        /// The file, of the newest.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Checkpoints that hold the model alone.
    #[error(
        "{}: holds the model alone, the run cannot go on from it\nhint: start another run from it by \
         --model_name_or_path in another --output_dir", folder.display()
    )]
    ModelAlone {
        /// The newest.
        folder: PathBuf,
    },
    /// A run folder with checkpoints whose settings are lost.
    #[error(
        "{}: missing, so that changed settings would not be seen\nhint: --allow_changed true goes on with those given now",
        path.display()
    )]
    NoConfig {
        /// The missing file.
        path: PathBuf,
    },
    /// A run folder of the other command.
    #[error("{}: holds a run of `{command}`\nhint: choose another --output_dir", folder.display())]
    OtherCommand {
        /// The run folder.
        folder: PathBuf,
        /// Whose run it is.
        command: &'static str,
    },
    /// A checkpoint that could not be written.
    #[error("checkpoint of step {step}{}", disk_hint(source))]
    Checkpoint {
        /// The step.
        step: u64,
        /// The cause.
        source: Box<TrainError>,
    },
    /// Diverged weights.
    #[error(
        "the run has diverged: after the update of step {step} {what} is not finite; no checkpoint was written, {way}\nhint: a \
         lower --learning_rate, a lower --max_grad_norm or more --warmup_ratio, in another --output_dir"
    )]
    Diverged {
        /// The last step that moved the weights.
        step: u64,
        /// What is not finite.
        what: String,
        /// What to go back to.
        way: String,
    },
    /// Settings that changed since the checkpoint and alter the run.
    #[error("{folder}: the run was started with other settings:\n{}\nhint: use another --output_dir, or --allow_changed true to go on with the new ones", changes.join("\n"))]
    Changed {
        /// The checkpoint.
        folder: PathBuf,
        /// One line a setting: `name: was .., is ..`.
        changes: Vec<String>,
    },
    /// An evaluation of the policy that failed.
    #[error("evaluation after step {step}")]
    Evaluation {
        /// The step.
        step: u64,
        /// The cause.
        source: EvaluationError,
    },
    /// A metric of an evaluation that is not finite.
    #[error("evaluation after step {step}: `{name}`: expected a finite number, got {value}")]
    EvalMetric {
        /// The step.
        step: u64,
        /// The metric.
        name: String,
        /// Its value.
        value: f64,
    },
    /// A second signal: stopped at once.
    #[error("stopped at once; the last checkpoint stands")]
    Stopped,
    /// A file could not be read or written.
    #[error("{path}: {source}{}", base::run_folder::hint(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] models::ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] data::DataError),
    /// A row that no reward can score.
    #[error("{row}: {source}")]
    Scoring {
        /// Its file and line.
        row: String,
        /// The cause.
        source: Box<rewards::RewardError>,
    },
    /// Every row was skipped.
    #[error("no row is left to train on: all {skipped} were skipped")]
    NoRows {
        /// How many.
        skipped: usize,
    },
    /// A row that turned out bad.
    #[error(transparent)]
    Row(Box<data::RowError>),
    /// A tokenizer that knows more tokens than the model.
    #[error("the tokenizer has {ids} tokens, the model only {rows}")]
    Vocabulary {
        /// Ids of the tokenizer.
        ids: usize,
        /// Rows of the embedding.
        rows: i64,
    },
    /// A row over `max_seq_length`.
    #[error(
        "{row}: {got} tokens, more than `max_seq_length` {max}\nhint: raise it, or lower --max_pixels"
    )]
    RowTooLong {
        /// Its file and line.
        row: String,
        /// Tokens of prompt and answer.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// The rewards.
    #[error(transparent)]
    Reward(Box<rewards::RewardError>),
    /// Weights and optimizer.
    #[error(transparent)]
    Torch(#[from] torch::TorchError),
    /// Sampling.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// The run folder.
    #[error(transparent)]
    Run(#[from] base::run_folder::RunError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// What ranks do together.
    #[error(transparent)]
    Ranks(#[from] torch::ranks::RankError),
    /// A run folder that this rank does not see as rank 0 does.
    #[error(
        "{}: rank 0 made it, and it is not here\nhint: --output_dir must be a folder that all hosts share; or --zero_stage 0, by which rank 0 writes alone", path.display()
    )]
    NotShared {
        /// What rank 0 made.
        path: PathBuf,
    },
    /// Weights of ranks that should be the same.
    #[error(
        "the weights of rank {rank} differ from those of rank 0: `{name}`\nhint: a fault of a device or of the program; the same command goes on from the last checkpoint"
    )]
    Apart {
        /// The rank.
        rank: usize,
        /// A weight that differs.
        name: String,
    },
    /// The ranks of the run.
    #[error(transparent)]
    World(#[from] base::world::WorldError),
    /// What another rank failed by, when all ranks know of it.
    #[error("rank {rank} failed: {cause}")]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error.
        cause: String,
    },
    /// Ranks that do not run the same.
    #[error(
        "the ranks do not run the same:\n{}\nhint: start all of them from one program, with one set of settings and data", differences.join("\n")
    )]
    RanksDiffer {
        /// In lines: what, and who has it how.
        differences: Vec<String>,
    },
    /// Metrics that ranks disagree about.
    #[error(transparent)]
    Metrics(#[from] base::metrics::ReduceError),
    /// libtorch.
    #[error("libtorch: {0}")]
    Tch(#[from] tch::TchError),
}

impl TrainError {
    /// Whether all ranks know of it: another rank said it, they agreed on it, or it is what breaks where another one ends.
    pub fn is_known_to_all(&self) -> bool {
        match self {
            TrainError::OtherRank { .. } | TrainError::World(_) | TrainError::Ranks(_) => true,
            TrainError::Metrics(base::metrics::ReduceError::World(_)) => true,
            TrainError::Checkpoint { source, .. } => source.is_known_to_all(),
            _ => false,
        }
    }

    /// Whether a run that ends by it ends without a checkpoint of its own, the same on all ranks.
    pub(crate) fn leaves_no_checkpoint(&self) -> bool {
        matches!(
            self,
            TrainError::Stopped | TrainError::Checkpoint { .. } | TrainError::Diverged { .. }
        )
    }

    /// Whether a reward ended the run.
    pub(crate) fn is_of_a_reward(&self) -> bool {
        matches!(self, TrainError::Scoring { .. } | TrainError::Reward(_))
    }
}

/// What to do about the disk, if an error of it is the cause.
fn disk_hint(error: &TrainError) -> &'static str {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return base::run_folder::hint(error);
        }
        next = error.source();
    }
    ""
}

impl From<rewards::RewardError> for TrainError {
    fn from(error: rewards::RewardError) -> Self {
        TrainError::Reward(Box::new(error))
    }
}
