//! SIGINT, SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (a scheduler's warning that the time is nearly up): the
//! first asks for a good end (training: of the step, with a checkpoint), the second ends at once. Either way the exit
//! code is 128 + the signal's number, as a shell tells of one.

use std::fmt;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base::run_folder::StopFlag;
use base::unfinished;
use data::convert::ConvertError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// The same signal within this time is the same request: a shell passes on what the terminal has sent already, and so
/// do launchers.
const SAME_REQUEST: Duration = Duration::from_millis(250);

/// How long a process that ends at once waits for its last line to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The end of a process that was asked to stop, and lost nothing.
#[derive(Debug)]
pub struct Stopped(pub String);

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

/// The signal that the first flag of this process was raised by, where `error` says that this is why it ends: by
/// [`Stopped`], or by a cause of which `is_stop` says so. An error of another kind after a signal is a failure like any
/// other.
pub fn cause(error: &anyhow::Error, is_stop: IsStop) -> Option<i32> {
    let is_stop = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<Stopped>()
            || matches!(cause.downcast_ref(), Some(ConvertError::Stopped))
            || is_stop(cause)
    };
    let stop = STOP.get()?;
    error.chain().any(is_stop).then(|| stop.signal()).flatten()
}

/// Whether a cause of an error is that the program was asked to stop.
pub type IsStop = fn(&(dyn std::error::Error + 'static)) -> bool;

/// The flag of this process.
static STOP: OnceLock<StopFlag> = OnceLock::new();
/// What it does when it is raised; nothing in a command that has no good end to offer.
static NEXT: OnceLock<&str> = OnceLock::new();

/// A flag that the signals raise from now on; `next` says what happens then.
///
/// # Errors
/// Where the system refuses.
pub fn stop_flag(next: &'static str) -> Result<StopFlag> {
    let stop = stop_flag_of_work(next)?;
    stop.begin();
    Ok(stop)
}

/// As [`stop_flag`], where there is nothing to lose before [`StopFlag::begin`]: until then the first signal ends the
/// process. A model that is being fetched or loaded is not waited for.
///
/// # Errors
/// As [`stop_flag`].
pub fn stop_flag_of_work(next: &'static str) -> Result<StopFlag> {
    // The first word counts: `demo` runs commands within it.
    NEXT.get_or_init(|| next);
    listen()?;
    Ok(STOP.get_or_init(StopFlag::new).clone())
}

/// Lets the signals end the program without leaving files behind that have no final name yet.
///
/// # Errors
/// As [`stop_flag`].
pub fn listen() -> Result<()> {
    static LISTENS: Once = Once::new();
    let mut listening = Ok(());
    LISTENS.call_once(|| listening = start_to_listen());
    listening
}

fn start_to_listen() -> Result<()> {
    let mut heard = vec![SIGINT, SIGTERM, SIGUSR1];
    if !is_ignored(SIGHUP) {
        heard.push(SIGHUP);
    }
    let mut signals = Signals::new(heard).context("cannot listen to signals")?;
    let raised = STOP.get_or_init(StopFlag::new).clone();
    std::thread::spawn(move || {
        let mut first: Option<(i32, Instant)> = None;
        for signal in signals.forever() {
            let name = signal_name(signal).unwrap_or("a signal");
            match first {
                // Of signals that come together the system does not keep the order.
                Some((before, at))
                    if at.elapsed() < SAME_REQUEST
                        && (before == signal || is_warning(before) || is_warning(signal)) =>
                {
                    continue;
                }
                // A warning was heeded already, and what it warned of is no impatience; nor is a warning that comes late.
                Some((before, _)) if is_warning(before) != is_warning(signal) => {
                    log_from_thread(format!("{name}: stopping already; once more stops at once"));
                }
                Some(_) => end(signal, format!("{name}: stops at once")),
                None => match NEXT.get() {
                    None => end(signal, format!("{name}: stops")),
                    Some(_) if !raised.has_begun() => {
                        end(signal, format!("{name}: stops; nothing was begun yet"));
                    }
                    Some(next) => {
                        raised.raise_by(signal);
                        log_from_thread(format!("{name}: {next}; once more stops at once"));
                    }
                },
            }
            first = Some((signal, Instant::now()));
        }
    });
    Ok(())
}

/// Whether a signal says what will happen, rather than what is wanted.
fn is_warning(signal: i32) -> bool {
    [SIGUSR1, SIGHUP].contains(&signal)
}

/// Nothing under a final name is half-written; what has none yet goes. The destructors of a library in the middle of a
/// kernel must not run.
fn end(signal: i32, why: String) -> ! {
    unfinished::remove_all();
    // An error means that it was logged.
    let _ = log_from_thread(why).recv_timeout(LAST_WORDS);
    signal_hook::low_level::exit(128 + signal)
}

/// Logs on a thread of its own: where nobody reads stderr, a pipe that is full must not keep signals from being heard.
/// What it gives hangs up when it was logged.
fn log_from_thread(text: String) -> Receiver<()> {
    let (logged, done) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        base::console::say(&text);
        drop(logged);
    });
    done
}

/// Whether whoever started this program had it ignore a signal (`nohup`). Where the system does not say, no.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, signal)
}

fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_says_what_is_ignored() {
        // SIGHUP is signal 1; Rust's programs ignore SIGPIPE, 13.
        let status = "Name:\tvlm-r1\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SIGHUP));
        let pipe_alone = status.replace("1001", "1000");
        assert!(!ignores(&pipe_alone, SIGHUP) && ignores(&pipe_alone, 13));
        assert!(!ignores("", SIGHUP));
        // On this system the file is there and says something.
        assert!(is_ignored(13));
    }
}
