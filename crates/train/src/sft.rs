//! Supervised fine-tuning on the answers of the rows: the mean of `-log p` over all answer tokens of
//! a step; prompt tokens have no loss.

use std::path::Path;
use std::sync::Arc;

use base::run_folder::StopFlag;
use base::{Example, Prompt};
use config::SftConfig;
use data::{EpochOrder, ImageCache, PromptLoader, load_prompt};
use serde_json::{Map, Value, json};
use tch::{Device, Kind};
use torch::OutOfMemory;

use crate::TrainError;
use crate::bad_step::{NonFinite, TokenRecord};
use crate::batch::MicroBatch;
use crate::logprobs::TokenScores;
use crate::micro_batches::{GroupLens, micro_batches};
use crate::observer::Observer;
use crate::out_of_memory::{self, catch_oom};
use crate::policy;
use crate::session::{Dataset, Outcome, Session, Start};
use crate::settings::Settings;
use crate::trainer::bad_row;

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
    let settings = Settings::try_from(config)?;
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
            steps_per_epoch: order.steps_per_epoch(),
            observer,
            stop: stop.clone(),
        },
    )?;
    let prompts =
        dataset.prompts(&session.settings, &order, session.step..total, 2 * rows_per_step)?;
    stop.begin();
    Trainer { config, session, dataset, order, prompts }.train()
}

struct Trainer<'a> {
    config: &'a SftConfig,
    session: Session<'a>,
    dataset: Dataset,
    order: Arc<EpochOrder>,
    prompts: PromptLoader,
}

/// A tokenized row.
struct Row {
    example_index: usize,
    prompt: Prompt,
    answer: Vec<u32>,
}

