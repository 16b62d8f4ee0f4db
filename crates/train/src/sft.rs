//! Supervised fine-tuning on the answers of the rows: the mean of `-log p` over all answer tokens of
//! a step; prompt tokens have no loss.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use base::metrics::Command;
use base::run_folder::StopFlag;
use base::{Example, Prompt, SourceLine};
use config::SftConfig;
use data::{EpochOrder, ImageCache, load_prompt};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

use crate::TrainError;
use crate::bad_step::{NonFinite, TokenRecord};
use crate::batch::{MicroBatch, Pass};
use crate::dataset::{Dataset, PromptSource, bad_row};
use crate::logprobs::TokenScores;
use crate::micro_batches::{GroupLens, Limits, Part, micro_batches};
use crate::observer::Observer;
use crate::out_of_memory::Divisible;
use crate::policy;
use crate::ranks::{Place, Ranks};
use crate::resume::RunShape;
use crate::session::{Outcome, Session, Start};
use crate::settings::Settings;
use crate::training_loop::{self, Method};

/// Trains the model of `model_dir` on its rows' answers, from the start or from the newest checkpoint
/// of the run folder, until all steps are done or `stop` is raised.
///
/// # Errors
/// Bad settings, data or weights before the first step; a number that is not finite or a full disk
/// during it. What was checkpointed stands.
pub fn train_sft(
    config: &SftConfig,
    model_dir: &Path,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    train_sft_on(&Ranks::alone(), config, model_dir, observer, stop)
}

/// As [`train_sft`], as one of several ranks.
///
/// # Errors
/// As [`train_sft`], and those of other ranks.
pub fn train_sft_on(
    ranks: &Ranks,
    config: &SftConfig,
    model_dir: &Path,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    train(ranks, config, model_dir, observer, stop)
}

fn train(
    ranks: &Ranks,
    config: &SftConfig,
    model_dir: &Path,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<Outcome, TrainError> {
    let settings = Settings::of_sft(config, ranks)?;
    let dataset = Dataset::load(&settings, model_dir, |_| Ok(()))?;
    let rows_per_step = settings.rows_per_step();
    let order =
        Arc::new(EpochOrder::new(dataset.examples.len(), rows_per_step, config.optimizer.seed));
    let total = settings.total_steps(order.steps_per_epoch());
    let session = Session::open(
        config,
        Start {
            settings,
            model_dir,
            dataset: &dataset,
            total_steps: total,
            shape: RunShape {
                ranks: ranks.world.size() as u64,
                per_update: rows_per_step as u64,
                per_rollout: rows_per_step as u64,
            },
            order: &order,
            observer,
            stop: stop.clone(),
            ranks: ranks.clone(),
            command: Command::Sft,
        },
    )?;
    let left = total - session.progress.step.min(total);
    let prompts = PromptSource::new(&dataset, &session, order, Some(left), 1)?;
    training_loop::train(session, &mut Sft { config, dataset, prompts })
}

struct Sft<'a> {
    config: &'a SftConfig,
    dataset: Dataset,
    prompts: PromptSource,
}

/// A tokenized row.
struct Row {
    /// Among the rows of the step, on all ranks.
    place: usize,
    source: SourceLine,
    example_index: usize,
    prompt: Prompt,
    answer: Vec<u32>,
}

/// Rows that go through the model together.
struct RowBatch<'r>(Vec<&'r Row>);

/// What a pass over a micro-batch gives: its part of loss and entropy, and the log-probabilities of each row.
struct Passed {
    loss: f64,
    entropy: f64,
    records: Vec<TokenRecord>,
}

impl Method for Sft<'_> {
    fn step(&mut self, session: &mut Session<'_>) -> Result<Map<String, Value>, TrainError> {
        let rows = self.rows(session)?;
        let targets = rows.iter().map(|row| (&row.prompt, row.answer.as_slice()));
        session.keep_finite_probe(targets);
        let own: usize = rows.iter().map(|row| row.answer.len()).sum();
        let all = session.ranks.world.sum("rows and tokens", &[rows.len() as f64, own as f64])?;
        let (all_rows, all_tokens) = (all[0], all[1]);
        let mut metrics = Map::new();
        metrics.insert("completion_length".into(), json!(all_tokens / all_rows.max(1.0)));
        metrics.insert("epoch".into(), json!(self.prompts.epoch()));
        let (mut records, mut learnt) = (Vec::with_capacity(rows.len()), Map::new());
        let result =
            learn(session, &rows, all_tokens, &mut records).map(|metrics| learnt = metrics);
        session.applied(result, 0, |_| self.dump(&rows, records))?;
        metrics.extend(learnt);
        metrics.insert("tokens_per_sec".into(), json!(own as f64 / session.clock.elapsed()));
        Ok(metrics)
    }

    fn validate(&mut self, session: &Session<'_>) -> Result<Map<String, Value>, TrainError> {
        validation_loss(session, &self.dataset, self.config)
    }

    fn cursor(&self) -> u64 {
        self.prompts.cursor()
    }
}

