//! What both trainers share around their steps: model, optimizer, run folder, resume, checkpoints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base::console::{count, describe, size};
use base::metrics::{Command, reduce};
use base::run_folder::{RunError, RunFolder, StopFlag, environment, free_bytes};
use config::{Config, to_yaml};
use data::{EpochOrder, RowError};
use engine::{FastPathChoice, FastPaths, choose_fast_paths};
use models::VisionLanguageModel;
use serde_json::{Map, Value, json};

use crate::alerts::Alerts;
use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::dataset::Dataset;
use crate::features;
use crate::observer::Observer;
use crate::optimizer::Optimizer;
use crate::out_of_memory::MicroBatchMemory;
use crate::policy::ParameterCounts;
use crate::ranks::{Agreement, Place, Ranks};
use crate::resume::RunShape;
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

/// What a run starts with.
pub(crate) struct Start<'s, 'a> {
    pub settings: Settings,
    pub model_dir: &'s Path,
    pub dataset: &'s Dataset,
    pub total_steps: u64,
    pub shape: RunShape,
    pub order: &'s EpochOrder,
    pub observer: &'a mut dyn Observer,
    pub stop: StopFlag,
    pub ranks: Ranks,
    pub command: Command,
}

/// A run in progress: the policy and what trains it, and around them how far it is, what it writes, what it saves, and how much memory it
/// found.
pub(crate) struct Session<'a> {
    pub model: Box<dyn VisionLanguageModel>,
    pub model_dir: PathBuf,
    pub settings: Settings,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub clock: Clock,
    pub stop: StopFlag,
    pub progress: Progress,
    pub run: RunLog<'a>,
    pub checkpoints: Checkpoints,
    pub memory: MicroBatchMemory,
    /// Who trains together.
    pub ranks: Ranks,
    /// Whether all of them know that the run ends.
    pub agreement: Agreement,
    /// Whose metrics these are.
    pub command: Command,
    /// Which fast forms of GPU work are in use.
    fast_paths: FastPaths,
}

/// How far a run is.
#[derive(Default)]
pub(crate) struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps of a pass over the data.
    pub steps_per_epoch: u64,
    /// The last step that moved the weights.
    pub updated: u64,
    /// Whether a step is unfinished after its first update: the weights are between two steps.
    pub is_torn: bool,
    /// Steps refused since the start of the run.
    pub bad_steps: u64,
    /// The position in the data of the next step's first prompt.
    pub cursor: u64,
    /// Whether the ranks stop after this step: the vote, of which a signal that comes now knows nothing.
    stops: bool,
    /// Rows skipped in this step.
    skipped: usize,
    /// Skipped examples, each named once.
    named: BTreeSet<usize>,
}

/// What a run writes down and shows.
pub(crate) struct RunLog<'a> {
    /// None on ranks above 0: one of them writes.
    pub folder: Option<RunFolder>,
    /// Messages of this rank for the log of rank 0.
    unsent: Vec<String>,
    pub observer: &'a mut dyn Observer,
    pub alerts: Alerts,
    /// Metrics of the last step, where they wait for its evaluation.
    pub waiting: Option<Map<String, Value>>,
}

impl RunLog<'_> {
    /// A message for the user and the log, of the run as a whole.
    pub fn message(&mut self, message: &str) {
        if let Some(folder) = &self.folder {
            self.observer.on_message(message);
            folder.log_line(message);
        }
    }

    /// Work on the folder, on the rank that has it.
    pub fn write<T: Default>(
        &mut self,
        work: impl FnOnce(&mut RunFolder) -> Result<T, RunError>,
    ) -> Result<T, TrainError> {
        Ok(self.folder.as_mut().map(work).transpose()?.unwrap_or_default())
    }
}

impl<'a> Session<'a> {
    /// Opens the run folder, loads the model, and resumes from the newest undamaged checkpoint.
    pub fn open<C: Config>(config: &C, start: Start<'_, 'a>) -> Result<Self, TrainError> {
        if !start.ranks.world.is_main() {
            return Self::open_in(None, config, start);
        }
        let run = RunFolder::open(&start.settings.sections.run.output_dir)?;
        let log = run.log();
        for line in base::console::take_early() {
            log.line(&line);
        }
        Self::open_in(Some(run), config, start)
            .inspect_err(|error| log.line(&format!("error: {}", describe(error))))
    }

