//! `cargo xtask torture`: kills, faults and fuzz over the built binary. Every trial must end as if nothing had
//! happened, or in one error that says what is wrong; what survived is counted.
//!
//! A trial draws from the seed, its part and its number alone, so that `--part faults --trial 17` does it again, as far
//! as times repeat.

mod bench;
mod faults;
mod fuzz;
mod kills;
mod random;
mod surroundings;
mod tally;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use bench::Bench;
use random::Random;
use tally::{Tally, Tried};

/// Parts, with their shares of the time in percent.
const PARTS: [(&str, u32); 6] = [
    ("kills", 35),
    ("faults", 30),
    ("oddities", 10),
    ("surroundings", 10),
    ("data", 7),
    ("rewards", 8),
];

/// What is asked for.
#[derive(Debug, PartialEq)]
pub struct Options {
    minutes: f64,
    seed: u64,
    jobs: usize,
    part: Option<String>,
    trial: Option<u64>,
}

impl Options {
    /// From the arguments behind the command.
    pub fn parse(args: &[String]) -> Option<Self> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self { minutes: 0.0, seed: 1, jobs, part: None, trial: None };
        for pair in args.chunks(2) {
            let [flag, value] = pair else { return None };
            match flag.as_str() {
                "--minutes" => options.minutes = value.parse().ok()?,
                "--seed" => options.seed = value.parse().ok()?,
                "--jobs" => options.jobs = value.parse().ok()?,
                "--part" if PARTS.iter().any(|(part, _)| part == value) => {
                    options.part = Some(value.clone());
                }
                "--trial" => options.trial = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        let asks = options.minutes > 0.0 || options.trial.is_some();
        let is_one = options.trial.is_none() || options.part.is_some();
        (asks && is_one && options.jobs > 0 && options.minutes.is_finite()).then_some(options)
    }

    /// The time of a part; none where it is not asked for.
    fn time_of(&self, part: &str) -> Option<Duration> {
        let share = match &self.part {
            Some(only) if only != part => return None,
            Some(_) => 100,
            None => PARTS.iter().find(|(name, _)| *name == part)?.1,
        };
        Some(Duration::from_secs_f64(self.minutes * 60.0 * f64::from(share) / 100.0))
    }
}

/// Runs all parts; fails where something did not survive.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let binary = target.join("release/vlm-r1");
    for program in [&binary, &binary.with_file_name("vlm-r1-engine")] {
        if !program.exists() {
            bail!("{} is missing\nhint: make build", program.display());
        }
    }
    let folder = target.join("torture").join(format!("seed-{}", options.seed));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let folder = fs::canonicalize(folder)?;
    let torture = Torture {
        bench: Bench::prepare(root, &binary, &folder)?,
        options,
        folder,
        tally: Mutex::new(Tally::default()),
    };
    torture.all(root, &target)?;
    let tally = torture.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(root, options, &tally, &target.join("torture/report.json"))
}

fn report(root: &Path, options: &Options, tally: &Tally, path: &Path) -> Result<()> {
    let facts = json!({
        "commit": said(root, "git", &["rev-parse", "--short", "HEAD"]),
        "date": said(root, "date", &["-u", "+%F"]),
        "minutes": options.minutes,
        "seed": options.seed,
    });
    fs::write(path, format!("{:#}\n", tally.json(facts)))?;
    print!("{}", tally.table());
    eprintln!("torture: the same as JSON: {}", path.display());
    match tally.failures().as_slice() {
        [] => Ok(()),
        failures => bail!("{} did not survive\n{}", failures.len(), failures.join("\n")),
    }
}

struct Torture<'a> {
    bench: Bench,
    options: &'a Options,
    folder: PathBuf,
    tally: Mutex<Tally>,
}

