//! The page of `--html`: an even choice of the rows, with pictures, boxes and reasons.

use std::path::Path;

use anyhow::{Result, anyhow};
use base::console::plain_zero;
use config::{BoxFormat, Family, RewardConfig};
use report::{
    AnnotatedImage, Colour, EncodedImage, Histogram, HistogramChart, KeyFigure, LabelledBox,
    ScoreLine, ScoredPage, ScoredRow,
};
use rewards::{Explanation, RewardInput, Scores};

use super::answer::Answer;
use super::scorer::Scorer;
use super::summary;
use super::tally::{Tally, moments};
use crate::even::EvenChoice;
use crate::passages::passages;
use crate::pictures;
use crate::rows::Row;

/// The rows that the page will show.
pub struct PageRows(EvenChoice<KeptRow>);

struct KeptRow {
    row: Row,
    scores: Vec<Option<f64>>,
    total: f64,
}

impl PageRows {
    /// Will keep up to `limit` rows.
    pub fn new(limit: usize) -> Self {
        Self(EvenChoice::new(limit))
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
        let seen = self.0.num_offered();
        let chosen = self.0.chosen();
        let shown = chosen.len();
        let rows: Result<Vec<ScoredRow>> =
            chosen.iter().map(|kept| scored_row(kept, config, scorer)).collect();
        let note = if shown == seen {
            format!("All {seen} rows.")
        } else {
            format!("{shown} of {seen} rows, chosen evenly from the whole file (--html_rows).")
        };
        Ok(ScoredPage {
            title: format!("Rewards of {input}"),
            summary: weights(scorer),
            figures: figures(tally),
            charts: charts(tally),
            total: "reward (sum)".into(),
            rewards: scorer.names(),
            tags: Vec::new(),
            legend: vec![(Colour::Green, "true".into()), (Colour::Orange, "predicted".into())],
            note,
            rows: rows?,
        })
    }
}

fn weights(scorer: &Scorer) -> String {
    let each = scorer.rewards.names().zip(scorer.rewards.weights());
    let each: Vec<String> = each.map(|(name, weight)| format!("{weight} x {name}")).collect();
    format!("reward = {}", each.join(" + "))
}

fn figures(tally: &Tally) -> Vec<KeyFigure> {
    let mean = tally.total.iter().sum::<f64>() / tally.num_rows().max(1) as f64;
    let mut figures = vec![
        KeyFigure {
            label: "rows".into(),
            value: tally.num_rows().to_string(),
            note: String::new(),
        },
        KeyFigure {
            label: "mean reward".into(),
            value: format!("{:.3}", plain_zero(mean, 3)),
            note: "weighted sum of the rewards".into(),
        },
    ];
    if let Some(line) = summary::groups(tally) {
        let flat = tally.groups.values().filter(|g| g.rows > 1 && g.is_equal);
        figures.push(KeyFigure {
            label: "groups without spread".into(),
            value: flat.count().to_string(),
            note: line,
        });
    }
    if let Some(slow) = tally.slowest.first() {
        figures.push(KeyFigure {
            label: "slowest row".into(),
            value: summary::duration(slow.time),
            note: slow.place.clone(),
        });
    }
    figures
}

fn charts(tally: &Tally) -> Vec<HistogramChart> {
    let chart = |title: &str, values: &[f64], colour| HistogramChart {
        title: title.to_owned(),
        note: match moments(values).map(|(mean, spread)| (plain_zero(mean, 4), spread)) {
            Some((mean, Some(deviation))) => format!("mean {mean:.4}, std {deviation:.4}"),
            Some((mean, None)) => format!("mean {mean:.4}"),
            None => "applies to no row".to_owned(),
        },
        histogram: Histogram::of(values),
        colour,
    };
    let total = chart("reward (sum)", &tally.total, Colour::Purple);
    let each = tally.rewards.iter();
    let each = each.map(|reward| chart(&reward.name, &reward.scores, Colour::Blue));
    std::iter::once(total).chain(each).collect()
}

