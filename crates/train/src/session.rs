//! What both trainers share around their steps: model, optimizer, run folder, resume, checkpoints.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use base::Sample;
use base::config::OnBadRow;
use base::config::{Config, changed_settings, to_yaml};
use base::run_folder::{RunFolder, StopFlag, environment};
use data::{
    EpochSampler, Loaded, LoaderOptions, Processor, PromptLoader, load_rows, notices_of, split,
};
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::features;
use crate::observer::Observer;
use crate::optimizer::Optimizer;
use crate::policy::Census;
use crate::schedule::Schedule;
use crate::settings::Settings;
use crate::{NonFinite, TrainError, policy};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps done.
    pub steps: u64,
    /// Whether all steps are done (else a signal ended the run early).
    pub finished: bool,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// Rows, split, and what turns them into prompts.
pub(crate) struct Dataset {
    pub samples: Arc<[Sample]>,
    pub validation: Vec<Sample>,
    pub processor: Arc<Processor>,
    skipped: Vec<String>,
    /// What is odd about the rows, in lines.
    notices: Vec<String>,
}

impl Dataset {
    /// Reads and checks all rows; `check` says what else keeps a row from being trained on.
    pub fn load(
        settings: &Settings,
        model_dir: &Path,
        check: impl Fn(&Sample) -> Result<(), TrainError>,
    ) -> Result<Self, TrainError> {
        let processor = Processor::from_dir(model_dir, &settings.processor)?;
        let mut checks = settings.checks.clone();
        checks.reserve(processor.tokenizer().reserved_tokens());
        let on_bad_row = settings.loader.on_bad_row;
        let report = load_rows(&settings.files, &checks, on_bad_row)?;
        let mut skipped: Vec<String> = report.skipped.iter().map(ToString::to_string).collect();
        let mut rows = Vec::with_capacity(report.rows.len());
        for row in report.rows {
            match check(&row) {
                Ok(()) => rows.push(row),
                Err(error) if on_bad_row == OnBadRow::Skip => skipped.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        if rows.is_empty() {
            return Err(TrainError::NoRows {
                skipped: skipped.len(),
            });
        }
        let notices = notices_of(&rows, settings.processor.apply_exif);
        let (samples, validation) = split(rows, settings.val_split_ratio, settings.seed)?;
        Ok(Dataset {
            samples: samples.into(),
            validation,
            processor: Arc::new(processor),
            skipped,
            notices,
        })
    }

    /// Prompts of all steps from `step` on, prepared ahead of need.
    pub fn prompts(
        &self,
        settings: &Settings,
        order: &Arc<EpochSampler>,
        steps: std::ops::Range<u64>,
        ahead: usize,
    ) -> Result<PromptLoader, TrainError> {
        let order = order.clone();
        let options = LoaderOptions {
            ahead: ahead.max(settings.loader.ahead),
            ..settings.loader
        };
        let indices = steps.flat_map(move |step| order.indices_of_step(step));
        Ok(PromptLoader::new(
            self.samples.clone(),
            self.processor.clone(),
            settings.template.clone(),
            indices,
            options,
        )?)
    }
}

/// A run in progress.
pub(crate) struct Session<'a> {
    pub model: Box<dyn VisionLanguageModel>,
    pub model_dir: PathBuf,
    pub settings: Settings,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub clock: Clock,
    pub stop: StopFlag,
    /// Steps done.
    pub step: u64,
    pub run: RunFolder,
    pub observer: &'a mut dyn Observer,
    /// Metrics of the last step, where they wait for its evaluation.
    pub waiting: Option<Map<String, Value>>,
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    /// Rows the run is about, to notice other data on resume.
    num_samples: usize,
    /// Skipped samples, each named once.
    named: BTreeSet<usize>,
    /// Samples skipped in this step.
    skipped: usize,
    /// Steps refused since the start of the run.
    bad_steps: u64,
    /// Passes of this step that found no memory and were done again in parts.
    pub oom_retries: u64,
    /// The bound on a micro-batch's tokens that this led to.
    pub lowered_max_tokens: Option<usize>,
}

impl<'a> Session<'a> {
    /// Opens the run folder, loads model and data, and goes on where the newest checkpoint stands.
    pub fn open<C: Config>(
        config: &C,
        mut settings: Settings,
        model_dir: &Path,
        dataset: &Dataset,
        total_steps: u64,
        observer: &'a mut dyn Observer,
        stop: StopFlag,
    ) -> Result<Self, TrainError> {
        if let Some(threads) = settings.num_threads {
            tch::set_num_threads(threads as i32);
        }
        let run = RunFolder::open(&settings.output_dir)?;
        let newest = run.latest_checkpoint()?;
        if let Some((_, folder)) = &newest {
            refuse_changes(config, &settings, &run, folder)?;
        }
        let mut model = policy::load(&settings, model_dir)?;
        settings.loader.digests = features::keep(model.as_mut(), &settings.features)?;
        let (ids, rows) = (
            dataset.processor.tokenizer().vocab_size(),
            model.text_shape().vocab_size,
        );
        if ids as i64 > rows {
            return Err(TrainError::Vocabulary { ids, rows });
        }
        let optimizer = Optimizer::new(model.parameters(), settings.optimizer)?;
        let mut session = Session {
            schedule: settings.schedule(total_steps),
            model,
            model_dir: model_dir.to_path_buf(),
            settings,
            optimizer,
            clock: Clock::new(),
            stop,
            step: 0,
            run,
            observer,
            waiting: None,
            saved: None,
            num_samples: dataset.samples.len(),
            named: BTreeSet::new(),
            skipped: 0,
            bad_steps: 0,
            oom_retries: 0,
            lowered_max_tokens: None,
        };
        match newest {
            Some((step, folder)) => session.resume(step, &folder)?,
            None => {
                session.run.start_over()?;
                session.waiting = session.evaluation_is_due().then(Map::new);
            }
        }
        session.run.write_config(&to_yaml(config)?)?;
        let census = Census::of(session.model.parameters());
        let mut facts = versions();
        facts.insert("parameters".into(), census.json());
        session.run.write_env(&environment(facts))?;
        session.introduce(dataset, &census)?;
        Ok(session)
    }

