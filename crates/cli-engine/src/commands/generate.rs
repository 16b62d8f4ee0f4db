//! `generate`: completions of questions about images.

use std::path::PathBuf;

use anyhow::Result;
use base::console;
use base::{Completion, DrawKey, FinishReason, Prompt};
use config::GenerateConfig;
use data::Notices;
use engine::{Decoding, Generator, Request, SamplingParams};
use serde_json::{Map, Value, json};
use torch::parse_device;

use crate::model::Model;
use cli::output::{self, Output};
use cli::rows::{self, Images, Row};
use cli::signals;

/// Questions whose prompts are in memory at a time.
const CHUNK_ROWS: usize = 64;

/// Samples completions and writes them, in the order of the questions.
///
/// # Errors
/// Where a row, an image or the model cannot be used.
pub fn generate(config: &GenerateConfig) -> Result<()> {
    let questions = questions(config)?;
    let mut shown = match config.question.output.is_none() && !config.question.json {
        true => Shown::Texts { is_one: questions.len() * config.sampling.num_generations == 1 },
        false => Shown::Rows(Output::open(config.question.output.as_deref())?),
    };
    let stop = signals::stop_flag("stopping")?;
    let device = parse_device(&config.machine.device)?;
    let decoding = Decoding::new(config.decoding.cuda_graphs.asked(), device)?;
    let model = Model::load(config)?;
    model.processor.expect_answers(config.sampling.max_new_tokens);
    let generator = Generator::new(
        model.weights.as_ref(),
        sampling_params(config, &model),
        config.decoding.max_concurrent_completions,
    )?
    .with_decoding(decoding)?;
    for (chunk, questions) in questions.chunks(CHUNK_ROWS).enumerate() {
        let mut requests = Vec::with_capacity(questions.len());
        for (index, question) in questions.iter().enumerate() {
            let prompt = model.prompt(&question.text, &question.images, &question.place)?;
            let prompt_index = (chunk * CHUNK_ROWS + index) as u64;
            let key = DrawKey {
                seed: config.decoding.seed,
                step: 0,
                prompt: prompt_index,
                completion: 0,
            };
            requests.push(Request {
                prompt,
                num_completions: config.sampling.num_generations,
                key,
            });
        }
        let generation = generator.generate(&requests, &mut |_, _, _| {}, &|| stop.is_raised())?;
        for ((question, request), completions) in
            questions.iter().zip(&requests).zip(&generation.completions)
        {
            for (index, completion) in completions.iter().enumerate() {
                let row = output_row(question, &request.prompt, completion, &model)?;
                let of = (index + 1, completions.len());
                shown.write(&question.place, of, &row)?;
            }
        }
    }
    shown.finish()
}

/// Where completions go, and as what.
enum Shown {
    /// With all that is known of them, for programs.
    Rows(Output),
    /// Their texts alone, for people.
    Texts {
        /// Whether there is one completion, which needs no heading.
        is_one: bool,
    },
}

impl Shown {
    /// Writes completion `index` of `all`, from 1, to the question at `place`.
    fn write(&mut self, place: &str, (index, all): (usize, usize), row: &Value) -> Result<()> {
        let is_one = match self {
            Self::Rows(output) => return output.write(row),
            Self::Texts { is_one } => *is_one,
        };
        let of = match all {
            1 => String::new(),
            _ => format!(", completion {index} of {all}"),
        };
        if !is_one {
            output::write_text(&format!("{place}{of}:"))?;
        }
        let text = row["completion"].as_str().unwrap_or_default();
        output::write_text(&console::printable(text))?;
        if row["finish_reason"] == "length" {
            base::say!("note: {place}{of}: cut off at --max_new_tokens");
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Rows(output) => output.finish(),
            Self::Texts { .. } => Ok(()),
        }
    }
}

struct Question {
    place: String,
    text: String,
    images: Vec<PathBuf>,
    columns: Map<String, Value>,
}

fn questions(config: &GenerateConfig) -> Result<Vec<Question>> {
    if let Some(prompt) = &config.question.prompt {
        let images: Vec<PathBuf> = config.question.image.iter().map(PathBuf::from).collect();
        let place = "command line".to_owned();
        let mut notices = Notices::new(rows::ASKED, config.load.apply_exif);
        notices.look(&place, &Map::new(), &[("prompt", prompt.as_str())], &images);
        notices.say();
        return Ok(vec![Question { place, text: prompt.clone(), images, columns: Map::new() }]);
    }
    let input = config.question.input.as_deref().unwrap_or_default();
    let folder =
        Images::of(config.question.image_folder.as_deref(), input, config.load.follow_links);
    let mut notices = Notices::new(rows::ASKED, config.load.apply_exif);
    let mut question = |row: Row| -> Result<Question> {
        notices.look_at_lost(&row.place, &row.lost);
        row.refuse_hidden_media(&rows::ASKED)?;
        let images = row.texts("images")?;
        let images = images.iter().map(|name| folder.path(name, &row.place));
        let images: Vec<PathBuf> = images.collect::<Result<_>>()?;
        let text = row.text("prompt")?.to_owned();
        notices.look(&row.place, &row.columns, &[("prompt", text.as_str())], &images);
        Ok(Question { images, text, place: row.place, columns: row.columns })
    };
    let questions = rows::read(input)?.into_iter().map(&mut question);
    let questions = questions.collect::<Result<_>>()?;
    notices.say();
    Ok(questions)
}

fn sampling_params(config: &GenerateConfig, model: &Model) -> SamplingParams {
    let tokenizer = model.processor.tokenizer();
    SamplingParams {
        temperature: config.sampling.temperature,
        top_k: Some(config.filters.top_k).filter(|top_k| *top_k > 0),
        top_p: config.filters.top_p,
        min_p: config.filters.min_p.unwrap_or_default(),
        repetition_penalty: config.filters.repetition_penalty,
        max_new_tokens: config.sampling.max_new_tokens,
        min_new_tokens: config.sampling.min_completion_length,
        eos_ids: tokenizer.eos_ids().to_vec(),
        forbidden_ids: tokenizer.placeholder_ids().to_vec(),
    }
}

/// The row as it came, with the completion.
fn output_row(
    question: &Question,
    prompt: &Prompt,
    completion: &Completion,
    model: &Model,
) -> Result<Value> {
    let mut row = question.columns.clone();
    row.insert("prompt_ids".into(), json!(prompt.ids));
    // What rewards of boxes need.
    let sizes: Vec<_> = prompt.images.iter().map(|i| i.original_size).collect();
    let grids: Vec<_> = prompt.images.iter().map(|i| i.layout.tiles[0]).collect();
    row.insert("image_size".into(), json!(sizes));
    row.insert("image_grid_thw".into(), json!(grids));
    row.insert("completion_ids".into(), json!(completion.ids));
    row.insert("logprobs".into(), json!(completion.sampled_logprobs));
    let text = model.processor.tokenizer().decode(&completion.ids, true)?;
    row.insert("completion".into(), text.into());
    let reason = match completion.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::StopString => "stop_string",
        FinishReason::Length => "length",
    };
    row.insert("finish_reason".into(), reason.into());
    Ok(Value::Object(row))
}
