//! `reward`: scores of given answers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use base::config::{RewardConfig, RewardFamily};
use data::Tokenizer;
use data::image::{MAX_DECODED_PIXELS, decode_file};
use rewards::{
    BoxUnits, Family, JudgeOptions, OverlongOptions, PluginOptions, RewardInput, RewardOptions,
    RewardSet, Scores,
};
use serde_json::{Map, Value, json};

use crate::output::Output;
use crate::rows::{self, Row};

/// Scores the rows, writes them with their rewards, and sums up on stderr.
///
/// # Errors
/// Where a row cannot be read or scored.
pub fn reward(config: &RewardConfig) -> Result<()> {
    let rewards = reward_set(config)?;
    let rows = rows::read(&config.input)?;
    let folder = rows::image_folder(config.image_folder.as_deref(), &config.input);
    let tokenizer = config.model_name_or_path.as_deref();
    let tokenizer = tokenizer.map(|dir| Tokenizer::from_dir(Path::new(dir)));
    let tokenizer = tokenizer.transpose()?;
    let answers: Vec<Answer<'_>> = rows
        .iter()
        .map(|row| Answer::read(row, &folder, tokenizer.as_ref()))
        .collect::<Result<_>>()?;
    let inputs: Vec<RewardInput<'_>> = answers
        .iter()
        .map(|answer| answer.input(config.reward_method.as_deref()))
        .collect();
    let scores = rewards.score(&inputs).map_err(|error| match error.row() {
        Some(row) => anyhow!(error).context(rows[row].place.clone()),
        None => anyhow!(error),
    })?;
    let mut output = Output::open(config.output.as_deref())?;
    let names: Vec<&str> = rewards.names().collect();
    for (index, row) in rows.iter().enumerate() {
        let mut columns = row.columns.clone();
        let each = names.iter().zip(&scores.per_reward);
        let each = each.map(|(name, scores)| ((*name).to_owned(), json!(scores[index])));
        columns.insert("rewards".into(), Value::Object(each.collect::<Map<_, _>>()));
        columns.insert("reward".into(), json!(scores.total[index]));
        output.write(&Value::Object(columns))?;
    }
    output.finish()?;
    summarise(&names, &scores);
    for (reward, counter, count) in rewards.counters() {
        eprintln!("{reward}: {counter} {count}");
    }
    Ok(())
}

fn reward_set(config: &RewardConfig) -> Result<RewardSet> {
    let options = RewardOptions {
        family: match config.family {
            RewardFamily::Qwen2_5Vl => Family::Qwen2_5Vl,
            RewardFamily::InternVl => Family::InternVl,
            RewardFamily::Glm4v => Family::Glm4v,
        },
        task_type: config.task_type.clone(),
        is_reward_customized_from_vlm_module: config.is_reward_customized_from_vlm_module,
        patch_size: config.patch_size,
        box_units: BoxUnits::from_flags(config.box_format, config.solution_box_format),
        plugins: PluginOptions {
            workers: config.reward_workers,
            timeout_secs: config.reward_timeout_secs,
            python: config.reward_python.clone(),
            judge: JudgeOptions {
                model: config.judge_model.clone(),
                prompt: config.judge_prompt.clone().map(PathBuf::from),
                images: config.judge_images,
                concurrency: config.judge_concurrency,
                cache: config.judge_cache.clone().map(PathBuf::from),
                ..JudgeOptions::default()
            },
        },
        overlong: OverlongOptions::new(config.overlong_max_tokens, config.overlong_cache_tokens),
    };
    Ok(RewardSet::build(
        &config.reward_funcs,
        config.reward_weights.as_deref(),
        &options,
    )?)
}

/// What a row says of an answer.
struct Answer<'a> {
    row: &'a Row,
    completion: &'a str,
    solution: &'a str,
    problem: Option<&'a str>,
    accu_reward_method: Option<&'a str>,
    images: Vec<PathBuf>,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
    completion_tokens: Option<usize>,
}

impl<'a> Answer<'a> {
    fn read(row: &'a Row, folder: &Path, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let names = row.texts("image_path")?;
        let images = names
            .iter()
            .map(|name| rows::image_path(folder, name, &row.place));
        let images: Vec<PathBuf> = images.collect::<Result<_>>()?;
        let image_sizes = match row.tuples::<2>("image_size")? {
            Some(sizes) => sizes
                .into_iter()
                .map(|[width, height]| Ok([u32::try_from(width)?, u32::try_from(height)?]))
                .collect::<Result<_>>()
                .with_context(|| format!("{}: `image_size`", row.place))?,
            None => images
                .iter()
                .map(|path| size_of(path, row))
                .collect::<Result<_>>()?,
        };
        let completion = row.text("completion")?;
        let completion_tokens = match (row.optional_count("completion_tokens")?, tokenizer) {
            (None, Some(tokenizer)) => {
                let ids = tokenizer.encode(completion);
                Some(ids.with_context(|| row.place.clone())?.len())
            }
            (count, _) => count,
        };
        Ok(Self {
            row,
            completion,
            solution: row.text("solution")?,
            problem: row.optional_text("problem")?,
            accu_reward_method: row.optional_text("accu_reward_method")?,
            images,
            image_sizes,
            image_grid_thw: row.tuples("image_grid_thw")?.unwrap_or_default(),
            completion_tokens,
        })
    }

    fn input(&'a self, method: Option<&'a str>) -> RewardInput<'a> {
        RewardInput {
            completion: self.completion,
            solution: self.solution,
            problem: self.problem,
            accu_reward_method: self.accu_reward_method.or(method),
            images: &self.images,
            image_sizes: &self.image_sizes,
            image_grid_thw: &self.image_grid_thw,
            columns: &self.row.columns,
            sample: Some(&self.row.place),
            step: None,
            completion_tokens: self.completion_tokens,
        }
    }
}

/// Width and height of an image file, px.
fn size_of(path: &Path, row: &Row) -> Result<[u32; 2]> {
    let image = decode_file(path, MAX_DECODED_PIXELS)
        .with_context(|| format!("{}\nhint: give its `image_size` in the row", row.place))?;
    Ok([image.width(), image.height()])
}

fn summarise(names: &[&str], scores: &Scores) {
    for (name, scores) in names.iter().zip(&scores.per_reward) {
        let given: Vec<f64> = scores.iter().flatten().copied().collect();
        eprintln!("{name}: {}", summary(&given));
    }
    eprintln!("reward: {}", summary(&scores.total));
}

fn summary(values: &[f64]) -> String {
    if values.is_empty() {
        return "applies to no row".to_owned();
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "mean {mean:.4}, {lowest:.4} to {highest:.4}, {} rows",
        values.len()
    )
}
