//! `grpo` and `sft`: a model by name, a bar, evaluations on the way, a flag that signals raise, and the trainer.

mod evaluations;

use std::path::Path;

use anyhow::{Context, Result, bail};
use base::console;
use base::run_folder::{StopFlag, TRAINER_STATE};
use config::{GrpoConfig, SftConfig, ZeroStageSetting};
use serde_json::{Map, Value};
use tch::Device;
use train::{
    EvalMetrics, EvaluationError, Observer, Outcome, PolicyAt, TrainError, plan, reward_problems,
    train_grpo_on, train_sft_on,
};

use crate::commands::plan::host_memory;
use crate::progress::Progress;
use crate::ranks::{Joined, joined};
use cli::hub;
use cli::signals::{self, Stopped};
use cli::which_model::folder_or_name;
use evaluations::Evaluations;

pub use evaluations::Run;

/// Trains by GRPO.
///
/// # Errors
/// What the trainer refuses; a run that was asked to stop early.
pub fn grpo(config: &GrpoConfig) -> Result<()> {
    let stage_three = |ranks: usize, folder: &Path, available: u64| {
        plan::check_stage_three(config, ranks, folder, available)
    };
    super::warn_of_missing_box_reward(config);
    // A word that is misspelt costs no download.
    if let Some(problem) = reward_problems(config, false).into_iter().next() {
        return Err(problem.into());
    }
    let model = folder_or_name(&config.model.model_name_or_path)?;
    let config = &config.clone().with(|c| c.model.model_name_or_path = model);
    joined(&config.ranks, &config.machine.device, config.machine.num_threads)?.run(|joined| {
        run(&config.into(), joined, &stage_three, |folder, observer, stop| {
            train_grpo_on(&joined.ranks, config, folder, None, observer, stop)
        })
    })
}

/// Trains on the true answers.
///
/// # Errors
/// As [`grpo`].
pub fn sft(config: &SftConfig) -> Result<()> {
    let stage_three = |ranks: usize, folder: &Path, available: u64| {
        plan::check_stage_three_of_sft(config, ranks, folder, available)
    };
    let model = folder_or_name(&config.model.model_name_or_path)?;
    let config = &config.clone().with(|c| c.model.model_name_or_path = model);
    joined(&config.ranks, &config.machine.device, config.machine.num_threads)?.run(|joined| {
        run(&config.into(), joined, &stage_three, |folder, observer, stop| {
            train_sft_on(&joined.ranks, config, folder, observer, stop)
        })
    })
}

/// What happens after a signal.
const NEXT: &str = "the step under way is finished and saved, then the run ends";

type Outcomes = Result<Outcome, TrainError>;

/// What stage 2 takes in place of 3, on so many ranks of so many bytes each.
type StageThree<'a> = &'a dyn Fn(usize, &Path, u64) -> Result<String, TrainError>;

fn run(
    run: &Run,
    joined: &Joined,
    stage_three: StageThree<'_>,
    train: impl FnOnce(&Path, &mut dyn Observer, &StopFlag) -> Outcomes,
) -> Result<()> {
    let sections = &run.sections;
    if let Some(name) = &sections.run.run_name {
        base::say!("run `{name}`");
    }
    let stop = signals::stop_flag_of_work(NEXT)?;
    let folder = joined.first_of_machine_first(|| {
        let (name, revision) = (&sections.model.model_name_or_path, &sections.model.model_revision);
        hub::model_folder(name, revision.as_deref())
    })?;
    let ranks = joined.ranks.world.size();
    if ranks > 1 && sections.shards.zero_stage == ZeroStageSetting::Three {
        base::say!("{}", stage_three(ranks, &folder, memory_of_rank(joined)?)?);
    }
    let mut watcher =
        Watcher { evaluations: Evaluations::open(run, &folder)?, progress: Progress::new() };
    console::be_heard();
    let outcome = train(&folder, &mut watcher, &stop);
    watcher.progress.finish();
    // How it ended rank 0 says for all.
    console::speak_as(joined.ranks.world.rank());
    let outcome = outcome?;
    if !outcome.finished {
        bail!(Stopped(stopped(&outcome)));
    }
    if let Some(checkpoint) = outcome.checkpoint {
        // All is done and saved: a full disk behind stdout does not make it a failure.
        let _ = base::console::write_data(&checkpoint.display().to_string());
    }
    Ok(())
}

/// Bytes that a rank may take: nine tenths of its card, else its part of the host's.
fn memory_of_rank(joined: &Joined) -> Result<u64> {
    match torch::parse_device(&joined.device)? {
        Device::Cuda(index) => {
            let card = torch::card(index).context("the driver does not tell of the card")?;
            Ok(card.memory_bytes / 10 * 9)
        }
        _ => Ok(host_memory()? / joined.local_size as u64),
    }
}

fn stopped(outcome: &Outcome) -> String {
    let Some(checkpoint) = &outcome.checkpoint else {
        return "stopped before the first step".into();
    };
    let way = match checkpoint.join(TRAINER_STATE).is_dir() {
        true => "the same command goes on from there",
        false => "it holds the model alone, and the run cannot go on",
    };
    format!("stopped after step {}, saved in {}\nhint: {way}", outcome.steps, checkpoint.display())
}

/// Shows a run, and evaluates its policy.
struct Watcher {
    progress: Progress,
    evaluations: Evaluations,
}

impl Observer for Watcher {
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>) {
        self.progress.on_step(step, total_steps, metrics);
    }

    fn on_message(&mut self, message: &str) {
        self.progress.on_message(message);
    }

    fn evaluate(&mut self, policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>, EvaluationError> {
        let evaluations = &mut self.evaluations;
        Ok(self.progress.suspend(|| evaluations.run(policy))?)
    }
}
