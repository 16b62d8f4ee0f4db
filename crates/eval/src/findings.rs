//! What makes metrics doubtful: completions that are cut off, unreadable, empty or all alike, and boxes
//! in other units than the task's. Counted for summary and page, and reported as warnings.

use std::collections::HashMap;

use base::FinishReason;
use config::{EvalConfig, EvalTask, Extractor};
use rewards::boxes::{find_baseline, find_thinking};
use rewards::detection::predictions;
use rewards::{BoundingBox, ImageSizes};
use serde_json::{Map, Value, json};

use crate::box_units::{Boxes, Reading, Units, better_reading};
use crate::results::{Results, Scored};

/// Fewer completions say nothing about whether all are alike.
const MIN_ALIKE: usize = 3;
/// Part of the completions that are one text, from which that is said.
const ALIKE_SHARE: f64 = 0.9;
/// No completion that ends by itself at this many tokens: something is wrong with the end.
const LONG: usize = 256;
/// Characters of a completion that a message shows.
const SHOWN: usize = 80;

/// The subject of a warning: each is given once during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doubt {
    /// Rewards that do not look at the boxes of a box task.
    Rewards,
    /// True boxes that are shares of the image.
    Truths,
    /// Completions cut off.
    CutOff,
    /// Completions of another form.
    Unread,
    /// Completions without text.
    Empty,
    /// Completions that are one text.
    Alike,
    /// Boxes of other units.
    Units,
}

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What it is about.
    pub doubt: Doubt,
    /// What is said; may end in a line `hint: ...`.
    pub text: String,
}

/// What was found in the completions of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// Completions in all; bad rows have none.
    pub num_completions: usize,
    /// Those that met the limit of tokens.
    pub cut_off: usize,
    /// That limit.
    pub max_new_tokens: usize,
    /// Those without text.
    pub empty: usize,
    /// Those in which nothing of the demanded form was found, by reason, the commonest first.
    pub unread: Vec<(String, usize)>,
    /// How many each extractor of boxes reads (`rec`).
    pub read_by: Vec<(Extractor, usize)>,
    /// A text that nearly all completions are, and how many.
    pub alike: Option<(String, usize)>,
    /// Units by which boxes would meet the true ones.
    pub reading: Option<Reading>,
    extractor: Option<Extractor>,
    template: String,
    iou_anywhere: f64,
}

impl Findings {
    /// Looks at scored completions; `units` are those that boxes were taken to be in.
    pub(crate) fn of(results: &Results, config: &EvalConfig, units: Units) -> Self {
        let completions: Vec<&Scored> = results.counted().filter(|s| s.bad.is_none()).collect();
        let count = |is: &dyn Fn(&Scored) -> bool| completions.iter().filter(|s| is(s)).count();
        let reads = |extractor| {
            let find = match extractor {
                Extractor::Thinking => find_thinking,
                Extractor::Baseline => find_baseline,
            };
            (extractor, count(&|s| find(&s.model_output).is_some()))
        };
        let sum: f64 = completions.iter().map(|s| s.value("iou_anywhere")).sum();
        // Lists of boxes are rewarded in the units that they happen to have.
        let is_list = |s: &Scored| s.truths.iter().any(|truth| !truth.label.is_empty());
        let of_units = |s: &&&Scored| results.task != EvalTask::Reward || !is_list(s);
        let with_units = completions.iter().filter(of_units);
        let boxes: Vec<Boxes> = with_units.filter_map(|s| boxes(s, units)).collect();
        Self {
            num_completions: completions.len(),
            cut_off: count(&|s| s.finish_reason == Some(FinishReason::Length)),
            max_new_tokens: config.sampling.max_new_tokens.unwrap_or_default(),
            empty: count(&|s| s.model_output.trim().is_empty()),
            unread: unread(&completions),
            read_by: match results.task {
                EvalTask::Rec => [Extractor::Thinking, Extractor::Baseline].map(reads).into(),
                _ => Vec::new(),
            },
            alike: alike(&completions),
            reading: better_reading(&boxes, units),
            extractor: config.scoring.extractor,
            template: config.questions.question_template.clone().unwrap_or_default(),
            iou_anywhere: sum / completions.len().max(1) as f64,
        }
    }

