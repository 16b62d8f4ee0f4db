//! Validates data: reads training files and optional test files, decodes every image, and reports
//! all findings in one pass that no error stops.
//!
//! [`pass`] checks single rows on worker threads. Here their findings are joined with what only
//! whole files show: [`boxes`] (conventions), [`answers`] (how they are spread) and
//! [`overlap`] (images of train and test). A row costs some hundred bytes, an image as many.

mod answers;
mod boxes;
mod finding;
mod images;
mod overlap;
mod pass;

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::SourceLine;
use config::BoxFormat;
use serde::Serialize;

use crate::error::DataError;
use crate::image::ImageProcessor;
use crate::processor::Processor;
use crate::row::RowChecks;
use crate::rows::DataFiles;
use crate::template::PromptTemplate;

pub use answers::{AREA_BOUNDS, Answers, TextCount};
pub use boxes::AnswerBox;
pub use finding::{Example, Finding, FindingCount, Kind, Level};
pub use images::ImageFacts;
pub use pass::{RowProbe, SeenImage, SeenRow};

use answers::AnswerCounts;
use boxes::Convention;
use finding::Findings;
use overlap::Shown;

/// What is checked, and against what.
#[derive(Clone)]
pub struct CheckOptions {
    /// What is asked of a row.
    pub rows: RowChecks,
    /// Units of the boxes in answers, where they are said.
    pub box_format: Option<BoxFormat>,
    /// What they are taken for where they are not: the convention of the model's family.
    pub assumed_boxes: BoxFormat,
    /// How images are resized for the model.
    pub image_processor: Arc<ImageProcessor>,
    /// A model folder's processor, which counts the tokens of prompts.
    pub processor: Option<Arc<Processor>>,
    /// What is put round a question.
    pub template: PromptTemplate,
    /// Further looks at each good row.
    /// Further looks at each good row.
    pub probe: Option<Arc<dyn RowProbe>>,
    /// Threads that decode.
    pub workers: usize,
    /// Examples kept of each kind of finding.
    pub examples: usize,
}

/// What was read from a file.
#[derive(Clone, Debug, Serialize)]
pub struct FileSummary {
    /// The file.
    pub path: String,
    /// Whether it is a test file.
    pub is_test: bool,
    /// Rows in it.
    pub rows: u64,
    /// Rows without an error.
    pub good: u64,
}

/// Tokens of prompts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PromptLengths {
    /// Shortest.
    pub min: u32,
    /// Half are no longer.
    pub median: u32,
    /// Of twenty, nineteen are no longer.
    pub p95: u32,
    /// Longest.
    pub max: u32,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The files.
    pub files: Vec<FileSummary>,
    /// Whether the user stopped the pass: the rest covers the rows up to there.
    pub stopped: bool,
    /// Findings of level error.
    pub errors: u64,
    /// Findings of level warning.
    pub warnings: u64,
    /// What was found, errors first.
    pub findings: Vec<FindingCount>,
    /// Training images that differ in content.
    pub images: usize,
    /// Test images that differ in content.
    pub test_images: usize,
    /// Tokens of the prompts; none without a model folder.
    pub prompt_tokens: Option<PromptLengths>,
    /// How the answers of the training rows are spread.
    pub answers: Answers,
}

/// Looks at all rows. `visit` is shown each, in order, and may end the pass.
///
/// # Errors
/// A thread that cannot be started, or one that broke down. What is wrong with the data is in the
/// report.
pub fn check(
    train: &DataFiles,
    test: Option<&DataFiles>,
    options: &CheckOptions,
    visit: &mut dyn FnMut(&SeenRow) -> ControlFlow<()>,
) -> Result<CheckReport, DataError> {
    let mut checker = Checker::new(options);
    for (files, is_test) in [(Some(train), false), (test, true)] {
        for file in files.into_iter().flat_map(|files| &files.files) {
            if checker.stopped {
                break;
            }
            checker.begin_file(&file.path, is_test);
            let rows = match pass::rows_of(file, options, &checker.images) {
                Ok(rows) => rows?,
                Err(unreadable) => {
                    checker.add_of_file(Finding::new(Kind::UnreadableFile, unreadable));
                    continue;
                }
            };
            for row in rows {
                let row = row?;
                checker.add(&row);
                if visit(&row).is_break() {
                    checker.stopped = true;
                    break;
                }
            }
            checker.end_file();
        }
    }
    if let Some(probe) = &options.probe {
        checker.add_of_all(probe.look_at_all());
    }
    Ok(checker.report())
}

