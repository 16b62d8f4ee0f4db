//! Units of boxes, and the conversion between them.
//!
//! A box is compared with a true one in the units of the solution; where those are shares of the
//! image, in its pixels, because VLM-R1's IoU counts pixels.

use std::str::FromStr;

use crate::boxes::{BoundingBox, input_size};
use crate::error::{RewardError, nearest_and_known};
use crate::registry::RewardInput;
use config::Family;

/// Units of the corners of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxFormat {
    /// Pixels of the image file.
    Absolute,
    /// Pixels of the resized image that the model sees.
    ModelInput,
    /// Thousandths of the image's width and height.
    Relative1000,
    /// Shares of the image's width and height.
    Relative1,
}

/// Units of the boxes of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoxUnits {
    /// Of the boxes that the model writes; none: the convention of the reward and its family.
    pub answer: Option<BoxFormat>,
    /// Of the boxes in solutions; none: pixels of the image file, or no units where those of
    /// answers are not known either.
    pub solution: Option<BoxFormat>,
}

/// Width and height of an image, px, as file and as the model sees it; no side is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSizes {
    /// Of the file.
    pub original: [u32; 2],
    /// Of the model's input.
    pub input: [u32; 2],
}

impl BoxFormat {
    /// Names and formats, as flags write them.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("absolute", Self::Absolute),
        ("model_input", Self::ModelInput),
        ("relative_1000", Self::Relative1000),
        ("relative_1", Self::Relative1),
    ];

    /// Width and height of the whole image in these units.
    pub fn extent(self, sizes: ImageSizes) -> [f64; 2] {
        match self {
            Self::Absolute => sizes.original.map(f64::from),
            Self::ModelInput => sizes.input.map(f64::from),
            Self::Relative1000 => [1000.0; 2],
            Self::Relative1 => [1.0; 2],
        }
    }

    /// The box, given in these units, in those of `to`; not clipped or rounded.
    pub fn convert(self, b: BoundingBox, to: Self, sizes: ImageSizes) -> BoundingBox {
        if self == to {
            return b;
        }
        Conversion(Some([self.extent(sizes), to.extent(sizes)])).apply(b)
    }

    /// The units in words.
    pub fn described(self) -> &'static str {
        match self {
            Self::Absolute => "pixels of the image",
            Self::ModelInput => "pixels of the model's input",
            Self::Relative1000 => "thousandths of the image",
            Self::Relative1 => "shares of the image",
        }
    }
}

impl FromStr for BoxFormat {
    type Err = RewardError;

    fn from_str(name: &str) -> Result<Self, RewardError> {
        if let Some((_, format)) = Self::NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(*format);
        }
        let (nearest, known) = nearest_and_known(name, &Self::NAMES.map(|(name, _)| name));
        Err(RewardError::UnknownBoxFormat { name: name.to_owned(), nearest, known })
    }
}

impl From<config::BoxFormat> for BoxFormat {
    fn from(format: config::BoxFormat) -> Self {
        use config::BoxFormat as Flag;
        match format {
            Flag::Absolute => Self::Absolute,
            Flag::ModelInput => Self::ModelInput,
            Flag::Relative1000 => Self::Relative1000,
            Flag::Relative1 => Self::Relative1,
        }
    }
}

impl BoxUnits {
    /// The units that the flags `--box_format` and `--solution_box_format` name.
    pub fn from_flags(
        answer: Option<config::BoxFormat>,
        solution: Option<config::BoxFormat>,
    ) -> Self {
        Self { answer: answer.map(Into::into), solution: solution.map(Into::into) }
    }
}

/// From units in which the whole image has one width and height to those in which it has the
/// other; by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Conversion(Option<[[f64; 2]; 2]>);

impl Conversion {
    pub(crate) fn apply(self, b: BoundingBox) -> BoundingBox {
        let Some([[from_width, from_height], [to_width, to_height]]) = self.0 else {
            return b;
        };
        BoundingBox {
            x1: b.x1 / from_width * to_width,
            y1: b.y1 / from_height * to_height,
            x2: b.x2 / from_width * to_width,
            y2: b.y2 / from_height * to_height,
        }
    }
}

/// What brings the boxes of a row to the units in which they are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Conversions {
    pub(crate) answer: Conversion,
    pub(crate) solution: Conversion,
}

/// Units of answers and solutions, as a reward has resolved them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison {
    /// Of answer and solution; none where numbers are compared as they stand.
    units: Option<[BoxFormat; 2]>,
    patch_size: usize,
}

impl Comparison {
    /// For one box: Qwen answers in pixels of its input, other families in the units of the data.
    pub(crate) fn of_one_box(units: BoxUnits, family: Family, patch_size: usize) -> Self {
        let own = (family == Family::Qwen2_5Vl).then_some(BoxFormat::ModelInput);
        let answer = units.answer.or(own);
        Self::of_lists(BoxUnits { answer, ..units }, patch_size)
    }

    /// For lists of boxes, which are in the units of the data unless said otherwise.
    pub(crate) fn of_lists(units: BoxUnits, patch_size: usize) -> Self {
        let units = match (units.answer, units.solution) {
            (None, None) => None,
            (Some(answer), solution) => Some([answer, solution.unwrap_or(BoxFormat::Absolute)]),
            (None, Some(solution)) => Some([solution; 2]),
        };
        Self { units, patch_size }
    }

