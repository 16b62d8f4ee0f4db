//! What both trainers share around their steps: model, optimizer, run folder, resume, checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use base::console::{count, describe, size};
use base::run_folder::{RunFolder, StopFlag, environment, free_bytes};
use base::{Example, Prompt};
use config::{Config, OnBadRow, to_yaml};
use data::{
    EpochOrder, Loaded, LoaderOptions, Notices, Processor, PromptLoader, ReadKeys, Rows,
    index_rows, split,
};
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};

use crate::alerts::Alerts;
use crate::clock::Clock;
use crate::features;
use crate::observer::Observer;
use crate::optimizer::Optimizer;
use crate::policy::ParameterCounts;
use crate::schedule::Schedule;
use crate::settings::Settings;
use crate::{NonFinite, TrainError, policy, resume};

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
    pub examples: Rows,
    pub validation: Rows,
    pub processor: Arc<Processor>,
    skipped: Vec<String>,
    /// What is odd about the rows, in lines.
    pub(crate) notices: Vec<String>,
}

impl Dataset {
    /// Reads and checks all rows; `check` says what else keeps a row from being trained on.
    pub fn load(
        settings: &Settings,
        model_dir: &Path,
        check: impl Fn(&Example) -> Result<(), TrainError>,
    ) -> Result<Self, TrainError> {
        let processor = Processor::from_dir(model_dir, &settings.processor)?;
        let mut checks = settings.checks.clone();
        checks.reserve(processor.tokenizer().reserved_tokens());
        let on_bad_row = settings.loader.on_bad_row;
        let mut notices = Notices::new(ReadKeys::TRAINING, settings.processor.apply_exif);
        let mut refused = Vec::new();
        let report = index_rows(&settings.files, &checks, on_bad_row, &mut |example, lost| {
            match check(example) {
                Ok(()) => {
                    notices.look_at_example(example, lost);
                    return true;
                }
                // All are told where they are skipped, else the first.
                Err(error) if on_bad_row == OnBadRow::Skip || refused.is_empty() => {
                    refused.push(error);
                }
                Err(_) => {}
            }
            false
        })?;
        if on_bad_row == OnBadRow::Stop && !refused.is_empty() {
            return Err(refused.remove(0));
        }
        let rows = report.rows;
        let mut skipped: Vec<String> = report.skipped.iter().map(ToString::to_string).collect();
        skipped.extend(refused.iter().map(ToString::to_string));
        if rows.is_empty() {
            return Err(TrainError::NoRows { skipped: skipped.len() });
        }
        let (examples, validation) =
            split(rows, settings.sections.data.val_split_ratio, settings.sections.optimizer.seed)?;
        Ok(Dataset {
            examples,
            validation,
            processor: Arc::new(processor),
            skipped,
            notices: notices.lines(),
        })
    }