impl Trainer<'_> {
    fn train(mut self) -> Result<Outcome, TrainError> {
        match self.steps() {
            Ok(()) => self.session.outcome(),
            Err(error) => Err(self.session.fail(error)),
        }
    }

    fn steps(&mut self) -> Result<(), TrainError> {
        // Before the first step, or where the last process was interrupted.
        self.evaluate()?;
        while self.session.goes_on() {
            let device = self.session.model.compute().1;
            let metrics = out_of_memory::step(device, || self.step())?;
            self.session.finish_step(metrics)?;
            self.evaluate()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Map<String, Value>, TrainError> {
        let rows = self.rows()?;
        let targets = rows.iter().map(|row| (&row.prompt, row.answer.as_slice()));
        self.session.keep_finite_probe(targets);
        let tokens: usize = rows.iter().map(|r| r.answer.len()).sum();
        let mut metrics = Map::new();
        metrics.insert("completion_length".into(), json!(tokens as f64 / rows.len().max(1) as f64));
        metrics.insert(
            "epoch".into(),
            json!((self.session.step + 1) as f64 / self.order.steps_per_epoch() as f64),
        );
        let mut records = Vec::with_capacity(rows.len());
        match self.learn(&rows, tokens, &mut records) {
            Err(TrainError::NonFinite(cause)) => {
                let dump = self.dump(&rows, records)?;
                self.session.refuse(*cause, 0, dump)?;
            }
            learnt => metrics.extend(learnt?),
        }
        metrics
            .insert("tokens_per_sec".into(), json!(tokens as f64 / self.session.clock.elapsed()));
        Ok(metrics)
    }

    /// The step's update; `records` gets the log-probabilities of each row.
    fn learn(
        &mut self,
        rows: &[Row],
        tokens: usize,
        records: &mut Vec<TokenRecord>,
    ) -> Result<Map<String, Value>, TrainError> {
        let (mut loss, mut entropy) = (0.0, 0.0);
        let mut batches = self.micro_batches(&rows.iter().collect::<Vec<_>>());
        let mut index = 0;
        while index < batches.len() {
            match self.accumulate(&batches[index], tokens, (index + 1, records))? {
                Ok((l, e)) => {
                    loss += l;
                    entropy += e;
                    index += 1;
                }
                Err(cause) => {
                    self.session.shrink(&group_lens(&batches[index]), cause)?;
                    let rest = batches.split_off(index).concat();
                    batches.extend(self.micro_batches(&rest));
                }
            }
        }
        let (grad_norm, learning_rate) = self.session.update()?;
        let mut metrics = Map::new();
        metrics.insert("loss".into(), json!(loss));
        metrics.insert("entropy".into(), json!(entropy));
        metrics.insert("grad_norm".into(), json!(grad_norm));
        metrics.insert("learning_rate".into(), json!(learning_rate));
        Ok(metrics)
    }

    /// Every row of a refused step with its answer's log-probabilities, for the dump.
    fn dump(&self, rows: &[Row], records: Vec<TokenRecord>) -> Result<Vec<Value>, TrainError> {
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
            Ok(Value::Object(line))
        };
        rows.iter().zip(records.into_iter().chain(unseen)).map(line).collect()
    }

    fn rows(&mut self) -> Result<Vec<Row>, TrainError> {
        let count = self.order.indices_of_step(self.session.step).len();
        let prompts = self.session.take_prompts(&mut self.prompts, count)?;
        prompts
            .into_iter()
            .map(|(index, prompt)| {
                let example = self.dataset.examples.get(index)?;
                row(&self.dataset, self.config, index, &example, prompt)
            })
            .collect()
    }

    fn micro_batches<'r>(&self, rows: &[&'r Row]) -> Vec<Vec<&'r Row>> {
        micro_batches(&group_lens(rows), self.session.settings.limits(true))
            .iter()
            .map(|parts| parts.iter().map(|part| rows[part.group]).collect())
            .collect()
    }

    /// Adds a micro-batch's part of the mean over `tokens`; returns its part of loss and entropy. The log-probabilities of each row join
    /// `records` with the index of the micro-batch. Adds nothing on OOM.
    fn accumulate(
        &mut self,
        rows: &[&Row],
        tokens: usize,
        (index, records): (usize, &mut Vec<TokenRecord>),
    ) -> Result<Result<(f64, f64), OutOfMemory>, TrainError> {
        let Session { model, optimizer, clock, settings, step, .. } = &mut self.session;
        let key = [settings.sections.optimizer.seed, *step, index as u64];
        let pass = || -> Result<_, TrainError> {
            let items: Vec<_> =
                rows.iter().map(|r| (&r.prompt, vec![r.answer.as_slice()])).collect();
            let batch = MicroBatch::pack(model.as_ref(), &items)?;
            let loss_of = |scores: &TokenScores| {
                let loss = -scores.logprobs.sum(Kind::Float) / tokens as f64;
                let stats = (
                    loss.detach(),
                    scores.entropies.sum(Kind::Float) / tokens as f64,
                    scores.logprobs.detach(),
                );
                (loss, stats)
            };
            let (loss, entropy, logprobs) = batch.backward(
                model.as_ref(),
                1.0,
                settings.sections.model.gradient_checkpointing,
                loss_of,
            );
            let logprobs = Vec::<f32>::try_from(logprobs.to_device(Device::Cpu))?;
            Ok((f64::try_from(loss)?, f64::try_from(entropy)?, logprobs))
        };
        let passed = clock.time("train", || {
            policy::with_dropout(model.as_ref(), &key, || catch_oom(model.compute().1, pass))
        })?;
        let (loss, entropy, logprobs) = match passed {
            Ok(numbers) => numbers,
            Err(cause) => return Ok(Err(cause)),
        };
        let mut rest = logprobs.as_slice();
        records.extend(rows.iter().map(|row| {
            let (own, others) = rest.split_at(row.answer.len());
            rest = others;
            TokenRecord {
                micro_batch: Some(index),
                old_logprobs: Some(own.to_vec()),
                ref_logprobs: None,
            }
        }));
        NonFinite::check_loss(loss, index)?;
        optimizer.collect(model.parameters())?;
        Ok(Ok((loss, entropy)))
    }

    /// Evaluates where that is due.
    fn evaluate(&mut self) -> Result<(), TrainError> {
        let Trainer { session, dataset, config, .. } = self;
        session.evaluate(|session| validation_loss(session, dataset, config))
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
    let cache = ImageCache::new(0);
    let (mut sum, mut tokens) = (0.0, 0);
    for (index, example) in dataset.validation.iter().enumerate() {
        let example = &example?;
        if session.stop.is_raised() {
            return Err(TrainError::Stopped);
        }
        let template = &session.settings.template;
        let prompt = load_prompt(example, &dataset.processor, template, &cache)
            .map_err(|cause| bad_row(example, cause))?;
        let row = row(dataset, config, index, example, prompt)?;
        let model = session.model.as_ref();
        let batch = MicroBatch::pack(model, &[(&row.prompt, vec![row.answer.as_slice()])])?;
        sum -= f64::try_from(batch.scores(model, 1.0).logprobs.sum(Kind::Double))?;
        tokens += row.answer.len();
    }
    let mut metrics = Map::new();
    metrics.insert("eval/loss".into(), json!(sum / tokens as f64));
    Ok(metrics)
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
        _ => Ok(Row { example_index, prompt, answer }),
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