    /// # Errors
    /// Where boxes are to be scaled by patches of no size.
    pub(crate) fn checked(self) -> Result<Self, RewardError> {
        let scales = |[answer, solution]: [BoxFormat; 2]| {
            answer != solution && [answer, solution].contains(&BoxFormat::ModelInput)
        };
        if self.patch_size == 0 && self.units.is_some_and(scales) {
            return Err(RewardError::PatchSize);
        }
        Ok(self)
    }

    /// Whether the model writes decimals.
    pub(crate) fn has_decimals(&self) -> bool {
        matches!(self.units, Some([BoxFormat::Relative1, _]))
    }

    /// The units in which boxes are compared, in words.
    pub(crate) fn described(&self) -> &'static str {
        match self.units {
            Some([_, solution]) => compared(solution).described(),
            None => "units of the data",
        }
    }

    /// What a row's boxes go through.
    ///
    /// # Errors
    /// Where the row lacks a size that is needed, or a side is 0. `reward` is for the message.
    pub(crate) fn of_row(
        &self,
        reward: &str,
        row: usize,
        input: &RewardInput<'_>,
    ) -> Result<Conversions, RewardError> {
        let Some([answer, solution]) = self.units else {
            return Ok(Conversions::default());
        };
        let sizes = RowSizes { reward, row, input, patch_size: self.patch_size };
        let conversion = |from: BoxFormat| -> Result<Conversion, RewardError> {
            let to = compared(solution);
            if from == to {
                return Ok(Conversion::default());
            }
            Ok(Conversion(Some([sizes.extent(from)?, sizes.extent(to)?])))
        };
        Ok(Conversions { answer: conversion(answer)?, solution: conversion(solution)? })
    }
}

/// The units of a comparison with solutions of these units.
fn compared(solution: BoxFormat) -> BoxFormat {
    match solution {
        BoxFormat::Relative1 => BoxFormat::Absolute,
        other => other,
    }
}

/// Sizes of a row's first image.
struct RowSizes<'a> {
    reward: &'a str,
    row: usize,
    input: &'a RewardInput<'a>,
    patch_size: usize,
}

impl RowSizes<'_> {
    fn extent(&self, format: BoxFormat) -> Result<[f64; 2], RewardError> {
        match format {
            BoxFormat::Absolute => Ok(self.original()?.map(f64::from)),
            BoxFormat::ModelInput => Ok(self.seen()?.map(f64::from)),
            BoxFormat::Relative1000 => Ok([1000.0; 2]),
            BoxFormat::Relative1 => Ok([1.0; 2]),
        }
    }

    fn original(&self) -> Result<[u32; 2], RewardError> {
        let original = self.input.image_sizes.first();
        let original = *original.ok_or_else(|| self.missing("image_size"))?;
        if original.contains(&0) {
            return Err(self.empty("the image", original.map(u64::from)));
        }
        Ok(original)
    }

    fn seen(&self) -> Result<[u32; 2], RewardError> {
        let grid = self.input.image_grid_thw.first();
        let grid = *grid.ok_or_else(|| self.missing("image_grid_thw"))?;
        let seen = input_size(grid, self.patch_size).filter(|sides| !sides.contains(&0));
        seen.ok_or_else(|| {
            let side = |patches: usize| patches.saturating_mul(self.patch_size) as u64;
            self.empty("the model's input", [side(grid[2]), side(grid[1])])
        })
    }

    fn missing(&self, what: &'static str) -> RewardError {
        RewardError::NoSize { reward: self.reward.to_owned(), row: self.row, what }
    }

    fn empty(&self, what: &'static str, [width, height]: [u64; 2]) -> RewardError {
        RewardError::EmptySize {
            reward: self.reward.to_owned(),
            row: self.row,
            what,
            width,
            height,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: ImageSizes = ImageSizes { original: [400, 200], input: [112, 56] };

    #[test]
    fn the_same_box_in_all_units() {
        let corners = [
            (BoxFormat::Absolute, [100.0, 50.0, 200.0, 150.0]),
            (BoxFormat::ModelInput, [28.0, 14.0, 56.0, 42.0]),
            (BoxFormat::Relative1000, [250.0, 250.0, 500.0, 750.0]),
            (BoxFormat::Relative1, [0.25, 0.25, 0.5, 0.75]),
        ];
        for (from, given) in corners {
            for (to, expected) in corners {
                let got: [f64; 4] = from.convert(given.into(), to, SIZES).into();
                assert_eq!(got, expected, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn width_and_height_are_taken_apart() {
        let sizes = ImageSizes { original: [448, 112], input: [112, 56] };
        let b = BoundingBox::from([28.0, 28.0, 56.0, 56.0]);
        let got = BoxFormat::ModelInput.convert(b, BoxFormat::Absolute, sizes);
        assert_eq!(<[f64; 4]>::from(got), [112.0, 56.0, 224.0, 112.0]);
    }

    #[test]
    fn names_are_those_of_the_flag() {
        for (name, format) in BoxFormat::NAMES {
            assert_eq!(name.parse(), Ok(format));
        }
        let error = "relative1000".parse::<BoxFormat>().expect_err("no name");
        assert!(error.to_string().contains("did you mean `relative_1000`"));
    }
}
