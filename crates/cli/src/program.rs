//! What both programs do alike: a command's result becomes messages and an exit code. Data goes to stdout, messages to
//! stderr; exit 0 is done, 1 failed, 2 wrong use, 128 + a signal's number stopped by it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base::console::{self, describe};
use config::{Config, ConfigError, Resolved, resolve, to_yaml};

use crate::arguments::{self, Invocation, UsageError};
use crate::signals::{self, IsStop};
use crate::{deepspeed, launch, output};

const WRONG_USE: u8 = 2;

/// Reads the command line and has `act` obey it; `is_stop` says which of its errors are the end that a signal asked for.
pub fn run(act: impl FnOnce(&Invocation) -> Result<()>, is_stop: IsStop) -> ExitCode {
    panic::set_hook(Box::new(log_panic));
    if let Some(commit) = launch::COMMIT {
        base::run_folder::declare_commit(commit);
    }
    match obey(act) {
        Ok(()) => match console::lost() {
            Some(error) => {
                base::say!("error: stdout: {error}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        },
        Err(_) if output::reader_is_gone() => ExitCode::SUCCESS,
        Err(error) => report(&error, is_stop),
    }
}

fn obey(act: impl FnOnce(&Invocation) -> Result<()>) -> Result<()> {
    let invocation = arguments::parse(std::env::args_os())?;
    arguments::check_world_size()?;
    act(&invocation)
}

/// The configuration that a command line means.
///
/// # Errors
/// A file that cannot be read, values that mean nothing.
pub fn resolved<T: Config>(invocation: &Invocation) -> Result<Resolved<T>> {
    let text = match &invocation.config {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?)
        }
        None => None,
    };
    Ok(resolve::<T>(&invocation.layers(text.as_deref()))?)
}

/// Resolves the configuration and prints it, where that is all, or acts on it.
///
/// # Errors
/// A configuration that means nothing, and what `act` says.
pub fn with_config<T: Config>(
    invocation: &Invocation,
    dry_run: impl Fn(&T) -> bool,
    act: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    with_checked_config(invocation, dry_run, |_| Ok(()), act)
}

/// As [`with_config`]; `check` looks at what else the configuration names once it is printed.
///
/// # Errors
/// As [`with_config`], and what `check` says.
pub fn with_checked_config<T: Config>(
    invocation: &Invocation,
    dry_run: impl Fn(&T) -> bool,
    check: impl Fn(&T) -> Result<()>,
    act: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    // Not before: what the front had heard would be lost where it is replaced by the engine.
    signals::listen()?;
    let resolved = resolved::<T>(invocation)?;
    if !resolved.without_effect.is_empty() {
        let flags = resolved.without_effect.iter().map(|(name, why)| format!("`--{name}` ({why})"));
        base::say!("warning: no effect here: {}", flags.collect::<Vec<_>>().join(", "));
    }
    let deepspeed = resolved.compat.iter().find(|(name, _)| name == "deepspeed");
    let deepspeed = deepspeed.map_or(Ok(()), |(_, given)| deepspeed::warn_of_other_settings(given));
    if dry_run(&resolved.config) {
        console::print(to_yaml(&resolved.config)?.trim_end());
        return match (check(&resolved.config), deepspeed) {
            (Err(first), Err(second)) => bail!("{}\n{}", message(&first), message(&second)),
            (first, second) => first.and(second),
        };
    }
    if let Err(error) = deepspeed {
        base::say!("warning: {}", message(&error));
    }
    act(&resolved.config)
}

fn report(error: &anyhow::Error, is_stop: IsStop) -> ExitCode {
    if let Some(UsageError::Clap(error)) = error.downcast_ref::<UsageError>() {
        let printed = error.print();
        return match (error.use_stderr(), printed) {
            (true, _) => ExitCode::from(WRONG_USE),
            (false, Err(error)) if !console::is_closed(&error) => {
                base::say!("error: stdout: {error}");
                ExitCode::FAILURE
            }
            (false, _) => ExitCode::SUCCESS,
        };
    }
    if let Some(signal) = signals::cause(error, is_stop) {
        base::console::say(&message(error));
        return ExitCode::from(128 + signal as u8);
    }
    base::say!("error: {}", message(error));
    if error.is::<UsageError>() || error.is::<ConfigError>() {
        return ExitCode::from(WRONG_USE);
    }
    ExitCode::FAILURE
}

/// As the default does, to where all is said: the log of a run too.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|place| format!(" at {place}"));
    let what = panic.payload_as_str().unwrap_or("no text");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => "\nhint: this is a fault of the program; RUST_BACKTRACE=1 says where it came from"
            .to_owned(),
    };
    let place = place.unwrap_or_default();
    base::say!("error: thread `{name}` panicked{place}: {what}{backtrace}");
}

/// The error and its causes, as [`describe`] tells them.
pub fn message(error: &anyhow::Error) -> String {
    describe(error.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stands_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.txt");
        let log = console::Log::open(&path, std::fs::File::create(&path).unwrap());
        panic::set_hook(Box::new(log_panic));
        let thread = std::thread::Builder::new().name("worker 7".into());
        let panicked = thread.spawn(|| panic!("broken {}", 3)).unwrap().join();
        drop(panic::take_hook());
        drop(log);
        assert!(panicked.is_err());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("error: thread `worker 7` panicked at "), "{text}");
        assert!(text.contains("program.rs:") && text.contains(": broken 3\n"), "{text}");
    }
}
