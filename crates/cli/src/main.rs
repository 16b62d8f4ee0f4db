//! The binary: arguments to a configuration to one call. Data goes to stdout, messages to stderr;
//! exit 0 is done, 1 failed, 2 wrong use, 128 + a signal's number stopped by it.

mod arguments;
mod best;
mod commands;
mod deepspeed;
mod demo;
mod even;
mod hub;
mod model;
mod openmp;
mod output;
mod passages;
mod pictures;
mod progress;
mod rows;
mod signals;
mod which_model;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base::console::{self, describe};
use config::{Config, ConfigError, resolve, to_yaml};

use arguments::{Invocation, UsageError};

const WRONG_USE: u8 = 2;

/// For libtorch's tensors on the CPU too: between steps less memory lies idle than with the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    openmp::let_idle_threads_sleep();
    panic::set_hook(Box::new(say_panic));
    // libtorch must know of the GPU before anything asks it.
    torch::load_cuda();
    if let Some(commit) = option_env!("VLM_R1_COMMIT") {
        base::run_folder::declare_commit(commit);
    }
    match run() {
        Ok(()) => match console::lost() {
            Some(error) => {
                base::say!("error: stdout: {error}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        },
        Err(_) if output::reader_is_gone() => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run() -> Result<()> {
    signals::listen()?;
    let invocation = arguments::parse(std::env::args_os())?;
    arguments::check_world_size()?;
    match invocation.command {
        "demo" => with_config(&invocation, |config| config.machine.dry_run, demo::run),
        "grpo" => with_checked_config(
            &invocation,
            |config| config.start.dry_run,
            commands::check_grpo,
            commands::grpo,
        ),
        "sft" => with_checked_config(
            &invocation,
            |config| config.start.dry_run,
            commands::check_sft,
            commands::sft,
        ),
        "generate" => with_config(&invocation, |config| config.machine.dry_run, commands::generate),
        "eval" => with_checked_config(
            &invocation,
            |config| config.machine.dry_run,
            commands::check_eval,
            commands::eval,
        ),
        "logprobs" => with_config(&invocation, |config| config.machine.dry_run, commands::logprobs),
        "reward" => with_config(&invocation, |config| config.machine.dry_run, commands::reward),
        "merge" => with_config(&invocation, |config| config.dry_run, commands::merge),
        "data convert" => with_config(&invocation, |config| config.dry_run, commands::data_convert),
        "data check" => with_config(&invocation, |config| config.dry_run, commands::data_check),
        "plan" => with_checked_config(
            &invocation,
            |config| config.grpo.start.dry_run,
            commands::check_plan,
            commands::plan,
        ),
        command => bail!("command `{command}` is not connected"),
    }
}

/// Resolves the configuration and prints it, where that is all, or acts on it.
fn with_config<T: Config>(
    invocation: &Invocation,
    dry_run: impl Fn(&T) -> bool,
    act: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    with_checked_config(invocation, dry_run, |_| Ok(()), act)
}

/// As [`with_config`]; `check` looks at what else the configuration names once it is printed.
fn with_checked_config<T: Config>(
    invocation: &Invocation,
    dry_run: impl Fn(&T) -> bool,
    check: impl Fn(&T) -> Result<()>,
    act: impl Fn(&T) -> Result<()>,
) -> Result<()> {
    let text = match &invocation.config {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?)
        }
        None => None,
    };
    let resolved = resolve::<T>(&invocation.layers(text.as_deref()))?;
    if !resolved.without_effect.is_empty() {
        let flags = resolved.without_effect.iter().map(|(name, why)| format!("`--{name}` ({why})"));
        base::say!("warning: no effect here: {}", flags.collect::<Vec<_>>().join(", "));
    }
    let deepspeed = resolved.compat.iter().find(|(name, _)| name == "deepspeed");
    let deepspeed = deepspeed.map_or(Ok(()), |(_, given)| deepspeed::look(given));
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

fn report(error: &anyhow::Error) -> ExitCode {
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
    if let Some(signal) = signals::cause(error) {
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
fn say_panic(panic: &PanicHookInfo<'_>) {
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
pub(crate) fn message(error: &anyhow::Error) -> String {
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
        panic::set_hook(Box::new(say_panic));
        let thread = std::thread::Builder::new().name("worker 7".into());
        let panicked = thread.spawn(|| panic!("broken {}", 3)).unwrap().join();
        drop(panic::take_hook());
        drop(log);
        assert!(panicked.is_err());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("error: thread `worker 7` panicked at "), "{text}");
        assert!(text.contains("main.rs:") && text.contains(": broken 3\n"), "{text}");
    }
}