    fn open_in<C: Config>(
        run: Option<RunFolder>,
        config: &C,
        start: Start<'_, 'a>,
    ) -> Result<Self, TrainError> {
        let mut settings = start.settings;
        if let Some(threads) = settings.sections.machine.num_threads {
            tch::set_num_threads(threads as i32);
        }
        let yaml = to_yaml(config)?;
        start.ranks.compare(&[("settings", yaml.clone()), ("rows", start.dataset.digest())])?;
        let checkpoints = match &run {
            Some(run) => resume::checkpoints(config, &settings, run, start.shape)?,
            None => Vec::new(),
        };
        let choice = FastPathChoice::parse(&settings.sections.machine.fast_paths)?;
        let mut model = policy::load(&settings, start.model_dir)?;
        let fast_paths = choose_fast_paths(model.as_ref(), &choice);
        settings.loader.digests = features::keep(model.as_mut(), &settings.features)?;
        let (ids, rows) =
            (start.dataset.processor.tokenizer().vocab_size(), model.text_shape().vocab_size);
        if ids as i64 > rows {
            return Err(TrainError::Vocabulary { ids, rows });
        }
        let stage = settings.sections.zero_stage(start.ranks.world.size());
        let optimizer = Optimizer::new(
            model.parameters_mut(),
            settings.optimizer(),
            start.ranks.tensors.clone(),
            stage,
        )?;
        let mut session = Session {
            schedule: settings.schedule(start.total_steps),
            model,
            model_dir: start.model_dir.to_path_buf(),
            settings,
            optimizer,
            clock: Clock::new(),
            stop: start.stop,
            progress: Progress {
                steps_per_epoch: start.order.steps_per_epoch(),
                ..Progress::default()
            },
            run: RunLog {
                folder: run,
                unsent: Vec::new(),
                observer: start.observer,
                alerts: Alerts::default(),
                waiting: None,
            },
            checkpoints: Checkpoints::new(yaml, start.dataset.examples.len(), start.shape),
            memory: MicroBatchMemory::default(),
            ranks: start.ranks,
            agreement: Agreement::default(),
            command: start.command,
            fast_paths,
        };
        session.begin(checkpoints, start.dataset)?;
        let by_steps = || start.order.positions_of_step(session.progress.step).start;
        session.progress.cursor = session.checkpoints.cursor().unwrap_or_else(by_steps);
        Ok(session)
    }

    fn begin(
        &mut self,
        checkpoints: Vec<(u64, PathBuf)>,
        dataset: &Dataset,
    ) -> Result<(), TrainError> {
        if let Some(folder) = &mut self.run.folder {
            let is_of_another =
                checkpoints.iter().any(|(_, checkpoint)| !resume::is_own(checkpoint, folder));
            if checkpoints.is_empty() || is_of_another {
                folder.start_over()?;
            }
        }
        let checkpoints = self.ranks.of_main("checkpoints", &checkpoints)?;
        self.find_shared_folder()?;
        if checkpoints.is_empty() {
            self.run.waiting = self.evaluation_is_due().then(Map::new);
        } else {
            self.resume(checkpoints)?;
        }
        let counts = ParameterCounts::of(self.model.parameters());
        let mut facts = versions();
        facts.insert("ranks".into(), json!(self.ranks.world.size()));
        facts.insert("parameters".into(), counts.json());
        facts.insert("fast_paths".into(), json!(self.fast_paths.verdicts));
        if let Some(folder) = &mut self.run.folder {
            self.run.alerts = Alerts::of_run(folder)?;
            folder.make_way(self.progress.step, self.schedule.total_steps)?;
            folder.write_config(&self.checkpoints.config)?;
            folder.write_env(&environment(facts))?;
        }
        self.log_summary(dataset, &counts)
    }

