//! Every built-in rule over millions of generated texts, on all cores.
//!
//! `cargo run --release -p rewards --example fuzz -- [--inputs N] [--seed S] [--threads T]
//! [--max-ms M]`; `--speed true` instead prints the slowest text of 100,000 characters for each
//! rule. Exits with 1 where a rule panics, says what is out of its range, or takes longer than the
//! bound; the text is then in `fuzz_failure.json`.

#[path = "../tests/it/fuzz/generate.rs"]
mod generate;
#[path = "../tests/it/fuzz/rules.rs"]
mod rules;

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use generate::{Draws, pair};
use rules::{Rule, families, member, rules, truths};

const FAILURE: &str = "fuzz_failure.json";

/// An input that runs longer than this never ends.
const HANG: Duration = Duration::from_secs(60);

/// Reasons are asked for at every so many inputs: they take as long as the score again.
const EXPLAINED: u64 = 4;

struct Options {
    inputs: u64,
    seed: u64,
    threads: usize,
    bound: Duration,
    speed: bool,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        inputs: 100_000,
        seed: 1,
        threads: thread::available_parallelism()?.get(),
        bound: Duration::from_millis(50),
        speed: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--inputs" => options.inputs = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--threads" => options.threads = value.parse()?,
            "--max-ms" => options.bound = Duration::from_millis(value.parse()?),
            "--speed" => options.speed = value.parse()?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(options)
}

/// The longest time of each rule, and the input that took it.
type Slowest = HashMap<String, (Duration, u64)>;

struct Failure {
    rule: String,
    index: u64,
    wrong: String,
}

/// Inputs `first`, `first + step`, ... until one fails.
fn worker(options: &Options, first: u64, at: &AtomicU64) -> Result<Slowest, Failure> {
    let rules = rules();
    // Patterns are compiled at their first use.
    for rule in &rules {
        for index in 0..200 {
            let (completion, truth) = pair(&mut Draws::new(options.seed, index));
            let _ = rule.run(&completion, &truth, true);
        }
    }
    let mut slowest = Slowest::new();
    let step = options.threads.max(1);
    for index in (first..options.inputs).step_by(step) {
        at.store(index, Ordering::Relaxed);
        let (completion, truth) = pair(&mut Draws::new(options.seed, index));
        for rule in &rules {
            let explain = index % EXPLAINED == 0;
            let took = timed(rule, (&completion, &truth, explain), options.bound);
            let took = took.map_err(|wrong| Failure {
                rule: rule.name.clone(),
                index,
                wrong,
            })?;
            let entry = slowest.entry(rule.name.clone()).or_default();
            *entry = (*entry).max((took, index));
        }
    }
    at.store(u64::MAX, Ordering::Relaxed);
    Ok(slowest)
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

/// Ends the program where an input hangs.
fn watch(options: &Options, at: &[AtomicU64]) {
    let mut seen: Vec<(u64, Instant)> = vec![(0, Instant::now()); at.len()];
    loop {
        thread::sleep(Duration::from_millis(200));
        let mut running = false;
        for (seen, at) in seen.iter_mut().zip(at) {
            let index = at.load(Ordering::Relaxed);
            running |= index != u64::MAX;
            if index != seen.0 {
                *seen = (index, Instant::now());
            } else if index != u64::MAX && seen.1.elapsed() > HANG {
                let failure = Failure {
                    rule: "unknown".to_owned(),
                    index,
                    wrong: format!("still running after {HANG:?}"),
                };
                let _ = report(options, &failure);
                std::process::exit(1);
            }
        }
        if !running {
            return;
        }
    }
}

fn report(options: &Options, failure: &Failure) -> Result<(), Box<dyn Error>> {
    let (completion, solution) = pair(&mut Draws::new(options.seed, failure.index));
    let json = serde_json::json!({
        "rule": failure.rule, "seed": options.seed, "index": failure.index, "wrong": failure.wrong,
        "completion": completion, "solution": solution,
    });
    std::fs::write(FAILURE, json.to_string())?;
    let mut out = std::io::stderr().lock();
    writeln!(
        out,
        "{}: input {}: {}; see {FAILURE}",
        failure.rule, failure.index, failure.wrong
    )?;
    Ok(())
}

fn fuzz(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    // A panic is reported with its input; its trace would hide that.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let at: Vec<AtomicU64> = (0..options.threads).map(|_| AtomicU64::new(0)).collect();
    let results: Vec<Result<Slowest, Failure>> = thread::scope(|scope| {
        let workers: Vec<_> = (0u64..)
            .zip(&at)
            .map(|(first, at)| scope.spawn(move || worker(options, first, at)))
            .collect();
        let done = &at;
        scope.spawn(move || watch(options, done));
        let joined = workers.into_iter().enumerate().map(|(i, worker)| {
            let result = worker.join();
            at[i].store(u64::MAX, Ordering::Relaxed);
            result.unwrap_or_else(|_| std::process::exit(1))
        });
        joined.collect()
    });
    let mut slowest = Slowest::new();
    for result in results {
        match result {
            Err(failure) => {
                report(options, &failure)?;
                return Ok(ExitCode::FAILURE);
            }
            Ok(found) => {
                for (rule, took) in found {
                    let entry = slowest.entry(rule).or_default();
                    *entry = (*entry).max(took);
                }
            }
        }
    }
    let secs = start.elapsed().as_secs_f64();
    let mut text = format!(
        "{} inputs, seed {}: {secs:.1} s, {:.0} inputs/s\n",
        options.inputs,
        options.seed,
        options.inputs as f64 / secs
    );
    let mut slowest: Vec<_> = slowest.into_iter().collect();
    slowest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    for (rule, (took, index)) in slowest {
        writeln!(
            text,
            "{rule:24} slowest {:8.3} ms, input {index}",
            took.as_secs_f64() * 1e3
        )?;
    }
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
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
        writeln!(
            out,
            "{:24} {:8.3} ms  {}",
            rule.name,
            worst.0.as_secs_f64() * 1e3,
            worst.1
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = options()?;
    if options.speed {
        speed()
    } else {
        fuzz(&options)
    }
}
