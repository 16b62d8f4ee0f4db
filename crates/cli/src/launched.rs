//! What a launcher (torchrun, srun, `vlm-r1 launch`, Kubernetes' PyTorchJob) says of ranks, as far as the command line
//! needs it. How ranks meet is the engine's.

use std::env;

use crate::arguments::{Invocation, UsageError};
use crate::command::Command;
use crate::commands::eval::is_comparison;

/// Variables of a launcher and, where it sets none but says where ranks meet, of Slurm's `srun`.
const VARIABLES: [(&str, &str); 2] = [("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS")];

/// Ranks of this run; 1 without a launcher.
///
/// # Errors
/// A `WORLD_SIZE` that is no number from 1.
pub fn num_ranks() -> Result<usize, UsageError> {
    let Some((name, got)) = variable(1) else { return Ok(1) };
    match got.parse() {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(UsageError::Variable { name, got, expected: "the number of ranks, from 1" }),
    }
}

/// Whether this is rank 0, which speaks for all; without a launcher, yes.
pub fn is_first() -> bool {
    variable(0).is_none_or(|(_, rank)| rank == "0")
}

/// A variable that is set to something, and its name.
fn variable(index: usize) -> Option<(&'static str, String)> {
    let value = |name: &str| {
        let text = env::var(name).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let (name, of_slurm) = VARIABLES[index];
    // A job's script has Slurm's variables too, without being a task of it.
    let is_task = value("MASTER_ADDR").is_some() && value("SLURM_STEP_TASKS_PER_NODE").is_some();
    let is_slurms = is_task && value("RANK").is_none() && value("WORLD_SIZE").is_none();
    let own = value(name).map(|text| (name, text));
    own.or_else(|| is_slurms.then(|| value(of_slurm)).flatten().map(|text| (of_slurm, text)))
}

/// Refuses to be one of several processes that each do the whole of what one is to do.
///
/// # Errors
/// Where a launcher has set `WORLD_SIZE` above 1 for a command without ranks.
pub fn check(invocation: &Invocation) -> Result<(), UsageError> {
    let command = invocation.command;
    let hint = match command {
        Command::Grpo | Command::Sft => return Ok(()),
        Command::Eval if !is_comparison(invocation) => return Ok(()),
        // What this machine has, whoever asks; and variables of its own.
        Command::Doctor | Command::Launch => return Ok(()),
        Command::Plan => "a plan for several ranks is made by one process: `vlm-r1 plan --ranks 8`",
        _ => {
            "start it once, without a launcher; in a job whose variables are set for all commands, by `env -u WORLD_SIZE`"
        }
    };
    // Slurm's variables are set for all that a job's script does.
    match env::var("WORLD_SIZE").unwrap_or_default().trim() {
        "" | "1" => Ok(()),
        got => Err(UsageError::OneProcess { command: command.name(), got: got.to_owned(), hint }),
    }
}
