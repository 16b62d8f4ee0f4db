//! From the front to the engine: the program that computes takes the place of the one that was called, with the same
//! process id, so that signals, locks and exit codes are those of one program.
//!
//! libgomp reads how long its idle threads spin before `main`, so the front says it on the way. Where anything else
//! wants the cores, threads would else wait for spinning ones, and a step takes many times as long.

use std::env;
use std::io::{Error, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{PathBuf, absolute};
use std::process::{Child, Command};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process;

/// The commit that the programs were built of, where it is known.
pub const COMMIT: Option<&str> = option_env!("VLM_R1_COMMIT");

/// Name of the engine, which lies beside the front.
pub const ENGINE: &str = "vlm-r1-engine";
/// The variable that names another engine.
const ENGINE_VARIABLE: &str = "VLM_R1_ENGINE";
/// The variable in which the front says of which build it is.
const FRONT_VARIABLE: &str = "VLM_R1_FRONT_BUILD";
/// The variable in which `vlm-r1 launch` says its process id to the ranks that it starts.
pub const LAUNCHER_VARIABLE: &str = "VLM_R1_LAUNCHER";
/// Variables by which a user says how idle threads wait.
const WAITING: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
/// Rounds of spinning before a thread sleeps (libgomp's own choice is 300,000).
const SPIN_COUNT: &str = "1000";

/// How to have an engine.
pub const HINT: &str = "hint: `vlm-r1-engine`, which computes, lies beside `vlm-r1`, or where VLM_R1_ENGINE says; `make build` makes both";

/// Replaces this program by the engine, with the same arguments; what it gives back is why that failed.
pub fn replace_by_engine() -> anyhow::Error {
    let (program, mut command) = match engine() {
        Ok(engine) => engine,
        Err(error) => return error,
    };
    let mut arguments = env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    let error = command.exec();
    anyhow!("cannot start `{}`: {}\n{HINT}", program.display(), why(&error))
}

fn why(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        _ => error.to_string(),
    }
}

/// The program, and how it is called but for its arguments.
///
/// # Errors
/// Where it is not known which.
pub fn engine() -> Result<(PathBuf, Command)> {
    let own = env::current_exe();
    let program = match env::var_os(ENGINE_VARIABLE).filter(|given| !given.is_empty()) {
        // Without a folder a name would be looked for in `PATH`.
        Some(given) => {
            absolute(&given).with_context(|| format!("{ENGINE_VARIABLE} `{}`", given.display()))?
        }
        None => {
            let own = own.as_ref().map_err(|error| {
                anyhow!("where this program lies is not known: {error}\n{HINT}")
            })?;
            own.with_file_name(ENGINE)
        }
    };
    if own.is_ok_and(|own| program.canonicalize().is_ok_and(|program| program == own)) {
        bail!("`{}` is the program that starts the engine\n{HINT}", program.display());
    }
    let mut command = Command::new(&program);
    command.env(FRONT_VARIABLE, build());
    // Of this process alone, not of those that it starts.
    command.env_remove(LAUNCHER_VARIABLE);
    if WAITING.iter().all(|name| env::var_os(name).is_none()) {
        command.env("GOMP_SPINCOUNT", SPIN_COUNT);
    }
    Ok((program, command))
}

/// Lets this process be killed with the launcher that started it, however that ends: no rank is left behind on a GPU.
/// The engine that takes its place keeps that.
pub fn end_with_launcher() {
    let launcher = env::var(LAUNCHER_VARIABLE).ok().and_then(|id| id.parse().ok());
    let Some(launcher) = launcher else { return };
    let asked = process::set_parent_process_death_signal(Some(process::Signal::KILL));
    let parent = process::getppid().map(|parent| parent.as_raw_nonzero().get());
    if asked.is_err() || parent != Some(launcher) {
        base::say!("error: the launcher, process {launcher}, is gone");
        std::process::exit(1);
    }
}

/// The front beside the engine that runs here, started anew.
///
/// # Errors
/// Where it is not known which.
pub fn front() -> Result<Command> {
    let own = env::current_exe().context("where this program lies is not known")?;
    Ok(Command::new(own.with_file_name("vlm-r1")))
}

/// Asks a process that was started here to end.
pub fn terminate(child: &Child) {
    if let Some(id) = i32::try_from(child.id()).ok().and_then(process::Pid::from_raw) {
        // An error means that it has just ended.
        let _ = process::kill_process(id, process::Signal::TERM);
    }
}

/// Version and commit.
pub fn build() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("no commit"))
}

/// Refuses to be the engine of a front that was built of something else: they would read the same flags differently.
///
/// # Errors
/// Where the front says so.
pub fn check_front() -> Result<()> {
    let Some(front) = env::var_os(FRONT_VARIABLE) else {
        return Ok(());
    };
    let (front, own) = (front.to_string_lossy(), build());
    if front != own {
        let engine = env::current_exe().unwrap_or_else(|_| ENGINE.into());
        bail!(
            "`vlm-r1` is of build {front}, its engine `{}` of {own}\n\
             hint: `make build` makes both; VLM_R1_ENGINE names another engine",
            engine.display()
        );
    }
    Ok(())
}
