//! Checkpoints of a run: contents, checks before writing, and resuming.

use std::fs;
use std::path::{Path, PathBuf};

use base::Prompt;
use base::console;
use base::run_folder::{
    FileSum, PendingFolder, RunError, SUMS, Sums, TRAINER_STATE, free_bytes, verify_file,
    verify_sums, write_sums,
};
use config::Config;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use torch::Written;

use crate::batch::MicroBatch;
use crate::optimizer;
use crate::out_of_memory::{self, catch_oom};
use crate::reference::Reference;
use crate::resume::RunShape;
use crate::session::Session;
use crate::shards::saved::SavedTensors;
use crate::{TrainError, policy};

const STATE: &str = "state.json";
/// The files of the weights of a reference model that moves with the run.
const REFERENCE: &str = "reference";
/// The settings that the checkpoint was made under: a run that goes on is compared with them.
const CONFIG: &str = "config.yaml";

/// Scalars checked at a time.
const LOOKED_AT: i64 = 1 << 24;

/// `trainer_state/state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    seed: u64,
    num_samples: u64,
    /// None in checkpoints of programs that knew one rank only.
    #[serde(default)]
    shape: Option<RunShape>,
    #[serde(default)]
    bad_steps: u64,
    #[serde(default)]
    lowered_max_tokens: Option<u64>,
    /// The position in the data of the next step; `None` in checkpoints of programs that counted it by steps.
    #[serde(default)]
    cursor: Option<u64>,
    /// Metrics of the step, where they wait for its evaluation.
    #[serde(default)]
    waiting: Option<Map<String, Value>>,
    version: String,
}

/// What the checkpoints of a run say of it, and the newest of them.
pub(crate) struct Checkpoints {
    /// The step of the newest one.
    saved: Option<u64>,
    /// The settings as `config.yaml` has them.
    pub config: String,
    /// Rows the run is about, to notice other data on resume.
    num_examples: usize,
    /// What a step is, to notice another one on resume.
    shape: RunShape,
    /// A prompt and a completion of the last step, see [`Session::keep_finite_probe`].
    finite_probe: Option<(Prompt, Vec<u32>)>,
    /// The folder of the one that the run resumed from, and the position in the data that it had.
    resumed: Option<(PathBuf, Option<u64>)>,
    /// Weights of the reference model by name, where they are not those of the start: the tensors themselves, not copies.
    reference: Vec<(String, Tensor)>,
}

impl Checkpoints {
    /// Of a run with these settings over `num_examples` rows; none is written yet.
    pub fn new(config: String, num_examples: usize, shape: RunShape) -> Self {
        Checkpoints {
            shape,
            saved: None,
            config,
            num_examples,
            finite_probe: None,
            resumed: None,
            reference: Vec::new(),
        }
    }

    /// The position in the data that the run resumed from; none where it did not, or where the checkpoint does not say.
    pub fn cursor(&self) -> Option<u64> {
        self.resumed.as_ref()?.1
    }

    /// Saves the weights of a reference model that moves with the run, and brings those of the checkpoint back that the run resumed from.
    ///
    /// # Errors
    /// [`TrainError::State`] where these are of another model, and where they cannot be read.
    pub fn save_reference(&mut self, reference: &Reference) -> Result<(), TrainError> {
        let folder = self.resumed.as_ref().map(|(folder, _)| folder.join(TRAINER_STATE));
        if let Some(folder) = folder.filter(|folder| SavedTensors::exist(folder, REFERENCE)) {
            let hint = "the checkpoint has the reference of another model";
            reference.restore(&SavedTensors::open(&folder, REFERENCE, hint)?)?;
        }
        self.reference = reference.state();
        Ok(())
    }
}

/// Bytes of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointSize {
    /// Of the model, or of the adapter.
    pub model: u64,
    /// Of the trainer state: master weights and moments.
    pub state: u64,
}

impl CheckpointSize {
    /// Of both.
    pub fn total(self) -> u64 {
        self.model + self.state
    }
}