/// Index of a file, a line in it, and the number of an item or 0.
type Place = (u32, u32, u32);

/// What is known so far.
struct Checker {
    images: Arc<images::Images>,
    findings: Findings,
    files: Vec<FileSummary>,
    convention: Convention,
    assumed_boxes: BoxFormat,
    answers: AnswerCounts,
    prompt_tokens: Vec<u32>,
    /// Digests of rows, with the place of the first.
    rows: HashMap<u64, Place>,
    /// Digests of images and question, with that of the answer and the place of the first.
    questions: HashMap<u64, (u64, Place)>,
    train: Shown,
    test: Shown,
    /// Images whose orientation was told.
    oriented: HashSet<PathBuf>,
    stopped: bool,
}

impl Checker {
    fn new(options: &CheckOptions) -> Self {
        Self {
            images: Arc::default(),
            findings: Findings::new(options.examples),
            files: Vec::new(),
            convention: Convention::default(),
            assumed_boxes: options.assumed_boxes,
            answers: AnswerCounts::default(),
            prompt_tokens: Vec::new(),
            rows: HashMap::new(),
            questions: HashMap::new(),
            train: Shown::default(),
            test: Shown::default(),
            oriented: HashSet::new(),
            stopped: false,
        }
    }

    fn begin_file(&mut self, path: &Path, is_test: bool) {
        self.convention = Convention::default();
        // Rows in both train and test are reported by their images.
        if self.files.last().is_some_and(|file| file.is_test != is_test) {
            self.rows.clear();
            self.questions.clear();
        }
        self.files.push(FileSummary {
            path: path.display().to_string(),
            is_test,
            rows: 0,
            good: 0,
        });
    }

    fn add_of_file(&mut self, finding: Finding) {
        let place = self.files.last().map(|file| file.path.clone());
        self.findings.add(&place.unwrap_or_default(), finding);
    }

    fn add_of_all(&mut self, findings: Vec<Finding>) {
        let place = self.files.first().map(|file| file.path.clone());
        for finding in findings {
            self.findings.add(place.as_deref().unwrap_or_default(), finding);
        }
    }

    fn end_file(&mut self) {
        if self.files.last().is_some_and(|file| file.rows == 0) {
            self.add_of_file(Finding::new(Kind::UnreadableFile, "no rows: the file is empty"));
        }
        let units = self.convention.suspected_units(self.assumed_boxes);
        let sizes = self.convention.suspected_sizes();
        for (kind, text) in [(Kind::BoxUnits, units), (Kind::BoxCorners, sizes)] {
            if let Some(text) = text {
                self.add_of_file(Finding::new(kind, text));
            }
        }
    }

    fn add(&mut self, row: &SeenRow) {
        let place = row.place.to_string();
        let mut is_good = true;
        for finding in &row.findings {
            is_good &= finding.kind.level() != Level::Error;
            self.findings.add(&place, finding.clone());
        }
        let is_test = match self.files.last_mut() {
            Some(file) => {
                file.rows += 1;
                file.good += u64::from(is_good);
                file.is_test
            }
            None => false,
        };
        let shown = match is_test {
            true => &mut self.test,
            false => &mut self.train,
        };
        for image in &row.images {
            shown.add(&image.facts, &place);
        }
        self.note_orientations(row, &place);
        let Some(example) = &row.example else { return };
        self.prompt_tokens.extend(row.prompt_tokens);
        let is_upright = |image: &&SeenImage| image.facts.orientation.is_none();
        // Boxes of an image that is shown otherwise than it is stored say nothing of units.
        let first = row.images.first().filter(is_upright);
        if let Some(image) = first.filter(|_| row.is_assumed) {
            for found in &row.boxes {
                self.convention.add(found.corners, image.facts.size);
            }
        }
        if !is_test {
            self.answers.add(&example.answer, &row.boxes, row.extent);
        }
        if let Some(finding) = self.known(row, example) {
            self.findings.add(&place, finding);
        }
    }

