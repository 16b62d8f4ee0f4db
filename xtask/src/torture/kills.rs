//! Signals at any time; the same command then goes on.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};

use super::bench::{Bench, RUNS, Tiny, names, tail, wait};
use super::random::Random;
use super::tally::Tried;

/// What an orderly end may take: a step and a checkpoint.
const GRACE: Duration = Duration::from_secs(30);
const SIGNALS: [(&str, Signal); 5] = [
    ("SIGKILL", Signal::KILL),
    ("SIGTERM", Signal::TERM),
    ("SIGINT", Signal::INT),
    ("SIGUSR1", Signal::USR1),
    ("SIGHUP", Signal::HUP),
];

/// A run that is struck up to six times, each time goes on, and must end as if nothing had been.
pub fn trial(bench: &Bench, random: &mut Random, folder: &Path) -> Result<Vec<Tried>> {
    let number = random.below(RUNS.len());
    let run = &RUNS[number];
    let secs = bench.undisturbed(number).secs;
    let mut struck = Vec::new();
    for _ in 0..1 + random.below(6) {
        match strike(bench, run, secs, random, folder)? {
            Strike::Done(what) => struck.push(what),
            Strike::Over => break,
            Strike::Failed(what, why) => return Ok(vec![Tried::new(what, Err(why))]),
        }
    }
    let ended = bench.go_on(run, folder)?;
    let all_said = fs::read_to_string(folder.join("said.txt"))?;
    let how = if all_said.contains("panicked at") {
        Err("panics".to_owned())
    } else if ended.is_done() {
        bench.differs(number, &folder.join("out"))
    } else {
        Err(format!("the last call fails: {}", tail(&ended.said)))
    };
    let how = how.map(|()| "went on to equal weights and metrics".to_owned());
    Ok(struck.into_iter().map(|what| Tried::new(what, how.clone())).collect())
}

enum Strike {
    /// The process ended by it.
    Done(String),
    /// It had ended before.
    Over,
    Failed(String, String),
}

fn strike(
    bench: &Bench,
    run: &Tiny,
    secs: f64,
    random: &mut Random,
    folder: &Path,
) -> Result<Strike> {
    let (name, signal) = *random.pick(&SIGNALS);
    let (at_saving, twice) = (random.below(3) == 0, random.below(4) == 0);
    let delay = Duration::from_secs_f64(secs * 1.1 * random.share());
    let in_saving = Duration::from_micros(random.below(12_000) as u64);
    let mut child = bench.start(run, folder)?;
    let begun = if at_saving {
        saves(&mut child, &folder.join("out"))?.map(|()| std::thread::sleep(in_saving))
    } else {
        sleep(&mut child, delay)?
    };
    if begun.is_none() {
        return Ok(Strike::Over);
    }
    let times = if twice && signal != Signal::KILL { 2 } else { 1 };
    for _ in 0..times {
        let pid = Pid::from_child(&child);
        if child.try_wait()?.is_none() && kill_process(pid, signal).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_micros(random.below(40_000) as u64));
    }
    let when = if at_saving { "while it saves" } else { "at any time" };
    let again = if times == 2 { " twice" } else { "" };
    let what = format!("{name}{again} {when}");
    let Some(status) = wait(&mut child, GRACE)? else {
        return Ok(Strike::Failed(what, "does not end".into()));
    };
    // By a signal, in an orderly way with 128 and its number, or, where it came late, done.
    let orderly = 128 + signal.as_raw();
    if status.code().is_none_or(|code| code == 0 || code == orderly) {
        Ok(Strike::Done(what))
    } else {
        Ok(Strike::Failed(what, format!("ends with {status}")))
    }
}

/// Waits for an unfinished checkpoint; none where the process ends before.
fn saves(child: &mut Child, out: &Path) -> Result<Option<()>> {
    while child.try_wait()?.is_none() {
        let is_saving = |name: &String| name.starts_with(".tmp-checkpoint-");
        if names(out).iter().any(is_saving) {
            return Ok(Some(()));
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    Ok(None)
}

/// Waits that long; none where the process ends before.
fn sleep(child: &mut Child, time: Duration) -> Result<Option<()>> {
    let start = Instant::now();
    while start.elapsed() < time {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Some(()))
}
