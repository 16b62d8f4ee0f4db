//! The folder of a run: log, checkpoints, evaluations, and how a run starts.

use crate::ranges::{POSITIVE, demand};
use crate::{ConfigError, EvalStrategy, Interval, Resume, SaveStrategy, section};

section! {
    /// The folder of a run and its log.
    pub struct RunSection {
        "run" {
            /// Folder of the run; a run that it holds is continued.
            output_dir: String,
            /// Name of the run: shown, and kept in config.yaml.
            run_name: Option<String> = None,
            /// Steps between two lines of metrics (the Hugging Face trainers: 500).
            logging_steps: usize = 1,
            /// Write the metrics of the first step too.
            logging_first_step: bool = false,
        }
    }
}

section! {
    /// Checkpoints.
    pub struct SaveSection {
        "run" {
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
        }
    }
}

section! {
    /// Evaluations during training.
    pub struct EvalSection {
        "run" {
            /// Whether the policy is evaluated every `eval_steps` steps (or after every epoch) and at the end, on
            /// held-out rows and by `eval_config`; without it, where `eval_steps` is given.
            eval_strategy: Option<EvalStrategy> = None,
            /// Steps between two evaluations; with `eval_strategy` alone, `logging_steps`.
            eval_steps: Option<usize> = None,
            /// Evaluate before the first step too.
            eval_on_start: bool = false,
            /// YAML file of evaluations: names, and below each the settings of `vlm-r1 eval`.
            eval_config: Option<String> = None,
        }
    }
}

section! {
    /// Resuming, bad steps and dry runs.
    pub struct StartSection {
        "run" {
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
    }
}

impl RunSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.logging_steps > 0, "logging_steps", 0, POSITIVE)?;
        demand(!self.output_dir.trim().is_empty(), "output_dir", "nothing", "a folder")
    }
}

impl SaveSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        demand(self.save_total_limit != Some(0), "save_total_limit", 0, POSITIVE)?;
        let expected = "at least 1; `save_only_model` keeps none";
        demand(self.save_optimizer_limit > 0, "save_optimizer_limit", 0, expected)
    }

    pub(crate) fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        let mut inactive = Vec::new();
        if self.save_strategy != SaveStrategy::Steps {
            inactive.push(("save_steps", "it counts with `--save_strategy steps`"));
        }
        if self.save_only_model {
            inactive.push(("save_optimizer_limit", "there is `--save_only_model true`"));
        }
        inactive
    }
}

impl EvalSection {
    /// What lies between two evaluations; `None` where there are none.
    pub fn interval(&self, logging_steps: usize) -> Option<Interval> {
        EvalStrategy::interval(self.eval_strategy, self.eval_steps, logging_steps)
    }

    pub(crate) fn validate(
        &self,
        logging_steps: usize,
        val_split_ratio: f64,
    ) -> Result<(), ConfigError> {
        demand(self.eval_steps != Some(0), "eval_steps", 0, POSITIVE)?;
        let evaluates = self.interval(logging_steps).is_some() || self.eval_on_start;
        let key = if self.eval_steps.is_some() { "eval_steps" } else { "eval_strategy" };
        demand(
            !evaluates || self.eval_config.is_some() || val_split_ratio > 0.0,
            key,
            "nothing to evaluate",
            "`eval_config` or `val_split_ratio` beside it",
        )?;
        let is_off = self.eval_strategy == Some(EvalStrategy::No);
        demand(
            evaluates || self.eval_config.is_none() || is_off,
            "eval_config",
            "no step to evaluate at",
            "`eval_steps` beside it",
        )
    }

    pub(crate) fn inactive_fields(&self) -> Vec<(&'static str, &'static str)> {
        match self.eval_strategy {
            Some(EvalStrategy::Epoch) => vec![("eval_steps", "there is `--eval_strategy epoch`")],
            Some(EvalStrategy::No) => {
                let mut inactive = vec![("eval_steps", "there is `--eval_strategy no`")];
                if !self.eval_on_start {
                    inactive.push(("eval_config", "there is `--eval_strategy no`"));
                }
                inactive
            }
            _ => Vec::new(),
        }
    }
}
