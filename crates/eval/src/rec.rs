//! Referring-expression comprehension, scored as VLM-R1 scores it (`test_rec_r1.py`, commit 90052f4):
//! the last `[int, int, int, int]` in braces in the first `<answer>`, scaled from what the model saw to
//! the image; correct where its IoU is above one half.
//!
//! Beside VLM-R1's accuracy: the mean IoU with 0 where no box is found, the share of well-formed
//! completions, and the IoU among those. They separate gains in format from gains in localisation.

use std::fs;
use std::path::Path;

use config::Extractor;
use report::{Interval, mean_interval};
use rewards::boxes::{BoundingBox, find_baseline, find_decimals_in_answer};
use rewards::{BoxFormat, ImageSizes, RewardFamily, RewardInput, RewardSet};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::EvalError;
use crate::scoring::rec_format;
use crate::unread_reason;

/// The reward that checks the format.
pub(crate) const FORMAT: &str = "format";
/// VLM-R1 calls a box correct above this IoU.
pub const CORRECT_ABOVE: f64 = 0.5;
/// Seed of the bootstrap: intervals of the same completions are the same.
const BOOTSTRAP_SEED: u64 = 42;

/// Finds the box of a completion and compares it.
pub struct BoxReader {
    extractor: Extractor,
    family: RewardFamily,
    format: RewardSet,
}

/// What was read in a completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxRead {
    /// The box, px of the image.
    pub found: Option<BoundingBox>,
    /// Why there is none.
    pub unread: Option<&'static str>,
    /// Its IoU with the true one; 0 without a box.
    pub iou: f64,
    /// The same of the first box found anywhere, by VLM-R1's rule for base models: what the model
    /// knows, whatever form it answers in.
    pub iou_anywhere: f64,
    /// Whether VLM-R1's format reward of REC is earned.
    pub well_formed: bool,
}

impl BoxReader {
    /// A reader of the completions of models of `family` with patches of `patch_size` px.
    ///
    /// # Errors
    /// None that a family causes.
    pub fn new(
        extractor: Extractor,
        family: RewardFamily,
        patch_size: usize,
    ) -> Result<Self, EvalError> {
        Ok(Self { extractor, family, format: rec_format(family, patch_size)? })
    }

    /// Reads the box of a completion, given in `units`, and compares it with `truth`, px of the image.
    ///
    /// # Errors
    /// None that a completion causes.
    pub fn read(
        &self,
        completion: &str,
        truth: BoundingBox,
        units: BoxFormat,
        sizes: ImageSizes,
    ) -> Result<BoxRead, EvalError> {
        let on_image = |b| sizes.convert(b, units, BoxFormat::Absolute);
        let iou_of =
            |found: Option<BoundingBox>| found.map_or(0.0, |b| self.family.iou.of(b, truth));
        let anywhere = find_baseline(completion).map(on_image);
        let found = match self.extractor {
            // Whole numbers cannot say shares of the image.
            Extractor::Thinking if units == BoxFormat::Relative1 => {
                find_decimals_in_answer(completion).map(on_image)
            }
            Extractor::Thinking => self.family.form.find(completion).map(on_image),
            Extractor::Baseline => anywhere,
        };
        let columns = Map::new();
        let scores = self.format.score(&[RewardInput::new(completion, "", &columns)])?;
        Ok(BoxRead {
            found,
            unread: found.is_none().then(|| unread_reason::why_unread(completion, self.extractor)),
            iou: iou_of(found),
            iou_anywhere: iou_of(anywhere),
            well_formed: scores.total[0] > 0.0,
        })
    }
}