    /// Completions in which nothing of the demanded form was found.
    pub fn num_unread(&self) -> usize {
        self.unread.iter().map(|(_, count)| count).sum()
    }

    /// The counts as JSON.
    pub fn to_json(&self) -> Value {
        let by_reason = self.unread.iter();
        let by_reason = by_reason.map(|(reason, count)| (reason.clone(), json!(count)));
        let read_by = self.read_by.iter();
        let read_by = read_by.map(|(extractor, count)| (word(*extractor), json!(count)));
        let alike = self.alike.as_ref();
        let reading = self.reading.as_ref();
        json!({
            "num": self.num_completions,
            "cut_off": self.cut_off,
            "max_new_tokens": self.max_new_tokens,
            "empty": self.empty,
            "unread": self.num_unread(),
            "unread_by_reason": Value::Object(by_reason.collect::<Map<_, _>>()),
            "read_by": Value::Object(read_by.collect::<Map<_, _>>()),
            "alike": alike.map(|(text, count)| json!({"text": text, "num": count})),
            "other_units": reading.map(|reading| json!({
                "as": reading.what, "flags": reading.flags, "boxes": reading.boxes,
                "iou": reading.iou, "iou_now": reading.iou_now,
            })),
        })
    }

    /// What is to be said, the gravest first.
    pub fn warnings(&self) -> Vec<Warning> {
        let texts = [
            (Doubt::CutOff, self.cut_off_text()),
            (Doubt::Unread, self.unread_text()),
            (Doubt::Empty, self.empty_text()),
            (Doubt::Alike, self.alike_text()),
            (Doubt::Units, self.units_text()),
        ];
        let texts = texts.into_iter();
        texts.filter_map(|(doubt, text)| Some(Warning { doubt, text: text? })).collect()
    }

    fn share(&self, count: usize) -> String {
        let percent = 100.0 * count as f64 / self.num_completions.max(1) as f64;
        format!("{count} of {} completions ({percent:.0} %)", self.num_completions)
    }

    fn cut_off_text(&self) -> Option<String> {
        if self.cut_off == 0 {
            return None;
        }
        let (longest, share) = (self.max_new_tokens, self.share(self.cut_off));
        let hint = match self.cut_off == self.num_completions && longest >= LONG {
            true => "no completion ended by itself: does `eos_token_id` of the model's generation_config.json name the token that \
                     ends a turn?"
                .to_owned(),
            false => format!(
                "--max_new_tokens {} --allow_changed true asks those again",
                2048.max(2 * longest)
            ),
        };
        Some(format!(
            "{share} cut off at `--max_new_tokens {longest}`: what comes after is not scored\nhint: {hint}"
        ))
    }

    fn unread_text(&self) -> Option<String> {
        let ((first, most), rest) = self.unread.split_first()?;
        let all = self.num_completions;
        let mut text = format!("{first} in {most} of {all} completions");
        for (reason, count) in rest {
            text.push_str(&format!(", {reason} in {count}"));
        }
        let reader = match self.extractor {
            Some(extractor) => format!("`--extractor {}`", word(extractor)),
            None => "the task".to_owned(),
        };
        text.push_str(&format!(": {reader} reads {} of {all}", all - self.num_unread()));
        if 2 * self.num_unread() > all {
            text.push_str(&self.other_reader().unwrap_or_default());
        }
        Some(text)
    }

    fn other_reader(&self) -> Option<String> {
        let mut others = self.read_by.iter();
        let (other, reads) = others.find(|(extractor, _)| Some(*extractor) != self.extractor)?;
        let (other, all) = (word(*other), self.num_completions);
        if *reads == 0 {
            return Some(format!(", and `--extractor {other}` none"));
        }
        let worth = match other.as_str() {
            "baseline" => format!(", with a mean IoU of {:.3} over all", self.iou_anywhere),
            _ => String::new(),
        };
        Some(format!(
            ", but `--extractor {other}` reads {reads} of {all}{worth}\nhint: `--extractor {other}` asks with its own template; \
             with `--question_template {}` beside it the completions that are there are scored anew",
            quoted(&self.template)
        ))
    }

