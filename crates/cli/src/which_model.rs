//! Which model a name means: a folder, a checkpoint of a run, or a model on the hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use base::console::describe;
use base::model_folder::is_adapter;
use base::run_folder::{checkpoints_in, verify_model};

use crate::best_checkpoint::best_checkpoint;

/// What a name means.
#[derive(Debug, PartialEq, Eq)]
pub enum Chosen {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A model on the hub.
    Hub {
        /// `owner/model`.
        name: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
}

impl Chosen {
    /// Whether it is an adapter in a folder.
    pub fn is_adapter(&self) -> bool {
        matches!(self, Self::Folder(folder) if is_adapter(folder))
    }
}

/// What `name` means: a model folder; the folder of a run, whose newest checkpoint is meant; `RUN@100`, `RUN@best`
/// and `RUN@best:NAME` of one; `owner/model` and `owner/model@revision` on the hub. A folder goes before all others,
/// whatever its name holds.
///
/// # Errors
/// Where it means none of them.
pub fn choose(name: &str, revision: Option<&str>) -> Result<Chosen> {
    let revision = revision.filter(|revision| !revision.is_empty());
    let path = Path::new(name);
    if path.is_dir() {
        return in_folder(path).map(Chosen::Folder);
    }
    if path.exists() {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new(".")).display();
        bail!("model `{name}`: a file, expected a folder\nhint: give its folder, `{folder}`");
    }
    if let Some((left, right)) = name.rsplit_once('@') {
        let run = Path::new(left);
        if run.is_dir() {
            return of_run(run, right).map(Chosen::Folder);
        }
        if hub_name(left).is_some() && !right.is_empty() {
            if revision.is_some_and(|revision| revision != right) {
                bail!("model `{name}`: the revision is given twice, `--model_revision` too");
            }
            return Ok(Chosen::Hub { name: left.to_owned(), revision: Some(right.to_owned()) });
        }
        if right == "best" || right.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("model `{name}`: there is no run folder `{left}`");
        }
    }
    match hub_name(name) {
        Some(_) => Ok(Chosen::Hub { name: name.to_owned(), revision: revision.map(str::to_owned) }),
        None => bail!(
            "model folder `{name}` does not exist\nhint: give a folder, or a name like `Qwen/Qwen2.5-VL-3B-Instruct`"
        ),
    }
}

/// The folder itself where `name` is one that holds a model or a run, or names a checkpoint; else `name` as it is.
///
/// # Errors
/// As [`choose`].
pub fn folder_or_name(name: &str) -> Result<String> {
    match choose(name, None)? {
        // A folder that is the model itself keeps the name that the user gave it.
        Chosen::Folder(folder) if folder != Path::new(name) => Ok(folder.display().to_string()),
        _ => Ok(name.to_owned()),
    }
}

fn in_folder(folder: &Path) -> Result<PathBuf> {
    let is_model = folder.join("config.json").exists() || is_adapter(folder);
    let has_checkpoints = || checkpoints_in(folder).is_ok_and(|found| !found.is_empty());
    if is_model || !has_checkpoints() {
        return Ok(folder.to_owned());
    }
    newest(folder)
}

/// The newest checkpoint of a run whose model is whole, which is said.
fn newest(run: &Path) -> Result<PathBuf> {
    let mut first = None;
    for (_, checkpoint) in checkpoints_in(run)?.into_iter().rev() {
        match verify_checkpoint(&checkpoint) {
            Ok(()) => {
                base::say!(
                    "model `{}`: its newest checkpoint, {}",
                    run.display(),
                    checkpoint.display()
                );
                return Ok(checkpoint);
            }
            Err(error) => {
                let cause = describe(error.as_ref());
                base::say!("warning: {} is passed over: {cause}", checkpoint.display());
                first.get_or_insert(error);
            }
        }
    }
    let error = first.unwrap_or_else(|| anyhow!("no checkpoint"));
    Err(error).with_context(|| format!("run `{}` has no whole checkpoint", run.display()))
}

/// What `which` means of the run in `run`.
fn of_run(run: &Path, which: &str) -> Result<PathBuf> {
    let shown = run.display();
    let checkpoints = checkpoints_in(run)?;
    if checkpoints.is_empty() {
        bail!("run `{shown}` has no checkpoint");
    }
    if let Some(of) = which.strip_prefix("best") {
        match of.strip_prefix(':') {
            Some(metric) => return best_checkpoint(run, &checkpoints, Some(metric)),
            None if of.is_empty() => return best_checkpoint(run, &checkpoints, None),
            None => {}
        }
    }
    let digits = which.strip_prefix("checkpoint-").unwrap_or(which);
    let steps: Vec<String> = checkpoints.iter().map(|(step, _)| step.to_string()).collect();
    let Ok(step) = digits.parse::<u64>() else {
        bail!(
            "model `{shown}@{which}`: expected a step behind `@`, `best` or `best:NAME`\n\
             hint: there are checkpoints of the steps {}",
            steps.join(", ")
        );
    };
    let found = checkpoints.into_iter().find(|(of, _)| *of == step);
    let (_, checkpoint) = found.with_context(|| {
        format!(
            "run `{shown}` has no checkpoint of step {step}\nhint: there are those of the steps {}",
            steps.join(", ")
        )
    })?;
    verify_checkpoint(&checkpoint)?;
    Ok(checkpoint)
}

/// Whether the model of a checkpoint is there and as it was written.
pub fn verify_checkpoint(checkpoint: &Path) -> Result<()> {
    if !checkpoint.join("config.json").is_file() && !is_adapter(checkpoint) {
        bail!("{}: neither `config.json` nor an adapter is in it", checkpoint.display());
    }
    verify_model(checkpoint)?;
    Ok(())
}

/// `owner/model`; a path that does not exist is not one.
pub fn hub_name(name: &str) -> Option<(&str, &str)> {
    let (owner, model) = name.split_once('/')?;
    let is_word = |word: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !word.is_empty() && !word.starts_with('.') && word.chars().all(allowed)
    };
    (is_word(owner) && is_word(model)).then_some((owner, model))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub_are_told_from_paths() {
        assert_eq!(
            hub_name("Qwen/Qwen2.5-VL-3B-Instruct"),
            Some(("Qwen", "Qwen2.5-VL-3B-Instruct"))
        );
        for path in ["model", "./a/b", "../a", "/a/b", "a/b/c", "a/", "/a", "a/.b", "a b/c", ""] {
            assert_eq!(hub_name(path), None, "{path}");
        }
    }

    #[test]
    fn a_revision_is_behind_the_name_or_in_its_flag() {
        let hub = |name: &str, revision: Option<&str>| Chosen::Hub {
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
        };
        assert_eq!(choose("a/b", None).unwrap(), hub("a/b", None));
        assert_eq!(choose("a/b@v1", None).unwrap(), hub("a/b", Some("v1")));
        assert_eq!(choose("a/b", Some("v1")).unwrap(), hub("a/b", Some("v1")));
        assert_eq!(choose("a/b@v1", Some("v1")).unwrap(), hub("a/b", Some("v1")));
        let refused = |name: &str, revision| choose(name, revision).unwrap_err().to_string();
        assert!(refused("a/b@v1", Some("v2")).contains("given twice"));
        assert!(refused("nowhere", None).contains("does not exist"));
        assert!(refused("nowhere@best", None).contains("no run folder `nowhere`"));
        assert!(refused("", None).contains("does not exist"));
    }
}
