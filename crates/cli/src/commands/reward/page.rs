//! What the page of `--html` is told: an even choice of the rows, with their scores and reasons.

use ::rewards::{BoxUnits, RewardInput, Scores};
use anyhow::{Result, anyhow};
use config::{BoxFormat, RewardConfig};
use pages::rewards::{self, Page, RewardScores};
use pages::thinning::Thinning;
use report::{KeyMetric, ScoredPage};

use super::row_input::RowInput;
use super::scorer::{Scorer, family};
use super::summary;
use super::tally::Tally;
use crate::rows::Row;

/// The rows that the page will show.
pub struct PageRows(Thinning<KeptRow>);

struct KeptRow {
    row: Row,
    scores: Vec<Option<f64>>,
    total: f64,
}

impl PageRows {
    /// Will keep up to `limit` rows.
    pub fn new(limit: usize) -> Self {
        Self(Thinning::new(limit))
    }

    /// Keeps row `index` of a batch, or not.
    pub fn keep(&mut self, row: &Row, index: usize, scores: &Scores) {
        self.0.offer(|| KeptRow {
            row: Row {
                place: row.place.clone(),
                columns: row.columns.clone(),
                lost: row.lost.clone(),
            },
            scores: scores.per_reward.iter().map(|each| each[index]).collect(),
            total: scores.total[index],
        });
    }

    /// The page of what was kept.
    ///
    /// # Errors
    /// Where a row cannot be explained.
    pub fn page(
        self,
        config: &RewardConfig,
        input: &str,
        scorer: &Scorer,
        tally: &Tally,
    ) -> Result<ScoredPage> {
        let num_rows = self.0.num_offered();
        let rows = self.0.chosen().into_iter().map(|kept| shown(kept, config, scorer));
        let rewards = tally.rewards.iter().zip(scorer.rewards.weights());
        let page = Page {
            input,
            rewards: rewards
                .map(|(reward, weight)| RewardScores {
                    name: &reward.name,
                    weight: *weight,
                    scores: &reward.scores,
                })
                .collect(),
            totals: &tally.total,
            metrics: key_metrics(tally),
            num_rows,
            rows: rows.collect::<Result<_>>()?,
            apply_exif: config.rows.apply_exif,
        };
        Ok(page.scored())
    }
}

/// Groups that teach nothing, and what took longest.
fn key_metrics(tally: &Tally) -> Vec<KeyMetric> {
    let mut metrics = Vec::new();
    if let Some(line) = summary::groups(tally) {
        let flat = tally.groups.values().filter(|g| g.rows > 1 && g.is_equal);
        metrics.push(KeyMetric {
            label: "groups without spread".into(),
            value: flat.count().to_string(),
            note: line,
        });
    }
    if let Some(slow) = tally.slowest.first() {
        metrics.push(KeyMetric {
            label: "slowest row".into(),
            value: summary::duration(slow.time),
            note: slow.place.clone(),
        });
    }
    metrics
}

fn shown(kept: KeptRow, config: &RewardConfig, scorer: &Scorer) -> Result<rewards::Row> {
    let row = RowInput::read(&kept.row, &scorer.row_options)?;
    let input = row.input();
    let explained = scorer.rewards.explain(&input);
    let explained = explained.map_err(|error| anyhow!(error).context(kept.row.place.clone()))?;
    let question = match input.problem {
        Some(problem) => problem,
        None => kept.row.optional_text("prompt").ok().flatten().unwrap_or_default(),
    };
    Ok(rewards::Row {
        place: place(&kept),
        images: input.images.to_vec(),
        extent: extent(config, &input),
        question: question.to_owned(),
        completion: input.completion.to_owned(),
        solution: input.solution.to_owned(),
        explained,
        total: kept.total,
        scores: kept.scores.clone(),
    })
}

/// `rows.jsonl:3, group 7`
fn place(kept: &KeptRow) -> String {
    let columns = &kept.row.columns;
    let group = super::tally::GROUP_COLUMNS.iter().find_map(|name| columns.get(*name));
    match group {
        Some(group) => format!("{}, group {group}", kept.row.place),
        None => kept.row.place.clone(),
    }
}

/// Width and height of the whole image in the units in which rewards compare boxes: those of the
/// solution, but pixels (none) for shares.
fn extent(config: &RewardConfig, input: &RewardInput<'_>) -> Option<[f64; 2]> {
    let rewards = &config.rewards;
    let units = BoxUnits { answer: rewards.box_format, solution: rewards.solution_box_format };
    let solution = match rewards.is_reward_customized_from_vlm_module {
        true => units.on_image(family(config))[1],
        false => units.solution.unwrap_or(BoxFormat::Absolute),
    };
    let patch = config.task.patch_size as f64;
    let seen = input.image_grid_thw.first();
    let seen = seen.map(|[_, rows, columns]| [columns, rows].map(|side| *side as f64 * patch));
    match solution {
        BoxFormat::Absolute | BoxFormat::Relative1 => None,
        // Their extent does not depend on the image.
        BoxFormat::Relative1000 => Some(solution.extent([0.0; 2], [0.0; 2])),
        BoxFormat::ModelInput => seen,
    }
}
