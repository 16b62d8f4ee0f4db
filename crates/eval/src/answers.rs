//! Completions on disk, one line as each ends, so that a killed evaluation resumes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use base::FinishReason;
use base::console::count;
use base::run_folder::{LineFile, ResultFolder};
use rewards::ImageSizes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::EvalError;
use crate::questions::Questions;

/// Name of the file.
pub const ANSWERS: &str = "answers.jsonl";
/// Counters of sampling, one line per batch.
pub const SAMPLING: &str = "sampling.jsonl";

/// Answers that a row still lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Todo {
    /// Number of the row: draws are keyed by it.
    pub row: usize,
    /// Its place among the samples.
    pub place: usize,
    /// Which of its answers.
    pub answers: Vec<Range<usize>>,
}

/// An answer as it was sampled.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number of the row.
    pub row: usize,
    /// Which of its answers.
    pub sample: usize,
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ends it.
    pub tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Sizes of the row's images.
    pub sizes: Vec<ImageSizes>,
    /// Patches of the row's images.
    pub image_grid_thw: Vec<[usize; 3]>,
}

/// A line of [`ANSWERS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredAnswer {
    /// Index of the row.
    pub row: usize,
    /// Which of its answers.
    pub sample: usize,
    /// Images, as the row names them.
    pub image: Value,
    /// The question, without its template.
    pub question: String,
    /// The text of the completion.
    pub model_output: String,
    /// Tokens of it, without the one that ends it.
    pub tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Width and height of each image, px.
    pub image_sizes: Vec<[u32; 2]>,
    /// Width and height of each image as the model saw it, px.
    pub input_sizes: Vec<[u32; 2]>,
    /// Patches of each image in time, height and width.
    pub image_grid_thw: Vec<[usize; 3]>,
}

/// All answers so far.
pub struct AnswerStore {
    file: LineFile,
    answers: BTreeMap<(usize, usize), StoredAnswer>,
    /// Rows that could not be asked, with why; another process tries them again.
    bad: BTreeMap<usize, String>,
}

impl StoredAnswer {
    /// Sizes of the first image.
    pub fn sizes(&self) -> Option<ImageSizes> {
        Some(ImageSizes { original: *self.image_sizes.first()?, input: *self.input_sizes.first()? })
    }

    fn new(answer: Answer, questions: &Questions) -> Self {
        let (image, question) = named(questions, answer.row);
        let each = |size: fn(&ImageSizes) -> [u32; 2]| answer.sizes.iter().map(size).collect();
        Self {
            row: answer.row,
            sample: answer.sample,
            image,
            question,
            image_sizes: each(|sizes| sizes.original),
            input_sizes: each(|sizes| sizes.input),
            image_grid_thw: answer.image_grid_thw,
            model_output: answer.text,
            tokens: answer.tokens,
            finish_reason: answer.finish_reason,
        }
    }
}

/// Images and question of a row, as lines carry them.
pub(crate) fn named(questions: &Questions, row: usize) -> (Value, String) {
    match &questions.rows[row].sample {
        Ok(sample) => {
            let image = sample.columns.get("image").cloned();
            (image.unwrap_or(Value::Null), sample.problem.clone())
        }
        Err(_) => (Value::Null, String::new()),
    }
}

impl AnswerStore {
    /// Tokens of all answers, with those that end them.
    pub fn sampled_tokens(&self) -> usize {
        let of = |answer: &StoredAnswer| {
            answer.tokens + usize::from(answer.finish_reason == FinishReason::Stop)
        };
        self.answers.values().map(of).sum()
    }