    /// Reads the training rows of a step.
    pub fn read(&self, indices: impl Iterator<Item = usize>) -> Result<Vec<Example>, TrainError> {
        let rows = indices.map(|index| self.examples.get(index));
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Prompts of all steps from `step` on, prepared ahead of need.
    pub fn prompts(
        &self,
        settings: &Settings,
        order: &Arc<EpochOrder>,
        steps: std::ops::Range<u64>,
        ahead: usize,
    ) -> Result<PromptLoader, TrainError> {
        let order = order.clone();
        let options = LoaderOptions { ahead: ahead.max(settings.loader.ahead), ..settings.loader };
        let indices = steps.flat_map(move |step| order.indices_of_step(step));
        Ok(PromptLoader::new(
            self.examples.clone(),
            self.processor.clone(),
            settings.template.clone(),
            indices,
            options,
        )?)
    }
}

/// What a run starts with.
pub(crate) struct Start<'s, 'a> {
    pub settings: Settings,
    pub model_dir: &'s Path,
    pub dataset: &'s Dataset,
    pub total_steps: u64,
    pub steps_per_epoch: u64,
    pub observer: &'a mut dyn Observer,
    pub stop: StopFlag,
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
    /// Steps of a pass over the data.
    pub(crate) steps_per_epoch: u64,
    pub run: RunFolder,
    pub observer: &'a mut dyn Observer,
    /// Metrics of the last step, where they wait for its evaluation.
    pub waiting: Option<Map<String, Value>>,
    pub alerts: Alerts,
    /// The step of the newest checkpoint.
    pub(crate) saved: Option<u64>,
    /// The settings as `config.yaml` has them.
    pub(crate) config: String,
    /// Rows the run is about, to notice other data on resume.
    pub(crate) num_samples: usize,
    /// Whether a step is unfinished after its first update: the weights are between two steps.
    pub(crate) is_torn: bool,
    /// The last step that moved the weights.
    pub(crate) updated: u64,
    /// A prompt and a completion of the last step, see [`Session::keep_finite_probe`].
    pub(crate) finite_probe: Option<(Prompt, Vec<u32>)>,
    /// Skipped examples, each named once.
    named: BTreeSet<usize>,
    /// Samples skipped in this step.
    skipped: usize,
    /// Steps refused since the start of the run.
    pub(crate) bad_steps: u64,
    /// Passes of this step that ran out of memory and were retried in parts.
    pub oom_retries: u64,
    /// The token limit of micro-batches that this led to.
    pub lowered_max_tokens: Option<usize>,
}

impl<'a> Session<'a> {
    /// Opens the run folder, loads the model, and resumes from the newest undamaged checkpoint.
    pub fn open<C: Config>(config: &C, start: Start<'_, 'a>) -> Result<Self, TrainError> {
        let run = RunFolder::open(&start.settings.sections.run.output_dir)?;
        let log = run.log();
        for line in base::console::take_early() {
            log.line(&line);
        }
        Self::open_in(run, config, start)
            .inspect_err(|error| log.line(&format!("error: {}", describe(error))))
    }

    fn open_in<C: Config>(
        run: RunFolder,
        config: &C,
        start: Start<'_, 'a>,
    ) -> Result<Self, TrainError> {
        let mut settings = start.settings;
        if let Some(threads) = settings.sections.machine.num_threads {
            tch::set_num_threads(threads as i32);
        }
        let checkpoints = resume::checkpoints(config, &settings, &run)?;
        let mut model = policy::load(&settings, start.model_dir)?;
        settings.loader.digests = features::keep(model.as_mut(), &settings.features)?;
        let (ids, rows) =
            (start.dataset.processor.tokenizer().vocab_size(), model.text_shape().vocab_size);
        if ids as i64 > rows {
            return Err(TrainError::Vocabulary { ids, rows });
        }
        let optimizer = Optimizer::new(model.parameters(), settings.optimizer())?;
        let mut session = Session {
            schedule: settings.schedule(start.total_steps),
            model,
            model_dir: start.model_dir.to_path_buf(),
            settings,
            optimizer,
            clock: Clock::new(),
            stop: start.stop,
            step: 0,
            steps_per_epoch: start.steps_per_epoch,
            run,
            observer: start.observer,
            waiting: None,
            alerts: Alerts::default(),
            saved: None,
            config: to_yaml(config)?,
            num_samples: start.dataset.examples.len(),
            is_torn: false,
            updated: 0,
            finite_probe: None,
            named: BTreeSet::new(),
            skipped: 0,
            bad_steps: 0,
            oom_retries: 0,
            lowered_max_tokens: None,
        };
        session.begin(checkpoints, start.dataset)?;
        Ok(session)
    }

    fn begin(
        &mut self,
        checkpoints: Vec<(u64, PathBuf)>,
        dataset: &Dataset,
    ) -> Result<(), TrainError> {
        let is_of_another =
            checkpoints.iter().any(|(_, folder)| !resume::is_own(folder, &self.run));
        if checkpoints.is_empty() || is_of_another {
            self.run.start_over()?;
        }
        if checkpoints.is_empty() {
            self.waiting = self.evaluation_is_due().then(Map::new);
        } else {
            self.resume(checkpoints)?;
        }
        self.alerts = Alerts::of_run(&self.run)?;
        self.run.make_way(self.step, self.schedule.total_steps)?;
        self.run.write_config(&self.config)?;
        let counts = ParameterCounts::of(self.model.parameters());
        let mut facts = versions();
        facts.insert("parameters".into(), counts.json());
        self.run.write_env(&environment(facts))?;
        self.log_summary(dataset, &counts)
    }

