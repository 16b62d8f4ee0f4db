//! The questions: the rows of the files, good and bad, in their order.

use base::{Example, SourceLine};
use config::{EvalConfig, EvalTask};
use data::{DataFiles, Notices, Processor, ReadKeys, RowChecks, is_rows, load_eval_rows};
use python::random::shuffle;
use rewards::boxes::{BoundingBox, parse_solution};

use crate::EvalError;
use crate::coco_file::{self, Objects};
use crate::detection_rows;

/// The questions of an evaluation.
#[derive(Debug)]
pub struct Questions {
    /// Names of the files, which are the parts that are also summed up by themselves.
    pub subsets: Vec<String>,
    /// The rows.
    pub rows: Vec<Question>,
    /// What was left out on purpose, and what is odd.
    pub notes: Vec<String>,
}

/// One row.
#[derive(Debug)]
pub struct Question {
    /// Index in [`Questions::subsets`].
    pub subset: usize,
    /// File and line, or file and image.
    pub place: String,
    /// The row, or what is wrong with it.
    pub example: Result<Example, String>,
    /// What is compared with.
    pub truth: Truth,
}

/// The truth of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// Rewards read it in the solution; or the row is bad.
    InSolution,
    /// A box, px of the image.
    Box(BoundingBox),
    /// Labelled boxes.
    Objects(Objects),
}

impl Questions {
    /// Reads the files of a configuration. `check` looks at a row that can be read: it is bad where
    /// no completion to it could be scored.
    ///
    /// # Errors
    /// Files that cannot be read or hold nothing.
    pub fn load(
        config: &EvalConfig,
        processor: &Processor,
        check: &dyn Fn(&Example) -> Result<(), String>,
    ) -> Result<Self, EvalError> {
        let of = |list: &Option<config::ColonList>| list.as_deref().map(str::to_owned);
        let files = DataFiles::from_lists(
            &of(&config.questions.data_file_paths).unwrap_or_default(),
            of(&config.questions.image_folders).as_deref(),
            of(&config.references.reward_method).as_deref(),
        )?;
        let mut questions = Self {
            subsets: Vec::with_capacity(files.files.len()),
            rows: Vec::new(),
            notes: Vec::new(),
        };
        for file in &files.files {
            let subset = questions.add_subset(&file.path);
            let mut notices = Notices::new(ReadKeys::TRAINING, config.load.apply_exif);
            let mut rows = match config.questions.task {
                Some(EvalTask::Ovd | EvalTask::OvdEval) if !is_rows(&file.path)? => {
                    let read = coco_file::read(file, config, &questions.subsets[subset])?;
                    questions.notes.extend(read.notes);
                    read.rows
                }
                _ => {
                    let checks = row_checks(config, processor);
                    let mut look = |example: &Example, lost: &[_]| {
                        notices.look_at_lost(&example.source, lost);
                    };
                    let rows = load_eval_rows(file, &checks, &mut look)?.into_iter();
                    let rows = rows.map(|row| Question::new(row, config, check));
                    let mut rows: Vec<Question> = rows.collect();
                    if let Some(EvalTask::Ovd | EvalTask::OvdEval) = config.questions.task {
                        detection_rows::take(&mut rows, config)?;
                    }
                    rows
                }
            };
            if let Some(seed) = config.questions.shuffle_seed {
                shuffle(&mut rows, seed);
            }
            rows.truncate(config.questions.limit.unwrap_or(usize::MAX));
            rows.iter_mut().for_each(|row| row.subset = subset);
            for example in rows.iter().filter_map(|row| row.example.as_ref().ok()) {
                notices.look_at_example(example, &[]);
            }
            questions.notes.extend(notices.lines());
            questions.rows.append(&mut rows);
        }
        Ok(questions)
    }

    fn add_subset(&mut self, path: &std::path::Path) -> usize {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let taken = |name: &str| self.subsets.iter().any(|other| other == name);
        let numbered = (2..).map(|n| format!("{stem}-{n}"));
        let name = std::iter::once(stem.to_string()).chain(numbered).find(|name| !taken(name));
        self.subsets.extend(name);
        self.subsets.len() - 1
    }

    /// Rows that cannot be asked: place and cause.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rows.iter().filter_map(|row| {
            let cause = row.example.as_ref().err()?;
            Some((row.place.as_str(), cause.as_str()))
        })
    }
}

fn row_checks(config: &EvalConfig, processor: &Processor) -> RowChecks {
    let mut checks = RowChecks {
        expect_box: config.questions.task == Some(EvalTask::Rec),
        follow_links: config.load.follow_links,
        ..RowChecks::default()
    };
    let own = processor.tokenizer().reserved_tokens();
    checks.reserved_tokens.extend(own);
    checks
}

impl Question {
    fn new(
        row: Result<Example, data::RowError>,
        config: &EvalConfig,
        check: &dyn Fn(&Example) -> Result<(), String>,
    ) -> Self {
        let bad = |source: &SourceLine, cause: String| Self {
            subset: 0,
            place: source.to_string(),
            example: Err(cause),
            truth: Truth::InSolution,
        };
        let example = match row {
            Ok(example) => example,
            Err(row) => return bad(&row.source_line, row.cause.to_string()),
        };
        if let Err(cause) = check(&example) {
            return bad(&example.source, cause);
        }
        let truth = match config.questions.task {
            Some(EvalTask::Rec) => match rec_truth(&example) {
                Ok(truth) => Truth::Box(truth),
                Err(cause) => return bad(&example.source, cause),
            },
            _ => Truth::InSolution,
        };
        Self { subset: 0, place: example.source.to_string(), example: Ok(example), truth }
    }
}

fn rec_truth(example: &Example) -> Result<BoundingBox, String> {
    if example.images.len() != 1 {
        return Err(format!("expected one image, got {}", example.images.len()));
    }
    parse_solution(&example.solution)
}

impl Question {
    pub(crate) fn image_id(&self) -> Option<data::coco::Id> {
        match &self.truth {
            Truth::Objects(objects) => objects.image_id.clone(),
            _ => None,
        }
    }
}
