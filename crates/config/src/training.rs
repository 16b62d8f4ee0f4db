//! What `grpo`, `sft` and `plan` take. Names are those of VLM-R1's scripts and of the Hugging Face trainers;
//! a default that differs from theirs says so.

use super::ranges::{
    FRACTION, NOT_NEGATIVE, POSITIVE, demand, validate_filters, validate_overlong,
    validate_task_type,
};
use super::reward_fields::with_reward_fields;
use super::training_fields::{
    MOST_OF_A_STEP, idle_training_fields, validate_scheduler, validate_training_fields,
    with_training_fields,
};
use super::{
    BoxFormat, ColonList, ConfigError, EvalStrategy, ImageProcessor, LrSchedulerType, OnBadRow,
    Optim, Resume, RewardBatch, SaveStrategy, SchedulerKwargs, Validate,
};
use crate::config;

/// The fields of `grpo`, and of what takes the same file.
macro_rules! with_grpo_fields {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        with_reward_fields! {
            with_training_fields;
            $(#[$about])*
            pub struct $name {
                "optimisation" {
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
                "rewards" {
                    /// What a reward of one's own is asked for at once: the completions of a `step`, of a `group` when
                    /// they have ended, or those `completion`s that have ended, while others are sampled.
                    reward_batch: RewardBatch = RewardBatch::Step,
                    /// Folder of the judge's replies, which are not asked for again; without it,
                    /// `judge_cache` in `output_dir`.
                    judge_cache: Option<String> = None,
                    /// How `accuracy` compares, joined by `:`, one for each training file; a row's own
                    /// `accu_reward_method` comes first.
                    reward_method: Option<ColonList> = None,
                    /// Tokens from which the reward `overlong` is -1; without it, `max_completion_length`.
                    overlong_max_tokens: Option<usize> = None,
                }
                "policy optimisation" {
                    /// Completions of one prompt: the size of a group.
                    num_generations: usize = 8,
                    /// Optimiser steps on one batch of completions.
                    num_iterations: usize = 1,
                    /// How far the ratio to the old policy may fall before it is clipped.
                    epsilon: f64 = 0.2,
                    /// How far it may rise; without it, `epsilon`.
                    epsilon_high: Option<f64> = None,
                    /// Weight of the divergence from the reference model; 0 needs none.
                    beta: f64 = 0.04,
                }
                "sampling" {
                    /// Longest completion, tokens (VLM-R1's scripts; the Hugging Face trainer: 256).
                    max_completion_length: usize = 2048,
                    /// No end of answer before this many tokens.
                    min_completion_length: usize = 0,
                    /// Longest prompt, tokens: a longer one is an error, nothing is cut; without it, any.
                    max_prompt_length: Option<usize> = None,
                    /// Divides the logits; obeyed here, VLM-R1's trainer fixes it at 1.
                    temperature: f64 = 1.0,
                    /// Keep the likeliest tokens up to this sum.
                    top_p: f64 = 1.0,
                    /// Keep this many likeliest tokens; 0: all (VLM-R1 inherits 50 from transformers).
                    top_k: usize = 0,
                    /// Keep tokens at least this likely, relative to the likeliest; without it, all.
                    min_p: Option<f64> = None,
                    /// Divides the logits of tokens that are already there.
                    repetition_penalty: f64 = 1.0,
                }
                "run" {
                    /// Steps whose completions stay in full in `rollouts/`, the newest; without it, all.
                    rollouts_keep: Option<u64> = None,
                }
                "machine" {
                    /// Completions sampled at the same time.
                    max_concurrent_completions: usize = 256,
                    /// Decode in steps of fixed shape that a GPU records and replays (untested on a GPU).
                    cuda_graphs: bool = false,
                    /// Compute the prompt of a group once; if false, once for each completion: slower, the same results.
                    share_prompt: bool = true,
                    /// Keep the reference model in host memory; a step brings it to the device for its passes.
                    offload_reference: bool = false,
                }
                $($own)*
            }
        }
    };
}

with_grpo_fields! {
    /// Group relative policy optimisation.
    pub struct GrpoConfig {}
}

with_grpo_fields! {
    /// A run of `grpo` as it would be, with the flags and files of that command.
    pub struct PlanConfig {
        "plan" {
            /// Memory to fit into, as `24GB`, `80GiB` or bytes, several of them side by side; without it, that of
            /// this machine (a GPU's must be given).
            memory: Vec<String> = Vec::new(),
            /// Price of the machine; the cost of the run is told in the same money.
            cost_per_hour: Option<f64> = None,
        }
    }
}

with_training_fields! {
    /// Supervised fine-tuning on the true answers.
    pub struct SftConfig {
        "optimisation" {
            /// Rows of one micro-batch.
            per_device_train_batch_size: usize = 8,
            /// Highest learning rate (VLM-R1's baseline; the Hugging Face trainer: 2e-5).
            learning_rate: f64 = 1e-6,
            /// How the learning rate goes after the warm-up (the Hugging Face trainer: `linear`).
            lr_scheduler_type: LrSchedulerType = LrSchedulerType::Cosine,
            /// Part of the steps in which the learning rate rises from 0 (VLM-R1's baseline).
            warmup_ratio: f64 = 0.1,
        }
        "data" {
            /// Ask with the template that wants thinking, as `grpo` does; else with that of plain answers.
            with_thinking: bool = false,
            /// Longest row, tokens: a longer one is an error, nothing is cut; without it, any.
            max_seq_length: Option<usize> = None,
        }
    }
}

impl Validate for GrpoConfig {
    fn idle_fields(&self) -> Vec<(&'static str, &'static str)> {
        idle_training_fields!(self)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        validate_training_fields!(self)?;
        demand(self.num_generations > 1, "num_generations", self.num_generations, "at least 2")?;
        demand(self.num_iterations > 0, "num_iterations", 0, POSITIVE)?;
        demand(self.epsilon >= 0.0, "epsilon", self.epsilon, NOT_NEGATIVE)?;
        let epsilon_high = self.epsilon_high.unwrap_or_default();
        demand(epsilon_high >= 0.0, "epsilon_high", epsilon_high, NOT_NEGATIVE)?;
        demand(self.beta >= 0.0, "beta", self.beta, NOT_NEGATIVE)?;
        demand(self.max_completion_length > 0, "max_completion_length", 0, POSITIVE)?;
        demand(
            self.min_completion_length <= self.max_completion_length,
            "min_completion_length",
            self.min_completion_length,
            "at most `max_completion_length`",
        )?;
        let overlong_max = self.overlong_max_tokens.unwrap_or(self.max_completion_length);
        validate_overlong(overlong_max, self.overlong_cache_tokens)?;
        demand(self.temperature > 0.0, "temperature", self.temperature, "above 0")?;
        demand(self.max_concurrent_completions > 0, "max_concurrent_completions", 0, POSITIVE)?;
        demand(self.rollouts_keep != Some(0), "rollouts_keep", 0, POSITIVE)?;
        validate_filters(self.top_p, self.min_p, self.repetition_penalty)
    }
}

impl Validate for SftConfig {
    fn idle_fields(&self) -> Vec<(&'static str, &'static str)> {
        idle_training_fields!(self)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        validate_training_fields!(self)
    }
}
