//! Every built-in rule over millions of generated texts, on all cores.
//!
//! `cargo run --release -p rewards --example fuzz -- [--answers N] [--seed S] [--threads T] [--max-ms M]` scores N answers in
//! all, as many texts by every rule as that takes, and prints one JSON object: how many answers each rule scored, the
//! slowest of them, and as `findings` those where a rule panicked, hung, failed for a good row, took longer than M, or gave a
//! score that is not finite or out of its range, each with its text. Exits with 1 where there are any. `--speed true` instead
//! prints the slowest text of 100,000 characters for each rule.

#[path = "../tests/it/fuzz/generate.rs"]
mod generate;
#[path = "../tests/it/fuzz/rules.rs"]
mod rules;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use generate::{Draws, pair};
use rules::{Rule, families, member, rules, truths};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// An input that runs longer than this, in time of a core, never ends.
const HANG: Duration = Duration::from_secs(60);

/// How often it is said how far it is.
const SAID: Duration = Duration::from_secs(60);

/// Reasons are asked for at every so many inputs: they take as long as the score again.
const EXPLAINED: u64 = 4;

/// Findings after which it ends: more say no more.
const MAX_FINDINGS: usize = 50;

/// Where a thread is that has ended.
const ENDED: u64 = u64::MAX;

struct Options {
    answers: u64,
    seed: u64,
    threads: usize,
    bound: Duration,
    speed: bool,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        answers: 3_000_000,
        seed: 1,
        threads: thread::available_parallelism()?.get(),
        bound: Duration::from_millis(50),
        speed: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--answers" => options.answers = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--threads" => options.threads = value.parse::<usize>()?.max(1),
            "--max-ms" => options.bound = Duration::from_millis(value.parse()?),
            "--speed" => options.speed = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(options)
}

/// What a rule has done.
#[derive(Clone, Default)]
struct Done {
    answers: u64,
    /// The longest time, and the input that took it.
    slowest: (Duration, u64),
}

/// What is shared by the threads.
struct Fuzz<'a> {
    options: &'a Options,
    inputs: u64,
    start: Instant,
    done: Mutex<BTreeMap<String, Done>>,
    findings: Mutex<Vec<Value>>,
    /// The input that each thread is at.
    at: Vec<AtomicU64>,
}

impl Fuzz<'_> {
    /// Inputs `first`, `first + threads`, ...
    fn work(&self, first: usize) {
        let rules = rules();
        // Patterns are compiled at their first use.
        for rule in &rules {
            for index in 0..200 {
                let (completion, truth) = pair(&mut Draws::new(self.options.seed, index));
                let _ = rule.run(&completion, &truth, true);
            }
        }
        for index in (first as u64..self.inputs).step_by(self.options.threads) {
            self.at[first].store(index, Ordering::Relaxed);
            let (completion, truth) = pair(&mut Draws::new(self.options.seed, index));
            let explain = index % EXPLAINED == 0;
            let outcomes: Vec<_> = rules
                .iter()
                .map(|rule| timed(rule, (&completion, &truth, explain), self.options.bound))
                .collect();
            if self.note(index, &rules, outcomes) >= MAX_FINDINGS {
                break;
            }
        }
        self.at[first].store(ENDED, Ordering::Relaxed);
    }

    /// The number of findings so far.
    fn note(&self, index: u64, rules: &[Rule], outcomes: Vec<Result<Duration, String>>) -> usize {
        let mut done = lock(&self.done);
        for (rule, outcome) in rules.iter().zip(outcomes) {
            let entry = done.entry(rule.name.clone()).or_default();
            entry.answers += 1;
            match outcome {
                Ok(took) => entry.slowest = entry.slowest.max((took, index)),
                Err(wrong) => self.found(&rule.name, index, &wrong),
            }
        }
        lock(&self.findings).len()
    }

    fn found(&self, rule: &str, index: u64, wrong: &str) {
        let (completion, solution) = pair(&mut Draws::new(self.options.seed, index));
        let finding = json!({
            "rule": rule, "seed": self.options.seed, "input": index, "wrong": wrong,
            "completion": completion, "solution": solution,
        });
        say(&finding.to_string());
        lock(&self.findings).push(finding);
    }

    /// Ends the program where an input hangs; says how far it is.
    fn watch(&self) {
        // A machine that is busy with other programs hangs nothing.
        let bound = HANG * u32::try_from(self.at.len()).unwrap_or(u32::MAX);
        let mut seen: Vec<(u64, Duration)> = vec![(0, cpu_time()); self.at.len()];
        let mut said = Instant::now();
        loop {
            thread::sleep(Duration::from_millis(100));
            let mut running = false;
            for (seen, at) in seen.iter_mut().zip(&self.at) {
                let index = at.load(Ordering::Relaxed);
                running |= index != ENDED;
                if index != seen.0 {
                    *seen = (index, cpu_time());
                } else if index != ENDED && cpu_time().saturating_sub(seen.1) > bound {
                    self.found("unknown", index, &format!("still running after {HANG:?}"));
                    let _ = self.print();
                    std::process::exit(1);
                }
            }
            if !running {
                return;
            }
            if said.elapsed() > SAID {
                said = Instant::now();
                let (answers, findings) = (self.answers(), lock(&self.findings).len());
                let secs = self.start.elapsed().as_secs();
                say(&format!("{answers} answers, {findings} findings, {secs} s"));
            }
        }
    }

    fn answers(&self) -> u64 {
        lock(&self.done).values().map(|done| done.answers).sum()
    }

    fn print(&self) -> Result<(), Box<dyn Error>> {
        let slowest = |(took, index): (Duration, u64)| json!({"ms": took.as_secs_f64() * 1e3, "input": index});
        let answers = self.answers();
        let done = lock(&self.done);
        let rules: BTreeMap<_, _> = done
            .iter()
            .map(|(rule, done)| {
                let what = json!({"answers": done.answers, "slowest": slowest(done.slowest)});
                (rule, what)
            })
            .collect();
        let most = done.iter().max_by_key(|(_, done)| done.slowest.0);
        let most = most.map(|(rule, done)| {
            let (completion, solution) = pair(&mut Draws::new(self.options.seed, done.slowest.1));
            let mut most = slowest(done.slowest);
            most["rule"] = json!(rule);
            most["completion"] = json!(completion);
            most["solution"] = json!(solution);
            most
        });
        let findings = lock(&self.findings);
        let report = json!({
            "answers": answers, "inputs": done.values().map(|done| done.answers).max(),
            "seed": self.options.seed, "threads": self.options.threads, "secs": self.start.elapsed().as_secs_f64(),
            "rules": rules, "slowest": most, "findings": *findings,
        });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{report:#}")?;
        Ok(out.flush()?)
    }
}