    fn empty_text(&self) -> Option<String> {
        (self.empty > 0).then(|| format!("{} empty", self.share(self.empty)))
    }

    fn alike_text(&self) -> Option<String> {
        let (text, count) = self.alike.as_ref()?;
        let share = self.share(*count);
        Some(format!("{share} one and the same text, whatever is asked: `{text}`"))
    }

    fn units_text(&self) -> Option<String> {
        let reading = self.reading.as_ref()?;
        let hint = match reading.flags.as_str() {
            "" => "the task reads `[x1, y1, x2, y2]`; no flag turns the numbers round".to_owned(),
            flags => flags.to_owned(),
        };
        Some(format!(
            "read {}, {} boxes have a mean IoU of {:.3}; as the settings read them, of {:.3}\nhint: {hint}",
            reading.what, reading.boxes, reading.iou, reading.iou_now
        ))
    }
}

fn word(extractor: Extractor) -> String {
    match extractor {
        Extractor::Thinking => "thinking".to_owned(),
        Extractor::Baseline => "baseline".to_owned(),
    }
}

/// As a shell takes it.
fn quoted(template: &str) -> String {
    match template.contains(char::is_whitespace) {
        true => format!("'{template}'"),
        false => template.to_owned(),
    }
}

fn unread(completions: &[&Scored]) -> Vec<(String, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for reason in completions.iter().filter_map(|scored| scored.unread.as_deref()) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> =
        counts.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}

/// The commonest of texts, and how often it stands there.
fn commonest<'a>(texts: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    texts.for_each(|text| *counts.entry(text).or_default() += 1);
    let counts = counts.into_iter();
    counts.max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(a.0)))
}

/// A text that nearly all completions are where the truths are not alike.
fn alike(completions: &[&Scored]) -> Option<(String, usize)> {
    let (text, count) = commonest(completions.iter().map(|s| s.model_output.trim()))?;
    let truths: Vec<String> = completions.iter().map(|s| s.ground_truth.to_string()).collect();
    let (_, same_truth) = commonest(truths.iter().map(String::as_str))?;
    let is_most = count >= MIN_ALIKE && count as f64 >= ALIKE_SHARE * completions.len() as f64;
    if !is_most || text.is_empty() || 2 * same_truth > completions.len() {
        return None;
    }
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    Some((shown, count))
}

/// The boxes of a completion about one image, in their own units.
fn boxes(scored: &Scored, units: Units) -> Option<Boxes> {
    let size = |value: &Value| -> Option<[u32; 2]> {
        let [height, width]: [u32; 2] = serde_json::from_value(value.clone()).ok()?;
        Some([width, height])
    };
    let sizes =
        ImageSizes { original: size(&scored.image_size)?, input: size(&scored.input_size)? };
    let is_labelled = scored.truths.iter().any(|truth| !truth.label.is_empty());
    let found: Vec<BoundingBox> = match is_labelled {
        true => {
            let found = predictions(&scored.model_output).boxes;
            found.into_iter().map(|found| found.corners).collect()
        }
        // The one that the thinking ends in, where there is one.
        false => find_thinking(&scored.model_output)
            .or_else(|| find_baseline(&scored.model_output))
            .into_iter()
            .collect(),
    };
    let truths = scored.truths.iter().map(|truth| {
        let on_image = BoundingBox::from(truth.bbox_2d);
        sizes.convert(on_image, rewards::BoxFormat::Absolute, units.solution)
    });
    let truths: Vec<BoundingBox> = truths.collect();
    (!found.is_empty() && !truths.is_empty()).then_some(Boxes { found, truths, sizes })
}
