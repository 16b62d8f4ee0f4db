//! Kinds of findings, their severity and their counts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::RowCause;
use crate::image::{ImageCause, ImageError};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Training would refuse the row, or could never reward its true answer.
    Error,
    /// Training would run, perhaps not as intended.
    Warning,
}

macro_rules! kinds {
    ($($(#[doc = $about:literal])+ $kind:ident = $name:literal, $level:ident, $expected:literal;)+) => {
        /// What was found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind { $($(#[doc = $about])+ $kind,)+ }

        impl Kind {
            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// How bad it is.
            pub fn level(self) -> Level {
                match self { $(Self::$kind => Level::$level,)+ }
            }

            /// What should be there instead, or what to do.
            pub fn expected(self) -> &'static str {
                match self { $(Self::$kind => $expected,)+ }
            }
        }
    };
}

kinds! {
    /// A file that cannot be read, or has no rows.
    UnreadableFile = "unreadable_file", Error, "rows in JSON: one a line, in one list, or one after another";
    /// A row that is none.
    BadRow = "bad_row", Error, "one question and one answer, as docs/data.md has it";
    /// `<image>` marks that do not fit the images.
    ImageMarks = "image_marks", Error, "no `<image>` mark, or one for each image";
    /// A control token of the model written out.
    ReservedToken = "reserved_token", Error, "no control token of the model in question or answer";
    /// Images under an unread key, in a row without other images.
    HiddenMedia = "hidden_media", Error, "file names of all images in `image`";
    /// An image that is not there.
    ImageMissing = "image_missing", Error, "a file inside the image folder";
    /// An image path that leaves its folder, or has none.
    ImageOutside = "image_outside", Error, "paths inside the image folder";
    /// An image that cannot be decoded.
    BrokenImage = "broken_image", Error, "a whole PNG, JPEG, WebP, GIF or BMP file";
    /// An answer without a box where one is trained.
    NoBox = "no_box", Error, "an answer with `[x1, y1, x2, y2]`, x1 < x2 and y1 < y2";
    /// A box whose second corner is not right and below of the first.
    EmptyBox = "empty_box", Error, "x1 < x2 and y1 < y2";
    /// A box that leaves its image.
    BoxOutside = "box_outside", Error, "boxes inside the image, 2 px over its edge at most";
    /// A prompt over the limit.
    PromptTooLong = "prompt_too_long", Error, "prompts of at most `--max_prompt_length` tokens";
    /// A prompt that cannot be built.
    BadPrompt = "bad_prompt", Error, "a question that the chat template takes";
    /// A solution that no completion could be scored against.
    Unscorable = "unscorable", Error, "a solution that the configured rewards can read";
    /// An unread key that looks like a mistake.
    UnreadKey = "unread_key", Warning, "`image`, `conversations` and `accu_reward_method` under these names; other keys mean nothing here";
    /// A value that only Python's JSON has, under an unread key.
    OddValue = "odd_value", Warning, "finite numbers, whole numbers of 64 bits and whole characters, in all columns; an answer that is not null";
    /// A mark that other trainers fill.
    Placeholder = "placeholder", Warning, "text as the model is to read and to write it";
    /// An image that its metadata turn.
    OrientedImage = "oriented_image", Warning, "files that are stored upright, or `--apply_exif true` and boxes of the turned images";
    /// A task of boxes without a reward that compares boxes.
    NoBoxReward = "no_box_reward", Warning, "a reward that compares boxes: `--is_reward_customized_from_vlm_module true`, or `giou` or `diou` in `--reward_funcs`";
    /// A true answer that does not earn the full reward.
    LowTrueScore = "low_true_score", Warning, "the true answer earns the full reward";
    /// Boxes that look like shares or thousandths of the image.
    BoxUnits = "box_units", Warning, "pixels, or the units that `--solution_box_format` names";
    /// Boxes that look like corner, width and height.
    BoxCorners = "box_corners", Warning, "two corners `[x1, y1, x2, y2]`, not corner, width and height";
    /// A side under one token of the model.
    TinyImage = "tiny_image", Warning, "sides of at least one token; smaller images are enlarged";
    /// More pixels than the model is shown.
    HugeImage = "huge_image", Warning, "at most `--max_pixels`; larger images are shrunk";
    /// The same images, question and answer again.
    DuplicateRow = "duplicate_row", Warning, "each row once";
    /// The same images and question with another answer.
    Contradiction = "contradiction", Warning, "one answer to one question about one image";
    /// A training image that is a test image too.
    TestImage = "test_image", Warning, "no test image among those trained on";
    /// A training image that looks like a test image.
    TestLookalike = "test_lookalike", Warning, "no test image, resized or recompressed, among those trained on";
    /// One answer in nearly all rows.
    ConstantAnswer = "constant_answer", Warning, "answers that a model cannot guess unseen";
}

impl Kind {
    /// What kind of finding a bad row is.
    pub(crate) fn of(cause: &RowCause) -> Self {
        match cause {
            RowCause::ImageMarks { .. } => Self::ImageMarks,
            RowCause::ReservedToken { .. } => Self::ReservedToken,
            RowCause::ImageMissing { .. } => Self::ImageMissing,
            RowCause::MissingImageFolder { .. }
            | RowCause::NoImageFolder
            | RowCause::ImageOutside { .. } => Self::ImageOutside,
            RowCause::ImageUnreadable { .. } => Self::BrokenImage,
            RowCause::Image(ImageError::File { cause, .. }) => match cause {
                ImageCause::Missing => Self::ImageMissing,
                _ => Self::BrokenImage,
            },
            RowCause::HiddenMedia { .. } => Self::HiddenMedia,
            RowCause::NotABox { .. } => Self::NoBox,
            RowCause::Prompt(_) | RowCause::Image(_) => Self::BadPrompt,
            RowCause::Utf8 { .. }
            | RowCause::Json { .. }
            | RowCause::NotAnObject { .. }
            | RowCause::MissingKey { .. }
            | RowCause::OtherKey { .. }
            | RowCause::WrongType { .. }
            | RowCause::Turns { .. }
            | RowCause::Speaker { .. }
            | RowCause::Empty { .. }
            | RowCause::TornList
            | RowCause::Wrapped { .. }
            | RowCause::Lost { .. } => Self::BadRow,
        }
    }
}

/// Something found in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Its text.
    pub text: String,
}

