//! [`eval::rec`] asked of models: questions about one image each, whose answers are boxes.

use std::sync::Arc;

use base::Example;
use config::Extractor;
use data::processor::Processor;
use data::template::PromptTemplate;
use engine::{Decoding, SamplingParams};
use eval::answers::{Answer, Todo};
use eval::rec::{BoxReader, CORRECT_ABOVE, RecAnswer, RecEvaluation};
use eval::{EvalError, true_boxes};
use models::VisionLanguageModel;
use rewards::boxes::BoundingBox;
use rewards::{BoxFormat, Family};
use serde_json::Value;

use crate::AskError;
use crate::runner::{AskOptions, Runner, Sink};

/// Threads that load images.
const WORKERS: usize = 2;

/// How questions are put and answers drawn.
#[derive(Clone, Debug)]
pub struct RecOptions {
    /// What stands round a question; VLM-R1 evaluates with the template of `rec`.
    pub template: PromptTemplate,
    /// 0 is greedy, as VLM-R1 evaluates.
    pub temperature: f64,
    /// Answers to each question.
    pub answers_per_question: usize,
    /// Longest answer, tokens; VLM-R1 allows 256.
    pub max_new_tokens: usize,
    /// Answers sampled at the same time.
    pub max_concurrent: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Evaluates models of one family on one set of rows.
pub struct RecEvaluator {
    samples: Arc<[Example]>,
    truths: Vec<BoundingBox>,
    processor: Arc<Processor>,
    reader: BoxReader,
    options: RecOptions,
}

impl RecEvaluator {
    /// An evaluator of `samples`, whose solutions are boxes; `processor` is the models' own.
    ///
    /// # Errors
    /// No rows, no answers asked for, a row that is not one image with a box.
    pub fn new(
        samples: &[Example],
        processor: Arc<Processor>,
        options: RecOptions,
    ) -> Result<Self, EvalError> {
        if samples.is_empty() {
            return Err(EvalError::NoRows);
        }
        if options.answers_per_question == 0 {
            return Err(EvalError::NoAnswers);
        }
        if let Some(sample) = samples.iter().find(|sample| sample.images.len() != 1) {
            let cause = format!("expected one image, got {}", sample.images.len());
            return Err(EvalError::Row { line: sample.source.to_string(), cause });
        }
        let patch_size = processor.image_processor().config().patch_size as usize;
        Ok(Self {
            truths: true_boxes(samples)?,
            samples: samples.into(),
            processor,
            reader: BoxReader::new(Extractor::Thinking, Family::Qwen2_5Vl, patch_size)?,
            options,
        })
    }

    /// Lets `model` answer every question. `progress` hears of answers done and in all; `cancel` is
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
        let per_question = self.options.answers_per_question;
        let todo =
            |row| Todo { row, place: row, answers: std::iter::once(0..per_question).collect() };
        let todo: Vec<Todo> = (0..self.samples.len()).map(todo).collect();
        let mut answers = Answers {
            evaluator: self,
            answers: Vec::with_capacity(todo.len() * per_question),
            progress,
        };
        let runner = Runner::new(Arc::clone(&self.processor), self.ask_options());
        runner.run(model, &self.samples, &todo, &mut answers, cancel)?;
        let mut answers = answers.answers;
        answers.sort_by_key(|(at, _)| *at);
        Ok(RecEvaluation {
            answers: answers.into_iter().map(|(_, answer)| answer).collect(),
            answers_per_question: per_question,
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

    fn score(&self, answer: Answer) -> Result<RecAnswer, EvalError> {
        let row = answer.row;
        let (sample, truth, sizes) = (&self.samples[row], self.truths[row], answer.sizes[0]);
        let units = BoxFormat::ModelInput;
        let read = self.reader.read(&answer.text, truth, units, sizes)?;
        let [width, height] = sizes.input;
        let [image_width, image_height] = sizes.original;
        Ok(RecAnswer {
            image: image_name(sample),
            question: sample.problem.clone(),
            ground_truth: truth.into(),
            input_size: [height, width],
            image_size: [image_height, image_width],
            extracted_answer: read.found.map_or([0.0; 4], Into::into),
            correct: u8::from(read.iou > CORRECT_ABOVE),
            iou: read.iou,
            well_formed: read.well_formed,
            iou_anywhere: read.iou_anywhere,
            row,
            model_output: answer.text,
        })
    }
}

/// The answers of a run, each with its place.
struct Answers<'a> {
    evaluator: &'a RecEvaluator,
    answers: Vec<((usize, usize), RecAnswer)>,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Sink for Answers<'_> {
    fn answer(&mut self, answer: Answer) -> Result<(), AskError> {
        let place = (answer.row, answer.sample);
        self.answers.push((place, self.evaluator.score(answer)?));
        let evaluator = self.evaluator;
        let total = evaluator.samples.len() * evaluator.options.answers_per_question;
        (self.progress)(self.answers.len(), total);
        Ok(())
    }

    fn bad(&mut self, row: usize, cause: String) -> Result<(), AskError> {
        let line = self.evaluator.samples[row].source.to_string();
        Err(EvalError::Row { line, cause }.into())
    }
}

fn image_name(sample: &Example) -> String {
    match sample.columns.get("image").and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => sample.images[0].display().to_string(),
    }
}
