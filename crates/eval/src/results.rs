//! Scored completions and their file: VLM-R1's fields, and further ones for comparisons and pages.

use std::fs;
use std::path::{Path, PathBuf};

use base::FinishReason;
use base::run_folder::ResultFolder;
use config::EvalTask;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::EvalError;

/// Name of the file.
pub const RESULTS: &str = "results.json";

/// A scored completion, or a row that could not be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Image, or list of images, as the row names them.
    pub image: Value,
    /// The question, without its template.
    pub question: String,
    /// What is compared with.
    pub ground_truth: Value,
    /// What the model said.
    pub model_output: String,
    /// Height and width that the model saw, px; a list of them where there are several images.
    pub input_size: Value,
    /// Height and width of the image, px; a list of them where there are several images.
    pub image_size: Value,
    /// What was read in the completion.
    pub extracted_answer: Value,
    /// 1 where it is right.
    pub correct: u8,
    /// What it is worth.
    pub score: f64,
    /// Further metrics, by name.
    pub values: Map<String, Value>,
    /// Why it scored so; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why nothing of the demanded form was found in the completion; none where something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
    /// Why the completion ended; none where the row could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// True boxes, px of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truths: Vec<ShownBox>,
    /// Predicted boxes, px of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub predicted: Vec<ShownBox>,
    /// COCO's id of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<data::coco::Id>,
    /// Image files.
    pub image_paths: Vec<PathBuf>,
    /// The file that the row stands in.
    pub subset: String,
    /// File and line.
    pub place: String,
    /// Index of the row.
    pub row: usize,
    /// Which of its completions.
    #[serde(rename = "sample")]
    pub completion_index: usize,
    /// What is wrong with the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad: Option<String>,
}

/// A box to be drawn and compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownBox {
    /// `[x1, y1, x2, y2]`.
    pub bbox_2d: [f64; 4],
    /// Its label; empty where the task has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// IoU with the box that it is matched with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iou: Option<f64>,
    /// Whether it stands for many objects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_crowd: bool,
    /// Whether its label is no category of the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_other_label: bool,
}

impl ShownBox {
    /// A box without more.
    pub fn new(corners: [f64; 4], label: &str, iou: Option<f64>) -> Self {
        Self {
            bbox_2d: corners,
            label: label.to_owned(),
            iou,
            is_crowd: false,
            is_other_label: false,
        }
    }
}

/// All of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Share of correct completions, in percent.
    pub accuracy: f64,
    /// What was asked.
    pub task: EvalTask,
    /// Whose completions these are.
    pub model: String,
    /// Completions to each question.
    pub num_samples: usize,
    /// Whether bad rows are left out of the denominators.
    pub exclude_bad: bool,
    /// Whether images were turned as their EXIF orientation says, as they are on pages too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apply_exif: bool,
    /// Names of the files.
    pub subsets: Vec<String>,
    /// The settings that may change metrics, as they were obeyed; empty where an older program wrote this.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// How the model was trained, where its run says it.
    #[serde(default)]
    pub trained_as: Value,
    /// Rows in order, the completions to each side by side; a bad row stands once for each completion.
    pub results: Vec<Scored>,
}

impl Scored {
    /// A metric by its name; 0 where it is missing, as on a bad row.
    pub fn value(&self, name: &str) -> f64 {
        self.values.get(name).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

impl Results {
    /// The results that count in denominators.
    pub fn counted(&self) -> impl Iterator<Item = &Scored> {
        let exclude = self.exclude_bad;
        let all = self.results.iter();
        all.filter(move |scored| !exclude || scored.bad.is_none())
    }

    /// Bad rows: place and cause.
    pub fn bad(&self) -> impl Iterator<Item = (&str, &str)> {
        let first = self.results.iter().filter(|scored| scored.completion_index == 0);
        first.filter_map(|scored| Some((scored.place.as_str(), scored.bad.as_deref()?)))
    }

    /// Writes [`RESULTS`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, folder: &ResultFolder) -> Result<(), EvalError> {
        let text = format!("{:#}\n", json!(self));
        Ok(folder.write(RESULTS, text.as_bytes())?)
    }

    /// Reads [`RESULTS`] of a folder.
    ///
    /// # Errors
    /// Where it is not there, or holds no results.
    pub fn read(folder: &Path) -> Result<Self, EvalError> {
        let path = folder.join(RESULTS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(EvalError::NoResults { path });
            }
            Err(source) => return Err(EvalError::Io { path, source }),
        };
        serde_json::from_str(&text).map_err(|source| EvalError::Json { path, source })
    }
}
