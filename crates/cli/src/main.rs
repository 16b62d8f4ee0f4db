//! The binary: arguments to a configuration to one call. Data goes to stdout, messages to stderr;
//! exit 0 is done, 1 failed, 2 wrong use.

mod arguments;
mod commands;
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

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use base::config::{Config, ConfigError, resolve, to_yaml};
use base::console::{self, describe};

use arguments::{Invocation, UsageError};

const WRONG_USE: u8 = 2;

/// For libtorch's tensors on the CPU too: between steps less memory lies idle than with the system's allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    openmp::let_idle_threads_sleep();
    // libtorch must know of the GPU before anything asks it.
    torch::load_cuda();
    if let Some(commit) = option_env!("VLM_R1_COMMIT") {
        base::run_folder::declare_commit(commit);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run() -> Result<()> {
    signals::listen()?;
    let invocation = arguments::parse(std::env::args_os())?;
    arguments::check_world_size()?;
    match invocation.command {
        "demo" => with_config(&invocation, |config| config.dry_run, demo::run),
        "grpo" => with_checked_config(
            &invocation,
            |config| config.dry_run,
            commands::check_grpo,
            commands::grpo,
        ),
        "sft" => with_checked_config(
            &invocation,
            |config| config.dry_run,
            commands::check_sft,
            commands::sft,
        ),
        "generate" => with_config(&invocation, |config| config.dry_run, commands::generate),
        "eval" => with_config(&invocation, |config| config.dry_run, commands::eval),
        "logprobs" => with_config(&invocation, |config| config.dry_run, commands::logprobs),
        "reward" => with_config(&invocation, |config| config.dry_run, commands::reward),
        "merge" => with_config(&invocation, |config| config.dry_run, commands::merge),
        "data convert" => with_config(&invocation, |config| config.dry_run, commands::data_convert),
        "data check" => with_config(&invocation, |config| config.dry_run, commands::data_check),
        "plan" => with_config(&invocation, |config| config.dry_run, commands::plan),
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

/// As [`with_config`]; `check` looks at what else the configuration names before it is printed.
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
        let flags = resolved
            .without_effect
            .iter()
            .map(|(name, why)| format!("`--{name}` ({why})"));
        base::say!(
            "warning: no effect here: {}",
            flags.collect::<Vec<_>>().join(", ")
        );
    }
    if dry_run(&resolved.config) {
        check(&resolved.config)?;
        console::print(to_yaml(&resolved.config)?.trim_end());
        return Ok(());
    }
    act(&resolved.config)
}

fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(UsageError::Clap(error)) = error.downcast_ref::<UsageError>() {
        // Nothing more can be done where stderr is closed.
        let _ = error.print();
        return if error.use_stderr() {
            ExitCode::from(WRONG_USE)
        } else {
            ExitCode::SUCCESS
        };
    }
    base::say!("error: {}", message(error));
    if error.is::<UsageError>() || error.is::<ConfigError>() {
        return ExitCode::from(WRONG_USE);
    }
    ExitCode::FAILURE
}

/// The error and its causes, as [`describe`] tells them.
pub(crate) fn message(error: &anyhow::Error) -> String {
    describe(error.as_ref())
}
