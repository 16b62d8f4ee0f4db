//! Questions to completions: prompts are loaded ahead of need, completions sampled many at once, and each is
//! handed over when it ends.
//!
//! Draws are keyed by row and completion, so neither the size of a batch nor what was sampled before
//! changes a completion; greedy ties that rounding could turn are counted ([`SampleStats`]).

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use base::{Completion, DrawKey, Example, FinishReason};
use data::{Loaded, LoaderOptions, OnBadRow, Processor, PromptLoader, PromptTemplate};
use engine::{Decoding, EngineError, Generator, Request, SampleStats, SamplingParams};
use eval::completions::{SampledCompletion, Todo};
use models::VisionLanguageModel;
use rewards::ImageSizes;

use crate::AskError;

/// Pixels of prompts that are held for one call of the generator, bytes.
const CHUNK_BYTES: usize = 1 << 30;
/// Prompts that are made ready before they are asked for.
const AHEAD: usize = 64;

/// How questions are put and completions drawn.
#[derive(Clone, Debug)]
pub struct AskOptions {
    /// What stands round a question.
    pub template: PromptTemplate,
    /// How tokens are chosen; ids that end a completion or are forbidden are the tokenizer's.
    pub sampling: SamplingParams,
    /// Completions sampled at the same time.
    pub max_concurrent: usize,
    /// How they are decoded.
    pub decoding: Decoding,
    /// Threads that load images.
    pub workers: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Receives completions.
pub trait Sink {
    /// A completion has ended.
    ///
    /// # Errors
    /// Ends the run.
    fn completion(&mut self, completion: SampledCompletion) -> Result<(), AskError>;

    /// A row cannot be asked.
    ///
    /// # Errors
    /// Ends the run.
    fn bad(&mut self, row: usize, cause: String) -> Result<(), AskError>;

    /// A call of the generator is over, after so many seconds.
    ///
    /// # Errors
    /// Ends the run.
    fn sampled(&mut self, _stats: &SampleStats, _secs: f64) -> Result<(), AskError> {
        Ok(())
    }
}

/// Asks models questions.
pub struct Runner {
    processor: Arc<Processor>,
    options: AskOptions,
}

/// A row that is ready to be asked.
struct Ready {
    row: usize,
    first: usize,
    request: Request,
}

impl Runner {
    /// A runner for models that `processor` belongs to.
    pub fn new(processor: Arc<Processor>, options: AskOptions) -> Self {
        Self { processor, options }
    }

    /// Lets `model` give the completions of `todo` about `examples`. `cancel` is asked on the way.
    ///
    /// # Errors
    /// A failure of sampling or of the sink; [`engine::EngineError::Cancelled`]. Completions handed over
    /// before stand.
    pub fn run(
        &self,
        model: &dyn VisionLanguageModel,
        examples: &Arc<[Example]>,
        todo: &[Todo],
        sink: &mut dyn Sink,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), AskError> {
        let generator = Generator::new(model, self.sampling(), self.options.max_concurrent)?
            .with_decoding(self.options.decoding)?;
        let order: Vec<usize> = todo.iter().map(|todo| todo.place).collect();
        let options = LoaderOptions {
            workers: self.options.workers,
            ahead: AHEAD,
            cache_bytes: 0,
            on_bad_row: OnBadRow::Skip,
            digests: model.features().is_some(),
        };
        let mut loader = PromptLoader::new(
            Arc::clone(examples),
            Arc::clone(&self.processor),
            self.options.template.clone(),
            order.into_iter(),
            options,
        )?;
        let mut todo = todo.iter();
        loop {
            let ready = self.chunk(&mut loader, &mut todo, sink, cancel)?;
            if ready.is_empty() {
                return Ok(());
            }
            self.ask(&generator, ready, sink, cancel)?;
        }
    }

    fn sampling(&self) -> SamplingParams {
        let tokenizer = self.processor.tokenizer();
        SamplingParams {
            eos_ids: tokenizer.eos_ids().to_vec(),
            forbidden_ids: tokenizer.placeholder_ids().to_vec(),
            ..self.options.sampling.clone()
        }
    }

    /// Requests for a few batches, but for no more images than fit in memory.
    fn chunk(
        &self,
        loader: &mut PromptLoader,
        todo: &mut std::slice::Iter<'_, Todo>,
        sink: &mut dyn Sink,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Ready>, AskError> {
        let (mut ready, mut num_completions, mut bytes) = (Vec::new(), 0, 0);
        while num_completions < 4 * self.options.max_concurrent && bytes < CHUNK_BYTES {
            // Images may take long.
            if cancel() {
                let (finished, total) = (0, num_completions);
                return Err(EngineError::Cancelled { finished, total }.into());
            }
            let (Some(todo), Some(loaded)) = (todo.next(), loader.next()) else {
                break;
            };
            let prompt = match loaded? {
                Loaded::Ready { prompt, .. } => prompt,
                Loaded::Skipped { row, .. } => {
                    sink.bad(todo.row, row.cause.to_string())?;
                    continue;
                }
            };
            let pixels = prompt.images.iter();
            bytes += pixels.map(|i| size_of_val(&i.pixel_values[..])).sum::<usize>();
            for range in &todo.completions {
                num_completions += range.len();
                let request = Request {
                    prompt: prompt.clone(),
                    num_completions: range.len(),
                    key: self.key(todo.row, range.start),
                };
                let (row, first) = (todo.row, range.start);
                ready.push(Ready { row, first, request });
            }
        }
        Ok(ready)
    }

    fn key(&self, row: usize, completion_index: usize) -> DrawKey {
        DrawKey {
            seed: self.options.seed,
            step: 0,
            prompt: row as u64,
            completion: completion_index as u64,
        }
    }

    fn ask(
        &self,
        generator: &Generator<'_>,
        ready: Vec<Ready>,
        sink: &mut dyn Sink,
        cancel: &dyn Fn() -> bool,
    ) -> Result<(), AskError> {
        let mut places = Vec::with_capacity(ready.len());
        let mut requests = Vec::with_capacity(ready.len());
        for Ready { row, first, request } in ready {
            places.push((row, first));
            requests.push(request);
        }
        let failed: RefCell<Option<AskError>> = RefCell::new(None);
        let mut on_finished = |request: usize, index: usize, completion: &Completion| {
            let (row, first) = places[request];
            let sampled =
                self.sampled_completion(&requests[request], completion, [row, first + index]);
            if let Err(error) = sampled.and_then(|sampled| sink.completion(sampled)) {
                failed.borrow_mut().get_or_insert(error);
            }
        };
        let start = Instant::now();
        let sampled = generator
            .generate(&requests, &mut on_finished, &|| cancel() || failed.borrow().is_some());
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        sink.sampled(&sampled?.stats, start.elapsed().as_secs_f64())
    }

    fn sampled_completion(
        &self,
        request: &Request,
        completion: &Completion,
        [row, completion_index]: [usize; 2],
    ) -> Result<SampledCompletion, AskError> {
        let images = &request.prompt.images;
        let sizes = images
            .iter()
            .map(|image| ImageSizes { original: image.original_size, input: image.input_size });
        let ends = usize::from(completion.finish_reason == FinishReason::Stop);
        Ok(SampledCompletion {
            row,
            completion_index,
            text: self.processor.tokenizer().decode(&completion.ids, true)?,
            tokens: completion.ids.len() - ends,
            finish_reason: completion.finish_reason,
            sizes: sizes.collect(),
            image_grid_thw: images.iter().map(|image| image.layout.tiles[0]).collect(),
        })
    }
}
