//! `--eval_config`: evaluations of the policy as `eval` makes them, one folder and some metrics each.

use base::console::count;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base::model_folder::read_family;
use base::run_folder::ResultFolder;
use config::{
    Config, CudaGraphs, DType, EvalConfig, GrpoConfig, NamedEvaluation, SftConfig,
    TrainingSections, read_evaluations,
};
use data::{DataFamily, Processor};
use engine::EngineError;
use eval::{Evaluation, Outcome};
use eval_runner::{AskError, Kept};
use pages::eval as page;
use train::{EvalMetrics, PolicyAt, ResultsAt};

use crate::commands::eval::{EvalProgress, TrainedAs, Warned, name_odd_rows};
use crate::model::ModelOptions;

/// Between two lines on how far an evaluation is, where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// What the commands that train have in common.
pub struct Run {
    /// The settings that both have.
    pub sections: TrainingSections,
    /// What an evaluation has from the run.
    settings: EvalConfig,
    /// How the run asks: an evaluation that does not say otherwise asks the same.
    trained_as: Option<TrainedAs>,
}

impl From<&GrpoConfig> for Run {
    fn from(config: &GrpoConfig) -> Self {
        Self::new(config.training(), config, config.rollout.cuda_graphs)
    }
}

impl From<&SftConfig> for Run {
    fn from(config: &SftConfig) -> Self {
        Self::new(config.training(), config, CudaGraphs::Auto)
    }
}

/// What an evaluation has from the run.
fn settings_of(sections: &TrainingSections, cuda_graphs: CudaGraphs) -> EvalConfig {
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
        c.machine.fast_paths.clone_from(&machine.fast_paths);
        c.decoding.cuda_graphs = cuda_graphs;
    })
}

impl Run {
    fn new(sections: TrainingSections, config: &impl Config, cuda_graphs: CudaGraphs) -> Self {
        Self {
            settings: settings_of(&sections, cuda_graphs),
            trained_as: TrainedAs::of_run(&sections.run.output_dir, config),
            sections,
        }
    }

    /// The evaluations that the run asks for.
    ///
    /// # Errors
    /// A file that cannot be read, or that asks for what makes no sense.
    pub fn read_evaluations(&self) -> Result<Vec<NamedEvaluation>> {
        let Some(path) = self.sections.eval.eval_config.as_deref().map(Path::new) else {
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
    pub fn open(run: &Run, folder: &Path) -> Result<Self> {
        let set_up = |named: NamedEvaluation| -> Result<_> {
            let place = || format!("evaluation `{}`", named.name);
            let evaluation = Self::set_up(run, folder, &named).with_context(place)?;
            let questions = evaluation.questions();
            let asked = count(questions.rows.len() as u64, "question");
            base::say!("{}: {asked}", place());
            name_odd_rows(questions);
            let mut warned = Warned::default();
            warned.log(&evaluation.doubts(), &format!("{}: ", place()));
            Ok(Named { named, evaluation, warned })
        };
        let list = run.read_evaluations()?.into_iter().map(set_up);
        Ok(Self {
            list: list.collect::<Result<_>>()?,
            output_dir: run.sections.run.output_dir.clone(),
        })
    }

    fn set_up(run: &Run, folder: &Path, named: &NamedEvaluation) -> Result<Evaluation> {
        let mut config = named.config.clone();
        let trained_as = run.trained_as.as_ref();
        let model_type = read_family(folder)?;
        let texts = DataFamily::of(&model_type);
        let following = trained_as.map(|trained_as| trained_as.lay_under(&mut config, texts));
        let config = &config;
        let processor = Processor::from_dir(folder, &ModelOptions::from(config).processor)?;
        let family = rewards::family_of(&model_type);
        // Where `grpo` keeps the replies of its own judge.
        let output_dir = Path::new(&run.sections.run.output_dir);
        let mut evaluation = eval_runner::set_up(config, output_dir, Arc::new(processor), family)?;
        if let Some(following) = following {
            following.log(&format!("evaluation `{}`: ", named.name));
            evaluation.note_training(following.to_json());
        }
        Ok(evaluation)
    }

    /// Evaluates the policy; `None` where the run is to end.
    ///
    /// # Errors
    /// A reward that fails, a metric without a value, a full disk.
    pub fn run(&mut self, policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>> {
        let mut metrics = EvalMetrics::new();
        let model = format!("{} after step {}", self.output_dir, policy.step);
        for one in &mut self.list {
            let name = &one.named.name;
            if let Some(results) = policy.results {
                one.evaluation.label(model.clone(), &results.name.join(name));
            }
            let asked = run_one(&one.named, &one.evaluation, policy);
            // The next one is begun by all ranks or by none.
            let failed = policy.world.any(&format!("evaluation `{name}`"), asked.is_err())?;
            let outcome = match asked.with_context(|| format!("evaluation `{name}`"))? {
                Asked::Stopped => return Ok(None),
                Asked::Elsewhere if failed => bail!("evaluation `{name}` failed on another rank"),
                Asked::Elsewhere => continue,
                Asked::Here(outcome) => outcome,
            };
            let label = format!("evaluation `{name}`, step {}: ", policy.step);
            one.warned.log(&outcome.warnings, &label);
            let points = outcome.summary.points().into_iter();
            metrics.extend(points.map(|(metric, value)| (format!("{name}/{metric}"), value)));
        }
        Ok(Some(metrics))
    }
}

/// How an evaluation ended on this rank.
enum Asked {
    Stopped,
    /// Rank 0 has the answers.
    Elsewhere,
    Here(Box<Outcome>),
}

fn run_one(
    named: &NamedEvaluation,
    evaluation: &Evaluation,
    policy: &PolicyAt<'_>,
) -> Result<Asked> {
    let open = |results: ResultsAt<'_>| -> Result<_> {
        let folder = ResultFolder::open(results.folder.join(&named.name))?;
        let store = evaluation.open(&folder)?;
        Ok((folder, store))
    };
    let opened = policy.results.map(open).transpose();
    if policy.world.any("opening an evaluation", opened.is_err())? {
        opened?;
        bail!("rank 0 cannot open the folder of its results");
    }
    let mut opened = opened?;
    let label = format!("step {}, {}: ", policy.step, named.name);
    let done = opened.as_ref().map_or(0, |(_, store)| store.len());
    let mut progress = EvalProgress::new(done, label, PAUSE);
    let stop = || policy.stop.is_raised();
    let kept = opened.as_mut().map(|(folder, store)| Kept { folder, store });
    let sampled = eval_runner::sample_missing(
        policy.world,
        evaluation,
        policy.model,
        kept,
        &mut progress,
        &stop,
    );
    progress.finish();
    match sampled {
        Err(AskError::Engine(EngineError::Cancelled { .. })) => return Ok(Asked::Stopped),
        sampled => sampled?,
    }
    let Some((folder, store)) = opened else { return Ok(Asked::Elsewhere) };
    let outcome = evaluation.finish(&folder, &store)?;
    let page = folder.path().join(page::REPORT);
    page::write(&page, &outcome, named.config.run.html_rows)?;
    Ok(Asked::Here(Box::new(outcome)))
}
