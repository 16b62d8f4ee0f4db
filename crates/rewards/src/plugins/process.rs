//! Rewards computed by processes that stay alive: a Python function or any program.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use config::RewardBatch;

use super::PluginOptions;
use super::protocol::{self, Refusal};
use super::worker::{Broken, CommandLine, Worker};
use crate::error::RewardError;
use crate::registry::{Reward, RewardInput};

/// Calls the user's function and keeps its output apart from the responses.
const DRIVER: &str = include_str!("driver.py");
/// How often a batch is retried after its process ended.
const MAX_RESTARTS: usize = 2;
/// Longest that loading a Python file may take: it may import large packages.
const LOADING: Duration = Duration::from_secs(120);

/// A reward that a pool of processes computes.
pub(super) struct ProcessReward {
    name: String,
    command: CommandLine,
    /// Whether the process says that it is ready before the first request.
    announces: bool,
    timeout: Duration,
    batch: RewardBatch,
    workers: Vec<Mutex<Option<Worker>>>,
    next_id: AtomicU64,
}

impl ProcessReward {
    /// The function of a Python file, loaded at once, so that a wrong one is known before training.
    pub(super) fn python(
        file: &str,
        function: &str,
        form: &str,
        options: &PluginOptions,
    ) -> Result<Self, RewardError> {
        let variable = std::env::var_os("VLM_R1_PYTHON");
        let python = options.python.clone().map(OsString::from).or(variable);
        let command = CommandLine {
            program: python.unwrap_or_else(|| "python3".into()),
            arguments: ["-c", DRIVER, file, function, form].map(OsString::from).into(),
        };
        Self::start(function.to_owned(), command, true, options)
    }

    /// A program; the command without folders is the name of the reward: `sh score.sh`.
    pub(super) fn program(
        program: &str,
        arguments: &[&str],
        options: &PluginOptions,
    ) -> Result<Self, RewardError> {
        let words = [&[program], arguments].concat();
        let names: Vec<_> = words
            .iter()
            .map(|word| Path::new(word).file_name().unwrap_or(word.as_ref()))
            .map(|name| name.to_string_lossy())
            .collect();
        let name = names.join(" ");
        let command = CommandLine {
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
        };
        Self::start(name, command, false, options)
    }

    fn start(
        name: String,
        command: CommandLine,
        announces: bool,
        options: &PluginOptions,
    ) -> Result<Self, RewardError> {
        let reward = Self {
            name,
            command,
            announces,
            timeout: options.timeout()?,
            batch: options.batch,
            workers: (0..options.workers()?).map(|_| Mutex::default()).collect(),
            next_id: AtomicU64::new(0),
        };
        let first = reward.worker()?;
        *lock(&reward.workers[0]) = Some(first);
        Ok(reward)
    }

    fn worker(&self) -> Result<Worker, RewardError> {
        let failed = |reason: String, stderr: String| RewardError::PluginStart {
            reward: self.name.clone(),
            program: self.command.program.to_string_lossy().into_owned(),
            reason,
            stderr,
        };
        let mut worker = Worker::start(&self.name, &self.command)
            .map_err(|error| failed(error.to_string(), String::new()))?;
        worker.begin("loading");
        if !self.announces {
            return Ok(worker);
        }
        let reason = match worker.answer(LOADING) {
            Ok(line) => match serde_json::from_str::<serde_json::Value>(&line) {
                Ok(value) if value["ready"] == true => return Ok(worker),
                Ok(value) => {
                    // Its interpreter does start.
                    return Err(RewardError::PluginLoad {
                        reward: self.name.clone(),
                        reason: value["error"].as_str().unwrap_or(&line).to_owned(),
                        stderr: worker.last_words(),
                    });
                }
                Err(error) => error.to_string(),
            },
            Err(broken) => describe(&broken, LOADING),
        };
        Err(failed(reason, worker.last_words()))
    }

    /// Scores rows `first..` of the batch by one worker.
    fn score_part(
        &self,
        slot: &Mutex<Option<Worker>>,
        first: usize,
        rows: &[RewardInput<'_>],
    ) -> Result<Vec<Option<f64>>, RewardError> {
        let mut slot = lock(slot);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = protocol::request(id, rows).to_string().into_bytes();
        let samples = protocol::samples(rows);
        let mut restarts = 0;
        loop {
            let mut worker = match slot.take() {
                Some(worker) => worker,
                None => self.worker()?,
            };
            worker.begin(&samples);
            let broken = match worker.exchange(request.clone(), self.timeout) {
                Ok(line) => match protocol::scores(&line, id, rows.len()) {
                    Ok(scores) => {
                        *slot = Some(worker);
                        return Ok(scores);
                    }
                    Err(refusal) => {
                        return Err(self.failed(first, rows, refusal, worker.last_words()));
                    }
                },
                Err(broken) => broken,
            };
            let reason = describe(&broken, self.timeout);
            let stderr = worker.last_words();
            if !matches!(broken, Broken::Ended(_)) || restarts == MAX_RESTARTS {
                let refusal = Refusal::whole(match restarts {
                    0 => reason,
                    _ => format!("{reason}, also after {restarts} restarts"),
                });
                return Err(self.failed(first, rows, refusal, stderr));
            }
            restarts += 1;
            let name = &self.name;
            base::say!(
                "reward `{name}`, {samples}: {reason}; restart {restarts} of {MAX_RESTARTS}"
            );
        }
    }

    fn failed(
        &self,
        first: usize,
        rows: &[RewardInput<'_>],
        refusal: Refusal,
        stderr: String,
    ) -> RewardError {
        super::failed(&self.name, first, rows, refusal, &stderr)
    }
}

impl Reward for ProcessReward {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_by_row(&self) -> bool {
        false
    }

    fn batch(&self) -> RewardBatch {
        self.batch
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        super::in_parts(rows, self.workers.len(), |part, first, rows| {
            self.score_part(&self.workers[part], first, rows)
        })
    }
}

fn lock(slot: &Mutex<Option<Worker>>) -> std::sync::MutexGuard<'_, Option<Worker>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(broken: &Broken, timeout: Duration) -> String {
    match broken {
        Broken::TimedOut => format!(
            "no answer in {} s, the process was killed\nhint: a higher --reward_timeout_secs",
            timeout.as_secs_f64()
        ),
        Broken::Ended(Some(status)) => format!("the process ended ({status})"),
        Broken::Ended(None) => "the process closed its output".to_owned(),
        Broken::Unreadable(error) => format!("the answer cannot be read: {error}"),
    }
}