    fn introduce(&mut self, dataset: &Dataset, census: &Census) -> Result<(), TrainError> {
        if census.trained() == 0 {
            let cause = "with --freeze_language_model: nothing is left to train".to_string();
            return Err(TrainError::Setting {
                name: "freeze_vision_modules",
                cause,
            });
        }
        self.say(&format!(
            "{}: {} rows, {} held out; {} steps",
            self.model.family(),
            dataset.samples.len(),
            dataset.validation.len(),
            self.schedule.total_steps
        ));
        for notice in &dataset.notices {
            self.say(notice);
        }
        for line in census.lines() {
            self.say(&line);
        }
        if !dataset.skipped.is_empty() {
            self.say(&format!("{} bad rows skipped:", dataset.skipped.len()));
            for row in &dataset.skipped {
                self.say(row);
            }
        }
        Ok(())
    }

    fn resume(&mut self, step: u64, folder: &Path) -> Result<(), TrainError> {
        let state = folder.join("trainer_state");
        let path = state.join("state.json");
        let text = fs::read_to_string(&path).map_err(|source| TrainError::Io { path, source })?;
        let value: Value = serde_json::from_str(&text).map_err(|e| TrainError::State {
            cause: e.to_string(),
        })?;
        let rows = value["num_samples"].as_u64();
        if rows != Some(self.num_samples as u64) && !self.settings.allow_changed {
            let change = format!(
                "rows of the data: was {}, is {}",
                value["num_samples"], self.num_samples
            );
            return Err(TrainError::Changed {
                folder: folder.into(),
                changes: vec![change],
            });
        }
        if value["step"].as_u64() != Some(step) {
            let cause = format!(
                "{}: expected `step` {step}, got {}",
                folder.display(),
                value["step"]
            );
            return Err(TrainError::State { cause });
        }
        let saved = torch::read_tensors(&state.join("optimizer.safetensors"))?;
        self.optimizer.restore(self.model.parameters(), &saved)?;
        (self.step, self.saved) = (step, Some(step));
        match value["waiting"].as_object() {
            Some(metrics) if !self.run.is_logged(step)? => {
                self.run.cut_back_to_unlogged(step)?;
                self.waiting = Some(metrics.clone());
            }
            _ => self.run.cut_back_to(step)?,
        }
        self.bad_steps = value["bad_steps"].as_u64().unwrap_or_default();
        self.say(&format!("resuming after step {step}, {}", folder.display()));
        self.resume_max_tokens(value["lowered_max_tokens"].as_u64());
        Ok(())
    }