impl Finding {
    /// A finding with its text.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// Where something was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// `file:line`, or a file.
    pub place: String,
    /// What stands there.
    pub text: String,
}

/// All findings of a kind.
#[derive(Clone, Debug, Serialize)]
pub struct FindingCount {
    /// What was found.
    pub kind: Kind,
    /// How bad it is.
    pub level: Level,
    /// What should be there instead.
    pub expected: &'static str,
    /// How often it was found.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// Findings counted by kind, the first few of each kept.
#[derive(Debug)]
pub(super) struct Findings {
    max_examples: usize,
    by_kind: BTreeMap<Kind, (u64, Vec<Example>)>,
}

impl Findings {
    pub(super) fn new(max_examples: usize) -> Self {
        Self { max_examples, by_kind: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, place: &str, finding: Finding) {
        let (count, examples) = self.by_kind.entry(finding.kind).or_default();
        *count += 1;
        if examples.len() < self.max_examples {
            examples.push(Example { place: place.to_owned(), text: finding.text });
        }
    }

    /// Errors first, then in the order of the declaration.
    pub(super) fn counted(self) -> Vec<FindingCount> {
        let by_kind = self.by_kind.into_iter();
        by_kind
            .map(|(kind, (count, examples))| FindingCount {
                kind,
                level: kind.level(),
                expected: kind.expected(),
                count,
                examples,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_and_the_first_are_kept() {
        let mut findings = Findings::new(2);
        for line in 1..=5 {
            let place = format!("a.jsonl:{line}");
            findings.add(&place, Finding::new(Kind::TinyImage, "4x4 px"));
        }
        findings.add("a.jsonl:9", Finding::new(Kind::BadRow, "no"));
        let counted = findings.counted();
        let seen: Vec<_> = counted.iter().map(|c| (c.kind, c.count)).collect();
        assert_eq!(seen, [(Kind::BadRow, 1), (Kind::TinyImage, 5)]);
        let places: Vec<_> = counted[1].examples.iter().map(|e| &e.place).collect();
        assert_eq!(places, ["a.jsonl:1", "a.jsonl:2"]);
    }

    #[test]
    fn names_are_those_of_the_json() {
        for kind in [Kind::BadRow, Kind::TestLookalike, Kind::LowTrueScore] {
            let json = serde_json::to_value(kind).expect("a name");
            assert_eq!(json, kind.name());
        }
    }
}
