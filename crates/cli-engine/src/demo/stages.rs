//! The demo's stages: training runs in folders of their own, evaluations, and the time each took.
//! A stage that is done is not done again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::Example;
use base::run_folder::{StopFlag, checkpoints_in};
use config::{BoxFormat, DemoConfig, SftConfig, to_yaml};
use data::template::PromptTemplate;
use data::{DataFiles, OnBadRow, Processor, ProcessorOptions, ResizeBackend, RowChecks, load_rows};
use eval::RecEvaluation;
use eval_runner::{RecEvaluator, RecOptions};
use models::{LoadOptions, TrainedParts, load_model};
use rewards::{RewardFamily, family_of};
use serde_json::{Map, Value};
use tch::Kind;
use train::{Observer, Outcome, TrainError, train_grpo, train_sft};

use super::dataset::Dataset;
use super::plan::{Plan, Stage};
use crate::model::prepare_device;
use crate::progress::Progress;
use cli::launch::{front, terminate};
use cli::signals::Stopped;

/// Lines that a run prints where there is no terminal.
const LINES_OF_A_RUN: u64 = 8;
/// Completions sampled at the same time when evaluating.
const MAX_CONCURRENT: usize = 512;

/// A demo under way.
pub struct Demo<'a> {
    /// Settings of the command.
    pub config: &'a DemoConfig,
    /// What is to be done.
    pub plan: &'a Plan,
    /// Its folder.
    pub out: PathBuf,
    /// Where the rows are.
    pub dataset: Dataset,
    /// Raised by signals.
    pub stop: StopFlag,
    /// Seconds by stage.
    pub times: Times,
}

/// How completions are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplingMode {
    /// The likeliest token, always.
    Greedy,
    /// Temperature 1, several completions a question.
    Sampled,
}

