//! Rewards.

use crate::{BoxFormat, ColonList, RewardBatch, section};

section! {
    /// Which rewards score, and how they are asked.
    pub struct RewardSection {
        "rewards" {
            /// Rewards by name, or where one's own are: `FILE.py:FUNCTION`, `program:COMMAND`,
            /// `http://HOST/PATH`.
            reward_funcs: Vec<String> = vec!["accuracy".into(), "format".into()],
            /// Weights of the rewards, one for each; without it, 1.
            reward_weights: Option<Vec<f64>> = None,
            /// Processes (requests) of each reward of one's own among which a batch is split.
            reward_workers: usize = 1,
            /// Longest wait for a reward of one's own to score a batch, s.
            reward_timeout_secs: f64 = 60.0,
            /// Longest wait for a scorer over HTTP or a judge that has answered before and no longer does, s.
            reward_retry_secs: f64 = 300.0,
            /// File of the key that scorers over HTTP are sent (a bearer token); without it
            /// `VLM_R1_REWARD_API_KEY`, else none.
            reward_api_key_file: Option<String> = None,
            /// Interpreter of rewards in Python; without it `VLM_R1_PYTHON`, else `python3`.
            reward_python: Option<String> = None,
            /// Model of the reward and accuracy method `llm`, at the endpoint of `OPENAI_API_BASE`.
            judge_model: Option<String> = None,
            /// File of the judge's prompt: `{answer}`, `{solution}`, `{question}`; without it, ours.
            judge_prompt: Option<String> = None,
            /// Show the judge the images of the row.
            judge_images: bool = false,
            /// Requests to the judge at a time.
            judge_concurrency: usize = 8,
            /// Share of a step's verdicts that may fail; 1: all, scored by equality of the texts.
            judge_max_failed: f64 = 0.1,
            /// Take the model family's own rewards for the task.
            is_reward_customized_from_vlm_module: bool = false,
            /// Units of the boxes that the model writes; without it, the family's own.
            box_format: Option<BoxFormat> = None,
            /// Units of the boxes in solutions; without it, `absolute` where boxes are converted.
            solution_box_format: Option<BoxFormat> = None,
            /// Tokens before that over which it falls from 0; without it, a fifth of them.
            overlong_cache_tokens: Option<usize> = None,
        }
    }
}

section! {
    /// The rewards of a run of `grpo`.
    pub struct GrpoRewardSection {
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
    }
}
