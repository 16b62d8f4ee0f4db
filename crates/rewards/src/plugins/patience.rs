//! How long to wait for a server that does not respond.

use base::console::count;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base::run_folder::StopFlag;

use super::PluginOptions;
use crate::error::RewardError;

/// Requests after the first that failed, however little patience there is.
const MIN_RETRIES: u32 = 4;
/// Pause before the first of them; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause without a `Retry-After`.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Longest pause that a server which never answered may ask for by `Retry-After`.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// How often a stop is looked for.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// The state of a server, shared by all requests to it.
pub(super) struct Patience {
    reward: String,
    /// For a server that has answered in this run.
    budget: Duration,
    stop: StopFlag,
    has_answered: AtomicBool,
    /// Since when it does not answer.
    outage: Mutex<Option<Instant>>,
}

/// The tries of one request.
pub(super) struct Tries<'a> {
    patience: &'a Patience,
    made: u32,
    pause: Duration,
}

/// Why a request is not tried again.
#[derive(Debug, PartialEq)]
pub(super) enum GivenUp {
    After(u32),
    AfterTime(u32, Duration),
    Stopped(u32),
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(tries) => write!(f, "{}", count(u64::from(*tries), "time")),
            Self::AfterTime(tries, waited) => write!(
                f,
                "{} in an outage of {} s\nhint: a higher --reward_retry_secs",
                count(u64::from(*tries), "time"),
                waited.as_secs()
            ),
            Self::Stopped(tries) => write!(f, "{tries} times, then a stop was asked for"),
        }
    }
}

impl Patience {
    /// # Errors
    /// Where the time is none.
    pub(super) fn new(reward: &str, options: &PluginOptions) -> Result<Self, RewardError> {
        Ok(Self {
            reward: reward.to_owned(),
            budget: options.retry()?,
            stop: options.stop.clone(),
            has_answered: AtomicBool::new(false),
            outage: Mutex::default(),
        })
    }

    /// Those of a request.
    pub(super) fn tries(&self) -> Tries<'_> {
        Tries { patience: self, made: 1, pause: FIRST_PAUSE }
    }

    /// The server gave an answer that could be used.
    pub(super) fn note_answer(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
        if let Some(since) = self.outage().take() {
            let secs = since.elapsed().as_secs_f64();
            base::say!("reward `{}`: answers again, after {secs:.1} s", self.reward);
        }
    }

    /// What is left of the time for this outage, which begins with the first failure.
    fn left(&self, reason: &str) -> Duration {
        let mut outage = self.outage();
        let since = *outage.get_or_insert_with(|| {
            let secs = self.budget.as_secs_f64();
            base::say!(
                "reward `{}`: {reason}; tried again for up to {secs} s (--reward_retry_secs)",
                self.reward
            );
            Instant::now()
        });
        self.budget.saturating_sub(since.elapsed())
    }

    fn outage(&self) -> MutexGuard<'_, Option<Instant>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps; a stop ends it early.
    fn sleep(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let was_running = self.stop.is_running();
        while was_running == self.stop.is_running() {
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(STOP_INTERVAL)),
                _ => return,
            }
        }
    }
}

impl Tries<'_> {
    /// Waits before another try, at least as long as the server `asked`, where there is time for it.
    ///
    /// # Errors
    /// Where it is tried no more.
    pub(super) fn wait(&mut self, asked: Duration, reason: &str) -> Result<(), GivenUp> {
        let patience = self.patience;
        let stopped = !patience.stop.is_running();
        let patient =
            patience.has_answered.load(Ordering::Relaxed) && !stopped && !patience.budget.is_zero();
        let left = match patient {
            true => patience.left(reason),
            false => Duration::ZERO,
        };
        if self.made > MIN_RETRIES && left.is_zero() {
            return Err(match (stopped, patient) {
                (true, _) => GivenUp::Stopped(self.made),
                (_, true) => GivenUp::AfterTime(self.made, patience.budget),
                _ => GivenUp::After(self.made),
            });
        }
        let pause = self.pause;
        patience.sleep(match (left.is_zero(), stopped) {
            (false, _) => pause.max(asked).min(left),
            (true, false) if !patient => asked.clamp(pause, LONGEST_ASKED),
            // A stopped run and a server that was given up are not waited for.
            _ => pause,
        });
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        self.made += 1;
        Ok(())
    }
}