impl Session<'_> {
    /// Makes sure that a run that ends here can be resumed from here.
    pub fn keep(&mut self) -> Result<(), TrainError> {
        if self.progress.step == 0 || self.checkpoints.saved == Some(self.progress.step) {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Ends a run that failed: a checkpoint of the last whole step where there is one to write, the log, and the way on.
    /// Returns the error to end with.
    pub fn fail(&mut self, error: TrainError) -> TrainError {
        let is_final = error.leaves_no_checkpoint();
        let mut error = error;
        // Of a rank that others do not know to have failed, they cannot write one with it.
        if !is_final
            && !self.progress.is_torn
            && self.have_agreed_to_end()
            && let Err(other) = self.keep()
        {
            let (first, second) = match other {
                // What failed first came of it.
                TrainError::Diverged { .. } => (std::mem::replace(&mut error, other), None),
                other => (other, Some("no checkpoint: ")),
            };
            let first = console::describe(&first);
            let first = first.split("\nhint: ").next().unwrap_or_default();
            self.log(&format!("error: {}{first}", second.unwrap_or_default()));
        }
        if !matches!(error, TrainError::Diverged { .. }) {
            let way = self.way_on();
            self.log(&way);
        }
        if self.stop.is_raised() && error.is_of_a_reward() {
            // It did not wait for a scorer, as it was to end.
            self.log(&console::describe(&error));
            error = TrainError::Stopped;
        }
        if let Some(folder) = &self.run.folder {
            folder.log_line(&format!("error: {}", console::describe(&error)));
        }
        error
    }

    /// From where a run that ends here resumes.
    fn way_on(&self) -> String {
        match self.newest() {
            _ if self.settings.sections.save.save_only_model => {
                "the run cannot be continued: --save_only_model true".to_owned()
            }
            Some((step, folder)) if step == self.progress.step && !self.progress.is_torn => {
                format!(
                    "{} holds step {step}, the last whole one; the same command goes on from it",
                    folder.display()
                )
            }
            Some((step, folder)) => format!(
                "what came after step {step} is lost; the same command goes on from {}",
                folder.display()
            ),
            None => "no checkpoint was written; the same command starts over".to_owned(),
        }
    }

    /// The newest checkpoint that can be resumed.
    fn newest(&self) -> Option<(u64, PathBuf)> {
        self.run.folder.as_ref()?.resumable_checkpoints().ok()?.pop()
    }

    /// What a checkpoint takes on the disk: of the model about as much as where it came from.
    pub fn checkpoint_size(&self) -> CheckpointSize {
        let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        let parameters = self.model.parameters();
        let model = match &parameters.lora {
            Some(_) => {
                let adapters = parameters.list.iter().filter(|p| p.is_adapter);
                adapters.map(|p| 4 * p.value.numel() as u64).sum()
            }
            None => bytes_of_weights(&self.model_dir),
        };
        let state = self.optimizer.state(parameters);
        let state = if self.settings.sections.save.save_only_model {
            0
        } else {
            let reference = self.checkpoints.reference.iter();
            reference.chain(&state).map(|(_, tensor)| bytes(tensor)).sum()
        };
        CheckpointSize { model, state }
    }

    /// Warns where the disk has no room for a checkpoint that is due after `when`.
    pub fn look_at_the_disk(&mut self, when: &str) {
        let Some(folder) = &self.run.folder else { return };
        let needed = self.checkpoint_size().total();
        match free_bytes(folder.path()) {
            Some(free) if free < needed => {
                let folder = folder.path().display().to_string();
                self.log(&format!(
                    "warning: a checkpoint is due {when} and takes about {}, but {folder} has {} free\nhint: make room, \
                     or lower --save_total_limit",
                    console::size(needed),
                    console::size(free)
                ));
            }
            _ => {}
        }
    }

    /// Writes the checkpoint of this step.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] where the weights are of no use, [`TrainError::Checkpoint`] where it cannot be written;
    /// older ones stand.
    pub(crate) fn checkpoint(&mut self) -> Result<(), TrainError> {
        self.ranks.world.at(&format!("checkpoint of step {}", self.progress.step));
        let written = self.write_with_retry();
        written.map_err(|error| match error {
            TrainError::Diverged { .. } => error,
            error => TrainError::Checkpoint { step: self.progress.step, source: Box::new(error) },
        })?;
        self.checkpoints.saved = Some(self.progress.step);
        let save = &self.settings.sections.save;
        let (models, states) = (save.save_total_limit, save.save_optimizer_limit);
        let pruned = self.run.write(|folder| {
            if let Some(keep) = models {
                folder.prune_checkpoints(keep)?;
            }
            folder.keep_trainer_states(states)
        });
        self.agree("old checkpoints are removed", pruned)
    }

    fn write_with_retry(&mut self) -> Result<(), TrainError> {
        let device = self.model.compute().1;
        if self.ranks.are_several() {
            return out_of_memory::step(device, || self.write());
        }
        if let Err(cause) = catch_oom(device, || self.write())? {
            // The first failure emptied the device's cache.
            self.log(&format!(
                "no memory while the checkpoint of step {} was written ({cause}); once more",
                self.progress.step
            ));
            return out_of_memory::step(device, || self.write());
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), TrainError> {
        self.together("weights to be saved", || self.refuse_diverged())?;
        self.compare_weights()?;
        let step = self.progress.step;
        let pending = self.run.write(|folder| folder.begin_checkpoint(step).map(Some));
        let pending = self.agree("a checkpoint is begun", pending)?;
        let written = self.write_model(pending.as_ref())?;
        if !self.settings.sections.save.save_only_model {
            self.write_state(pending.as_ref(), written)?;
        }
        let committed = pending.map(PendingFolder::commit).transpose();
        self.agree("a checkpoint is whole", committed.map(drop).map_err(TrainError::from))
    }

    fn write_state(
        &self,
        pending: Option<&PendingFolder>,
        written: Vec<Written>,
    ) -> Result<(), TrainError> {
        let lowered = self.ranks.of_all("least tokens", &self.memory.lowered_max_tokens)?;
        let state = State {
            step: self.progress.step,
            seed: self.settings.sections.optimizer.seed,
            num_samples: self.checkpoints.num_examples as u64,
            shape: Some(self.checkpoints.shape),
            bad_steps: self.progress.bad_steps,
            lowered_max_tokens: lowered.into_iter().flatten().min().map(|tokens| tokens as u64),
            cursor: Some(self.progress.cursor),
            waiting: self.run.waiting.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let folder = self.together("a folder for the trainer state", || {
            let Some(pending) = pending else { return Ok(PathBuf::new()) };
            let folder = pending.path().join(TRAINER_STATE);
            fs::create_dir(&folder).map_err(io(&folder))?;
            Ok(folder)
        })?;
        let folder = self.ranks.of_main("a folder for the trainer state", &folder)?;
        let (optimizer, parameters) = (&self.optimizer, self.model.parameters());
        let write = || -> Result<Vec<Written>, TrainError> {
            let mut written = written;
            if pending.is_some() || optimizer.is_sharded() {
                written.extend(optimizer.write(parameters, &folder)?);
                let reference = &self.checkpoints.reference;
                if !reference.is_empty() {
                    written.extend(optimizer.write_as(&folder, REFERENCE, reference)?);
                }
            }
            Ok(written)
        };
        let written = if optimizer.is_sharded() {
            // They wait for each other there, and what one cannot write none can.
            self.agree("the optimizer's state is written", write())?
        } else {
            self.together("the optimizer's state is written", write)?
        };
        self.together("the trainer state is written", || match pending {
            Some(pending) => self.write_facts(pending, &state, &written),
            None => Ok(()),
        })
    }

    /// The model, on the rank that has `pending`; where exact weights are in shards the others give theirs. What fails there, others cannot
    /// wait for.
    fn write_model(&self, pending: Option<&PendingFolder>) -> Result<Vec<Written>, TrainError> {
        let of = (self.model.as_ref(), &self.optimizer);
        let write = || match pending {
            Some(pending) => {
                let name = &self.settings.sections.model.model_name_or_path;
                policy::save(of, name, &self.model_dir, pending.path())
            }
            None => policy::help_to_save(of, &self.model_dir).map(|()| Vec::new()),
        };
        let written = if self.optimizer.is_sharded() { Ok(write()?) } else { self.caught(write) };
        self.agree("the model is written", written)
    }

    fn write_facts(
        &self,
        pending: &PendingFolder,
        state: &State,
        written: &[Written],
    ) -> Result<(), TrainError> {
        let folder = pending.path().join(TRAINER_STATE);
        let path = folder.join(STATE);
        let text = serde_json::to_string_pretty(&state)
            .map_err(|error| TrainError::State { cause: error.to_string() })?;
        fs::write(&path, format!("{text}\n")).map_err(io(&path))?;
        let path = folder.join(CONFIG);
        fs::write(&path, &self.checkpoints.config).map_err(io(&path))?;
        let known = |written: &Written| {
            let name = written.path.strip_prefix(pending.path()).ok()?;
            let (bytes, crc32c) = (written.bytes, written.crc32c);
            Some((name.to_str()?.to_owned(), FileSum { bytes, crc32c }))
        };
        let sums: Sums = written.iter().filter_map(known).collect();
        write_sums(pending.path(), sums)?;
        Ok(())
    }

    /// Refuses weights that differ between ranks, which all have whole: what one of them computes is of no use then.
    fn compare_weights(&self) -> Result<(), TrainError> {
        if !self.ranks.are_several() {
            return Ok(());
        }
        let parameters = self.model.parameters();
        let trained = || parameters.list.iter().filter(|parameter| parameter.value.requires_grad());
        let own = self.together("weights to compare", || {
            trained().map(|parameter| digest(&parameter.value)).collect::<Result<Vec<_>, _>>()
        })?;
        let all = self.ranks.of_all("weights to compare", &own)?;
        for (rank, of_rank) in all.iter().enumerate() {
            let differs = of_rank.iter().zip(&all[0]).position(|(a, b)| a != b);
            if let Some(parameter) = differs.and_then(|index| trained().nth(index)) {
                return Err(TrainError::Apart { rank, name: parameter.name.clone() });
            }
        }
        Ok(())
    }

    /// Refuses to save a diverged model: weights, moments or a completion's log-probabilities that are not finite.
    fn refuse_diverged(&self) -> Result<(), TrainError> {
        let Some(what) = self.not_finite()? else {
            return Ok(());
        };
        let newest = self.newest().map(|(_, folder)| folder);
        let way = match newest {
            Some(folder) => format!("{} is from before", folder.display()),
            None => "there is no checkpoint from before".to_owned(),
        };
        Err(TrainError::Diverged { step: self.progress.updated, what, way })
    }

    fn not_finite(&self) -> Result<Option<String>, TrainError> {
        for (name, tensor) in self.optimizer.state(self.model.parameters()) {
            if !is_finite(&tensor)? {
                return Ok(Some(format!("`{name}`")));
            }
        }
        let Some((prompt, completion)) = &self.checkpoints.finite_probe else {
            return Ok(None);
        };
        let model = self.model.as_ref();
        let pass = || -> Result<Tensor, TrainError> {
            let batch = MicroBatch::pack(model, &[(prompt, vec![completion.as_slice()])])?;
            Ok(batch.scores(model, 1.0).logprobs)
        };
        // If even one completion runs out of memory now, finite weights must suffice.
        match catch_oom(model.compute().1, pass)? {
            Ok(logprobs) if !is_finite(&logprobs)? => {
                Ok(Some("the log-probability of an answer".to_owned()))
            }
            _ => Ok(None),
        }
    }

    /// Keeps a completion of this step, to test the weights with before they are saved.
    pub fn keep_finite_probe<'p>(
        &mut self,
        completions: impl Iterator<Item = (&'p Prompt, &'p [u32])>,
    ) {
        let found = completions.filter(|(_, ids)| !ids.is_empty()).min_by_key(|(prompt, ids)| {
            // One with images, so that the tower is tested too; the shortest of them.
            (prompt.images.is_empty(), prompt.ids.len() + ids.len())
        });
        if let Some((prompt, ids)) = found {
            self.checkpoints.finite_probe = Some((prompt.clone(), ids.to_vec()));
        }
    }

    /// Resumes from the newest undamaged one of `checkpoints`; damaged ones after it are set aside.
    ///
    /// # Errors
    /// Where none is whole, and where the run was another one.
    pub(crate) fn resume(&mut self, checkpoints: Vec<(u64, PathBuf)>) -> Result<(), TrainError> {
        let mut damaged = Vec::new();
        for (step, folder) in checkpoints.into_iter().rev() {
            let loaded = match self.load_state(step, &folder) {
                Ok(state) => Ok(Ok(state)),
                Err(TrainError::Damaged { path, cause }) => Ok(Err((path, cause))),
                Err(error) => Err(error),
            };
            let loaded = self.agree("a checkpoint is read", loaded)?;
            // What one rank cannot read, none takes.
            let damage =
                self.ranks.of_all("damage of a checkpoint", &loaded.as_ref().err().cloned())?;
            let damage = damage.into_iter().flatten().next();
            match (loaded, damage) {
                (_, Some((path, cause))) => damaged.push((folder, path, cause)),
                (Err((path, cause)), None) => damaged.push((folder, path, cause)),
                (Ok(state), None) => {
                    self.optimizer.share_weights(self.model.parameters())?;
                    let taken = self.take_up(state, &folder, damaged);
                    return self.agree("a run goes on", taken);
                }
            }
        }
        match damaged.into_iter().next() {
            Some((_, path, cause)) => Err(TrainError::NoWholeCheckpoint { path, cause }),
            None => Ok(()),
        }
    }

    /// Goes on from what [`Self::load_state`] read; damaged checkpoints after it are set aside.
    fn take_up(
        &mut self,
        state: State,
        folder: &Path,
        damaged: Vec<(PathBuf, PathBuf, String)>,
    ) -> Result<(), TrainError> {
        let step = state.step;
        (self.progress.step, self.progress.updated) = (step, step);
        self.checkpoints.saved = Some(step);
        self.checkpoints.resumed = Some((folder.to_path_buf(), state.cursor));
        let is_logged = self.run.write(|folder| folder.is_logged(step))?;
        let is_logged = self.ranks.of_main("a step is logged", &is_logged)?;
        match state.waiting {
            Some(metrics) if !is_logged => {
                self.run.write(|folder| folder.cut_back_to_unlogged(step))?;
                self.run.waiting = Some(metrics);
            }
            _ => self.run.write(|folder| folder.cut_back_to(step))?,
        }
        self.progress.bad_steps = state.bad_steps;
        self.resume_max_tokens(state.lowered_max_tokens);
        for (folder, path, cause) in damaged {
            let aside = self.run.write(|run| run.set_aside(&folder))?;
            self.log(&format!(
                "warning: {}: damaged: {cause}; {} is now {}",
                path.display(),
                folder.display(),
                aside.display()
            ));
        }
        self.log(&format!("resuming after step {step}, {}", folder.display()));
        Ok(())
    }

    fn load_state(&mut self, step: u64, folder: &Path) -> Result<State, TrainError> {
        if self.ranks.world.is_main() {
            self.verify(folder)?;
        }
        let state = read_state(folder, step)?;
        self.compare(&state, folder)?;
        let hint = "a weight frozen so far has no moments, and those of another --optim do not fit; \
             start another run with --model_name_or_path at the checkpoint";
        let saved = SavedTensors::open(&folder.join(TRAINER_STATE), optimizer::FILES, hint)?;
        self.optimizer.restore(self.model.parameters(), &saved)?;
        Ok(state)
    }

    fn verify(&mut self, folder: &Path) -> Result<(), TrainError> {
        if !self.settings.sections.save.verify_checkpoint {
            return Ok(());
        }
        match verify_sums(folder) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.log(&format!(
                    "{}: no `{TRAINER_STATE}/{SUMS}`: taken as it is, damage of its files would not be seen",
                    folder.display()
                ));
                Ok(())
            }
            Err(RunError::Damaged { path, cause }) => Err(TrainError::Damaged { path, cause }),
            Err(RunError::Io { path, source }) => Err(damage(&path, source)),
            Err(other) => Err(other.into()),
        }
    }

    /// Whether the run is the one of the checkpoint.
    fn compare(&self, state: &State, folder: &Path) -> Result<(), TrainError> {
        let mut facts = vec![
            ("rows of the data", state.num_samples, self.checkpoints.num_examples as u64),
            ("`seed`", state.seed, self.settings.sections.optimizer.seed),
        ];
        if let Some(was) = state.shape {
            let is = self.checkpoints.shape;
            facts.push(("completions of an update on all ranks", was.per_update, is.per_update));
            facts.push(("completions of a rollout on all ranks", was.per_rollout, is.per_rollout));
        }
        let mut changes: Vec<String> = facts
            .iter()
            .filter(|(_, was, is)| was != is)
            .map(|(what, was, is)| format!("{what}: was {was}, is {is}"))
            .collect();
        if let Some(was) = state.shape.filter(|_| !changes.is_empty()) {
            let is = self.checkpoints.shape.ranks;
            if was.ranks != is {
                changes.push(format!(
                    "ranks: was {}, is {is}; a step stays the same with another --gradient_accumulation_steps or \
                     --per_device_train_batch_size",
                    was.ranks
                ));
            }
        }
        if changes.is_empty() || self.settings.sections.start.allow_changed {
            return Ok(());
        }
        Err(TrainError::Changed { folder: folder.into(), changes })
    }
}

