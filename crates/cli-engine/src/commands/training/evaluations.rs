//! `--eval_config`: evaluations of the policy as `eval` makes them, one folder and some figures each.

use base::console::count;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use base::model_folder::read_family;
use base::run_folder::ResultFolder;
use config::{
    DType, EvalConfig, GrpoConfig, NamedEvaluation, SftConfig, TrainingSections, read_evaluations,
};
use data::Processor;
use engine::EngineError;
use eval::{Evaluation, Outcome};
use eval_runner::AskError;
use pages::eval as page;
use train::{EvalMetrics, PolicyAt};

use crate::commands::eval::{Answers, TrainedAs, Warned, name_odd_rows};
use crate::model::Choice;

/// Between two lines on how far an evaluation is, where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// What the commands that train have in common.
pub struct Run<'a> {
    /// Name of the run.
    pub name: Option<&'a str>,
    /// The model that it starts from.
    pub model: &'a str,
    /// Of it, on the hub.
    pub revision: Option<&'a str>,
    output_dir: &'a str,
    eval_config: Option<&'a str>,
    /// What an evaluation has from the run.
    settings: EvalConfig,
    /// How the run asks: an evaluation that does not say otherwise asks the same.
    trained_as: Option<TrainedAs>,
}

impl<'a> From<&'a GrpoConfig> for Run<'a> {
    fn from(config: &'a GrpoConfig) -> Self {
        Self {
            trained_as: TrainedAs::grpo(config),
            name: config.run.run_name.as_deref(),
            model: &config.model.model_name_or_path,
            revision: config.model.model_revision.as_deref(),
            output_dir: &config.run.output_dir,
            eval_config: config.eval.eval_config.as_deref(),
            settings: settings_of(&config.training(), config.rollout.cuda_graphs),
        }
    }
}

impl<'a> From<&'a SftConfig> for Run<'a> {
    fn from(config: &'a SftConfig) -> Self {
        Self {
            trained_as: TrainedAs::sft(config),
            name: config.run.run_name.as_deref(),
            model: &config.model.model_name_or_path,
            revision: config.model.model_revision.as_deref(),
            output_dir: &config.run.output_dir,
            eval_config: config.eval.eval_config.as_deref(),
            settings: settings_of(&config.training(), false),
        }
    }
}

/// What an evaluation has from the run.
fn settings_of(sections: &TrainingSections, cuda_graphs: bool) -> EvalConfig {
    let TrainingSections { model, data, run, machine, .. } = sections;
    EvalConfig::default().with(|c| {
        c.asked.model = Some(model.model_name_or_path.clone());
        c.asked.image_processor = Some(data.image_processor);
        c.run.output_dir = Some(run.output_dir.clone());
        c.load.dtype = if model.bf16 { DType::BFloat16 } else { DType::Float32 };
        c.load.apply_exif = data.apply_exif;
        c.load.follow_links = data.follow_links;
        c.load.max_pixels = Some(data.max_pixels);
        c.load.min_pixels = Some(data.min_pixels);
        c.machine.device = machine.device.clone();
        c.machine.num_threads = machine.num_threads;
        c.decoding.cuda_graphs = cuda_graphs;
    })
}

impl Run<'_> {
    /// The evaluations that the run asks for.
    ///
    /// # Errors
    /// A file that cannot be read, or that asks for what makes no sense.
    pub fn read_evaluations(&self) -> Result<Vec<NamedEvaluation>> {
        let Some(path) = self.eval_config.map(Path::new) else {
            return Ok(Vec::new());
        };
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("{}", path.display()))?;
        Ok(read_evaluations(path, &text, &self.settings)?)
    }
}

/// One of them.
struct Named {
    named: NamedEvaluation,
    evaluation: Evaluation,
    warned: Warned,
}

/// Evaluations that are set up: their questions are read, their rewards started.
pub struct Evaluations {
    list: Vec<Named>,
    output_dir: String,
}

impl Evaluations {
    /// Sets them up for the model of `folder`.
    ///
    /// # Errors
    /// Settings and files that cannot be used.
    pub fn open(run: &Run<'_>, folder: &Path) -> Result<Self> {
        let set_up = |named: NamedEvaluation| -> Result<_> {
            let place = || format!("evaluation `{}`", named.name);
            let evaluation = Self::set_up(run, folder, &named).with_context(place)?;
            let questions = evaluation.questions();
            let asked = count(questions.rows.len() as u64, "question");
            base::say!("{}: {asked}", place());
            name_odd_rows(questions);
            let mut warned = Warned::default();
            warned.say(&evaluation.doubts(), &format!("{}: ", place()));
            Ok(Named { named, evaluation, warned })
        };
        let list = run.read_evaluations()?.into_iter().map(set_up);
        Ok(Self { list: list.collect::<Result<_>>()?, output_dir: run.output_dir.to_owned() })
    }

    fn set_up(run: &Run<'_>, folder: &Path, named: &NamedEvaluation) -> Result<Evaluation> {
        let mut config = named.config.clone();
        let trained_as = run.trained_as.as_ref();
        let following = trained_as.map(|trained_as| trained_as.lay_under(&mut config));
        let config = &config;
        let processor = Processor::from_dir(folder, &Choice::from(config).processor)?;
        let family = rewards::family_of(&read_family(folder)?)?;
        // Where `grpo` keeps the replies of its own judge.
        let output_dir = Path::new(run.output_dir);
        let mut evaluation = eval_runner::set_up(config, output_dir, Arc::new(processor), family)?;
        if let Some(following) = following {
            following.say(&format!("evaluation `{}`: ", named.name));
            evaluation.note_training(following.to_json());
        }
        Ok(evaluation)
    }

    /// Evaluates the policy; `None` where the run is to end.
    ///
    /// # Errors
    /// A reward that fails, a figure without a value, a full disk.
    pub fn run(&mut self, policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>> {
        let mut figures = EvalMetrics::new();
        let model = format!("{} after step {}", self.output_dir, policy.step);
        for one in &mut self.list {
            let name = &one.named.name;
            one.evaluation.label(model.clone(), &policy.name.join(name));
            let outcome = run_one(&one.named, &one.evaluation, policy);
            let Some(outcome) = outcome.with_context(|| format!("evaluation `{name}`"))? else {
                return Ok(None);
            };
            let label = format!("evaluation `{name}`, step {}: ", policy.step);
            one.warned.say(&outcome.warnings, &label);
            let points = outcome.summary.points().into_iter();
            figures.extend(points.map(|(figure, value)| (format!("{name}/{figure}"), value)));
        }
        Ok(Some(figures))
    }
}

fn run_one(
    named: &NamedEvaluation,
    evaluation: &Evaluation,
    policy: &PolicyAt<'_>,
) -> Result<Option<Outcome>> {
    let folder = ResultFolder::open(policy.folder.join(&named.name))?;
    let mut store = evaluation.open(&folder)?;
    let label = format!("step {}, {}: ", policy.step, named.name);
    let mut progress = Answers::new(store.len(), label, PAUSE);
    let stop = || policy.stop.is_raised();
    let answered =
        eval_runner::answer(evaluation, policy.model, &folder, &mut store, &mut progress, &stop);
    progress.finish();
    match answered {
        Err(AskError::Engine(EngineError::Cancelled { .. })) => return Ok(None),
        answered => answered?,
    }
    let outcome = evaluation.finish(&folder, &store)?;
    let page = folder.path().join(page::REPORT);
    page::write(&page, &outcome, named.config.run.html_rows)?;
    Ok(Some(outcome))
}
