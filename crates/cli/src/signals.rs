//! Ctrl-C and SIGTERM: the first asks for a good end (training: of the step, with a checkpoint), the
//! second ends at once. A command that has no good end to offer ends at the first.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use base::run_folder::StopFlag;
use base::unfinished;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// The flags to raise, once somebody listens.
static FLAGS: Mutex<Option<Vec<StopFlag>>> = Mutex::new(None);

fn flags() -> MutexGuard<'static, Option<Vec<StopFlag>>> {
    FLAGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the signals end the program without leaving files behind that have no final name yet.
///
/// # Errors
/// Where the system refuses.
pub fn listen() -> Result<()> {
    let mut flags = flags();
    if flags.is_some() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen to signals")?;
    std::thread::spawn(move || signals.forever().for_each(obey));
    *flags = Some(Vec::new());
    Ok(())
}

/// A flag that the signals raise from now on.
///
/// # Errors
/// Where the system refuses.
pub fn stop_flag() -> Result<StopFlag> {
    listen()?;
    let stop = StopFlag::new();
    flags().get_or_insert_default().push(stop.clone());
    Ok(stop)
}

fn obey(signal: i32) {
    let flags = flags().clone().unwrap_or_default();
    flags.iter().for_each(StopFlag::raise);
    if flags.is_empty() {
        unfinished::remove_all();
        // As if nobody had listened; where that is not to be had, at least an end.
        let _ = low_level::emulate_default_handler(signal);
        low_level::exit(128 + signal);
    }
    if flags.iter().any(StopFlag::is_now) {
        unfinished::remove_all();
        // Nothing under a final name is half-written; the destructors of a library in the middle of a kernel must not run.
        low_level::exit(1);
    }
    base::say!("stopping as soon as nothing is lost; once more stops at once");
}