/// One completion, with the fields of VLM-R1's result files and four more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecCompletion {
    /// Image, as the row names it.
    pub image: String,
    /// The question, without its template.
    pub question: String,
    /// `[x1, y1, x2, y2]`, px of the image.
    pub ground_truth: [f64; 4],
    /// What the model said.
    pub model_output: String,
    /// Height and width that the model saw, px.
    pub input_size: [u32; 2],
    /// Height and width of the image, px.
    pub image_size: [u32; 2],
    /// The box found, px of the image; zeros where none is, as in VLM-R1.
    pub extracted_answer: [f64; 4],
    /// 1 where the IoU is above one half.
    pub correct: u8,
    /// IoU of the box found; 0 where none is.
    pub iou: f64,
    /// Whether VLM-R1's format reward of REC is earned.
    pub well_formed: bool,
    /// IoU of the first box found anywhere, by VLM-R1's rule for base models: what the model knows,
    /// whatever form it answers in.
    pub iou_anywhere: f64,
    /// Index of the row.
    pub row: usize,
}

/// All completions to all questions, in order.
#[derive(Clone, Debug)]
pub struct RecEvaluation {
    /// The completions, those of a question side by side.
    pub completions: Vec<RecCompletion>,
    /// Completions to each question.
    pub completions_per_question: usize,
}

/// Means with 95 % bootstrap intervals over questions; several completions to a question are one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecSummary {
    /// IoU, 0 where no box is found.
    pub iou: Interval,
    /// Share of completions with an IoU above one half.
    pub accuracy: Interval,
    /// Share of well-formed completions.
    pub well_formed: Interval,
    /// IoU among well-formed completions; a question without any does not count. `None` where none has.
    pub iou_well_formed: Option<Interval>,
    /// IoU of the first box anywhere.
    pub iou_anywhere: Interval,
}

impl RecEvaluation {
    /// Mean over the completions of each question.
    pub fn per_question(&self, value: impl Fn(&RecCompletion) -> f64) -> Vec<f64> {
        let mean =
            |group: &[RecCompletion]| group.iter().map(&value).sum::<f64>() / group.len() as f64;
        self.completions.chunks(self.completions_per_question).map(mean).collect()
    }

    /// IoU of the well-formed completions of each question that has any: `(row, mean)`.
    pub fn iou_well_formed(&self) -> Vec<(usize, f64)> {
        self.completions
            .chunks(self.completions_per_question)
            .filter_map(|group| {
                let ious: Vec<f64> =
                    group.iter().filter(|a| a.well_formed).map(|a| a.iou).collect();
                let mean = ious.iter().sum::<f64>() / ious.len() as f64;
                (!ious.is_empty()).then_some((group[0].row, mean))
            })
            .collect()
    }

    /// The metrics with their intervals.
    ///
    /// # Errors
    /// No completions.
    pub fn summary(&self) -> Result<RecSummary, EvalError> {
        let interval = |values: &[f64]| mean_interval(values, BOOTSTRAP_SEED);
        let well_formed: Vec<f64> =
            self.iou_well_formed().into_iter().map(|(_, iou)| iou).collect();
        Ok(RecSummary {
            iou: interval(&self.per_question(|a| a.iou))?,
            accuracy: interval(&self.per_question(|a| f64::from(a.correct)))?,
            well_formed: interval(&self.per_question(|a| f64::from(u8::from(a.well_formed))))?,
            iou_well_formed: if well_formed.is_empty() {
                None
            } else {
                Some(interval(&well_formed)?)
            },
            iou_anywhere: interval(&self.per_question(|a| a.iou_anywhere))?,
        })
    }