impl Sft<'_> {
    fn rows(&mut self, session: &mut Session<'_>) -> Result<Vec<Row>, TrainError> {
        let drawn = self.prompts.next_step(session)?;
        session.together("answers", || {
            let rows = drawn.own.into_iter().map(|own| {
                let example = self.dataset.examples.get(own.example_index)?;
                let row = row(&self.dataset, self.config, own.example_index, &example, own.prompt)?;
                Ok(Row { place: own.index, ..row })
            });
            rows.collect()
        })
    }

    /// Every row of a refused step with its answer's log-probabilities, for the dump.
    fn dump(
        &self,
        rows: &[Row],
        records: Vec<TokenRecord>,
    ) -> Result<Vec<(Place, Value)>, TrainError> {
        let unseen = std::iter::repeat_with(TokenRecord::default);
        let line = |(row, record): (&Row, TokenRecord)| {
            let example = self.dataset.examples.get(row.example_index)?;
            let mut line = Map::new();
            line.insert("sample".into(), json!(example.source.to_string()));
            line.insert("images".into(), json!(example.images));
            line.insert("prompt".into(), json!(example.problem));
            line.insert("completion".into(), json!(target_text(&example)));
            line.insert("prompt_ids".into(), json!(row.prompt.ids));
            line.insert("ids".into(), json!(row.answer));
            record.write(&mut line);
            Ok(((row.place, 0), Value::Object(line)))
        };
        rows.iter().zip(records.into_iter().chain(unseen)).map(line).collect()
    }
}

/// The step's update; `records` gets the log-probabilities of each row.
fn learn(
    session: &mut Session<'_>,
    rows: &[Row],
    tokens: f64,
    records: &mut Vec<TokenRecord>,
) -> Result<Map<String, Value>, TrainError> {
    let (mut loss, mut entropy) = (0.0, 0.0);
    let mut batches = RowBatch::split(&rows.iter().collect::<Vec<_>>(), session.settings.limits());
    session.for_each_trained_batch(
        &mut batches,
        |session, index, batch| batch.backward(session, tokens, index),
        |session, index, passed| {
            records.extend(passed.records);
            NonFinite::check_loss(passed.loss, index)?;
            session.optimizer.collect(session.model.parameters())?;
            loss += passed.loss;
            entropy += passed.entropy;
            Ok(())
        },
    )?;
    let (grad_norm, learning_rate) = session.update()?;
    let mut metrics = Map::new();
    metrics.insert("loss".into(), json!(loss));
    metrics.insert("entropy".into(), json!(entropy));
    metrics.insert("grad_norm".into(), json!(grad_norm));
    metrics.insert("learning_rate".into(), json!(learning_rate));
    Ok(metrics)
}

impl<'r> RowBatch<'r> {
    fn split(rows: &[&'r Row], limits: Limits) -> Vec<Self> {
        let batches = micro_batches(&group_lens(rows), limits);
        let rows = |parts: &Vec<_>| parts.iter().map(|part: &Part| rows[part.group]).collect();
        batches.iter().map(rows).map(RowBatch).collect()
    }

    /// Adds its part of the mean over `tokens` to the gradients.
    fn backward(
        &self,
        session: &Session<'_>,
        tokens: f64,
        index: usize,
    ) -> Result<Passed, TrainError> {
        let sections = &session.settings.sections;
        let key = [sections.optimizer.seed, session.progress.step, session.micro_batch_key(index)];
        let model = session.model.as_ref();
        policy::with_dropout(model, &key, || {
            let items: Vec<_> =
                self.0.iter().map(|r| (&r.prompt, vec![r.answer.as_slice()])).collect();
            let batch = MicroBatch::pack(model, &items)?;
            let loss_of = |scores: &TokenScores| {
                let loss = -scores.logprobs.sum(Kind::Float) / tokens;
                let stats = (
                    loss.detach(),
                    scores.entropies.sum(Kind::Float) / tokens,
                    scores.logprobs.detach(),
                );
                (loss, stats)
            };
            let pass = Pass::new(1.0, sections.model.gradient_checkpointing);
            let (loss, entropy, logprobs) = batch.backward(model, pass, loss_of);
            let logprobs = Vec::<f32>::try_from(logprobs.to_device(Device::Cpu))?;
            Ok(Passed {
                loss: f64::try_from(loss)?,
                entropy: f64::try_from(entropy)?,
                records: self.records(&logprobs, index),
            })
        })
    }

    /// The log-probabilities of each row, those of all lying one behind another.
    fn records(&self, logprobs: &[f32], index: usize) -> Vec<TokenRecord> {
        let mut rest = logprobs;
        let rows = self.0.iter().map(|row| {
            let (own, others) = rest.split_at(row.answer.len());
            rest = others;
            TokenRecord {
                micro_batch: Some(index),
                old_logprobs: Some(own.to_vec()),
                ref_logprobs: None,
            }
        });
        rows.collect()
    }
}

impl Divisible for RowBatch<'_> {
    fn group_lens(&self) -> Vec<GroupLens> {
        group_lens(&self.0)
    }

