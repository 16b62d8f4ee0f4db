//! Rows to scores: the same for a file and for a request.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use base::run_folder::StopFlag;
use config::RewardConfig;
use data::{Notices, Tokenizer};
use rewards::{
    BoxAnswers, Explanation, RewardFamily, RewardInput, RewardOptions, RewardSet, Scores,
    ScoringTime,
};
use serde_json::{Map, Value, json};

use super::origin::{self, Origin};
use super::row_input::{RowInput, RowOptions};
use crate::hub;
use crate::rows::{Images, Row, SCORED, SCORED_OWN};

/// The rewards with what they need beside the rows.
pub struct Scorer {
    /// The rewards.
    pub rewards: RewardSet,
    /// How rows are read.
    pub row_options: RowOptions,
    /// Rows whose true answers are boxes although texts are compared.
    boxes: BoxAnswers,
}

/// Scores of some rows.
pub struct Scored {
    /// Scores of the rows.
    pub scores: Scores,
    /// How long each reward took.
    pub times: Vec<ScoringTime>,
    /// `[rows][rewards]`; empty where nobody asked.
    pub explanations: Vec<Vec<Option<Explanation>>>,
}

/// Why rows have no scores.
#[derive(Debug)]
pub struct Failure {
    /// The row at fault, counted from 0, where one is.
    pub row: Option<usize>,
    /// What happened, its place included.
    pub error: anyhow::Error,
}

impl Scorer {
    /// The rewards that the configuration names; none waits long once `stop` is raised.
    ///
    /// # Errors
    /// Where one does not exist or does not start.
    pub fn new(
        config: &RewardConfig,
        image_folder: Option<Images>,
        stop: &StopFlag,
    ) -> Result<Self> {
        let options = options(config, stop);
        let model = config.task.model_name_or_path.as_deref();
        let model = model.map(|name| hub::description_folder(name, None));
        let tokenizer = model.transpose()?.map(|dir| Tokenizer::from_dir(&dir));
        let weights = config.rewards.reward_weights.as_deref();
        Ok(Self {
            boxes: BoxAnswers::new(
                config.task.task_type.as_deref(),
                &config.rewards.reward_funcs,
                config.rewards.is_reward_customized_from_vlm_module,
            ),
            rewards: RewardSet::build(&config.rewards.reward_funcs, weights, &options)?,
            row_options: RowOptions {
                image_folder,
                run_folder: match (&config.rows.image_folder, &config.rows.input) {
                    (None, Some(input)) => Some(origin::run_folder(input)),
                    _ => None,
                },
                reward_method: config.task.reward_method.clone(),
                needs_method: needs_method(config),
                patch_size: config.task.patch_size,
                apply_exif: config.rows.apply_exif,
                tokenizer: tokenizer.transpose()?,
            },
        })
    }

    /// Names of the rewards.
    pub fn names(&self) -> Vec<String> {
        self.rewards.names().map(str::to_owned).collect()
    }

    /// Notes what is odd about a row that can be scored.
    pub fn inspect(&self, row: &Row, notices: &mut Notices) {
        let is_own = Origin::of(row).is_ok_and(|origin| origin.is_own());
        notices.read_as(if is_own { SCORED_OWN } else { SCORED });
        // What cannot be read was refused before.
        let images = self.row_options.images(row).unwrap_or_default();
        // A size that the row gives is not that of the file.
        let opened = match row.columns.get("image_size") {
            None => images.as_slice(),
            Some(_) => &[],
        };
        notices.look(&row.place, &row.columns, &[], opened);
        notices.look_at_lost(&row.place, &row.lost);
    }

    /// That most true answers so far are boxes, and their texts are compared.
    pub fn box_warning(&self) -> Option<String> {
        self.boxes.warning()
    }

    /// Scores rows as one batch.
    ///
    /// # Errors
    /// Where a row cannot be read or scored.
    pub fn score(&self, rows: &[Row], explain: bool) -> Result<Scored, Failure> {
        let read: Vec<RowInput<'_>> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| {
                RowInput::read(row, &self.row_options)
                    .map_err(|error| Failure { row: Some(index), error })
            })
            .collect::<Result<_, _>>()?;
        let inputs: Vec<RewardInput<'_>> = read.iter().map(RowInput::input).collect();
        for input in &inputs {
            self.boxes.add(input.solution, input.accu_reward_method);
        }
        let scored = self.rewards.score_timed(&inputs);
        let (scores, times) = scored.map_err(|error| {
            let row = error.row();
            // One of the user's own names its rows itself.
            let is_named = matches!(error, rewards::RewardError::Plugin { .. });
            let place = row.filter(|_| !is_named).and_then(|row| rows.get(row));
            Failure { error: placed(error.into(), place), row }
        })?;
        let mut explanations = Vec::new();
        if explain {
            for (index, input) in inputs.iter().enumerate() {
                let explained = self.rewards.explain(input).map_err(|error| Failure {
                    row: Some(index),
                    error: placed(error.into(), rows.get(index)),
                })?;
                explanations.push(explained);
            }
        }
        Ok(Scored { scores, times, explanations })
    }

    /// The row with its scores, as it is written.
    pub fn output(&self, row: Row, index: usize, scored: &Scored) -> Value {
        let mut columns = row.columns;
        let each = self.rewards.names().zip(&scored.scores.per_reward);
        let each = each.map(|(name, scores)| (name.to_owned(), json!(scores[index])));
        columns.insert("rewards".into(), Value::Object(each.collect::<Map<_, _>>()));
        columns.insert("reward".into(), json!(scored.scores.total[index]));
        if let Some(explained) = scored.explanations.get(index) {
            let each = self.rewards.names().zip(explained).map(|(name, why)| {
                let why = why.as_ref().map(Explanation::to_json);
                (name.to_owned(), json!(why))
            });
            let each = Value::Object(each.collect::<Map<_, _>>());
            columns.insert("explanations".into(), each);
        }
        Value::Object(columns)
    }
}

/// The error with the place of its row.
fn placed(error: anyhow::Error, row: Option<&Row>) -> anyhow::Error {
    match row {
        Some(row) => anyhow!(error).context(row.place.clone()),
        None => error,
    }
}

/// Whether a reward goes by the accuracy method of a row.
fn needs_method(config: &RewardConfig) -> bool {
    let by_method = |name: &String| ["accuracy", "length"].contains(&name.as_str());
    !config.rewards.is_reward_customized_from_vlm_module
        && config.rewards.reward_funcs.iter().any(by_method)
}

/// The family whose rewards are asked for.
pub fn family(config: &RewardConfig) -> RewardFamily {
    let named = config.task.family.as_deref();
    named.map_or(RewardFamily::WITHOUT_MODEL, rewards::family_of)
}

fn options(config: &RewardConfig, stop: &StopFlag) -> RewardOptions {
    let task = &config.task;
    let most = task.overlong_max_tokens;
    let mut options = RewardOptions::new(&config.rewards, family(config), task.patch_size, most);
    options.task_type = task.task_type.clone();
    options.plugins.stop = stop.clone();
    options.plugins.judge.cache = task.judge_cache.as_deref().map(PathBuf::from);
    options
}