    /// Reads the answers that a folder holds and opens it for more. Those that were cut off before `longest` tokens, by
    /// a limit that was lower then, are taken out, which is said: they are asked for again.
    ///
    /// # Errors
    /// A line that is no answer, or one to another question.
    pub fn open(
        folder: &ResultFolder,
        questions: &Questions,
        num_samples: usize,
        longest: usize,
    ) -> Result<Self, EvalError> {
        let path = folder.path().join(ANSWERS);
        let mut answers = BTreeMap::new();
        let (mut kept, mut num_cut) = (String::new(), 0);
        for (index, line) in folder.lines(ANSWERS)?.iter().enumerate() {
            let refuse = |cause: String| EvalError::AnswerLine {
                path: path.clone(),
                line: index + 1,
                cause,
            };
            let stored: StoredAnswer =
                serde_json::from_str(line).map_err(|error| refuse(error.to_string()))?;
            check(&stored, questions, num_samples).map_err(refuse)?;
            if stored.finish_reason == FinishReason::Length && stored.tokens < longest {
                num_cut += 1;
                continue;
            }
            kept.push_str(line);
            kept.push('\n');
            if answers.insert((stored.row, stored.sample), stored).is_some() {
                return Err(refuse("answers what an earlier line does".to_owned()));
            }
        }
        if num_cut > 0 {
            base::say!(
                "{} of {} cut off by a lower --max_new_tokens than {longest}: asked again",
                num_cut,
                count(num_cut + answers.len() as u64, "answer")
            );
            folder.write(ANSWERS, kept.as_bytes())?;
        }
        Ok(Self { file: folder.append(ANSWERS)?, answers, bad: BTreeMap::new() })
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// An answer.
    pub fn get(&self, row: usize, sample: usize) -> Option<&StoredAnswer> {
        self.answers.get(&(row, sample))
    }

    /// Notes that a row cannot be asked.
    pub fn note_bad(&mut self, row: usize, cause: String) {
        self.bad.insert(row, cause);
    }

    /// Why a row could not be asked.
    pub fn bad(&self, row: usize) -> Option<&str> {
        self.bad.get(&row).map(String::as_str)
    }

    /// What is missing, in the order of the rows; places are those among the good rows.
    pub fn todo(&self, questions: &Questions, num_samples: usize) -> Vec<Todo> {
        let good = questions.rows.iter().enumerate();
        let good = good.filter(|(_, question)| question.sample.is_ok());
        let todo = good.enumerate().map(|(place, (row, _))| Todo {
            row,
            place,
            answers: self.missing(row, num_samples),
        });
        todo.filter(|todo| !todo.answers.is_empty()).collect()
    }

    fn missing(&self, row: usize, num_samples: usize) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        for sample in 0..num_samples {
            match ranges.last_mut() {
                _ if self.get(row, sample).is_some() => {}
                Some(last) if last.end == sample => last.end += 1,
                _ => ranges.push(sample..sample + 1),
            }
        }
        ranges
    }

    /// Adds an answer, on disk first.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(&mut self, answer: Answer, questions: &Questions) -> Result<(), EvalError> {
        let stored = StoredAnswer::new(answer, questions);
        self.file.write(&json!(stored))?;
        self.answers.insert((stored.row, stored.sample), stored);
        Ok(())
    }
}

fn check(stored: &StoredAnswer, questions: &Questions, num_samples: usize) -> Result<(), String> {
    let (row, sample) = (stored.row, stored.sample);
    let Some(question) = questions.rows.get(row).filter(|_| sample < num_samples) else {
        let rows = questions.rows.len();
        return Err(format!(
            "answer {sample} to row {row}, expected below {num_samples} and below {rows}"
        ));
    };
    // What has become bad since is scored as bad.
    if question.sample.is_err() {
        return Ok(());
    }
    let (image, asked) = named(questions, row);
    if image != stored.image || asked != stored.question {
        return Err(format!(
            "answers `{}` about {}, but row {row} ({}) asks `{asked}` about {image}",
            stored.question, stored.image, question.place
        ));
    }
    Ok(())
}

/// What sampling counted over all processes that worked on an evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingCounts {
    /// Tokens sampled.
    pub tokens: usize,
    /// Draws and argmaxes that rounding alone could have changed.
    pub boundary_draws: usize,
    /// Seconds of sampling.
    pub secs: f64,
}

impl SamplingCounts {
    /// The sum of the lines of [`SAMPLING`].
    ///
    /// # Errors
    /// A line that holds no counts.
    pub fn read(folder: &ResultFolder) -> Result<Self, EvalError> {
        let mut total = Self::default();
        for (index, line) in folder.lines(SAMPLING)?.iter().enumerate() {
            let counts: Self = serde_json::from_str(line).map_err(|error| {
                let path: PathBuf = folder.path().join(SAMPLING);
                EvalError::AnswerLine { path, line: index + 1, cause: error.to_string() }
            })?;
            total.tokens += counts.tokens;
            total.boundary_draws += counts.boundary_draws;
            total.secs += counts.secs;
        }
        Ok(total)
    }
}
