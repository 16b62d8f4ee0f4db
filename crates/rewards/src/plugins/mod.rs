//! Rewards of the user, named in `--reward_funcs` by their file, command or address.
//!
//! | name | computed by |
//! |---|---|
//! | `FILE.py:FUNCTION`, `FILE.py:FUNCTION:chat` | a Python function |
//! | `llm` | a language model as judge |
//! | `http://...`, `https://...` | a server |
//! | `program:COMMAND ARGUMENTS`, `./PATH` | a program, by lines of JSON |
//!
//! All receive batches in the messages of [`protocol`]. `docs/rewards.md` is the user's guide.

mod client;
mod http;
mod judge;
mod keys;
mod patience;
mod process;
mod protocol;
mod watchdog;
mod worker;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use base::run_folder::StopFlag;
use config::RewardBatch;
use http::HttpReward;
pub use judge::JudgeOptions;
use judge::JudgeReward;
pub(crate) use judge::{JudgedAccuracy, NAME as JUDGE};
pub use keys::ApiKey;
use process::ProcessReward;
use protocol::Refusal;

use crate::error::RewardError;
use crate::registry::{Reward, RewardInput, joined};

/// How rewards of the user's own are run.
#[derive(Clone, Debug)]
pub struct PluginOptions {
    /// Processes of each reward; a batch is split among them.
    pub workers: usize,
    /// How many rows one request holds.
    pub batch: RewardBatch,
    /// Longest wait for the scores of one batch, s.
    pub timeout_secs: f64,
    /// Longest wait for a server that answered before and now does not, s.
    pub retry_secs: f64,
    /// Ends these waits early.
    pub stop: StopFlag,
    /// The Python interpreter; without it `VLM_R1_PYTHON` of the environment, else `python3`.
    pub python: Option<String>,
    /// File of the key that rewards over HTTP are sent; without it `VLM_R1_REWARD_API_KEY` of the environment, else none.
    pub api_key_file: Option<PathBuf>,
    /// The language model that judges.
    pub judge: JudgeOptions,
}

impl Default for PluginOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            batch: RewardBatch::Step,
            timeout_secs: 60.0,
            retry_secs: 300.0,
            stop: StopFlag::new(),
            python: None,
            api_key_file: None,
            judge: JudgeOptions::default(),
        }
    }
}

impl PluginOptions {
    fn workers(&self) -> Result<usize, RewardError> {
        match self.workers {
            1..=1024 => Ok(self.workers),
            got => Err(RewardError::PluginOption {
                option: "reward_workers",
                got: got.to_string(),
                expected: "1 to 1024",
            }),
        }
    }

    fn timeout(&self) -> Result<Duration, RewardError> {
        let timeout = Duration::try_from_secs_f64(self.timeout_secs).ok();
        timeout.filter(|timeout| !timeout.is_zero()).ok_or_else(|| RewardError::PluginOption {
            option: "reward_timeout_secs",
            got: self.timeout_secs.to_string(),
            expected: "more than 0",
        })
    }

    fn retry(&self) -> Result<Duration, RewardError> {
        Duration::try_from_secs_f64(self.retry_secs).map_err(|_| RewardError::PluginOption {
            option: "reward_retry_secs",
            got: self.retry_secs.to_string(),
            expected: "at least 0",
        })
    }
}

/// Whether `name` has one of these forms.
pub(crate) fn is_of_the_user(name: &str) -> bool {
    name == JUDGE || name.contains('/') || name.starts_with("program:") || name.contains(".py")
}

/// The reward that `name` points at, or none where `name` is not of these forms.
pub(crate) fn by_name(
    name: &str,
    options: &PluginOptions,
) -> Option<Result<Box<dyn Reward>, RewardError>> {
    if name == JUDGE {
        return Some(JudgeReward::new(options).map(boxed));
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Some(HttpReward::new(name, options).map(boxed));
    }
    if let Some(command) = name.strip_prefix("program:") {
        return Some(program(name, command, options));
    }
    if let Some((stem, function)) = name.rsplit_once(".py:") {
        return Some(python(name, &format!("{stem}.py"), function, options));
    }
    if name.ends_with(".py") {
        return Some(Err(RewardError::PluginName {
            name: name.to_owned(),
            reason: "no function, expected `FILE.py:FUNCTION`",
        }));
    }
    name.contains('/').then(|| ProcessReward::program(name, &[], options).map(boxed))
}

fn python(
    name: &str,
    file: &str,
    function: &str,
    options: &PluginOptions,
) -> Result<Box<dyn Reward>, RewardError> {
    let (function, form) = match function.split_once(':') {
        None => (function, "auto"),
        Some((function, form @ ("chat" | "text"))) => (function, form),
        Some(_) => {
            return Err(RewardError::PluginName {
                name: name.to_owned(),
                reason: "after the function, expected `:chat`, `:text` or nothing",
            });
        }
    };
    if function.is_empty() {
        return Err(RewardError::PluginName {
            name: name.to_owned(),
            reason: "no function, expected `FILE.py:FUNCTION`",
        });
    }
    ProcessReward::python(file, function, form, options).map(boxed)
}

fn program(
    name: &str,
    command: &str,
    options: &PluginOptions,
) -> Result<Box<dyn Reward>, RewardError> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let Some((program, arguments)) = words.split_first() else {
        return Err(RewardError::PluginName {
            name: name.to_owned(),
            reason: "no command, expected `program:COMMAND`",
        });
    };
    ProcessReward::program(program, arguments, options).map(boxed)
}

fn boxed(reward: impl Reward + 'static) -> Box<dyn Reward> {
    Box::new(reward)
}

/// Scores up to `parts` parts of a batch at the same time by `score(part, first, rows)`.
fn in_parts(
    rows: &[RewardInput<'_>],
    parts: usize,
    score: impl Fn(usize, usize, &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> + Sync,
) -> Result<Vec<Option<f64>>, RewardError> {
    let size = rows.len().div_ceil(parts).max(1);
    if rows.len() <= size {
        return score(0, 0, rows);
    }
    let score = &score;
    let scores: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = rows
            .chunks(size)
            .enumerate()
            .map(|(part, rows)| scope.spawn(move || score(part, part * size, rows)))
            .collect();
        threads.into_iter().map(joined).collect()
    });
    let scores: Vec<Vec<_>> = scores.into_iter().collect::<Result<_, _>>()?;
    Ok(scores.concat())
}

/// The error of a reward that gave no scores for rows `first..` of the batch.
fn failed(
    reward: &str,
    first: usize,
    rows: &[RewardInput<'_>],
    refusal: Refusal,
    stderr: &str,
) -> RewardError {
    let at_fault = match refusal.row {
        Some(row) => &rows[row..=row],
        None => rows,
    };
    RewardError::Plugin {
        reward: reward.to_owned(),
        row: first + refusal.row.unwrap_or(0),
        samples: protocol::samples(at_fault),
        reason: refusal.reason,
        stderr: stderr.to_owned(),
    }
}
