//! `logprobs`: log-probabilities of given completions, token by token.

use std::path::PathBuf;

use anyhow::{Context, Result};
use base::Prompt;
use config::LogprobsConfig;
use data::Notices;
use serde_json::{Value, json};
use train::logprobs::completion_logprobs;

use crate::model::Model;
use cli::output::Output;
use cli::rows::{self, Images, Row};

/// Rows whose prompts are in memory at a time.
const CHUNK_ROWS: usize = 64;

/// What is odd about the rows; a row that would be asked blind is refused.
fn notices(config: &LogprobsConfig, rows: &[Row], folder: &Images) -> Result<Notices> {
    let mut notices = Notices::new(rows::WITH_COMPLETION, config.load.apply_exif);
    for row in rows {
        notices.look_at_lost(&row.place, &row.lost);
        row.refuse_hidden_media(&rows::WITH_COMPLETION)?;
        let images = images(row, folder)?;
        let texts = [("prompt", row.text("prompt")?), ("completion", row.text("completion")?)];
        notices.look(&row.place, &row.columns, &texts, &images);
    }
    Ok(notices)
}

fn images(row: &Row, folder: &Images) -> Result<Vec<PathBuf>> {
    let names = row.texts("images")?;
    let paths = names.iter().map(|name| folder.path(name, &row.place));
    paths.collect()
}

/// Writes each row with the log-probabilities of its completion.
///
/// # Errors
/// Where a row, an image or the model cannot be used.
pub fn logprobs(config: &LogprobsConfig) -> Result<()> {
    let rows = rows::read(&config.rows.input)?;
    let folder = Images::of(
        config.rows.image_folder.as_deref(),
        &config.rows.input,
        config.load.follow_links,
    );
    notices(config, &rows, &folder)?.say();
    let mut output = Output::open(config.rows.output.as_deref())?;
    let model = Model::load(config)?;
    let prepare = |row: &Row| -> Result<(Prompt, Vec<u32>)> {
        let images = images(row, &folder)?;
        let prompt = model.prompt(row.text("prompt")?, &images, &row.place)?;
        let completion = model.processor.answer_ids(row.text("completion")?);
        Ok((prompt, completion.with_context(|| row.place.clone())?))
    };
    for rows in rows.chunks(CHUNK_ROWS) {
        let prepared = rows.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        let logprobs = tch::no_grad(|| {
            completion_logprobs(model.weights.as_ref(), &prepared, config.rows.temperature)
        })?;
        for ((row, (prompt, completion)), logprobs) in rows.iter().zip(&prepared).zip(&logprobs) {
            let mut columns = row.columns.clone();
            columns.insert("prompt_ids".into(), json!(prompt.ids));
            columns.insert("completion_ids".into(), json!(completion));
            columns.insert("logprobs".into(), json!(logprobs));
            output.write(&Value::Object(columns))?;
        }
    }
    output.finish()
}
