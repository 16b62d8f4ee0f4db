//! Ctrl-C and SIGTERM: the first asks for a good end (training: of the step, with a checkpoint), the
//! second ends at once.

use anyhow::{Context, Result};
use base::run_folder::StopFlag;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A flag that the signals raise from now on.
///
/// # Errors
/// Where the system refuses.
pub fn stop_flag() -> Result<StopFlag> {
    let stop = StopFlag::new();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen to signals")?;
    let raised = stop.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            raised.raise();
            if raised.is_now() {
                // Nothing under a final name is half-written, so there is nothing to tidy up; the
                // destructors of a library in the middle of a kernel must not run.
                signal_hook::low_level::exit(1);
            }
            base::say!("stopping as soon as nothing is lost; once more stops at once");
        }
    });
    Ok(stop)
}
