//! The rows of a run, and their prompts in order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use base::{Example, Prompt};
use config::OnBadRow;
use data::{
    EpochOrder, Loaded, LoaderOptions, Notices, Processor, PromptLoader, PromptTemplate, ReadKeys,
    Rows, index_rows, split,
};

use crate::TrainError;
use crate::deal::{Deal, Portion};
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

    /// In words what the rows are: ranks with others would train on something else.
    pub fn digest(&self) -> String {
        let of = |rows: &Rows| format!("{} ({:016x})", rows.len(), rows.digest());
        format!("{} rows, {} held out", of(&self.examples), of(&self.validation))
    }
}

/// This rank's completions of a row that could be read.
pub(crate) struct OwnPrompt {
    /// Place of the row among those of the step that could be read, on all ranks.
    pub index: usize,
    /// Which completions of its group.
    pub completions: Range<usize>,
    pub example_index: usize,
    pub prompt: Prompt,
}

/// What a rank drew, and how many rows all ranks drew together.
pub(crate) struct Drawn {
    pub own: Vec<OwnPrompt>,
    /// Rows of all ranks that could be read.
    pub ready: usize,
    /// Rows of all ranks.
    pub rows: usize,
}

/// The prompts of a run, prepared ahead of need. Its cursor is the position in the stream of all epochs, the same on all ranks: what a
/// checkpoint keeps of the order.
pub(crate) struct PromptSource {
    order: Arc<EpochOrder>,
    examples: Rows,
    processor: Arc<Processor>,
    template: PromptTemplate,
    options: LoaderOptions,
    deal: Deal,
    /// Prompts of the steps from the cursor on. None where other rows were drawn than those of the steps.
    ahead: Option<PromptLoader>,
    /// Steps to load; none where a step may take more than its own.
    steps: Option<u64>,
    cursor: u64,
}

impl PromptSource {
    /// The prompts from the run's position on, those of `steps` steps or, where a step may take more than its own, without end. Of each
    /// step a rank has its part; a row has `per_row` completions.
    pub fn new(
        dataset: &Dataset,
        session: &Session<'_>,
        order: Arc<EpochOrder>,
        steps: Option<u64>,
        per_row: usize,
    ) -> Result<Self, TrainError> {
        let settings = &session.settings;
        let ahead = settings.loader.ahead.max(2 * order.prompts_per_step());
        let mut source = PromptSource {
            order,
            examples: dataset.examples.clone(),
            processor: dataset.processor.clone(),
            template: settings.template(dataset.processor.family())?,
            options: LoaderOptions { ahead, ..settings.loader },
            deal: session.deal(per_row),
            ahead: None,
            steps,
            cursor: session.progress.cursor,
        };
        source.ahead = Some(source.load_steps()?);
        Ok(source)
    }

    /// The position of the next prompt.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// This rank's prompts of a step.
    pub fn next_step(&mut self, session: &mut Session<'_>) -> Result<Drawn, TrainError> {
        if self.ahead.is_none() {
            self.ahead = Some(self.load_steps()?);
        }
        let step = self.order.step_from(self.cursor);
        self.take(session, (step.end - step.start) as usize)
    }

    /// This rank's prompts of `count` rows that take the place of others of the step.
    pub fn take_more(
        &mut self,
        session: &mut Session<'_>,
        count: usize,
    ) -> Result<Drawn, TrainError> {
        if self.deal.size > 1 {
            // Which rows a rank has of the steps to come depends on how many are taken now.
            let positions = self.own_positions(self.cursor..self.cursor + count as u64);
            self.ahead = Some(self.load(positions.into_iter())?);
        }
        let drawn = self.take(session, count);
        if self.deal.size > 1 {
            self.ahead = None;
        }
        drawn
    }

    /// This rank's prompts of the next `count` rows. Rows that are skipped are counted.
    fn take(&mut self, session: &mut Session<'_>, count: usize) -> Result<Drawn, TrainError> {
        let portions = self.deal.portions(count);
        let read = self.read(session, &portions);
        let read = session.agree("reading rows", read)?;
        self.cursor += count as u64;
        // Which rows could be read.
        let ready = portions.iter().zip(&read).filter(|(_, read)| read.is_some());
        let ready: Vec<f64> = ready.map(|(portion, _)| portion.row as f64).collect();
        let all = session.ranks.world.gather_numbers("rows that could be read", &ready)?;
        let all: BTreeSet<usize> = all.into_iter().flatten().map(|row| row as usize).collect();
        let own = portions.into_iter().zip(read).filter_map(|(portion, read)| {
            let (example_index, prompt) = read?;
            let index = all.range(..portion.row).count();
            Some(OwnPrompt { index, completions: portion.completions, example_index, prompt })
        });
        Ok(Drawn { own: own.collect(), ready: all.len(), rows: count })
    }

    /// The rows of `portions`; none in the place of one that is skipped.
    fn read(
        &mut self,
        session: &mut Session<'_>,
        portions: &[Portion],
    ) -> Result<Vec<Option<(usize, Prompt)>>, TrainError> {
        let loader = self.ahead.iter_mut().flatten();
        let mut read = Vec::with_capacity(portions.len());
        for (portion, loaded) in portions.iter().zip(loader) {
            match loaded? {
                Loaded::Ready { example_index, prompt } => read.push(Some((example_index, prompt))),
                Loaded::Skipped { example_index, row } => {
                    // Of ranks that have parts of it, one tells.
                    if portion.completions.start == 0 {
                        session.skip(example_index, &row);
                    }
                    read.push(None);
                }
            }
        }
        Ok(read)
    }

    /// Prompts of the steps from the cursor on.
    fn load_steps(&self) -> Result<PromptLoader, TrainError> {
        let (order, deal, mut next) = (self.order.clone(), self.deal, self.cursor);
        let shares = (0..self.steps.unwrap_or(u64::MAX)).flat_map(move |_| {
            let step = order.step_from(next);
            next = step.end;
            own_positions(deal, step).map(|position| order.index_at(position)).collect::<Vec<_>>()
        });
        self.load(shares)
    }

    fn load(
        &self,
        indices: impl Iterator<Item = usize> + Send + 'static,
    ) -> Result<PromptLoader, TrainError> {
        let examples = self.examples.clone();
        let (processor, template) = (self.processor.clone(), self.template.clone());
        Ok(PromptLoader::new(examples, processor, template, indices, self.options)?)
    }

    fn own_positions(&self, rows: Range<u64>) -> Vec<usize> {
        own_positions(self.deal, rows).map(|position| self.order.index_at(position)).collect()
    }

    /// Passes over the data so far.
    pub fn epoch(&self) -> f64 {
        self.order.epoch_at(self.cursor)
    }
}

/// The positions of a rank's part of `rows`.
fn own_positions(deal: Deal, rows: Range<u64>) -> impl Iterator<Item = u64> {
    let portions = deal.portions((rows.end - rows.start) as usize);
    portions.into_iter().map(move |portion| rows.start + portion.row as u64)
}

/// The error of a row that turned out bad during training.
pub(crate) fn bad_row(example: &Example, cause: data::RowCause) -> TrainError {
    TrainError::Row(Box::new(data::RowError { source_line: example.source.clone(), cause }))
}