    /// Refuses shards of ranks that do not see one run folder: each writes its part of a checkpoint there.
    fn find_shared_folder(&mut self) -> Result<(), TrainError> {
        if !self.optimizer.is_sharded() {
            return Ok(());
        }
        let sign = self.run.write(|folder| folder.put_sign().map(Some));
        let sign = self.agree("a sign in the run folder", sign)?;
        let sign = self.ranks.of_main("a sign in the run folder", &sign)?.unwrap_or_default();
        let found = match sign.exists() {
            true => Ok(()),
            false => Err(TrainError::NotShared { path: sign.clone() }),
        };
        let found = self.agree("finding the run folder", found);
        if self.ranks.world.is_main() {
            let _ = std::fs::remove_file(&sign);
        }
        found
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
            self.model.family().model_type,
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
        for line in self.fast_paths.lines() {
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
            (self.checkpoint_size(), self.schedule.total_steps.saturating_sub(self.progress.step));
        if left == 0 {
            self.log(&format!(
                "{} done, of {}: nothing is left to do",
                count(self.progress.step, "step"),
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
        let Some(folder) = &self.run.folder else { return };
        let free = free_bytes(folder.path());
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
        self.progress.step < self.schedule.total_steps && !self.stops()
    }

    /// Whether the run ends after this step: a stop on one rank is one on all, by the last vote.
    pub fn stops(&self) -> bool {
        if self.ranks.are_several() { self.progress.stops } else { self.stop.is_raised() }
    }

    /// Where a rank was asked to stop, all are; by the signal that the first of them got.
    pub fn vote_on_stop(&mut self) -> Result<(), TrainError> {
        if !self.ranks.are_several() {
            return Ok(());
        }
        let own = if self.stop.is_raised() { 1 + self.stop.signal().unwrap_or(0) } else { 0 };
        let operation = format!("stop after step {}", self.progress.step);
        let all = self.ranks.world.gather_numbers(&operation, &[f64::from(own)])?;
        let asked = all.into_iter().flatten().find(|asked| *asked > 0.0);
        if let Some(asked) = asked {
            self.progress.stops = true;
            match asked as i32 - 1 {
                _ if self.stop.is_raised() => {}
                0 => self.stop.raise(),
                signal => self.stop.raise_by(signal),
            }
        }
        Ok(())
    }

    /// Applies the accumulated gradients; returns their norm and the learning rate.
    pub fn update(&mut self) -> Result<(f64, f64), TrainError> {
        let lr = self.schedule.learning_rate(self.progress.step);
        self.at("update", None);
        let (optimizer, model) = (&mut self.optimizer, &self.model);
        let stepped = self.clock.time("optimizer", || optimizer.step(model.parameters(), lr));
        if !matches!(stepped, Err(TrainError::NonFinite(_))) {
            (self.progress.is_torn, self.progress.updated) = (true, self.progress.step + 1);
        }
        Ok((stepped?, lr))
    }

    /// Whether the updates of a step were applied. A number that is not finite refuses the step: weights and moments stay as they are after
    /// its first `updates`, and its batch is dumped to the run folder, one object per completion.
    ///
    /// # Errors
    /// Other errors of `learnt`, and [`TrainError::BadStep`] after more than `max_bad_steps`.
    pub fn applied(
        &mut self,
        learnt: Result<(), TrainError>,
        updates: usize,
        dump: impl FnOnce(&Self) -> Result<Vec<(Place, Value)>, TrainError>,
    ) -> Result<bool, TrainError> {
        let cause = match learnt {
            Ok(()) => None,
            Err(TrainError::NonFinite(cause)) => Some(*cause),
            Err(error) => return Err(error),
        };
        // What one rank refuses, all refuse: they have agreed.
        let Some(cause) = cause else { return Ok(true) };
        let rows = self.together("batch of a refused step", || dump(self))?;
        let rows = self.ranks.rows_of_all("batch of a refused step", rows)?;
        self.refuse(cause, updates, rows)?;
        Ok(false)
    }

    fn refuse(
        &mut self,
        cause: NonFinite,
        updates: usize,
        rows: Vec<(Place, Value)>,
    ) -> Result<(), TrainError> {
        self.optimizer.discard(self.model.parameters())?;
        let step = self.progress.step + 1;
        let lines: Vec<Value> = std::iter::once(cause.head(step, updates))
            .chain(rows.into_iter().map(|(_, row)| row))
            .collect();
        let dump = self.run.write(|folder| folder.log_bad_step(step, &lines));
        let dump = self.agree("batch of a refused step is written", dump)?;
        self.progress.bad_steps += 1;
        let limit = self.settings.sections.start.max_bad_steps;
        if self.progress.bad_steps > limit {
            let cause = Box::new(cause);
            return Err(TrainError::BadStep { step, cause, dump });
        }
        self.log(&format!(
            "step {step} refused, {} of at most {limit}: {cause}; its batch is in {}",
            self.progress.bad_steps,
            dump.display()
        ));
        Ok(())
    }

    /// Counts the step, whose prompts end at `cursor`; logs it unless it is to be evaluated first, and writes a checkpoint where one is due.
    pub fn finish_step(
        &mut self,
        mut metrics: Map<String, Value>,
        cursor: u64,
    ) -> Result<(), TrainError> {
        self.progress.step += 1;
        self.progress.cursor = cursor;
        self.progress.is_torn = false;
        let due = self.checkpoint_is_due(self.progress.step);
        metrics.insert("skipped_rows".into(), json!(std::mem::take(&mut self.progress.skipped)));
        metrics.insert("bad_steps".into(), json!(self.progress.bad_steps));
        let retries = std::mem::take(&mut self.memory.oom_retries);
        metrics.insert("oom_retries".into(), json!(retries));
        self.measure_memory(&mut metrics);
        for problem in features::report(self.model.as_ref(), &mut metrics) {
            self.log_here(&problem);
        }
        metrics.insert("secs".into(), Value::Object(self.clock.lap()));
        let metrics = reduce(self.ranks.world.as_ref(), self.command, &metrics)?;
        self.send_messages()?;
        if self.evaluation_is_due() {
            self.run.waiting = Some(metrics);
        } else {
            let published = self.publish(&metrics);
            self.agree("metrics are written", published)?;
        }
        self.vote_on_stop()?;
        if !due && self.checkpoint_is_due(self.progress.step + 1) {
            self.look_at_the_disk("after the next step");
        }
        if due || self.stops() {
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
        every.map(|every| every.steps(self.progress.steps_per_epoch))
    }

    /// Whether a checkpoint is due after `step`.
    fn checkpoint_is_due(&self, step: u64) -> bool {
        let every = self.save_steps();
        step == self.schedule.total_steps || every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// Logs the metrics of a step and passes them to the observer.
    pub fn publish(&mut self, metrics: &Map<String, Value>) -> Result<(), TrainError> {
        let (step, total) = (self.progress.step, self.schedule.total_steps);
        let has_eval_metrics = metrics.keys().any(|name| name.starts_with("eval/"));
        let run = &self.settings.sections.run;
        let is_first = step == 1 && run.logging_first_step;
        let is_due = step.is_multiple_of(run.logging_steps as u64) || step == total;
        if is_first || is_due || has_eval_metrics {
            self.run.write(|folder| folder.log_step(step, metrics))?;
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
        let finished =
            self.progress.step >= self.schedule.total_steps && self.run.waiting.is_none();
        self.log_end(finished)?;
        Ok(Outcome {
            steps: self.progress.step,
            finished,
            checkpoint: self.run.write(|folder| folder.latest_checkpoint())?.map(|(_, at)| at),
        })
    }

    /// Counts a row that was skipped, and names each once.
    pub fn skip(&mut self, example_index: usize, row: &RowError) {
        self.progress.skipped += 1;
        if self.progress.named.insert(example_index) {
            self.log_here(&format!("skipped: {row}"));
        }
    }

    /// A message for the user and the log, of the run as a whole: rank 0 tells it.
    pub fn log(&mut self, message: &str) {
        self.run.message(message);
    }

    /// A message of this rank.
    pub fn log_here(&mut self, message: &str) {
        let rank = self.ranks.world.rank();
        if rank == 0 {
            return self.log(message);
        }
        self.run.observer.on_message(message);
        self.run.unsent.push(format!("rank {rank}: {message}"));
    }

    /// Brings messages of other ranks into the log; they were shown where they arose.
    fn send_messages(&mut self) -> Result<(), TrainError> {
        let own = std::mem::take(&mut self.run.unsent);
        for messages in self.ranks.of_all("messages", &own)? {
            for message in messages {
                self.run.write(|folder| {
                    folder.log_line(&message);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

fn versions() -> Map<String, Value> {
    let mut versions = Map::new();
    versions.insert("vlm_r1".into(), env!("CARGO_PKG_VERSION").into());
    versions.insert("libtorch".into(), "2.11".into());
    versions.insert("threads".into(), tch::get_num_threads().into());
    versions
}
