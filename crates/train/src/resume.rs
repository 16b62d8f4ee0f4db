//! Which checkpoints a run may resume from, and whether its settings match theirs.

use std::path::{Path, PathBuf};

use base::console::describe;
use base::run_folder::{RunFolder, TRAINER_STATE, step_of_checkpoint};
use config::{Config, Resume, parse_mapping};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::checkpoint::{changes, saved_config, saved_shape};
use crate::settings::Settings;

/// Settings that say how a step is dealt over ranks. With other ranks they must differ for a step to stay what it was.
const DEALT: [&str; 3] =
    ["per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"];

/// What a step of a run is, and on how many ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunShape {
    pub ranks: u64,
    /// Completions, or rows of SFT, of an update on all ranks.
    pub per_update: u64,
    /// The same of a rollout.
    pub per_rollout: u64,
}

impl RunShape {
    /// Whether a step is the same, whoever makes it.
    pub fn has_steps_of(self, other: Self) -> bool {
        Self { ranks: other.ranks, ..self } == other
    }
}

/// Checkpoints of the run that `config` is about, oldest first; the one alone that `--resume_from_checkpoint` names.
pub(crate) fn checkpoints<C: Config>(
    config: &C,
    settings: &Settings,
    run: &RunFolder,
    shape: RunShape,
) -> Result<Vec<(u64, PathBuf)>, TrainError> {
    let checkpoints = match &settings.sections.start.resume_from_checkpoint {
        Resume::From(folder) => vec![named(folder, run)?],
        Resume::Newest(_) => run.resumable_checkpoints()?,
    };
    let Some((_, newest)) = run.latest_checkpoint()?.or_else(|| checkpoints.last().cloned()) else {
        return Ok(checkpoints);
    };
    if settings.sections.start.resume_from_checkpoint == Resume::Newest(false) {
        let cause = format!("is false, but {} holds a checkpoint", run.path().display());
        return Err(setting(cause));
    }
    let Some((_, newest)) = checkpoints.last() else {
        return Err(TrainError::ModelAlone { folder: newest });
    };
    compare(config, settings, run, (newest, shape))?;
    Ok(checkpoints)
}

/// The checkpoint in `folder`: one of the run, or one of another where the run has none.
fn named(folder: &Path, run: &RunFolder) -> Result<(u64, PathBuf), TrainError> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let step = name.and_then(step_of_checkpoint);
    let Some(step) = step.filter(|_| folder.join(TRAINER_STATE).is_dir()) else {
        let cause = format!(
            "`{}` is no `checkpoint-N` with a `{TRAINER_STATE}` to go on from\nhint: `true` goes on from the newest \
             checkpoint of the run; a model alone is a start: --model_name_or_path",
            folder.display()
        );
        return Err(setting(cause));
    };
    match run.latest_checkpoint()? {
        Some((_, own)) if !is_own(folder, run) => Err(setting(format!(
            "`{}` is of another run, and {} is there already\nhint: leave the flag out to go on from that, or give \
             another --output_dir",
            folder.display(),
            own.display()
        ))),
        _ => Ok((step, folder.to_path_buf())),
    }
}

/// Whether a checkpoint is in the folder of the run, links resolved.
pub(crate) fn is_own(checkpoint: &Path, run: &RunFolder) -> bool {
    let parent = checkpoint.parent().map(Path::to_path_buf);
    let parent = parent.filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or_else(|| PathBuf::from("."));
    matches!(
        (parent.canonicalize(), run.path().canonicalize()),
        (Ok(parent), Ok(own)) if parent == own
    )
}

fn setting(cause: String) -> TrainError {
    TrainError::Setting { name: "resume_from_checkpoint", cause }
}

/// Whether the settings are those of the checkpoint, or may differ.
fn compare<C: Config>(
    config: &C,
    settings: &Settings,
    run: &RunFolder,
    (newest, shape): (&Path, RunShape),
) -> Result<(), TrainError> {
    let may_differ: &[&str] = match saved_shape(newest) {
        Some(saved) if saved.ranks != shape.ranks && saved.has_steps_of(shape) => &DEALT,
        _ => &[],
    };
    let path = run.config_path();
    // That of the checkpoint is covered by its sums; older programs wrote none. One that is broken is told when the
    // checkpoint is looked at.
    let saved = saved_config(newest).filter(|yaml| parse_mapping(&path, yaml).is_ok());
    let yaml = saved.map_or_else(|| run.config(), |yaml| Ok(Some(yaml)));
    let compared = match yaml {
        Ok(Some(yaml)) => changes(config, (&path, &yaml), run.path(), may_differ),
        Ok(None) => Err(TrainError::NoConfig { path }),
        Err(error) => Err(error.into()),
    };
    match compared {
        Ok(changes) if changes.is_empty() => {}
        Ok(changes) if settings.sections.start.allow_changed => {
            let changes = changes.join("\n");
            base::say!("going on with other settings, as --allow_changed true:\n{changes}");
        }
        Ok(changes) => {
            return Err(TrainError::Changed { folder: newest.to_path_buf(), changes });
        }
        Err(error @ TrainError::OtherCommand { .. }) => return Err(error),
        Err(error) if settings.sections.start.allow_changed => {
            let cause = describe(&error);
            let cause = cause.split("\nhint: ").next().unwrap_or_default();
            base::say!("warning: what the settings were is not known: {cause}");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