    /// Writes VLM-R1's result file: `{"accuracy": percent, "results": [...]}`, with a `summary` beside.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), EvalError> {
        let summary = self.summary()?;
        let value = json!({
            "accuracy": 100.0 * summary.accuracy.mean,
            "answers_per_question": self.completions_per_question,
            "summary": summary.to_json(),
            "results": self.completions,
        });
        let text = serde_json::to_string_pretty(&value)
            .map_err(|source| EvalError::Json { path: path.to_owned(), source })?;
        let io = |source| EvalError::Io { path: path.to_owned(), source };
        // Under its own name the file is whole or not there.
        let beside = path.with_extension("json.part");
        fs::write(&beside, text + "\n").and_then(|()| fs::rename(&beside, path)).map_err(io)
    }

    /// Reads what [`RecEvaluation::write`] wrote.
    ///
    /// # Errors
    /// The file cannot be read or is not such a file.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(rename = "answers_per_question")]
            completions_per_question: usize,
            results: Vec<RecCompletion>,
        }
        let text = fs::read_to_string(path)
            .map_err(|source| EvalError::Io { path: path.to_owned(), source })?;
        let File { completions_per_question, results } = serde_json::from_str(&text)
            .map_err(|source| EvalError::Json { path: path.to_owned(), source })?;
        if completions_per_question == 0 || !results.len().is_multiple_of(completions_per_question)
        {
            let source =
                serde::de::Error::custom("`results` are not `answers_per_question` to a question");
            return Err(EvalError::Json { path: path.to_owned(), source });
        }
        Ok(Self { completions: results, completions_per_question })
    }
}

impl RecSummary {
    /// Each metric as `{"mean", "low", "high"}`; null where there is none.
    pub fn to_json(&self) -> Value {
        let of = |interval: &Interval| json!({"mean": interval.mean, "low": interval.low, "high": interval.high});
        json!({
            "iou": of(&self.iou),
            "accuracy": of(&self.accuracy),
            "well_formed": of(&self.well_formed),
            "iou_well_formed": self.iou_well_formed.as_ref().map(of),
            "iou_anywhere": of(&self.iou_anywhere),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(row: usize, iou: f64, well_formed: bool) -> RecCompletion {
        RecCompletion {
            image: "a.png".to_owned(),
            question: "q".to_owned(),
            ground_truth: [0.0, 0.0, 8.0, 8.0],
            model_output: String::new(),
            input_size: [64, 64],
            image_size: [64, 64],
            extracted_answer: [0.0; 4],
            correct: u8::from(iou > CORRECT_ABOVE),
            iou,
            well_formed,
            iou_anywhere: iou,
            row,
        }
    }

    #[test]
    fn a_summary_by_hand() {
        let evaluation = RecEvaluation {
            completions: vec![
                completion(0, 0.9, true),
                completion(0, 0.5, true),
                completion(1, 0.0, false),
                completion(1, 0.6, true),
                completion(2, 0.0, false),
                completion(2, 0.0, false),
            ],
            completions_per_question: 2,
        };
        let summary = evaluation.summary().unwrap();
        let close =
            |got: f64, expected: f64| assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        close(summary.iou.mean, (0.7 + 0.3 + 0.0) / 3.0);
        // Exactly one half is not correct.
        close(summary.accuracy.mean, (0.5 + 0.5 + 0.0) / 3.0);
        close(summary.well_formed.mean, (1.0 + 0.5 + 0.0) / 3.0);
        assert_eq!(evaluation.iou_well_formed(), [(0, 0.7), (1, 0.6)]);
        close(summary.iou_well_formed.unwrap().mean, 0.65);
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rec.json");
        let completions = vec![completion(0, 0.9, true), completion(0, 1.0 / 3.0, false)];
        let evaluation =
            RecEvaluation { completions: completions.clone(), completions_per_question: 2 };
        evaluation.write(&path).unwrap();
        assert_eq!(RecEvaluation::read(&path).unwrap().completions, completions);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"accuracy\": 50.0,"), "{text}");
        fs::write(
            &path,
            text.replace("\"answers_per_question\": 2", "\"answers_per_question\": 3"),
        )
        .unwrap();
        assert!(RecEvaluation::read(&path).unwrap_err().to_string().contains("to a question"));
    }

    #[test]
    fn no_well_formed_completion_is_no_metric() {
        let evaluation = RecEvaluation {
            completions: vec![completion(0, 0.0, false)],
            completions_per_question: 1,
        };
        let summary = evaluation.summary().unwrap();
        assert_eq!(summary.iou_well_formed, None);
        assert_eq!(summary.to_json()["iou_well_formed"], Value::Null);
    }
}
