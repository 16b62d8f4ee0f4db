//! Samples the completions that the folder of an evaluation lacks, and keeps them as they come.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use base::Example;
use base::run_folder::ResultFolder;
use base::world::World;
use config::EvalConfig;
use data::Processor;
use engine::{Decoding, EngineError, SampleStats, SamplingParams};
use eval::completions::{CompletionStore, SAMPLING, SampledCompletion, SamplingCounts, Todo};
use eval::questions::Questions;
use eval::{EvalError, Evaluation};
use models::VisionLanguageModel;
use rewards::RewardFamily;
use serde_json::json;

use crate::AskError;
use crate::dealt;
use crate::runner::{AskOptions, Runner, Sink};

/// Told how far an evaluation is.
pub trait Progress {
    /// So many completions of so many are there.
    fn on_completion(&mut self, done: usize, total: usize);
    /// A row cannot be asked.
    fn on_bad(&mut self, place: &str, cause: &str);
}

/// As [`Evaluation::new`]; that the device can decode as asked is found out before a model is loaded, too.
///
/// # Errors
/// As [`Evaluation::new`], and a device that is not there.
pub fn set_up(
    config: &EvalConfig,
    folder: &Path,
    processor: Arc<Processor>,
    family: RewardFamily,
) -> Result<Evaluation, AskError> {
    let evaluation = Evaluation::new(config, folder, processor, family)?;
    decoding(config)?;
    Ok(evaluation)
}

/// Where completions are kept, on the rank that keeps them.
pub struct Kept<'a> {
    /// The folder of the evaluation.
    pub folder: &'a ResultFolder,
    /// What is there.
    pub store: &'a mut CompletionStore,
}

/// Lets `model` give the completions that are missing, on all ranks of `world`: rank 0 says which, and keeps them in `kept`. Rows that turn
/// out bad on the way are noted there.
///
/// # Errors
/// A failure of sampling or of the disk on any rank; [`engine::EngineError::Cancelled`] on all where `cancel` says so on one.
pub fn sample_missing(
    world: &dyn World,
    evaluation: &Evaluation,
    model: &dyn VisionLanguageModel,
    kept: Option<Kept<'_>>,
    progress: &mut dyn Progress,
    cancel: &dyn Fn() -> bool,
) -> Result<(), AskError> {
    let num_samples = evaluation.config().sampling.num_samples;
    let questions = evaluation.questions();
    let todo = kept.as_ref().map(|kept| kept.store.todo(questions, num_samples));
    let good = questions.rows.iter();
    let good: Arc<[Example]> = good.filter_map(|q| q.example.as_ref().ok().cloned()).collect();
    let runner = Runner::new(Arc::clone(evaluation.processor()), ask_options(evaluation)?);
    let mut sink = kept.map(|Kept { folder, store }| {
        let missing = todo.iter().flatten().flat_map(|todo| &todo.completions);
        let missing: usize = missing.map(Range::len).sum();
        FolderSink { questions, total: store.len() + missing, log: folder, store, progress }
    });
    let ask = |todo: &[Todo], sink: &mut dyn Sink| runner.run(model, &good, todo, sink, cancel);
    match &mut sink {
        Some(sink) if world.size() == 1 => ask(&todo.unwrap_or_default(), sink),
        sink => {
            let sink = sink.as_mut().map(|sink| sink as &mut dyn Sink);
            let at_once = 4 * evaluation.config().decoding.max_concurrent_completions;
            dealt::ask(world, todo, at_once, ask, sink)
        }
    }
}

fn ask_options(evaluation: &Evaluation) -> Result<AskOptions, AskError> {
    let config = evaluation.config();
    Ok(AskOptions {
        template: evaluation.template()?,
        sampling: SamplingParams {
            temperature: config.sampling.temperature,
            top_k: Some(config.filters.top_k).filter(|top_k| *top_k > 0),
            top_p: config.filters.top_p,
            min_p: config.filters.min_p.unwrap_or_default(),
            repetition_penalty: config.filters.repetition_penalty,
            max_new_tokens: config.sampling.max_new_tokens.unwrap_or_default(),
            ..SamplingParams::default()
        },
        max_concurrent: config.decoding.max_concurrent_completions,
        decoding: decoding(config)?,
        workers: config.decoding.dataloader_num_workers.max(1),
        seed: config.decoding.seed,
    })
}

fn decoding(config: &EvalConfig) -> Result<Decoding, AskError> {
    let device = torch::parse_device(&config.machine.device).map_err(EngineError::from)?;
    Ok(Decoding::new(config.decoding.cuda_graphs.asked(), device)?)
}

/// Keeps completions in a folder.
struct FolderSink<'a> {
    questions: &'a Questions,
    total: usize,
    log: &'a ResultFolder,
    store: &'a mut CompletionStore,
    progress: &'a mut dyn Progress,
}

impl Sink for FolderSink<'_> {
    fn completion(&mut self, completion: SampledCompletion) -> Result<(), AskError> {
        self.store.add(completion, self.questions)?;
        self.progress.on_completion(self.store.len(), self.total);
        Ok(())
    }

    fn bad(&mut self, row: usize, cause: String) -> Result<(), AskError> {
        self.progress.on_bad(&self.questions.rows[row].place, &cause);
        self.store.note_bad(row, cause);
        Ok(())
    }

    fn sampled(&mut self, stats: &SampleStats, secs: f64) -> Result<(), AskError> {
        let counts =
            SamplingCounts { tokens: stats.tokens, boundary_draws: stats.boundary_draws, secs };
        self.log
            .append(SAMPLING)
            .and_then(|mut lines| lines.write(&json!(counts)))
            .map_err(EvalError::from)?;
        Ok(())
    }
}
