//! `grpo` and `sft`: a model by name, a bar, a flag that signals raise, and the trainer.

use std::path::Path;

use anyhow::{Result, bail};
use base::config::{GrpoConfig, SftConfig};
use base::run_folder::StopFlag;
use train::{Observer, Outcome, TrainError, train_grpo, train_sft};

use crate::progress::Progress;
use crate::{hub, signals};

/// Trains by GRPO.
///
/// # Errors
/// What the trainer refuses; a run that was asked to stop early.
pub fn grpo(config: &GrpoConfig) -> Result<()> {
    run(
        config.run_name.as_deref(),
        &config.model_name_or_path,
        |folder, observer, stop| train_grpo(config, folder, observer, stop),
    )
}

/// Trains on the true answers.
///
/// # Errors
/// As [`grpo`].
pub fn sft(config: &SftConfig) -> Result<()> {
    run(
        config.run_name.as_deref(),
        &config.model_name_or_path,
        |folder, observer, stop| train_sft(config, folder, observer, stop),
    )
}

type Outcomes = Result<Outcome, TrainError>;

fn run(
    name: Option<&str>,
    model: &str,
    train: impl FnOnce(&Path, &mut dyn Observer, &StopFlag) -> Outcomes,
) -> Result<()> {
    if let Some(name) = name {
        eprintln!("run `{name}`");
    }
    let stop = signals::stop_flag()?;
    let folder = hub::model_folder(model)?;
    let mut progress = Progress::new();
    let outcome = train(&folder, &mut progress, &stop);
    progress.finish();
    let outcome = outcome?;
    let checkpoint = outcome.checkpoint.map(|path| path.display().to_string());
    if !outcome.finished {
        bail!(
            "stopped after step {}\nhint: the same command goes on from there",
            outcome.steps
        );
    }
    if let Some(checkpoint) = checkpoint {
        println!("{checkpoint}");
    }
    Ok(())
}