fn scored_row(kept: &KeptRow, config: &RewardConfig, scorer: &Scorer) -> Result<ScoredRow> {
    let answer = Answer::read(&kept.row, &scorer.reading)?;
    let input = answer.input();
    let explained = scorer.rewards.explain(&input);
    let explained = explained.map_err(|error| anyhow!(error).context(kept.row.place.clone()))?;
    let question = match input.problem {
        Some(problem) => problem,
        None => kept.row.optional_text("prompt").ok().flatten().unwrap_or_default(),
    };
    let (mut pictures, mut notes) = (Vec::new(), Vec::new());
    for (index, path) in input.images.iter().enumerate() {
        // Boxes are those of the first image.
        let boxes = if index == 0 { explained.as_slice() } else { &[] };
        let image = pictures::for_page(path, config.rows.apply_exif);
        let picture = image
            .map(|(image, original)| picture(path, image, boxes, extent(config, &input, original)));
        match picture {
            Ok(picture) => pictures.push(picture),
            Err(error) => notes.push(format!("no picture: {error:#}")),
        }
    }
    if pictures.is_empty() && notes.is_empty() {
        notes.push("no picture in the row".to_owned());
    }
    let lines = kept.scores.iter().zip(&explained);
    Ok(ScoredRow {
        place: place(kept),
        pictures,
        image_note: notes.join("; "),
        question: question.to_owned(),
        completion: passages(input.completion),
        solution: input.solution.to_owned(),
        total: kept.total,
        tags: Vec::new(),
        scores: lines.map(|(score, why)| score_line(*score, why.as_ref())).collect(),
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

fn score_line(score: Option<f64>, why: Option<&Explanation>) -> ScoreLine {
    let Some(why) = why else {
        return ScoreLine { score, reason: String::new() };
    };
    let mut reason = why.reason.clone();
    if let Some(answer) = &why.answer {
        reason.push_str(&format!(" \u{2013} read: {answer}"));
    }
    let ious = why.matches.iter().map(|pair| format!("{:.3}", pair.iou));
    let ious: Vec<String> = ious.collect();
    // Of one pair the reason speaks itself.
    if ious.len() > 1 {
        reason.push_str(&format!(" \u{2013} IoU {}", ious.join(", ")));
    }
    ScoreLine { score, reason }
}

/// A picture in a size for the page, with the boxes of the explanations.
fn picture(
    path: &Path,
    image: EncodedImage,
    explained: &[Option<Explanation>],
    extent: [f64; 2],
) -> AnnotatedImage {
    let scale = [0, 1].map(|axis| f64::from(image.size()[axis]) / extent[axis]);
    AnnotatedImage {
        image,
        boxes: boxes(explained, scale),
        title: path.display().to_string(),
        lines: Vec::new(),
    }
}

/// Width and height of the whole image in the units in which rewards compare boxes: those of the
/// solution, but pixels for shares.
fn extent(config: &RewardConfig, input: &RewardInput<'_>, original: [u32; 2]) -> [f64; 2] {
    let is_relative = config.rewards.is_reward_customized_from_vlm_module
        && config.task.family == Family::InternVl
        && config.rewards.box_format.is_none();
    let patch = config.task.patch_size as f64;
    match (config.rewards.solution_box_format, input.image_grid_thw.first()) {
        (Some(BoxFormat::Relative1000), _) => [1000.0; 2],
        (Some(BoxFormat::ModelInput), Some([_, rows, columns])) => {
            [*columns as f64 * patch, *rows as f64 * patch]
        }
        (None, _) if is_relative => [1000.0; 2],
        _ => original.map(f64::from),
    }
}

/// True boxes, then predicted ones with their IoU; a box that several rewards read is drawn once.
fn boxes(explained: &[Option<Explanation>], scale: [f64; 2]) -> Vec<LabelledBox> {
    let mut truths: Vec<LabelledBox> = Vec::new();
    let mut predicted: Vec<LabelledBox> = Vec::new();
    for why in explained.iter().flatten() {
        for found in &why.truths {
            let label = match found.label.as_str() {
                "" => "true".to_owned(),
                label => pictures::short_label(label),
            };
            add(&mut truths, label, Colour::Green, found.corners.into(), scale);
        }
        for (index, found) in why.predicted.iter().enumerate() {
            let label = pictures::short_label(&found.label);
            let pair = why.matches.iter().find(|pair| pair.predicted == index);
            let label = match pair {
                Some(pair) => format!("{label} {:.2}", pair.iou),
                None => label,
            };
            let corners = found.corners.into();
            add(&mut predicted, label.trim().to_owned(), Colour::Orange, corners, scale);
        }
    }
    truths.append(&mut predicted);
    truths
}

fn add(
    boxes: &mut Vec<LabelledBox>,
    label: String,
    colour: Colour,
    corners: [f64; 4],
    scale: [f64; 2],
) {
    let corners = [0, 1, 2, 3].map(|corner| corners[corner] * scale[corner % 2]);
    let drawn = boxes.iter_mut().find(|drawn| drawn.corners == corners);
    match drawn {
        // The label with more to say.
        Some(drawn) if drawn.label.len() < label.len() => drawn.label = label,
        Some(_) => {}
        None => boxes.push(LabelledBox { label, colour, corners }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewards::{BoundingBox, FoundBox, MatchedBoxes};

    #[test]
    fn a_box_that_two_rewards_read_is_drawn_once() {
        let found = |corners: [f64; 4]| FoundBox {
            corners: BoundingBox::from(corners),
            label: String::new(),
        };
        let with = |matches| Explanation {
            predicted: vec![found([0.0, 10.0, 20.0, 30.0])],
            truths: vec![found([5.0, 10.0, 20.0, 30.0])],
            matches,
            ..Explanation::default()
        };
        let pair = MatchedBoxes { predicted: 0, truth: 0, iou: 0.75 };
        let drawn = boxes(&[Some(with(vec![])), None, Some(with(vec![pair]))], [2.0, 0.5]);
        let drawn: Vec<_> = drawn.iter().map(|b| (b.label.as_str(), b.colour, b.corners)).collect();
        assert_eq!(
            drawn,
            [
                ("true", Colour::Green, [10.0, 5.0, 40.0, 15.0]),
                ("0.75", Colour::Orange, [0.0, 5.0, 40.0, 15.0]),
            ]
        );
    }
}
