//! The rows of a run, and their prompts in order.

use std::path::Path;
use std::sync::Arc;

use base::world::share;
use base::{Example, Prompt};
use config::OnBadRow;
use data::{
    EpochOrder, Loaded, LoaderOptions, Notices, Processor, PromptLoader, ReadKeys, Rows,
    index_rows, split,
};

use crate::TrainError;
use crate::session::Session;
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

impl PromptSource {
    /// The prompts from the run's position on, those of `steps` steps or, where a step may take more than its own, without end. Of each
    /// step a rank has its share.
    pub fn new(
        dataset: &Dataset,
        session: &Session<'_>,
        order: Arc<EpochOrder>,
        steps: Option<u64>,
    ) -> Result<Self, TrainError> {
        let (settings, cursor) = (&session.settings, session.progress.cursor);
        let ahead = settings.loader.ahead.max(2 * order.prompts_per_step());
        let (rank, size) = (session.world.rank(), session.world.size());
        let (stream, mut next) = (order.clone(), cursor);
        let shares = (0..steps.unwrap_or(u64::MAX)).flat_map(move |_| {
            let step = stream.step_from(next);
            next = step.end;
            let own = share(rank, size, (step.end - step.start) as usize);
            let own = step.start + own.start as u64..step.start + own.end as u64;
            own.map(|position| stream.index_at(position)).collect::<Vec<_>>()
        });
        let loader = PromptLoader::new(
            dataset.examples.clone(),
            dataset.processor.clone(),
            settings.template(dataset.processor.family())?,
            shares,
            LoaderOptions { ahead, ..settings.loader },
        )?;
        Ok(PromptSource { order, loader, cursor })
    }

    /// The position of the next prompt.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// This rank's prompts of a step.
    pub fn next_step(
        &mut self,
        session: &mut Session<'_>,
    ) -> Result<Vec<(usize, Prompt)>, TrainError> {
        let step = self.order.step_from(self.cursor);
        self.take(session, (step.end - step.start) as usize)
    }

    /// This rank's prompts of the next `count` rows: index of the example, and prompt. Rows that are skipped are counted.
    pub fn take(
        &mut self,
        session: &mut Session<'_>,
        count: usize,
    ) -> Result<Vec<(usize, Prompt)>, TrainError> {
        let own = session.world.share(count);
        let mut prompts = Vec::with_capacity(own.len());
        for loaded in self.loader.by_ref().take(own.len()) {
            match loaded? {
                Loaded::Ready { example_index, prompt } => prompts.push((example_index, prompt)),
                Loaded::Skipped { example_index, row } => session.skip(example_index, &row),
            }
        }
        self.cursor += count as u64;
        Ok(prompts)
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