    fn source(&self) -> Option<&SourceLine> {
        self.0.first().map(|row| &row.source)
    }

    fn divide(batches: Vec<Self>, limits: Limits) -> Vec<Self> {
        let rows: Vec<&Row> = batches.into_iter().flat_map(|batch| batch.0).collect();
        Self::split(&rows, limits)
    }
}

/// Loss on the validation rows; nothing without any.
fn validation_loss(
    session: &Session<'_>,
    dataset: &Dataset,
    config: &SftConfig,
) -> Result<Map<String, Value>, TrainError> {
    if dataset.validation.is_empty() {
        return Ok(Map::new());
    }
    let own = session.ranks.world.share(dataset.validation.len());
    let own = session.together("validation", || own_loss(session, dataset, config, own))?;
    let all = session.ranks.world.sum("loss of validation rows", &own)?;
    let mut metrics = Map::new();
    metrics.insert("eval/loss".into(), json!(all[0] / all[1]));
    Ok(metrics)
}

/// The loss of some validation rows, summed over their tokens, and how many these are.
fn own_loss(
    session: &Session<'_>,
    dataset: &Dataset,
    config: &SftConfig,
    rows: Range<usize>,
) -> Result<[f64; 2], TrainError> {
    let cache = ImageCache::new(0);
    let template = session.settings.template(dataset.processor.family())?;
    let (mut sum, mut tokens) = (0.0, 0);
    for index in rows {
        let example = &dataset.validation.get(index)?;
        if session.stop.is_raised() {
            return Err(TrainError::Stopped);
        }
        let prompt = load_prompt(example, &dataset.processor, &template, &cache)
            .map_err(|cause| bad_row(example, cause))?;
        let row = row(dataset, config, index, example, prompt)?;
        let model = session.model.as_ref();
        let batch = MicroBatch::pack(model, &[(&row.prompt, vec![row.answer.as_slice()])])?;
        sum -= f64::try_from(batch.scores(model, 1.0).logprobs.sum(Kind::Double))?;
        tokens += row.answer.len();
    }
    Ok([sum, tokens as f64])
}

/// Tokenizes a row; refuses one that is too long.
fn row(
    dataset: &Dataset,
    config: &SftConfig,
    example_index: usize,
    example: &Example,
    prompt: Prompt,
) -> Result<Row, TrainError> {
    let answer = dataset.processor.answer_ids(&target_text(example))?;
    let got = prompt.ids.len() + answer.len();
    match config.sft.max_seq_length {
        Some(max) if got > max => {
            Err(TrainError::RowTooLong { row: example.source.to_string(), got, max })
        }
        _ => Ok(Row { place: 0, source: example.source.clone(), example_index, prompt, answer }),
    }
}

fn group_lens(rows: &[&Row]) -> Vec<GroupLens> {
    let lens = |row: &&Row| GroupLens {
        prompt: row.prompt.ids.len(),
        completions: vec![row.answer.len()],
    };
    rows.iter().map(lens).collect()
}

/// The training target: the row's answer as it is, tags included.
fn target_text(example: &Example) -> String {
    match example
        .columns
        .get("conversations")
        .and_then(|turns| turns.get(1))
        .and_then(|turn| turn.get("value"))
    {
        Some(Value::String(text)) => text.clone(),
        _ => example.answer.clone(),
    }
}
