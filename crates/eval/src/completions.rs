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
pub const COMPLETIONS: &str = "answers.jsonl";
/// Counters of sampling, one line per batch.
pub const SAMPLING: &str = "sampling.jsonl";

/// Completions that a row still lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Todo {
    /// Number of the row: draws are keyed by it.
    pub row: usize,
    /// Its place among the examples.
    pub place: usize,
    /// Which of its completions.
    pub completions: Vec<Range<usize>>,
}

/// A completion as it was sampled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SampledCompletion {
    /// Number of the row.
    pub row: usize,
    /// Which of its completions.
    pub completion_index: usize,
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

/// A line of [`COMPLETIONS`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredCompletion {
    /// Index of the row.
    pub row: usize,
    /// Which of its completions.
    #[serde(rename = "sample")]
    pub completion_index: usize,
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

/// All completions so far.
pub struct CompletionStore {
    file: LineFile,
    completions: BTreeMap<(usize, usize), StoredCompletion>,
    /// Rows that could not be asked, with why; another process tries them again.
    bad: BTreeMap<usize, String>,
}

impl StoredCompletion {
    /// Sizes of the first image.
    pub fn sizes(&self) -> Option<ImageSizes> {
        Some(ImageSizes { original: *self.image_sizes.first()?, input: *self.input_sizes.first()? })
    }

    fn new(completion: SampledCompletion, questions: &Questions) -> Self {
        let (image, question) = named(questions, completion.row);
        let each = |size: fn(&ImageSizes) -> [u32; 2]| completion.sizes.iter().map(size).collect();
        Self {
            row: completion.row,
            completion_index: completion.completion_index,
            image,
            question,
            image_sizes: each(|sizes| sizes.original),
            input_sizes: each(|sizes| sizes.input),
            image_grid_thw: completion.image_grid_thw,
            model_output: completion.text,
            tokens: completion.tokens,
            finish_reason: completion.finish_reason,
        }
    }
}

/// Images and question of a row, as lines carry them.
pub(crate) fn named(questions: &Questions, row: usize) -> (Value, String) {
    match &questions.rows[row].example {
        Ok(example) => {
            let image = example.columns.get("image").cloned();
            (image.unwrap_or(Value::Null), example.problem.clone())
        }
        Err(_) => (Value::Null, String::new()),
    }
}

impl CompletionStore {
    /// Tokens of all completions, with those that end them.
    pub fn sampled_tokens(&self) -> usize {
        let of = |completion: &StoredCompletion| {
            completion.tokens + usize::from(completion.finish_reason == FinishReason::Stop)
        };
        self.completions.values().map(of).sum()
    }

    /// Reads the completions that a folder holds and opens it for more. Those that were cut off before `longest` tokens, by
    /// a limit that was lower then, are taken out, which is said: they are asked for again.
    ///
    /// # Errors
    /// A line that is no completion, or one to another question.
    pub fn open(
        folder: &ResultFolder,
        questions: &Questions,
        num_samples: usize,
        longest: usize,
    ) -> Result<Self, EvalError> {
        let path = folder.path().join(COMPLETIONS);
        let mut completions = BTreeMap::new();
        let (mut kept, mut num_cut) = (String::new(), 0);
        for (index, line) in folder.lines(COMPLETIONS)?.iter().enumerate() {
            let refuse = |cause: String| EvalError::CompletionLine {
                path: path.clone(),
                line: index + 1,
                cause,
            };
            let stored: StoredCompletion =
                serde_json::from_str(line).map_err(|error| refuse(error.to_string()))?;
            check(&stored, questions, num_samples).map_err(refuse)?;
            if stored.finish_reason == FinishReason::Length && stored.tokens < longest {
                num_cut += 1;
                continue;
            }
            kept.push_str(line);
            kept.push('\n');
            if completions.insert((stored.row, stored.completion_index), stored).is_some() {
                return Err(refuse("answers what an earlier line does".to_owned()));
            }
        }
        if num_cut > 0 {
            base::say!(
                "{} of {} cut off by a lower --max_new_tokens than {longest}: asked again",
                num_cut,
                count(num_cut + completions.len() as u64, "completion")
            );
            folder.write(COMPLETIONS, kept.as_bytes())?;
        }
        Ok(Self { file: folder.append(COMPLETIONS)?, completions, bad: BTreeMap::new() })
    }

    /// How many completions there are.
    pub fn len(&self) -> usize {
        self.completions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.completions.is_empty()
    }

    /// A completion.
    pub fn get(&self, row: usize, completion_index: usize) -> Option<&StoredCompletion> {
        self.completions.get(&(row, completion_index))
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
        let good = good.filter(|(_, question)| question.example.is_ok());
        let todo = good.enumerate().map(|(place, (row, _))| Todo {
            row,
            place,
            completions: self.missing(row, num_samples),
        });
        todo.filter(|todo| !todo.completions.is_empty()).collect()
    }

    fn missing(&self, row: usize, num_samples: usize) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for index in 0..num_samples {
            match ranges.last_mut() {
                _ if self.get(row, index).is_some() => {}
                Some(last) if last.end == index => last.end += 1,
                _ => ranges.push(index..index + 1),
            }
        }
        ranges
    }

    /// Adds a completion, on disk first.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn add(
        &mut self,
        completion: SampledCompletion,
        questions: &Questions,
    ) -> Result<(), EvalError> {
        let stored = StoredCompletion::new(completion, questions);
        self.file.write(&json!(stored))?;
        self.completions.insert((stored.row, stored.completion_index), stored);
        Ok(())
    }
}

fn check(
    stored: &StoredCompletion,
    questions: &Questions,
    num_samples: usize,
) -> Result<(), String> {
    let (row, index) = (stored.row, stored.completion_index);
    let Some(question) = questions.rows.get(row).filter(|_| index < num_samples) else {
        let rows = questions.rows.len();
        return Err(format!(
            "completion {index} to row {row}, expected below {num_samples} and below {rows}"
        ));
    };
    // What has become bad since is scored as bad.
    if question.example.is_err() {
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
                EvalError::CompletionLine { path, line: index + 1, cause: error.to_string() }
            })?;
            total.tokens += counts.tokens;
            total.boundary_draws += counts.boundary_draws;
            total.secs += counts.secs;
        }
        Ok(total)
    }
}