    /// Whether another step is to be done.
    pub fn goes_on(&self) -> bool {
        self.step < self.schedule.total_steps && !self.stop.is_raised()
    }

    /// Applies the accumulated gradients; returns their norm and the learning rate.
    pub fn update(&mut self) -> Result<(f64, f64), TrainError> {
        let lr = self.schedule.learning_rate(self.step);
        let (optimizer, model) = (&mut self.optimizer, &self.model);
        let norm = self
            .clock
            .time("optimizer", || optimizer.step(model.parameters(), lr))?;
        Ok((norm, lr))
    }

    /// Refuses the step under way: weights and moments stay as they are after the `updates` that it
    /// made before, and its batch, an object a completion, goes to the run folder.
    ///
    /// # Errors
    /// [`TrainError::BadStep`] where no more of them are to be passed over.
    pub fn refuse(
        &mut self,
        cause: NonFinite,
        updates: usize,
        rows: Vec<Value>,
    ) -> Result<(), TrainError> {
        self.optimizer.discard(self.model.parameters())?;
        let step = self.step + 1;
        let lines: Vec<Value> = std::iter::once(cause.head(step, updates))
            .chain(rows)
            .collect();
        let dump = self.run.log_bad_step(step, &lines)?;
        self.bad_steps += 1;
        let limit = self.settings.max_bad_steps;
        if self.bad_steps > limit {
            let cause = Box::new(cause);
            return Err(TrainError::BadStep { step, cause, dump });
        }
        self.say(&format!(
            "step {step} refused, {} of at most {limit}: {cause}; its batch is in {}",
            self.bad_steps,
            dump.display()
        ));
        Ok(())
    }

    /// Counts the step, logs it unless it is to be evaluated first, and writes a checkpoint where one is due.
    pub fn finish_step(&mut self, mut metrics: Map<String, Value>) -> Result<(), TrainError> {
        self.step += 1;
        let last = self.step == self.schedule.total_steps;
        let due = self
            .settings
            .save_steps
            .is_some_and(|every| self.step.is_multiple_of(every));
        metrics.insert(
            "skipped_rows".into(),
            json!(std::mem::take(&mut self.skipped)),
        );
        metrics.insert("bad_steps".into(), json!(self.bad_steps));
        let retries = std::mem::take(&mut self.oom_retries);
        metrics.insert("oom_retries".into(), json!(retries));
        self.measure_memory(&mut metrics);
        for problem in features::report(self.model.as_ref(), &mut metrics) {
            self.say(&problem);
        }
        metrics.insert("secs".into(), Value::Object(self.clock.lap()));
        if self.evaluation_is_due() {
            self.waiting = Some(metrics);
        } else {
            self.publish(&metrics)?;
        }
        if due || last || self.stop.is_raised() {
            let start = Instant::now();
            self.checkpoint()?;
            self.clock.book("checkpoint", start.elapsed());
            self.clock.restart();
        }
        Ok(())
    }

    /// Logs the metrics of a step and tells them.
    pub fn publish(&mut self, metrics: &Map<String, Value>) -> Result<(), TrainError> {
        let (step, total) = (self.step, self.schedule.total_steps);
        let has_figures = metrics.keys().any(|name| name.starts_with("eval/"));
        if step.is_multiple_of(self.settings.logging_steps) || step == total || has_figures {
            self.run.log_step(step, metrics)?;
        }
        // Before the first there is no step to tell of.
        if step > 0 {
            self.observer.on_step(step, total, metrics);
        }
        Ok(())
    }

    /// Makes sure that a run that ends here can go on from here.
    pub fn keep(&mut self) -> Result<(), TrainError> {
        if self.step == 0 || self.saved == Some(self.step) {
            return Ok(());
        }
        self.checkpoint()
    }

