//! Supervised fine-tuning on the answers of the rows: the mean of `-log p` over all answer tokens of
//! a step, prompts unseen by the loss.

use std::path::Path;
use std::sync::Arc;

use base::config::SftConfig;
use base::run_folder::StopFlag;
use base::{Prompt, Sample};
use data::{EpochSampler, ImageCache, PromptLoader, load_prompt};
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::TrainError;
use crate::batch::MicroBatch;
use crate::session::{Dataset, Observer, Outcome, Session};
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
    let rows_per_step = settings.micro_batch * settings.accumulation;
    let order = Arc::new(EpochSampler::new(
        dataset.samples.len(),
        rows_per_step,
        config.seed,
    ));
    let total = settings.total_steps(order.steps_per_epoch());
    let session = Session::open(
        config,
        settings,
        model_dir,
        &dataset,
        total,
        observer,
        stop.clone(),
    )?;
    let prompts = dataset.prompts(
        &session.settings,
        &order,
        session.step..total,
        2 * rows_per_step,
    )?;
    Trainer {
        config,
        session,
        dataset,
        order,
        prompts,
    }
    .train()
}

struct Trainer<'a> {
    config: &'a SftConfig,
    session: Session<'a>,
    dataset: Dataset,
    order: Arc<EpochSampler>,
    prompts: PromptLoader,
}

/// A row ready to be learnt.
struct Row {
    prompt: Prompt,
    answer: Vec<u32>,
}

impl Trainer<'_> {
    fn train(mut self) -> Result<Outcome, TrainError> {
        while self.session.goes_on() {
            let mut metrics = self.step()?;
            self.evaluate(&mut metrics)?;
            self.session.finish_step(metrics)?;
        }
        self.session.outcome()
    }

    fn step(&mut self) -> Result<Map<String, Value>, TrainError> {
        let rows = self.rows()?;
        let tokens: usize = rows.iter().map(|r| r.answer.len()).sum();
        let (mut loss, mut entropy) = (0.0, 0.0);
        for rows in self.micro_batches(&rows) {
            let (l, e) = self.accumulate(rows, tokens)?;
            loss += l;
            entropy += e;
        }
        let (grad_norm, learning_rate) = self.session.update()?;
        let mut metrics = Map::new();
        metrics.insert("loss".into(), json!(loss));
        metrics.insert("entropy".into(), json!(entropy));
        metrics.insert("grad_norm".into(), json!(grad_norm));
        metrics.insert("learning_rate".into(), json!(learning_rate));
        metrics.insert(
            "completion_length".into(),
            json!(tokens as f64 / rows.len().max(1) as f64),
        );
        metrics.insert(
            "tokens_per_sec".into(),
            json!(tokens as f64 / self.session.clock.elapsed()),
        );
        metrics.insert(
            "epoch".into(),
            json!((self.session.step + 1) as f64 / self.order.steps_per_epoch() as f64),
        );
        Ok(metrics)
    }

    fn rows(&mut self) -> Result<Vec<Row>, TrainError> {
        let count = self.order.indices_of_step(self.session.step).len();
        let prompts = self.session.take_prompts(&mut self.prompts, count)?;
        prompts
            .into_iter()
            .map(|(index, prompt)| self.row(&self.dataset.samples[index], prompt))
            .collect()
    }

    fn row(&self, sample: &Sample, prompt: Prompt) -> Result<Row, TrainError> {
        let answer = self.dataset.processor.answer_ids(&taught_text(sample))?;
        let got = prompt.ids.len() + answer.len();
        match self.config.max_seq_length {
            Some(max) if got > max => Err(TrainError::RowTooLong {
                row: sample.source.to_string(),
                got,
                max,
            }),
            _ => Ok(Row { prompt, answer }),
        }
    }

    fn micro_batches<'r>(&self, rows: &'r [Row]) -> Vec<&'r [Row]> {
        let settings = &self.session.settings;
        let mut batches = Vec::new();
        let mut from = 0;
        while from < rows.len() {
            let (mut tokens, mut to) = (0, from);
            while to < rows.len() && to - from < settings.micro_batch {
                tokens += rows[to].prompt.ids.len() + rows[to].answer.len();
                if to > from && settings.max_tokens.is_some_and(|max| tokens > max) {
                    break;
                }
                to += 1;
            }
            batches.push(&rows[from..to]);
            from = to;
        }
        batches
    }

    /// Adds a micro-batch's part of the mean over `tokens`; returns its part of loss and entropy.
    fn accumulate(&mut self, rows: &[Row], tokens: usize) -> Result<(f64, f64), TrainError> {
        let Session {
            model,
            optimizer,
            clock,
            settings,
            ..
        } = &mut self.session;
        let (loss, entropy) = clock.time("train", || -> Result<_, TrainError> {
            let items: Vec<_> = rows
                .iter()
                .map(|r| (&r.prompt, vec![r.answer.as_slice()]))
                .collect();
            let batch = MicroBatch::pack(model.as_ref(), &items)?;
            let (loss, entropy) =
                batch.backward(model.as_ref(), 1.0, settings.recompute, |scores| {
                    let loss = -scores.logprobs.sum(Kind::Float) / tokens as f64;
                    let stats = (
                        loss.detach(),
                        scores.entropies.sum(Kind::Float) / tokens as f64,
                    );
                    (loss, stats)
                });
            Ok((f64::try_from(loss)?, f64::try_from(entropy)?))
        })?;
        if !loss.is_finite() {
            return Err(TrainError::NonFinite {
                what: "loss",
                value: loss,
            });
        }
        optimizer.collect(model.parameters())?;
        Ok((loss, entropy))
    }

    /// Loss on the held-out rows, where that is due.
    fn evaluate(&mut self, metrics: &mut Map<String, Value>) -> Result<(), TrainError> {
        if !self.session.evaluation_is_due() || self.dataset.validation.is_empty() {
            return Ok(());
        }
        let cache = ImageCache::new(0);
        let (mut sum, mut tokens) = (0.0, 0);
        for sample in &self.dataset.validation {
            let prompt = load_prompt(
                sample,
                &self.dataset.processor,
                &self.session.settings.template,
                &cache,
            )
            .map_err(|cause| bad_row(sample, cause))?;
            let row = self.row(sample, prompt)?;
            let model = self.session.model.as_ref();
            let batch = MicroBatch::pack(model, &[(&row.prompt, vec![row.answer.as_slice()])])?;
            sum -= f64::try_from(batch.scores(model, 1.0).logprobs.sum(Kind::Double))?;
            tokens += row.answer.len();
        }
        metrics.insert("eval/loss".into(), json!(sum / tokens as f64));
        Ok(())
    }
}

/// What the model is to say: the row's answer as it stands there, its tags included.
fn taught_text(sample: &Sample) -> String {
    match sample
        .columns
        .get("conversations")
        .and_then(|turns| turns.get(1))
        .and_then(|turn| turn.get("value"))
    {
        Some(Value::String(text)) => text.clone(),
        _ => sample.answer.clone(),
    }
}
