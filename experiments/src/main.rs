//! The paper's studies in small, on drawn scenes with tiny models trained here. Each run is a call
//! of `vlm-r1` with settings that are kept; a study ends in a page with curves and tables, beside
//! what the paper found. A command that was stopped goes on where it stood.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a study is resumed where nobody read it"
)]

mod claims;
mod detection;
mod drawing;
mod grounding;
mod page;
mod plan;
mod rollouts;
mod runs;
mod studies;
mod tokenizer_corpus;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command, value_parser};

use plan::Plan;
use runs::Runs;
use studies::STUDIES;
use workspace::Workspace;

/// What was asked for.
struct Arguments {
    studies: Vec<String>,
    out: PathBuf,
    seeds: Vec<u64>,
    jobs: Option<usize>,
    quick: bool,
    binary: Option<PathBuf>,
}

fn command() -> Command {
    let path = value_parser!(PathBuf);
    Command::new("experiments")
        .about("Redoes the studies of the VLM-R1 paper in small.")
        .arg(
            Arg::new("studies")
                .num_args(0..)
                .value_parser(STUDIES.map(|study| study.name))
                .help("Studies to do; without any, all of them"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .default_value("out/experiments")
                .value_parser(path.clone())
                .help("Folder of runs and pages"),
        )
        .arg(
            Arg::new("seeds")
                .long("seeds")
                .value_delimiter(',')
                .default_value("1,2,3")
                .value_parser(value_parser!(u64))
                .help("Seeds, each of them a dataset, a base model and runs of its own"),
        )
        .arg(
            Arg::new("jobs")
                .long("jobs")
                .value_parser(value_parser!(u64).range(1..))
                .help("Runs at the same time, of one thread each; without it, one for each core"),
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("A minute or two of the same way: to try the program, not to find anything"),
        )
        .arg(
            Arg::new("binary")
                .long("binary")
                .value_parser(path)
                .help("The program; without it, the one beside this"),
        )
}

impl Arguments {
    fn parse() -> Self {
        let given = command().get_matches();
        let many = |name| given.get_many::<String>(name).into_iter().flatten().cloned();
        Self {
            studies: many("studies").collect(),
            out: given.get_one("out").cloned().unwrap_or_default(),
            seeds: given.get_many("seeds").into_iter().flatten().copied().collect(),
            jobs: given.get_one::<u64>("jobs").map(|&jobs| jobs as usize),
            quick: given.get_flag("quick"),
            binary: given.get_one("binary").cloned(),
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let chosen: Vec<&studies::Kind> = STUDIES
        .iter()
        .filter(|study| {
            arguments.studies.is_empty() || arguments.studies.iter().any(|name| name == study.name)
        })
        .collect();
    let plan = if arguments.quick { Plan::QUICK } else { Plan::FULL };
    // Runs get absolute paths, whatever folder they are started in.
    std::fs::create_dir_all(&arguments.out).with_context(|| arguments.out.display().to_string())?;
    let out = arguments.out.canonicalize().with_context(|| arguments.out.display().to_string())?;
    let workspace = Workspace::open(out, plan, binary(arguments)?)?;
    let jobs = match arguments.jobs {
        Some(jobs) => jobs,
        None => std::thread::available_parallelism()?.get(),
    };
    let workspace = &workspace;
    let of_seed = |&seed: &u64| chosen.iter().map(move |study| (*study, Runs { workspace, seed }));
    let pairs: Vec<_> = arguments.seeds.iter().flat_map(of_seed).collect();
    do_all(&pairs, jobs)?;
    for study in chosen {
        let runs: Vec<Runs<'_>> =
            arguments.seeds.iter().map(|&seed| Runs { workspace, seed }).collect();
        let page = (study.page)(&runs)?.write(&workspace.out)?;
        #[expect(clippy::print_stdout, reason = "the pages are what this program makes")]
        {
            println!("{}", page.display());
        }
    }
    Ok(())
}

/// Does all runs of all seeds, `jobs` at the same time; the first failure ends it.
fn do_all(pairs: &[(&studies::Kind, Runs<'_>)], jobs: usize) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(pairs.len()) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some((study, runs)) = pairs.get(next.fetch_add(1, Ordering::Relaxed))
                    else {
                        return;
                    };
                    eprintln!("{}, seed {}", study.name, runs.seed);
                    if let Err(cause) = (study.work)(runs) {
                        failed.store(true, Ordering::Relaxed);
                        let cause = cause.context(format!("{}, seed {}", study.name, runs.seed));
                        if let Ok(mut error) = error.lock() {
                            error.get_or_insert(cause);
                        }
                    }
                }
            });
        }
    });
    error.into_inner().ok().flatten().map_or(Ok(()), Err)
}

fn binary(arguments: &Arguments) -> Result<PathBuf> {
    let path = match &arguments.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("vlm-r1"),
    };
    if !path.is_file() {
        bail!(
            "{}: no such program\nhint: `make build` makes it, --binary names another",
            path.display()
        );
    }
    Ok(path)
}