    fn log_summary(
        &mut self,
        dataset: &Dataset,
        counts: &ParameterCounts,
    ) -> Result<(), TrainError> {
        if counts.trained() == 0 {
            let cause = "with --freeze_language_model: nothing is left to train".to_string();
            return Err(TrainError::Setting { name: "freeze_vision_modules", cause });
        }
        self.log(&format!(
            "{}: {}, {} held out; {}",
            self.model.family(),
            count(dataset.examples.len() as u64, "row"),
            dataset.validation.len(),
            count(self.schedule.total_steps, "step")
        ));
        for notice in &dataset.notices {
            self.log(notice);
        }
        for line in counts.lines() {
            self.log(&line);
        }
        self.log_checkpoint_sizes();
        if !dataset.skipped.is_empty() {
            self.log(&format!("{} skipped:", count(dataset.skipped.len() as u64, "bad row")));
            for row in &dataset.skipped {
                self.log(row);
            }
        }
        Ok(())
    }

    /// Logs the size of checkpoints, and warns if the disk has no room.
    fn log_checkpoint_sizes(&mut self) {
        let (size_of, left) =
            (self.checkpoint_size(), self.schedule.total_steps.saturating_sub(self.step));
        if left == 0 {
            self.log(&format!(
                "{} done, of {}: nothing is left to do",
                count(self.step, "step"),
                self.schedule.total_steps
            ));
            return;
        }
        let by_steps = self.save_steps().map_or(0, |every| left / every);
        let kept = (by_steps.max(1) as usize)
            .min(self.settings.sections.save.save_total_limit.unwrap_or(usize::MAX));
        let whole = kept.min(self.settings.sections.save.save_optimizer_limit) as u64;
        let all = (kept as u64).saturating_mul(size_of.model);
        let all = all.saturating_add(whole.saturating_mul(size_of.state));
        let free = free_bytes(self.run.path());
        let room = free.map_or_else(String::new, |free| format!("; {} free", size(free)));
        self.log(&format!(
            "a checkpoint: {} of weights and {} to go on from; in the end {} for {kept} of them{room}",
            size(size_of.model),
            size(size_of.state),
            size(all),
        ));
        if self.settings.sections.save.save_only_model {
            self.log("checkpoints hold the model alone: a run that is stopped cannot go on");
        }
        if free.is_some_and(|free| free < size_of.total()) {
            self.look_at_the_disk("in this run");
        }
    }

    /// Whether another step is to be done.
    pub fn goes_on(&self) -> bool {
        self.step < self.schedule.total_steps && !self.stop.is_raised()
    }

    /// Applies the accumulated gradients; returns their norm and the learning rate.
    pub fn update(&mut self) -> Result<(f64, f64), TrainError> {
        let lr = self.schedule.learning_rate(self.step);
        let (optimizer, model) = (&mut self.optimizer, &self.model);
        let stepped = self.clock.time("optimizer", || optimizer.step(model.parameters(), lr));
        if !matches!(stepped, Err(TrainError::NonFinite(_))) {
            (self.is_torn, self.updated) = (true, self.step + 1);
        }
        Ok((stepped?, lr))
    }

    /// Refuses the current step: weights and moments stay as they are after its first `updates`, and its batch is dumped to the run
    /// folder, one object per completion.
    ///
    /// # Errors
    /// [`TrainError::BadStep`] after more than `max_bad_steps`.
    pub fn refuse(
        &mut self,
        cause: NonFinite,
        updates: usize,
        rows: Vec<Value>,
    ) -> Result<(), TrainError> {
        self.optimizer.discard(self.model.parameters())?;
        let step = self.step + 1;
        let lines: Vec<Value> = std::iter::once(cause.head(step, updates)).chain(rows).collect();
        let dump = self.run.log_bad_step(step, &lines)?;
        self.bad_steps += 1;
        let limit = self.settings.sections.start.max_bad_steps;
        if self.bad_steps > limit {
            let cause = Box::new(cause);
            return Err(TrainError::BadStep { step, cause, dump });
        }
        self.log(&format!(
            "step {step} refused, {} of at most {limit}: {cause}; its batch is in {}",
            self.bad_steps,
            dump.display()
        ));
        Ok(())
    }

