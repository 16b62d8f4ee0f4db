//! How ranks end together: one that fails takes the others with it, a stop that was asked for does not.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGUSR1};

use super::rank::{Rank, described};

/// How long ranks may take to leave by themselves after one has failed: they hear of it and say so.
const BY_THEMSELVES: Duration = Duration::from_secs(3);
/// How long they may take where one was stopped by a signal: the step ends everywhere, with a checkpoint.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// Between SIGTERM, SIGTERM again, which ends a rank at once, and SIGKILL.
const BETWEEN: Duration = Duration::from_secs(3);
const WRONG_USE: i32 = 2;

/// What a run of all ranks came to.
pub enum Outcome {
    /// All ended with 0.
    Done,
    /// A rank failed: started anew they might not.
    Fault { why: String },
    /// They would end so again: wrong use, or a stop that was asked for.
    Other { code: u8, why: String },
}

/// How the first rank ended that did not end well.
struct First {
    why: String,
    code: i32,
    is_stop: bool,
    at: Instant,
}

/// The end so far.
#[derive(Default)]
pub struct Ending {
    was_asked: bool,
    first: Option<First>,
    /// Signals sent to those that are left.
    sent: usize,
}

impl Ending {
    /// Notes that a signal was passed on.
    pub fn asked(&mut self) {
        self.was_asked = true;
    }

    /// Looks at how ranks have ended, and ends those that should have left by now.
    pub fn look(&mut self, ranks: &mut [Rank]) {
        if self.first.as_ref().is_none_or(|first| first.is_stop) {
            self.note(ranks);
        }
        let Some(first) = &self.first else { return };
        let patience = if first.is_stop { CHECKPOINT } else { BY_THEMSELVES };
        let signals = [SIGTERM, SIGTERM, SIGKILL];
        let due = patience + BETWEEN * self.sent as u32;
        if self.sent < signals.len() && first.at.elapsed() >= due {
            ranks.iter_mut().for_each(|rank| rank.signal(signals[self.sent]));
            self.sent += 1;
        }
    }

    /// Notes the first bad end. One that was killed is the cause of others that are seen with it; a stop is one until
    /// a rank fails.
    fn note(&mut self, ranks: &[Rank]) {
        let bad = ranks.iter().filter_map(|rank| Some((rank, rank.status()?)));
        let bad = bad.filter(|(_, status)| !status.success());
        let weight = |status: ExitStatus| match status.code() {
            None => 0,
            Some(code) if !is_stop(code) => 1,
            Some(_) => 2,
        };
        let Some((rank, status)) = bad.min_by_key(|(_, status)| weight(*status)) else { return };
        let code = status.code().unwrap_or(1);
        let is_stop = status.signal().is_none() && is_stop(code);
        // Ranks that we end ourselves have no say.
        if self.first.is_some() && (is_stop || self.sent > 0) {
            return;
        }
        let why = format!("rank {} {}", rank.number, described(status));
        self.first = Some(First { why, code, is_stop, at: Instant::now() });
    }

    /// What it came to, when all have ended.
    pub fn outcome(self) -> Outcome {
        let Some(First { why, code, is_stop, .. }) = self.first else { return Outcome::Done };
        if is_stop || code == WRONG_USE {
            return Outcome::Other { code: u8::try_from(code).unwrap_or(1), why };
        }
        match self.was_asked {
            // Nobody waits for more.
            true => Outcome::Other { code: 1, why },
            false => Outcome::Fault { why },
        }
    }
}

/// Whether an exit code says that a signal asked for the end.
fn is_stop(code: i32) -> bool {
    [SIGHUP, SIGINT, SIGTERM, SIGUSR1].contains(&(code - 128))
}
