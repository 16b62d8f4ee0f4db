//! The engine: the commands that compute with libtorch. `vlm-r1`, the front, replaces itself by it.

mod commands;
mod demo;
mod model;
mod progress;

use std::error::Error;
use std::process::ExitCode;

use anyhow::{Result, bail};
use cli::arguments::Invocation;
use cli::command::Command;
use cli::program::{with_checked_config, with_config};
use cli::{launch, launched, program};
use engine::EngineError;
use eval_runner::AskError;
use train::TrainError;

fn main() -> ExitCode {
    program::run(act, is_stop)
}

fn act(invocation: &Invocation) -> Result<()> {
    launch::check_front()?;
    refuse_several_ranks(invocation.command)?;
    match invocation.command {
        Command::Demo => with_config(invocation, |config| config.machine.dry_run, demo::run),
        Command::Grpo => with_checked_config(
            invocation,
            |config| config.start.dry_run,
            commands::check_grpo,
            commands::grpo,
        ),
        Command::Sft => with_checked_config(
            invocation,
            |config| config.start.dry_run,
            commands::check_sft,
            commands::sft,
        ),
        Command::Plan => with_checked_config(
            invocation,
            |config| config.grpo.start.dry_run,
            commands::check_plan,
            commands::plan,
        ),
        Command::Eval => with_checked_config(
            invocation,
            |config| config.machine.dry_run,
            commands::check_eval,
            commands::eval,
        ),
        Command::Generate => {
            with_config(invocation, |config| config.machine.dry_run, commands::generate)
        }
        Command::Logprobs => {
            with_config(invocation, |config| config.machine.dry_run, commands::logprobs)
        }
        Command::Merge => with_config(invocation, |config| config.dry_run, commands::merge),
        Command::Doctor => commands::doctor(),
        Command::Launch | Command::Reward | Command::DataCheck | Command::DataConvert => {
            let name = invocation.command.name();
            bail!("`{name}` is a command of `vlm-r1`, not of its engine\nhint: vlm-r1 {name}")
        }
    }
}

/// Each of several programs would do the whole run.
fn refuse_several_ranks(command: Command) -> Result<()> {
    let ranks = launched::num_ranks()?;
    if ranks > 1 && matches!(command, Command::Grpo | Command::Sft | Command::Eval) {
        bail!(
            "{ranks} ranks: several processes are not built yet\nhint: start it without a launcher"
        );
    }
    Ok(())
}

/// Whether an error is the end that a signal asked for.
fn is_stop(cause: &(dyn Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(TrainError::Stopped))
        || matches!(cause.downcast_ref(), Some(EngineError::Cancelled { .. }))
        || matches!(cause.downcast_ref(), Some(AskError::Engine(EngineError::Cancelled { .. })))
}