    fn measure_memory(&self, metrics: &mut Map<String, Value>) {
        let device = self.model.compute().1;
        if let Some(bytes) = torch::live_bytes(device) {
            metrics.insert("live_bytes".into(), json!(bytes.now));
            metrics.insert("peak_live_bytes".into(), json!(bytes.peak));
        }
        torch::reset_peak_live_bytes(device);
        metrics.insert(
            "peak_memory_bytes".into(),
            json!(torch::peak_memory_bytes()),
        );
    }

    /// The end of the run.
    pub fn outcome(self) -> Result<Outcome, TrainError> {
        Ok(Outcome {
            steps: self.step,
            finished: self.step >= self.schedule.total_steps && self.waiting.is_none(),
            checkpoint: self.run.latest_checkpoint()?.map(|(_, folder)| folder),
        })
    }

    fn checkpoint(&mut self) -> Result<(), TrainError> {
        let pending = self.run.begin_checkpoint(self.step)?;
        policy::save(
            self.model.as_ref(),
            &self.settings.model_name,
            &self.model_dir,
            pending.path(),
        )?;
        let folder = pending.path().join("trainer_state");
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| TrainError::Io { path, source }
        };
        fs::create_dir(&folder).map_err(io(&folder))?;
        torch::write_tensors(
            &folder.join("optimizer.safetensors"),
            &self.optimizer.state(self.model.parameters()),
        )?;
        let state = json!({
            "step": self.step,
            "seed": self.settings.seed,
            "num_samples": self.num_samples,
            "bad_steps": self.bad_steps,
            "lowered_max_tokens": self.lowered_max_tokens,
            "waiting": self.waiting,
            "version": env!("CARGO_PKG_VERSION"),
        });
        let path = folder.join("state.json");
        fs::write(&path, format!("{state:#}\n")).map_err(io(&path))?;
        pending.commit()?;
        self.saved = Some(self.step);
        if let Some(keep) = self.settings.save_total_limit {
            self.run.prune_checkpoints(keep)?;
        }
        Ok(())
    }

    /// Takes the next `count` prompts; those skipped are named once.
    pub fn take_prompts(
        &mut self,
        loader: &mut PromptLoader,
        count: usize,
    ) -> Result<Vec<(usize, base::Prompt)>, TrainError> {
        let mut ready = Vec::with_capacity(count);
        for loaded in loader.by_ref().take(count) {
            match loaded? {
                Loaded::Ready {
                    sample_index,
                    prompt,
                } => ready.push((sample_index, prompt)),
                Loaded::Skipped { sample_index, row } => {
                    self.skipped += 1;
                    if self.named.insert(sample_index) {
                        self.say(&format!("skipped: {row}"));
                    }
                }
            }
        }
        Ok(ready)
    }

    /// Tells the user and the log.
    pub fn say(&mut self, message: &str) {
        self.observer.on_message(message);
        self.run.log_line(message);
    }
}

fn refuse_changes<C: Config>(
    config: &C,
    settings: &Settings,
    run: &RunFolder,
    folder: &Path,
) -> Result<(), TrainError> {
    if !settings.resume {
        let cause = format!("is false, but {} holds a checkpoint", run.path().display());
        return Err(TrainError::Setting {
            name: "resume_from_checkpoint",
            cause,
        });
    }
    let Some(yaml) = run.config()? else {
        let cause = format!(
            "{} is missing beside {}",
            run.config_path().display(),
            folder.display()
        );
        return Err(TrainError::State { cause });
    };
    let changes = changed_settings(&run.config_path(), &yaml, config)?;
    if changes.is_empty() || settings.allow_changed {
        return Ok(());
    }
    let line = |c: &base::config::Change| format!("`{}`: was {}, is {}", c.key, c.before, c.now);
    Err(TrainError::Changed {
        folder: folder.into(),
        changes: changes.iter().map(line).collect(),
    })
}

fn versions() -> Map<String, Value> {
    let mut versions = Map::new();
    versions.insert("vlm_r1".into(), env!("CARGO_PKG_VERSION").into());
    versions.insert("libtorch".into(), "2.11".into());
    versions.insert("threads".into(), tch::get_num_threads().into());
    versions
}
