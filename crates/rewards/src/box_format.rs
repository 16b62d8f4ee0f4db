//! Units of boxes, and the conversion between them.
//!
//! A box is compared with a true one in the units of the solution; where those are shares of the
//! image, in its pixels, because VLM-R1's IoU counts pixels.

use crate::boxes::{BoundingBox, input_size};
use crate::error::RewardError;
use crate::families::RewardFamily;
use crate::registry::RewardInput;
use config::BoxFormat;
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSizes {
    /// Of the file.
    pub original: [u32; 2],
    /// Of the model's input.
    pub input: [u32; 2],
}

impl ImageSizes {
    /// Width and height of the whole image in units of `format`.
    pub fn extent(self, format: BoxFormat) -> [f64; 2] {
        format.extent(self.original.map(f64::from), self.input.map(f64::from))
    }

    /// A box in units of `from`, in those of `to`; not clipped or rounded.
    pub fn convert(self, b: BoundingBox, from: BoxFormat, to: BoxFormat) -> BoundingBox {
        if from == to {
            return b;
        }
        Conversion(Some([self.extent(from), self.extent(to)])).apply(b)
    }
}

impl BoxUnits {
    /// Of the one box of an answer and of its solution; none where numbers are compared as they stand.
    pub fn of_one_box(self, family: RewardFamily) -> Option<[BoxFormat; 2]> {
        let own = (!family.data_alike).then_some(family.boxes);
        Self { answer: self.answer.or(own), ..self }.given()
    }

    /// Of lists of boxes, in the same way.
    pub fn of_lists(self, family: RewardFamily) -> Option<[BoxFormat; 2]> {
        match family.lists_alike {
            true => self.given(),
            false => self.of_one_box(family),
        }
    }

    /// Of answer and solution where boxes are shown or measured on their image: numbers that are compared as they
    /// stand are in the family's units.
    pub fn on_image(self, family: RewardFamily) -> [BoxFormat; 2] {
        self.of_one_box(family).unwrap_or([family.boxes; 2])
    }

    fn given(self) -> Option<[BoxFormat; 2]> {
        match (self.answer, self.solution) {
            (None, None) => None,
            (Some(answer), solution) => Some([answer, solution.unwrap_or(BoxFormat::Absolute)]),
            (None, Some(solution)) => Some([solution; 2]),
        }
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
    /// In units of answer and solution, or as numbers stand; for images cut into patches of `patch_size` px.
    pub(crate) fn new(units: Option<[BoxFormat; 2]>, patch_size: usize) -> Self {
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
    /// Only sizes that the units need are asked for.
    fn extent(&self, format: BoxFormat) -> Result<[f64; 2], RewardError> {
        let (mut original, mut input) = ([1; 2], [1; 2]);
        match format {
            BoxFormat::Absolute => original = self.original()?,
            BoxFormat::ModelInput => input = self.seen()?,
            BoxFormat::Relative1000 | BoxFormat::Relative1 => {}
        }
        Ok(ImageSizes { original, input }.extent(format))
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
                let got: [f64; 4] = SIZES.convert(given.into(), from, to).into();
                assert_eq!(got, expected, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn width_and_height_are_taken_apart() {
        let sizes = ImageSizes { original: [448, 112], input: [112, 56] };
        let b = BoundingBox::from([28.0, 28.0, 56.0, 56.0]);
        let got = sizes.convert(b, BoxFormat::ModelInput, BoxFormat::Absolute);
        assert_eq!(<[f64; 4]>::from(got), [112.0, 56.0, 224.0, 112.0]);
    }
}