/// Time that all threads ran.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or_default(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
}

fn say(line: &str) {
    // Who does not listen misses nothing that is not printed at the end.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of the fastest of four runs where the first is over the bound: other programs run beside.
fn timed(
    rule: &Rule,
    (completion, truth, explain): (&str, &str, bool),
    bound: Duration,
) -> Result<Duration, String> {
    let mut took = rule.run(completion, truth, explain)?;
    for _ in 0..3 {
        if took > bound {
            took = took.min(rule.run(completion, truth, explain)?);
        }
    }
    if took > bound {
        return Err(format!("took {took:?}, more than {bound:?}"));
    }
    Ok(took)
}

fn fuzz(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    // A panic is reported with its input; its trace would hide that.
    std::panic::set_hook(Box::new(|_| {}));
    let fuzz = Fuzz {
        options,
        inputs: options.answers.div_ceil(rules().len() as u64),
        start: Instant::now(),
        done: Mutex::default(),
        findings: Mutex::default(),
        at: (0..options.threads).map(|_| AtomicU64::new(0)).collect(),
    };
    thread::scope(|scope| {
        for first in 0..options.threads {
            let fuzz = &fuzz;
            scope.spawn(move || fuzz.work(first));
        }
        fuzz.watch();
    });
    fuzz.print()?;
    let clean = lock(&fuzz.findings).is_empty();
    Ok(ExitCode::from(u8::from(!clean)))
}

/// The slowest text of 100,000 characters for each rule, best of three.
fn speed() -> Result<ExitCode, Box<dyn Error>> {
    let (rules, truths) = (rules(), truths());
    let mut out = std::io::stdout().lock();
    for rule in &rules {
        let mut worst = (Duration::ZERO, String::new());
        for (piece, around) in families() {
            let text = member(&piece, around, 100_000);
            for truth in &truths {
                let mut took = rule.run(&text, truth, false)?;
                for _ in 0..2 {
                    if took > worst.0 {
                        took = took.min(rule.run(&text, truth, false)?);
                    }
                }
                if took > worst.0 {
                    worst = (took, format!("{piece:?} in {around:?}, truth {truth:.30}"));
                }
            }
        }
        writeln!(out, "{:24} {:8.3} ms  {}", rule.name, worst.0.as_secs_f64() * 1e3, worst.1)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = options()?;
    if options.speed { speed() } else { fuzz(&options) }
}