    /// Tells of each image once that its metadata turn it.
    fn note_orientations(&mut self, row: &SeenRow, place: &str) {
        for image in &row.images {
            let Some(orientation) = image.facts.orientation else {
                continue;
            };
            if self.oriented.insert(image.facts.path.clone()) {
                let [width, height] = image.facts.size;
                let [new_width, new_height] = orientation.turned_size([width, height]);
                let text = format!(
                    "{}: stored {width} x {height}, orientation {}: viewers and annotation tools show it {new_width} x {new_height}",
                    image.facts.path.display(),
                    orientation.number()
                );
                self.findings.add(place, Finding::new(Kind::OrientedImage, text));
            }
        }
    }

    /// Whether the row, or its images and question, stood before.
    fn known(&mut self, row: &SeenRow, example: &base::Example) -> Option<Finding> {
        let images: Vec<[u8; 16]> = row.images.iter().map(|image| image.facts.digest).collect();
        if images.len() != example.images.len() {
            return None;
        }
        let question = digest(&(&images, &example.problem));
        let answer = digest(&example.answer);
        let whole = digest(&(question, answer));
        // Numbers instead of names: there may be millions of rows.
        let item = row.place.item.unwrap_or(0);
        let place = ((self.files.len() - 1) as u32, row.place.line as u32, item as u32);
        if let Some(first) = self.rows.get(&whole) {
            let first = self.told(*first);
            let text = format!("images, question and answer are those of {first}");
            return Some(Finding::new(Kind::DuplicateRow, text));
        }
        self.rows.insert(whole, place);
        match self.questions.get(&question) {
            Some((other, first)) if *other != answer => {
                let text = format!(
                    "answer `{}` to the images and question of {}, which has another",
                    answers::shortened(&example.answer),
                    self.told(*first)
                );
                Some(Finding::new(Kind::Contradiction, text))
            }
            Some(_) => None,
            None => {
                self.questions.insert(question, (answer, place));
                None
            }
        }
    }

    fn told(&self, (file, line, item): Place) -> String {
        let place = SourceLine {
            item: (item > 0).then_some(item as usize),
            ..SourceLine::new(&self.files[file as usize].path, line as usize)
        };
        place.to_string()
    }

    fn report(mut self) -> CheckReport {
        if let Some(text) = self.answers.constant() {
            let place = self.files.first().map(|file| file.path.clone());
            self.findings.add(&place.unwrap_or_default(), Finding::new(Kind::ConstantAnswer, text));
        }
        for overlap in self.train.overlaps(&self.test) {
            let (kind, text) = match overlap.is_equal {
                true => (Kind::TestImage, "shows the same image file as"),
                false => (Kind::TestLookalike, "shows an image that looks like that of"),
            };
            let finding = Finding::new(kind, format!("{text} {}", overlap.test));
            self.findings.add(overlap.train, finding);
        }
        let findings = self.findings.counted();
        let of = |level| findings.iter().filter(|f| f.level == level).map(|f| f.count).sum();
        CheckReport {
            files: self.files,
            stopped: self.stopped,
            errors: of(Level::Error),
            warnings: of(Level::Warning),
            images: self.train.len(),
            test_images: self.test.len(),
            prompt_tokens: lengths(self.prompt_tokens),
            answers: self.answers.spread(),
            findings,
        }
    }
}

fn lengths(mut tokens: Vec<u32>) -> Option<PromptLengths> {
    tokens.sort_unstable();
    let last = tokens.len().checked_sub(1)?;
    Some(PromptLengths {
        min: tokens[0],
        median: tokens[last / 2],
        p95: tokens[(tokens.len() * 19).div_ceil(20) - 1],
        max: tokens[last],
    })
}

/// A digest that is the same in every run.
pub(crate) fn digest(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
