//! What both programs do alike: a command's result becomes messages and an exit code. Data goes to stdout, messages to
//! stderr; exit 0 is done, 1 failed, 2 wrong use, 128 + a signal's number stopped by it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base::console::{self, describe};
use config::{Config, ConfigError, DeepSpeedFile, Resolved, resolve, to_yaml};

use crate::arguments::{self, Invocation, UsageError};
use crate::signals::{self, IsStop};
use crate::{launch, launched, output};

const WRONG_USE: u8 = 2;

/// The end of a program that passes on an exit code.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Ended {
    /// The exit code.
    pub code: u8,
    /// What happened.
    pub why: String,
}

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
    launched::check(&invocation)?;
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
    let mut resolved = resolved::<T>(invocation)?;
    if !resolved.without_effect.is_empty() && launched::is_first() {
        let flags = resolved.without_effect.iter().map(|(name, why)| format!("`--{name}` ({why})"));
        base::say!("warning: no effect here: {}", flags.collect::<Vec<_>>().join(", "));
    }
    let fitted = fit_to_ranks(&mut resolved.config);
    if dry_run(&resolved.config) {
        if launched::is_first() {
            console::print(to_yaml(&resolved.config)?.trim_end());
        }
        return match (check(&resolved.config), fitted) {
            (Err(first), Err(second)) => bail!("{}\n{}", message(&first), message(&second)),
            (first, second) => first.and(second),
        };
    }
    fitted?;
    act(&resolved.config)
}

/// Lets the settings do what launcher and DeepSpeed's configuration say.
fn fit_to_ranks<T: Config>(config: &mut T) -> Result<()> {
    let given = config.deepspeed().map(str::trim).filter(|given| !given.is_empty());
    let file = match given.map(|given| (DeepSpeedFile::path_of(given), given)) {
        None => None,
        Some((None, text)) => Some(DeepSpeedFile::parse(None, text)?),
        Some((Some(path), _)) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("`deepspeed`: {}", path.display()))?;
            Some(DeepSpeedFile::parse(Some(path), &text)?)
        }
    };
    let idle = config.fit_to_ranks(launched::num_ranks()?, file.as_ref())?;
    if let Some(file) = file.filter(|_| !idle.is_empty() && launched::is_first()) {
        let keys: Vec<String> = idle.iter().map(|key| format!("`{key}`")).collect();
        base::say!(
            "warning: {}: no effect here, where buckets and reports are our own: {}",
            file.place().display(),
            keys.join(", ")
        );
    }
    Ok(())
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
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return ExitCode::from(ended.code);
    }
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
