//! Checks one row at a time on worker threads: its keys, its decoded images, its boxes against them,
//! and the length of its prompt.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Example, PreparedImage, SourceLine};
use config::BoxFormat;

use super::boxes::{self, AnswerBox};
use super::images::{ImageFacts, Images};
use super::{CheckOptions, Finding, Kind};
use crate::error::DataError;
use crate::image::ImageShape;
use crate::image_folder::ImageFolder;
use crate::notices::{About, Oddity, lost_values, oddities};
use crate::prefetch::Prefetcher;
use crate::row::{ReadRow, RowReader};
use crate::row_texts::{RowText, RowTexts};
use crate::rows::DataFile;
use crate::unread::ReadKeys;

/// Rows checked ahead of the one that is awaited.
const AHEAD: usize = 256;
/// Most boxes that are reported of a row.
const TOLD_BOXES: usize = 3;

/// A further look at a good row, asked on worker threads.
pub trait RowProbe: Send + Sync {
    /// What is found in the row; `images` are all of the row's.
    fn look(&self, example: &Example, images: &[SeenImage]) -> Vec<Finding>;

    /// What is found in all rows together, once each was looked at.
    fn look_at_all(&self) -> Vec<Finding> {
        Vec::new()
    }
}

/// An image of a row.
#[derive(Clone, Debug)]
pub struct SeenImage {
    /// What is kept of it.
    pub facts: Arc<ImageFacts>,
    /// How the model sees it.
    pub shape: ImageShape,
}

/// A row with what was found in it.
#[derive(Debug)]
pub struct SeenRow {
    /// Where it stands.
    pub place: SourceLine,
    /// The row; none where it is bad.
    pub example: Option<Example>,
    /// Its images, without those that cannot be decoded.
    pub images: Vec<SeenImage>,
    /// Boxes of its answer.
    pub boxes: Vec<AnswerBox>,
    /// Width and height of the first image in the units of the boxes.
    pub extent: Option<[f64; 2]>,
    /// Tokens of its prompt; none where no model folder says.
    pub prompt_tokens: Option<u32>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// Whether its boxes are in assumed units because none are given.
    pub(super) is_assumed: bool,
}

type Rows = Prefetcher<SeenRow>;

/// The rows of a file, in order.
///
/// # Errors
/// Outside: the file cannot be read, in words. Inside: a thread cannot be started.
pub(super) fn rows_of(
    file: &DataFile,
    options: &CheckOptions,
    images: &Arc<Images>,
) -> Result<Result<Rows, DataError>, String> {
    let texts = RowTexts::open(&file.path).map_err(|error| without_place(&error, &file.path))?;
    let look = Look {
        path: file.path.clone(),
        folder: ImageFolder::new(file.image_folder.as_deref()),
        method: file.reward_method.clone(),
        options: options.clone(),
        images: Arc::clone(images),
    };
    let workers = options.workers;
    Ok(Prefetcher::new(texts, workers, AHEAD, move |text| look.row(text)))
}

/// What is wrong with a file, which the finding's place names already.
fn without_place(error: &DataError, path: &Path) -> String {
    let text = error.to_string();
    let place = format!("{}: ", path.display());
    text.strip_prefix(&place).unwrap_or(&text).to_owned()
}

/// What looks at the rows of a file.
struct Look {
    path: PathBuf,
    folder: ImageFolder,
    method: Option<String>,
    options: CheckOptions,
    images: Arc<Images>,
}

impl Look {
    fn row(&self, text: Result<RowText, DataError>) -> SeenRow {
        let text = match text {
            Ok(text) => text,
            // The file broke off: told at line 0, since no line is at fault.
            Err(error) => {
                let finding = Finding::new(Kind::UnreadableFile, without_place(&error, &self.path));
                return nothing(SourceLine::new(&self.path, 0), finding);
            }
        };
        let place = text.source(&self.path);
        let reader = RowReader {
            folder: &self.folder,
            method: self.method.as_deref(),
            checks: &self.options.rows,
            takes_problems: false,
        };
        let row = text.text.and_then(|text| reader.read(&text, place.clone()));
        match row {
            Ok(row) => self.example(row),
            Err(cause) => {
                let finding = Finding::new(Kind::of(&cause), cause.to_string());
                nothing(place, finding)
            }
        }
    }

    fn example(&self, row: ReadRow) -> SeenRow {
        let mut findings = odd(&row);
        let example = row.example;
        let mut images = Vec::with_capacity(example.images.len());
        for path in &example.images {
            match self.image(path, &mut findings) {
                Ok(image) => images.push(image),
                Err(text) => findings.push(Finding::new(Kind::BrokenImage, text)),
            }
        }
        let is_whole = images.len() == example.images.len();
        let boxes = boxes::boxes_of(&example.answer);
        // Boxes are those of the first image; without it there is nothing to hold them against.
        let first = images.first().filter(|_| is_whole);
        let extent = first.map(|image| self.extent(image));
        let turned = first.and_then(turned);
        if !example.images.is_empty() {
            self.check_boxes(&boxes, extent, &turned.unwrap_or_default(), &mut findings);
        }
        let mut prompt_tokens = None;
        if is_whole {
            prompt_tokens = self.prompt_tokens(&example, &images, &mut findings);
            if let Some(probe) = &self.options.probe {
                findings.extend(probe.look(&example, &images));
            }
        }
        SeenRow {
            place: example.source.clone(),
            example: Some(example),
            images,
            boxes,
            extent,
            prompt_tokens,
            findings,
            is_assumed: self.options.box_format.is_none(),
        }
    }