/// The settings that a checkpoint was made under, where it holds them undamaged.
pub(crate) fn saved_config(folder: &Path) -> Option<String> {
    verify_file(folder, &format!("{TRAINER_STATE}/{CONFIG}")).ok()?;
    let text = read_file(&folder.join(TRAINER_STATE).join(CONFIG)).ok()?;
    String::from_utf8(text).ok()
}

/// What a step was in a checkpoint, where that is known.
pub(crate) fn saved_shape(folder: &Path) -> Option<RunShape> {
    let text = read_file(&folder.join(TRAINER_STATE).join(STATE)).ok()?;
    serde_json::from_slice::<State>(&text).ok()?.shape
}

/// A line for each setting of the run in `folder`, which `yaml` says, that `config` has otherwise and that is not of those that
/// `may_differ`.
pub(crate) fn changes<C: Config>(
    config: &C,
    (path, yaml): (&Path, &str),
    folder: &Path,
    may_differ: &[&str],
) -> Result<Vec<String>, TrainError> {
    // A field that only one of the two commands has.
    for (command, field) in [("grpo", "num_generations"), ("sft", "with_thinking")] {
        let is_of_it = yaml.lines().any(|line| line.starts_with(&format!("{field}:")));
        if is_of_it && !C::FIELDS.iter().any(|known| known.name == field) {
            return Err(TrainError::OtherCommand { folder: folder.into(), command });
        }
    }
    let changes = config::changed_settings(path, yaml, config)?;
    let line = |c: &config::Change| format!("`{}`: was {}, is {}", c.key, c.before, c.now);
    let changes = changes.iter().filter(|change| !may_differ.contains(&change.key));
    Ok(changes.map(line).collect())
}