impl Demo<'_> {
    /// SFT from the random model.
    ///
    /// # Errors
    /// Those of the trainer; a run that was asked to stop.
    pub fn cold_start(&mut self) -> Result<PathBuf> {
        let model = self.out.join("model");
        let config = self.plan.cold_start(&self.stage("sft", &model, &self.dataset.cold_start));
        self.sft("cold start by SFT", config, &model)
    }

    /// GRPO from `start`.
    ///
    /// # Errors
    /// As [`Demo::cold_start`].
    pub fn grpo(&mut self, start: &Path) -> Result<PathBuf> {
        let mut config = self.plan.grpo(&self.stage("grpo", start, &self.dataset.train));
        if self.config.demo.ranks > 1 {
            self.share(&mut config.optimizer.per_device_train_batch_size)?;
            return self.launch("GRPO", "grpo", &config.run.output_dir, &to_yaml(&config)?);
        }
        self.train("GRPO", |observer, stop| train_grpo(&config, start, observer, stop))
    }

    /// As many further steps of the cold start.
    ///
    /// # Errors
    /// As [`Demo::cold_start`].
    pub fn more_cold_start(&mut self, start: &Path) -> Result<PathBuf> {
        let stage = self.stage("more_sft", start, &self.dataset.cold_start);
        let config = self.plan.further_sft(&stage, self.plan.cold_start_batch);
        self.sft("further steps of the cold start", config, start)
    }

    /// As many steps of SFT on GRPO's rows, with answers in the demanded form.
    ///
    /// # Errors
    /// As [`Demo::cold_start`].
    pub fn sft_on_train_rows(&mut self, start: &Path) -> Result<PathBuf> {
        let stage = self.stage("answers_sft", start, &self.dataset.train_answers);
        let config = self.plan.further_sft(&stage, self.plan.grpo_prompts);
        self.sft("SFT on GRPO's rows", config, start)
    }

    fn sft(&mut self, name: &'static str, mut config: SftConfig, start: &Path) -> Result<PathBuf> {
        if self.config.demo.ranks > 1 {
            self.share(&mut config.optimizer.per_device_train_batch_size)?;
            return self.launch(name, "sft", &config.run.output_dir, &to_yaml(&config)?);
        }
        self.train(name, |observer, stop| train_sft(&config, start, observer, stop))
    }

    /// Each rank's part of a step.
    fn share(&self, batch: &mut usize) -> Result<()> {
        let ranks = self.config.demo.ranks;
        if !batch.is_multiple_of(ranks) {
            bail!(
                "--ranks {ranks}: a step of {batch} cannot be shared equally\nhint: --ranks 2, 4 or 8"
            );
        }
        *batch /= ranks;
        Ok(())
    }

    /// A stage as ranks, which `launch` starts; settings go by a file.
    fn launch(
        &mut self,
        name: &'static str,
        command: &str,
        output_dir: &str,
        settings: &str,
    ) -> Result<PathBuf> {
        let file = PathBuf::from(format!("{output_dir}.yaml"));
        fs::write(&file, settings).with_context(|| file.display().to_string())?;
        let ranks = self.config.demo.ranks.to_string();
        let stop = &self.stop;
        let status = self.times.measure(name, || {
            let mut launch = front()?;
            launch.args(["launch", "--nproc_per_node", &ranks, "--", command, "--config"]);
            let mut child = launch.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
            let mut is_asked = false;
            loop {
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
                if stop.is_raised() && !std::mem::replace(&mut is_asked, true) {
                    terminate(&child);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let status = status.with_context(|| name.to_owned())?;
        if stop.is_raised() {
            bail!(Stopped(format!(
                "stopped during {name}\nhint: the same command goes on from there"
            )));
        }
        if !status.success() {
            bail!("{name}: the ranks failed; what they said is above");
        }
        let mut found = checkpoints_in(Path::new(output_dir))?;
        let (_, newest) =
            found.pop().with_context(|| format!("{name}: the run left no checkpoint"))?;
        Ok(newest)
    }

    fn stage(&self, name: &str, model: &Path, rows: &Path) -> Stage<'_> {
        Stage {
            output_dir: self.out.join(name).display().to_string(),
            model: model.display().to_string(),
            rows: rows.display().to_string(),
            dataset: &self.dataset,
            demo: self.config,
        }
    }

    fn train(
        &mut self,
        name: &'static str,
        train: impl FnOnce(&mut dyn Observer, &StopFlag) -> Result<Outcome, TrainError>,
    ) -> Result<PathBuf> {
        let mut observer =
            StageObserver { name, progress: stderr().is_terminal().then(Progress::new) };
        let stop = &self.stop;
        let outcome = self
            .times
            .measure(name, || train(&mut observer, stop).with_context(|| name.to_owned()));
        if let Some(progress) = &observer.progress {
            progress.finish();
        }
        let outcome = outcome?;
        if !outcome.finished {
            bail!(Stopped(format!(
                "stopped during {name}, step {}\nhint: the same command goes on from there",
                outcome.steps
            )));
        }
        outcome.checkpoint.with_context(|| format!("{name}: the run left no checkpoint"))
    }

    /// Evaluates the model in `folder` on `examples`, or reads what an earlier call under `name` found.
    ///
    /// # Errors
    /// A model or image that cannot be read; a demo that was asked to stop.
    pub fn evaluate(
        &mut self,
        name: &str,
        folder: &Path,
        examples: &[Example],
        mode: SamplingMode,
    ) -> Result<RecEvaluation> {
        let file = self.out.join("eval").join(format!("{name}.json"));
        if file.exists() {
            return Ok(RecEvaluation::read(&file)?);
        }
        if self.stop.is_raised() {
            bail!(Stopped(format!(
                "stopped before evaluation `{name}`\nhint: the same command goes on from there"
            )));
        }
        let (config, plan, stop) = (self.config, self.plan, self.stop.clone());
        let evaluation = self.times.measure("evaluation", || -> Result<RecEvaluation> {
            let device = prepare_device(&config.machine.device, config.machine.num_threads)?;
            let options = LoadOptions { kind: Kind::Float, device, trained: TrainedParts::NONE };
            let model = load_model(folder, options)?;
            let processor = Processor::from_dir(folder, &processor_options())?;
            let evaluator = RecEvaluator::new(
                examples,
                processor.into(),
                // The demo's models of all families write pixels.
                RewardFamily {
                    boxes: BoxFormat::ModelInput,
                    ..family_of(model.family().model_type)
                },
                rec_options(plan, mode, config.demo.seed)?,
            )?;
            Ok(evaluator.evaluate(model.as_ref(), &mut |_, _| (), &|| stop.is_raised())?)
        });
        let evaluation = evaluation.with_context(|| format!("evaluation `{name}`"))?;
        evaluation.write(&file)?;
        let summary = evaluation.summary()?;
        base::say!("  {name}: IoU {}, well-formed {}", summary.iou, summary.well_formed);
        Ok(evaluation)
    }

    /// The held-out rows.
    ///
    /// # Errors
    /// A row that is not as it was written.
    pub fn held_out(&self) -> Result<Vec<Example>> {
        let [rows, images] =
            [&self.dataset.test, &self.dataset.images].map(|path| path.display().to_string());
        let checks = RowChecks { expect_box: true, ..RowChecks::default() };
        let files = DataFiles::from_lists(&rows, Some(&images), None)?;
        Ok(load_rows(&files, &checks, OnBadRow::Stop)?.rows)
    }
}

/// The model folder's own pixel bounds.
fn processor_options() -> ProcessorOptions {
    ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: None,
        max_pixels: None,
        apply_exif: false,
        max_prompt_length: None,
    }
}

fn rec_options(plan: &Plan, mode: SamplingMode, seed: u64) -> Result<RecOptions> {
    let (temperature, completions_per_question) = match mode {
        SamplingMode::Greedy => (0.0, 1),
        SamplingMode::Sampled => (1.0, plan.sampled_completions),
    };
    Ok(RecOptions {
        template: PromptTemplate::resolve("rec")?,
        temperature,
        completions_per_question,
        max_new_tokens: plan.max_completion_length,
        max_concurrent: MAX_CONCURRENT,
        seed,
    })
}

/// A bar on a terminal, else a few lines.
struct StageObserver {
    name: &'static str,
    progress: Option<Progress>,
}

impl Observer for StageObserver {
    fn on_step(&mut self, step: u64, total_steps: u64, metrics: &Map<String, Value>) {
        if let Some(progress) = &mut self.progress {
            return progress.on_step(step, total_steps, metrics);
        }
        if step.is_multiple_of(total_steps.div_ceil(LINES_OF_A_RUN)) || step == total_steps {
            let value = |key: &str| metrics.get(key).and_then(Value::as_f64);
            let shown = ["reward", "rewards/accuracy", "rewards/format", "loss"]
                .into_iter()
                .filter_map(|key| value(key).map(|value| format!(" {key} {value:.3}")));
            base::say!("  {} {step}/{total_steps}{}", self.name, shown.collect::<String>());
        }
    }

    fn on_message(&mut self, message: &str) {
        match &mut self.progress {
            Some(progress) => progress.on_message(message),
            None => base::say!("  {message}"),
        }
    }
}

/// Seconds by stage, over all processes that worked on a demo.
pub struct Times {
    path: PathBuf,
    /// Seconds by stage.
    pub secs: BTreeMap<String, f64>,
}

impl Times {
    /// Those of an earlier process, if any.
    ///
    /// # Errors
    /// A file that is there but cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let secs = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { path, secs })
    }

    /// Runs `work` and adds its time to that of `stage`.
    pub fn measure<R>(&mut self, stage: &str, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let start = Instant::now();
        let result = work();
        *self.secs.entry(stage.to_owned()).or_default() += start.elapsed().as_secs_f64();
        let text = serde_json::to_string_pretty(&self.secs)?;
        fs::write(&self.path, text + "\n").with_context(|| self.path.display().to_string())?;
        result
    }
}