    /// The image at `path`, with what is odd about its size.
    fn image(&self, path: &Path, findings: &mut Vec<Finding>) -> Result<SeenImage, String> {
        let applies_exif = self.options.image_processor.applies_exif();
        let facts = self.images.get(path, applies_exif)?;
        let [width, height] = facts.size;
        let kind = self.options.image_processor.kind();
        let shape =
            kind.shape(width, height).map_err(|cause| format!("{}: {cause}", path.display()))?;
        let size = format!("{}: {width}x{height} px", path.display());
        let token = kind.token_side();
        if width.min(height) < token {
            let text = format!("{size}: a side under {token} px");
            findings.push(Finding::new(Kind::TinyImage, text));
        }
        let max_pixels = kind.pixel_bounds().longest_edge;
        if u64::from(width) * u64::from(height) > max_pixels {
            let text = format!("{size}: more than {max_pixels} pixels");
            findings.push(Finding::new(Kind::HugeImage, text));
        }
        Ok(SeenImage { facts, shape })
    }

    /// Units of the boxes.
    fn units(&self) -> BoxFormat {
        self.options.box_format.unwrap_or(self.options.assumed_boxes)
    }

    /// Width and height of an image in the units of the boxes.
    fn extent(&self, image: &SeenImage) -> [f64; 2] {
        let seen = image.shape.input_size;
        self.units().extent(image.facts.size.map(f64::from), seen.map(f64::from))
    }

    fn check_boxes(
        &self,
        boxes: &[AnswerBox],
        extent: Option<[f64; 2]>,
        turned: &str,
        findings: &mut Vec<Finding>,
    ) {
        let told = |boxes: &[&AnswerBox]| {
            let some = boxes.iter().take(TOLD_BOXES);
            let some: Vec<String> = some.map(|b| shown(b.corners)).collect();
            let dots = if boxes.len() > TOLD_BOXES { ", ..." } else { "" };
            format!("{}{dots}", some.join(", "))
        };
        let empty: Vec<&AnswerBox> = boxes.iter().filter(|b| !boxes::has_area(b.corners)).collect();
        if !empty.is_empty() {
            findings.push(Finding::new(Kind::EmptyBox, told(&empty)));
        }
        let Some(extent) = extent else { return };
        let edge = match self.units() {
            BoxFormat::Absolute | BoxFormat::ModelInput => [boxes::EDGE_PX; 2],
            // Units that do not depend on the image: half a hundredth of it.
            BoxFormat::Relative1000 | BoxFormat::Relative1 => extent.map(|side| side / 200.0),
        };
        let outside: Vec<&AnswerBox> =
            boxes.iter().filter(|b| boxes::leaves(b.corners, extent, edge)).collect();
        if !outside.is_empty() {
            let [width, height] = extent;
            let text = format!("{} in an image of {width} x {height}{turned}", told(&outside));
            findings.push(Finding::new(Kind::BoxOutside, text));
        }
    }

    /// Tokens of the prompt, where a model folder counts them.
    fn prompt_tokens(
        &self,
        example: &Example,
        images: &[SeenImage],
        findings: &mut Vec<Finding>,
    ) -> Option<u32> {
        let processor = self.options.processor.as_ref()?;
        let shapes: Vec<Arc<PreparedImage>> = images.iter().map(without_pixels).collect();
        let text = self.options.template.apply(&example.problem);
        match processor.prompt(&text, &shapes) {
            Ok(prompt) => u32::try_from(prompt.ids.len()).ok(),
            Err(DataError::PromptTooLong { tokens, image_tokens, max }) => {
                let text =
                    format!("{tokens} tokens, {image_tokens} of them of images, more than {max}");
                findings.push(Finding::new(Kind::PromptTooLong, text));
                u32::try_from(tokens).ok()
            }
            Err(error @ DataError::BeyondPositions { tokens, .. }) => {
                findings.push(Finding::new(Kind::PromptTooLong, error.to_string()));
                u32::try_from(tokens).ok()
            }
            Err(error) => {
                findings.push(Finding::new(Kind::BadPrompt, error.to_string()));
                None
            }
        }
    }
}

fn nothing(place: SourceLine, finding: Finding) -> SeenRow {
    SeenRow {
        place,
        example: None,
        images: Vec::new(),
        boxes: Vec::new(),
        extent: None,
        prompt_tokens: None,
        findings: vec![finding],
        is_assumed: false,
    }
}

/// Oddities of a row that is read all the same.
fn odd(row: &ReadRow) -> Vec<Finding> {
    let example = &row.example;
    let texts = [("question", example.problem.as_str()), ("answer", &example.answer)];
    let mut found = oddities(&example.columns, &texts, &ReadKeys::TRAINING);
    found.extend(lost_values(&row.lost));
    let finding = |oddity: Oddity| {
        let kind = match oddity.about {
            About::Key => Kind::UnreadKey,
            About::Mark => Kind::Placeholder,
            About::Value => Kind::OddValue,
        };
        Finding::new(kind, oddity.text)
    };
    found.into_iter().map(finding).collect()
}

/// What an image's metadata make of it, for messages about boxes.
fn turned(image: &SeenImage) -> Option<String> {
    let orientation = image.facts.orientation?;
    let [width, height] = orientation.turned_size(image.facts.size);
    let number = orientation.number();
    Some(format!(
        " ({width} x {height} as its orientation {number} turns it, which is not applied)"
    ))
}

/// A box as answers write it.
fn shown(corners: [f64; 4]) -> String {
    // Avoids `-0`.
    let [x1, y1, x2, y2] = corners.map(|edge| edge + 0.0);
    format!("[{x1}, {y1}, {x2}, {y2}]")
}

/// An image without its pixels: enough to count tokens.
fn without_pixels(image: &SeenImage) -> Arc<PreparedImage> {
    let ImageShape { layout, input_size } = image.shape.clone();
    Arc::new(PreparedImage::new(Vec::new(), layout, image.facts.size, input_size))
}