/// The bytes of a file; of a pipe or a device the reading might never end.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    fs::read(path)
}

fn read_state(folder: &Path, step: u64) -> Result<State, TrainError> {
    let path = folder.join(TRAINER_STATE).join(STATE);
    let text = read_file(&path).map_err(|error| damage(&path, error))?;
    let state: State = serde_json::from_slice(&text).map_err(|error| damage(&path, error))?;
    if state.step != step {
        let cause = format!("expected `step` {step}, got {}", state.step);
        return Err(damage(&path, cause));
    }
    Ok(state)
}

pub(crate) fn damage(path: &Path, cause: impl ToString) -> TrainError {
    TrainError::Damaged { path: path.into(), cause: cause.to_string() }
}

/// Whether all numbers are finite; 8-bit codes and residuals always are.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, TrainError> {
    if !tensor.is_floating_point() {
        return Ok(true);
    }
    let flat = tensor.detach().f_contiguous()?.f_view([-1])?;
    let len = flat.size()[0];
    let mut start = 0;
    // In parts: the mask of a check takes memory too.
    while start < len {
        let count = LOOKED_AT.min(len - start);
        let part = flat.f_narrow(0, start, count)?.f_isfinite()?;
        if !bool::try_from(part.f_all()?)? {
            return Ok(false);
        }
        start += count;
    }
    Ok(true)
}

