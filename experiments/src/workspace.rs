//! Where runs happen: each is one call of `vlm-r1`, with its settings and messages kept in files.
//! What is done is not done again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::plan::Plan;

/// Lines of a failed run's messages that its error shows.
const SHOWN_LINES: usize = 12;

/// A folder of runs.
pub struct Workspace {
    /// The folder.
    pub out: PathBuf,
    /// Sizes of everything.
    pub plan: Plan,
    binary: PathBuf,
    stages: Mutex<HashMap<PathBuf, Stage>>,
}

/// Whether a stage is done; held while it is being done.
type Stage = Arc<Mutex<bool>>;

impl Workspace {
    /// Opens `out`, which belongs to one plan.
    ///
    /// # Errors
    /// A folder of another plan, or one that cannot be written.
    pub fn open(out: PathBuf, plan: Plan, binary: PathBuf) -> Result<Self> {
        for folder in ["settings", "logs"] {
            let folder = out.join(folder);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let path = out.join("plan.json");
        let wanted = format!("{:#}\n", json!(plan));
        match fs::read_to_string(&path) {
            Ok(found) if found != wanted => bail!(
                "{}: these runs have another plan\nhint: give another folder with --out, or remove this one",
                path.display()
            ),
            Ok(_) => {}
            Err(_) => fs::write(&path, wanted).with_context(|| path.display().to_string())?,
        }
        Ok(Self { out, plan, binary, stages: Mutex::default() })
    }

    /// Does `work` unless `marker` is there; two studies that need the same wait for one another.
    ///
    /// # Errors
    /// Those of `work`, after which the next one that needs it tries again.
    pub fn once(&self, marker: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let stage = {
            let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
            stages.entry(marker.to_owned()).or_default().clone()
        };
        let mut is_done = stage.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_done && !marker.exists() {
            work()?;
        }
        *is_done = true;
        Ok(())
    }

    /// Runs `vlm-r1 VERB` with `settings` in `folder`, below the workspace's own, once.
    ///
    /// # Errors
    /// A run that fails, with the end of its messages.
    pub fn run(&self, verb: &str, folder: &str, settings: Value) -> Result<PathBuf> {
        let output = self.out.join(folder);
        let marker = output.join("done");
        self.once(&marker, || {
            let name = folder.replace('/', "-");
            let config = self.out.join("settings").join(format!("{name}.yaml"));
            // JSON is YAML.
            fs::write(&config, format!("{:#}\n", with_output(settings, &output)))
                .with_context(|| config.display().to_string())?;
            let start = Instant::now();
            self.call(verb, &config, &self.out.join("logs").join(format!("{name}.txt")))
                .with_context(|| format!("{verb} {folder}"))?;
            eprintln!("  {verb} {folder}: {:.0} s", start.elapsed().as_secs_f64());
            fs::write(&marker, "").with_context(|| marker.display().to_string())
        })?;
        Ok(output)
    }

    fn call(&self, verb: &str, config: &Path, log: &Path) -> Result<()> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let status = Command::new(&self.binary)
            .arg(verb)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("log")?)
            .stderr(file)
            .status()
            .with_context(|| self.binary.display().to_string())?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("{status}; {} ends with\n{shown}", log.display())
    }
}

fn with_output(mut settings: Value, output: &Path) -> Value {
    settings["output_dir"] = json!(output);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_done_once_and_again_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let workspace =
            Workspace::open(folder.path().join("out"), Plan::QUICK, "false".into()).unwrap();
        let marker = folder.path().join("marker");
        let mut calls = 0;
        assert!(workspace.once(&marker, || bail!("no")).is_err());
        for _ in 0..2 {
            workspace
                .once(&marker, || {
                    calls += 1;
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(calls, 1);
    }

    #[test]
    fn failed_runs_and_other_plans_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let workspace = Workspace::open(out.clone(), Plan::QUICK, "false".into()).unwrap();
        let error = workspace.run("sft", "a/b", json!({})).unwrap_err();
        assert!(format!("{error:#}").contains("sft a/b: exit status: 1"), "{error:#}");
        assert!(out.join("settings/a-b.yaml").exists());
        let error = Workspace::open(out, Plan::FULL, "false".into()).err().unwrap();
        assert!(error.to_string().contains("another plan"), "{error}");
    }
}
