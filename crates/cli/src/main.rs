//! The front: command line, help, and the commands that need no model's arithmetic. The others are the engine's, by
//! which it replaces itself.

use std::process::ExitCode;

use anyhow::Result;
use cli::arguments::Invocation;
use cli::command::Command;
use cli::program::{with_checked_config, with_config};
use cli::{commands, launch, program};

fn main() -> ExitCode {
    launch::end_with_launcher();
    program::run(act, |_| false)
}

fn act(invocation: &Invocation) -> Result<()> {
    match invocation.command {
        Command::Launch => commands::launch(invocation),
        Command::Reward => {
            with_config(invocation, |config| config.machine.dry_run, commands::reward)
        }
        Command::DataCheck => {
            with_config(invocation, |config| config.dry_run, commands::data_check)
        }
        Command::DataConvert => {
            with_config(invocation, |config| config.dry_run, commands::data_convert)
        }
        Command::Doctor => with_config(invocation, |_| false, commands::doctor),
        Command::Eval if commands::eval::is_comparison(invocation) => with_checked_config(
            invocation,
            |config| config.machine.dry_run,
            commands::eval::check_comparison,
            commands::eval::compare,
        ),
        Command::Demo
        | Command::Grpo
        | Command::Sft
        | Command::Plan
        | Command::Eval
        | Command::Generate
        | Command::Logprobs
        | Command::Merge => Err(launch::replace_by_engine()),
    }
}