/// Sums over the bits of all numbers: where one number differs, so does a sum.
fn digest(tensor: &Tensor) -> Result<[i64; 2], TrainError> {
    let flat = tensor.detach().f_contiguous()?.f_view([-1])?;
    let bits = match flat.kind().elt_size_in_bytes() {
        2 => Kind::Int16,
        _ => Kind::Int,
    };
    let (flat, mut sums, mut start) = (flat.f_view_dtype(bits)?, [0_i64; 2], 0);
    while start < flat.size()[0] {
        let count = LOOKED_AT.min(flat.size()[0] - start);
        let part = flat.f_narrow(0, start, count)?.f_to_kind(Kind::Int64)?;
        let squares = part.f_multiply(&part)?.f_sum(Kind::Int64)?;
        let parts = [part.f_sum(Kind::Int64)?, squares];
        for (sum, part) in sums.iter_mut().zip(&parts) {
            *sum = sum.wrapping_add(i64::try_from(part)?);
        }
        start += count;
    }
    Ok(sums)
}

/// Size of the weight files of a model folder.
fn bytes_of_weights(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_weights = path.extension().is_some_and(|e| e == "safetensors");
        is_weights.then(|| fs::metadata(&path).ok().map(|data| data.len()))?
    });
    sizes.sum()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_path_buf();
    move |source| TrainError::Io { path, source }
}
