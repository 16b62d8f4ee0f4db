//! [`eval::rec`] asked of models: questions about one image each, whose completions are boxes.

use std::sync::Arc;

use base::Example;
use config::Extractor;
use data::processor::Processor;
use data::template::PromptTemplate;
use engine::{Decoding, SamplingParams};
use eval::completions::{SampledCompletion, Todo};
use eval::rec::{BoxReader, CORRECT_ABOVE, RecCompletion, RecEvaluation};
use eval::{EvalError, true_boxes};
use models::VisionLanguageModel;
use rewards::RewardFamily;
use rewards::boxes::BoundingBox;
use serde_json::Value;

use crate::AskError;
use crate::runner::{AskOptions, Runner, Sink};

/// Threads that load images.
const WORKERS: usize = 2;

/// How questions are put and completions drawn.
#[derive(Clone, Debug)]
pub struct RecOptions {
    /// What stands round a question; VLM-R1 evaluates with the template of `rec`.
    pub template: PromptTemplate,
    /// 0 is greedy, as VLM-R1 evaluates.
    pub temperature: f64,
    /// Completions to each question.
    pub completions_per_question: usize,
    /// Longest completion, tokens; VLM-R1 allows 256.
    pub max_new_tokens: usize,
    /// Completions sampled at the same time.
    pub max_concurrent: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Evaluates models of one family on one set of rows.
pub struct RecEvaluator {
    examples: Arc<[Example]>,
    truths: Vec<BoundingBox>,
    processor: Arc<Processor>,
    reader: BoxReader,
    family: RewardFamily,
    options: RecOptions,
}

impl RecEvaluator {
    /// An evaluator of `examples`, whose solutions are boxes; `processor` and `family` are the
    /// models' own.
    ///
    /// # Errors
    /// No rows, no completions asked for, a row that is not one image with a box.
    pub fn new(
        examples: &[Example],
        processor: Arc<Processor>,
        family: RewardFamily,
        options: RecOptions,
    ) -> Result<Self, EvalError> {
        if examples.is_empty() {
            return Err(EvalError::NoRows);
        }
        if options.completions_per_question == 0 {
            return Err(EvalError::NoCompletions);
        }
        if let Some(example) = examples.iter().find(|example| example.images.len() != 1) {
            let cause = format!("expected one image, got {}", example.images.len());
            return Err(EvalError::Row { line: example.source.to_string(), cause });
        }
        let patch_size = processor.image_processor().kind().patch_size() as usize;
        Ok(Self {
            truths: true_boxes(examples)?,
            examples: examples.into(),
            processor,
            reader: BoxReader::new(Extractor::Thinking, family, patch_size)?,
            family,
            options,
        })
    }

    /// Lets `model` answer every question. `progress` hears of completions done and in all; `cancel` is
    /// asked on the way.
    ///
    /// # Errors
    /// An image that cannot be read, a prompt that does not fit, a failure of sampling.
    pub fn evaluate(
        &self,
        model: &dyn VisionLanguageModel,
        progress: &mut dyn FnMut(usize, usize),
        cancel: &dyn Fn() -> bool,
    ) -> Result<RecEvaluation, AskError> {
        let per_question = self.options.completions_per_question;
        let todo =
            |row| Todo { row, place: row, completions: std::iter::once(0..per_question).collect() };
        let todo: Vec<Todo> = (0..self.examples.len()).map(todo).collect();
        let mut sink = CompletionSink {
            evaluator: self,
            completions: Vec::with_capacity(todo.len() * per_question),
            progress,
        };
        let runner = Runner::new(Arc::clone(&self.processor), self.ask_options());
        runner.run(model, &self.examples, &todo, &mut sink, cancel)?;
        let mut completions = sink.completions;
        completions.sort_by_key(|(at, _)| *at);
        Ok(RecEvaluation {
            completions: completions.into_iter().map(|(_, completion)| completion).collect(),
            completions_per_question: per_question,
        })
    }

    fn ask_options(&self) -> AskOptions {
        AskOptions {
            template: self.options.template.clone(),
            sampling: SamplingParams {
                temperature: self.options.temperature,
                max_new_tokens: self.options.max_new_tokens,
                ..SamplingParams::default()
            },
            max_concurrent: self.options.max_concurrent,
            decoding: Decoding::default(),
            workers: WORKERS,
            seed: self.options.seed,
        }
    }

    fn score(&self, completion: SampledCompletion) -> Result<RecCompletion, EvalError> {
        let row = completion.row;
        let (example, truth, sizes) = (&self.examples[row], self.truths[row], completion.sizes[0]);
        let read = self.reader.read(&completion.text, truth, self.family.boxes, sizes)?;
        let [width, height] = sizes.input;
        let [image_width, image_height] = sizes.original;
        Ok(RecCompletion {
            image: image_name(example),
            question: example.problem.clone(),
            ground_truth: truth.into(),
            input_size: [height, width],
            image_size: [image_height, image_width],
            extracted_answer: read.found.map_or([0.0; 4], Into::into),
            correct: u8::from(read.iou > CORRECT_ABOVE),
            iou: read.iou,
            well_formed: read.well_formed,
            iou_anywhere: read.iou_anywhere,
            row,
            model_output: completion.text,
        })
    }
}

/// The completions of a run, each with its place.
struct CompletionSink<'a> {
    evaluator: &'a RecEvaluator,
    completions: Vec<((usize, usize), RecCompletion)>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Sink for CompletionSink<'_> {
    fn completion(&mut self, completion: SampledCompletion) -> Result<(), AskError> {
        let place = (completion.row, completion.completion_index);
        self.completions.push((place, self.evaluator.score(completion)?));
        let evaluator = self.evaluator;
        let total = evaluator.examples.len() * evaluator.options.completions_per_question;
        (self.progress)(self.completions.len(), total);
        Ok(())
    }

    fn bad(&mut self, row: usize, cause: String) -> Result<(), AskError> {
        let line = self.evaluator.examples[row].source.to_string();
        Err(EvalError::Row { line, cause }.into())
    }
}

fn image_name(example: &Example) -> String {
    match example.columns.get("image").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => example.images[0].display().to_string(),
    }
}
