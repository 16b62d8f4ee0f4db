//! The rows of a run, and their prompts in order.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use base::{Example, Prompt};
use config::OnBadRow;
use data::{
    EpochOrder, Loaded, LoaderOptions, Notices, Processor, PromptLoader, ReadKeys, RowError, Rows,
    index_rows, split,
};

use crate::TrainError;
use crate::settings::Settings;

/// Rows, split, and what turns them into prompts.
pub(crate) struct Dataset {
    pub examples: Rows,
    pub validation: Rows,
    pub processor: Arc<Processor>,
    pub skipped: Vec<String>,
    /// What is odd about the rows, in lines.
    pub notices: Vec<String>,
}

impl Dataset {
    /// Reads and checks all rows; `check` says what else keeps a row from being trained on.
    pub fn load(
        settings: &Settings,
        model_dir: &Path,
        check: impl Fn(&Example) -> Result<(), TrainError>,
    ) -> Result<Self, TrainError> {
        let processor = Processor::from_dir(model_dir, &settings.processor)?;
        let mut checks = settings.checks.clone();
        checks.reserve(processor.tokenizer().reserved_tokens());
        let on_bad_row = settings.loader.on_bad_row;
        let mut notices = Notices::new(ReadKeys::TRAINING, settings.processor.apply_exif);
        let mut refused = Vec::new();
        let report = index_rows(&settings.files, &checks, on_bad_row, &mut |example, lost| {
            match check(example) {
                Ok(()) => {
                    notices.look_at_example(example, lost);
                    return true;
                }
                // All are told where they are skipped, else the first.
                Err(error) if on_bad_row == OnBadRow::Skip || refused.is_empty() => {
                    refused.push(error);
                }
                Err(_) => {}
            }
            false
        })?;
        if on_bad_row == OnBadRow::Stop && !refused.is_empty() {
            return Err(refused.remove(0));
        }
        let rows = report.rows;
        let mut skipped: Vec<String> = report.skipped.iter().map(ToString::to_string).collect();
        skipped.extend(refused.iter().map(ToString::to_string));
        if rows.is_empty() {
            return Err(TrainError::NoRows { skipped: skipped.len() });
        }
        let (examples, validation) =
            split(rows, settings.sections.data.val_split_ratio, settings.sections.optimizer.seed)?;
        Ok(Dataset {
            examples,
            validation,
            processor: Arc::new(processor),
            skipped,
            notices: notices.lines(),
        })
    }

    /// Reads the training rows of a step.
    pub fn read(&self, indices: impl Iterator<Item = usize>) -> Result<Vec<Example>, TrainError> {
        let rows = indices.map(|index| self.examples.get(index));
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// The prompts of a run, prepared ahead of need. Its cursor is the position in the stream of all epochs: what a checkpoint keeps of the
/// order.
pub(crate) struct PromptSource {
    order: Arc<EpochOrder>,
    loader: PromptLoader,
    cursor: u64,
}

/// What was taken of a [`PromptSource`].
#[derive(Default)]
pub(crate) struct Taken {
    /// Index of the example, and its prompt.
    pub prompts: Vec<(usize, Prompt)>,
    /// Index of the example, and what is wrong with it.
    pub skipped: Vec<(usize, RowError)>,
}

impl PromptSource {
    /// Prompts from `cursor` on, those of `steps` steps or, where a step may take more than its own, without end.
    pub fn new(
        dataset: &Dataset,
        settings: &Settings,
        order: Arc<EpochOrder>,
        cursor: u64,
        steps: Option<u64>,
    ) -> Result<Self, TrainError> {
        let ahead = settings.loader.ahead.max(2 * order.prompts_per_step());
        let stream = order.clone();
        let end =
            steps.map(|steps| (0..steps).fold(cursor, |position, _| order.step_from(position).end));
        let indices =
            (cursor..end.unwrap_or(u64::MAX)).map(move |position| stream.index_at(position));
        let loader = PromptLoader::new(
            dataset.examples.clone(),
            dataset.processor.clone(),
            settings.template.clone(),
            indices,
            LoaderOptions { ahead, ..settings.loader },
        )?;
        Ok(PromptSource { order, loader, cursor })
    }

    /// The position of the next prompt.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The prompts of a step.
    pub fn next_step(&mut self) -> Result<Taken, TrainError> {
        let Range { start, end } = self.order.step_from(self.cursor);
        self.take((end - start) as usize)
    }

    /// The next `count` rows.
    pub fn take(&mut self, count: usize) -> Result<Taken, TrainError> {
        let mut taken = Taken::default();
        for loaded in self.loader.by_ref().take(count) {
            self.cursor += 1;
            match loaded? {
                Loaded::Ready { example_index, prompt } => {
                    taken.prompts.push((example_index, prompt));
                }
                Loaded::Skipped { example_index, row } => taken.skipped.push((example_index, row)),
            }
        }
        Ok(taken)
    }

    /// Passes over the data so far.
    pub fn epoch(&self) -> f64 {
        self.order.epoch_at(self.cursor)
    }
}

/// The error of a row that turned out bad during training.
pub(crate) fn bad_row(example: &Example, cause: data::RowCause) -> TrainError {
    TrainError::Row(Box::new(data::RowError { source_line: example.source.clone(), cause }))
}
