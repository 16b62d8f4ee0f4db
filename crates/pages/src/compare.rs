//! The page of a comparison: both completions beside each image, to be filtered by which became right or wrong.

use std::path::Path;

use ::eval::compare::Pair;
use ::eval::{Comparison, Results, Scored};
use report::{Colour, KeyMetric, Passage, ScoreLine, ScoredPage, ScoredRow, Tone};

use crate::PageError;
use crate::completion_parts::completion_parts;
use crate::eval::text;
use crate::eval_boxes::{Layer, shown_images};

const FLIPPED: &str = "flipped";
const TO_RIGHT: &str = "became right";
const TO_WRONG: &str = "became wrong";
const BOTH_RIGHT: &str = "both right";
const BOTH_WRONG: &str = "both wrong";

/// Results with the folder that they came from.
pub struct Side<'a> {
    /// The folder as given.
    pub name: &'a str,
    /// What it holds.
    pub results: &'a Results,
}

/// Writes the page: all questions that flipped come first, then an even choice of the others.
///
/// # Errors
/// Where it cannot be written.
pub fn write(
    path: &Path,
    comparison: &Comparison,
    sides: &[Side<'_>; 2],
    limit: usize,
) -> Result<(), PageError> {
    let (flipped, others): (Vec<&Pair>, Vec<&Pair>) =
        comparison.pairs.iter().partition(|pair| pair.is_flipped());
    let chosen = even(&flipped, limit);
    let rest = even(&others, limit - chosen.len());
    let (num_flipped, num_shown) = (flipped.len(), chosen.len() + rest.len());
    let note = format!(
        "{num_shown} of {} questions: {} of {num_flipped} that flipped, then others, chosen evenly \
         (--html_rows). Right is a score above one half.",
        comparison.pairs.len(),
        chosen.len()
    );
    let rows = chosen.into_iter().chain(rest);
    let page = ScoredPage {
        title: "Comparison of two evaluations".into(),
        summary: format!(
            "A: {}. B: {}. {}.{}",
            sides[0].name,
            sides[1].name,
            comparison.sentence(),
            different(comparison)
        ),
        metrics: key_metrics(comparison),
        charts: Vec::new(),
        total: "B less A".into(),
        rewards: vec!["A".into(), "B".into()],
        tags: [FLIPPED, TO_RIGHT, TO_WRONG, BOTH_RIGHT, BOTH_WRONG].map(str::to_owned).to_vec(),
        legend: vec![
            (Colour::Green, "true".into()),
            (Colour::Blue, "A".into()),
            (Colour::Orange, "B".into()),
        ],
        note,
        rows: rows.map(|pair| row(pair, sides)).collect(),
    };
    Ok(page.write(path)?)
}

/// Completions that were cut off and settings that differ, as further sentences.
fn different(comparison: &Comparison) -> String {
    let sentences = [comparison.cut_off_sentence(), comparison.setting_differences.sentence()];
    let sentences = sentences.into_iter().flatten();
    sentences.map(|text| format!(" Warning: {text}.")).collect()
}

fn even<'a>(pairs: &[&'a Pair], limit: usize) -> Vec<&'a Pair> {
    let shown = pairs.len().min(limit);
    (0..shown).map(|index| pairs[index * pairs.len() / shown]).collect()
}

fn key_metrics(comparison: &Comparison) -> Vec<KeyMetric> {
    let mut metrics: Vec<KeyMetric> = comparison
        .differences
        .iter()
        .map(|difference| KeyMetric {
            label: difference.name.clone(),
            value: format!("{:+.3}", difference.difference.mean),
            note: format!(
                "{:.3} to {:.3}; {:+.3} to {:+.3}",
                difference.before,
                difference.after,
                difference.difference.low,
                difference.difference.high
            ),
        })
        .collect();
    metrics.push(KeyMetric {
        label: "B better / worse".into(),
        value: format!("{} / {}", comparison.better, comparison.worse),
        note: format!("sign test p = {}", comparison.p_shown()),
    });
    metrics
}

fn row(pair: &Pair, sides: &[Side<'_>; 2]) -> ScoredRow {
    let before: Vec<&Scored> = pair.before.iter().map(|&i| &sides[0].results.results[i]).collect();
    let after: Vec<&Scored> = pair.after.iter().map(|&i| &sides[1].results.results[i]).collect();
    let (first, second) = (before[0], after[0]);
    let layers = [
        (Colour::Green, "true", &first.truths),
        (Colour::Blue, "A", &first.predicted),
        (Colour::Orange, "B", &second.predicted),
    ];
    let layers = layers.map(|(colour, name, boxes)| Layer { colour, name, boxes });
    let (shown_images, image_note) =
        shown_images(&first.image_paths, &layers, sides[0].results.apply_exif);
    let mut completion = passages("A", &before);
    completion.extend(passages("B", &after));
    let line = |score: f64, scored: &Scored| ScoreLine {
        score: Some(score),
        reason: scored.reason.clone(),
    };
    ScoredRow {
        place: first.place.clone(),
        shown_images,
        image_note,
        question: first.question.clone(),
        completion,
        solution: text(&first.ground_truth),
        total: pair.score_after - pair.score_before,
        tags: tags(pair),
        scores: vec![line(pair.score_before, first), line(pair.score_after, second)],
    }
}

fn passages(name: &str, completions: &[&Scored]) -> Vec<Passage> {
    let mut all = Vec::new();
    for (index, scored) in completions.iter().enumerate() {
        let text = match completions.len() {
            1 => name.to_owned(),
            _ => format!("{name}, completion {}", index + 1),
        };
        all.push(Passage { tone: Tone::Speaker, text });
        all.extend(completion_parts(&scored.model_output));
    }
    all
}

fn tags(pair: &Pair) -> Vec<String> {
    let tags: &[&str] = match (pair.score_before > 0.5, pair.score_after > 0.5) {
        (false, true) => &[FLIPPED, TO_RIGHT],
        (true, false) => &[FLIPPED, TO_WRONG],
        (true, true) => &[BOTH_RIGHT],
        (false, false) => &[BOTH_WRONG],
    };
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}