impl Torture<'_> {
    fn all(&self, root: &Path, target: &Path) -> Result<()> {
        let bench = &self.bench;
        self.part("kills", |_, random, folder| kills::trial(bench, random, folder))?;
        self.part("faults", |_, random, folder| faults::trial(bench, random, folder))?;
        self.part("oddities", |_, random, folder| faults::odd_trial(bench, random, folder))?;
        if self.options.time_of("surroundings").is_some() {
            let disks = self.own_disks();
            self.part("surroundings", |number, random, folder| {
                surroundings::trial(bench, disks, number, random, folder)
            })?;
        }
        self.part("data", |_, random, folder| fuzz::data_trial(bench, random, folder))?;
        if let Some(time) = self.options.time_of("rewards") {
            eprintln!("torture: rewards");
            let (seed, mut tally) = (self.options.seed, self.tally());
            let done = fuzz::rewards(root, target, seed, time, &self.folder, &mut tally);
            if let Err(error) = done {
                let tried = vec![Tried::new("the fuzzer", Err(format!("{error:#}")))];
                tally.add("rewards", &self.folder, tried);
            }
        }
        Ok(())
    }

    /// Where CI cannot have a disk of its own, its image has lost what this part needs.
    fn own_disks(&self) -> Option<&'static [&'static str]> {
        const WHAT: &str = "disks that fill up or are read-only";
        let disks = surroundings::own_disks();
        if disks.is_none() && std::env::var_os("CI").is_some() {
            let why = Err("`unshare` and `mount` are not allowed here".to_owned());
            let tried = vec![Tried::new(WHAT, why)];
            self.tally().add("surroundings", &self.folder, tried);
        } else if disks.is_none() {
            self.tally().skip(&format!("{WHAT}: need root, or name spaces of a user"));
        }
        disks
    }

    /// Trials on all jobs until the part's time is over, at least one a job.
    fn part(
        &self,
        part: &str,
        trial: impl Fn(u64, &mut Random, &Path) -> Result<Vec<Tried>> + Sync,
    ) -> Result<()> {
        let Some(time) = self.options.time_of(part) else {
            return Ok(());
        };
        eprintln!("torture: {part}, {:.0} s", time.as_secs_f64());
        if let Some(number) = self.options.trial {
            return self.one(part, number, &trial);
        }
        let (end, next) = (Instant::now() + time, AtomicU64::new(0));
        std::thread::scope(|scope| {
            let job = || -> Result<()> {
                loop {
                    self.one(part, next.fetch_add(1, Ordering::Relaxed), &trial)?;
                    if Instant::now() >= end {
                        return Ok(());
                    }
                }
            };
            let jobs: Vec<_> = (0..self.options.jobs).map(|_| scope.spawn(job)).collect();
            for job in jobs {
                job.join().map_err(|_| anyhow::anyhow!("a job panicked"))??;
            }
            Ok(())
        })
    }

    fn one(
        &self,
        part: &str,
        number: u64,
        trial: &(impl Fn(u64, &mut Random, &Path) -> Result<Vec<Tried>> + Sync),
    ) -> Result<()> {
        let mut random = Random::of_trial(self.options.seed, part, number);
        let folder = self.folder.join(format!("{part}-{number}"));
        fs::create_dir_all(&folder)?;
        // What breaks the harness is no survival, and must not cost the counts of the others.
        let tried = trial(number, &mut random, &folder)
            .unwrap_or_else(|error| vec![Tried::new("the harness", Err(format!("{error:#}")))]);
        tally::clear(&folder, &tried);
        self.tally().add(part, &folder, tried);
        Ok(())
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(root: &Path, program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(root).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Options> {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        Options::parse(&args)
    }

    #[test]
    fn time_or_a_trial_must_be_asked_for() {
        for wrong in
            ["", "--minutes", "--minutes 0", "--minutes x", "--trial 3", "--part x --minutes 1"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        let options = parse("--minutes 10 --seed 7").unwrap();
        assert_eq!(options.time_of("kills"), Some(Duration::from_secs(210)));
        let one = parse("--part faults --trial 17").unwrap();
        assert_eq!((one.trial, one.time_of("kills")), (Some(17), None));
        assert_eq!(PARTS.iter().map(|(_, share)| share).sum::<u32>(), 100);
    }
}