    /// Counts the step, logs it unless it is to be evaluated first, and writes a checkpoint where one is due.
    pub fn finish_step(&mut self, mut metrics: Map<String, Value>) -> Result<(), TrainError> {
        self.step += 1;
        self.is_torn = false;
        let due = self.checkpoint_is_due(self.step);
        metrics.insert("skipped_rows".into(), json!(std::mem::take(&mut self.skipped)));
        metrics.insert("bad_steps".into(), json!(self.bad_steps));
        let retries = std::mem::take(&mut self.oom_retries);
        metrics.insert("oom_retries".into(), json!(retries));
        self.measure_memory(&mut metrics);
        for problem in features::report(self.model.as_ref(), &mut metrics) {
            self.log(&problem);
        }
        metrics.insert("secs".into(), Value::Object(self.clock.lap()));
        if self.evaluation_is_due() {
            self.waiting = Some(metrics);
        } else {
            self.publish(&metrics)?;
        }
        if !due && self.checkpoint_is_due(self.step + 1) {
            self.look_at_the_disk("after the next step");
        }
        if due || self.stop.is_raised() {
            let start = Instant::now();
            self.checkpoint()?;
            self.clock.book("checkpoint", start.elapsed());
            self.clock.restart();
        }
        Ok(())
    }

    /// Steps between two checkpoints.
    fn save_steps(&self) -> Option<u64> {
        let every = self.settings.save_interval();
        every.map(|every| every.steps(self.steps_per_epoch))
    }

    /// Whether a checkpoint is due after `step`.
    fn checkpoint_is_due(&self, step: u64) -> bool {
        let every = self.save_steps();
        step == self.schedule.total_steps || every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Logs the metrics of a step and passes them to the observer.
    pub fn publish(&mut self, metrics: &Map<String, Value>) -> Result<(), TrainError> {
        let (step, total) = (self.step, self.schedule.total_steps);
        let has_eval_metrics = metrics.keys().any(|name| name.starts_with("eval/"));
        let run = &self.settings.sections.run;
        let is_first = step == 1 && run.logging_first_step;
        let is_due = step.is_multiple_of(run.logging_steps as u64) || step == total;
        if is_first || is_due || has_eval_metrics {
            self.run.log_step(step, metrics)?;
        }
        // Step 0 has evaluation metrics only.
        if step > 0 {
            self.log_step(metrics)?;
        }
        Ok(())
    }

    fn measure_memory(&self, metrics: &mut Map<String, Value>) {
        let device = self.model.compute().1;
        if let Some(bytes) = torch::live_bytes(device) {
            metrics.insert("live_bytes".into(), json!(bytes.now));
            metrics.insert("peak_live_bytes".into(), json!(bytes.peak));
        }
        torch::reset_peak_live_bytes(device);
        metrics.insert("peak_memory_bytes".into(), json!(torch::peak_memory_bytes()));
    }

    /// The end of the run.
    pub fn outcome(mut self) -> Result<Outcome, TrainError> {
        let finished = self.step >= self.schedule.total_steps && self.waiting.is_none();
        self.log_end(finished)?;
        Ok(Outcome {
            steps: self.step,
            finished,
            checkpoint: self.run.latest_checkpoint()?.map(|(_, folder)| folder),
        })
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
                Loaded::Ready { example_index, prompt } => ready.push((example_index, prompt)),
                Loaded::Skipped { example_index, row } => {
                    self.skipped += 1;
                    if self.named.insert(example_index) {
                        self.log(&format!("skipped: {row}"));
                    }
                }
            }
        }
        Ok(ready)
    }

    /// A message for the user and the log.
    pub fn log(&mut self, message: &str) {
        self.observer.on_message(message);
        self.run.log_line(message);
    }
}

fn versions() -> Map<String, Value> {
    let mut versions = Map::new();
    versions.insert("vlm_r1".into(), env!("CARGO_PKG_VERSION").into());
    versions.insert("libtorch".into(), "2.11".into());
    versions.insert("threads".into(), tch::get_num_threads().into());
    versions
}
