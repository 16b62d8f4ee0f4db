//! In which units a box is given, and the one conversion between them.

use std::str::FromStr;

use crate::boxes::BoundingBox;
use crate::error::{RewardError, nearest_and_known};

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
        let [from_width, from_height] = self.extent(sizes);
        let [to_width, to_height] = to.extent(sizes);
        BoundingBox {
            x1: b.x1 / from_width * to_width,
            y1: b.y1 / from_height * to_height,
            x2: b.x2 / from_width * to_width,
            y2: b.y2 / from_height * to_height,
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
        Err(RewardError::UnknownBoxFormat {
            name: name.to_owned(),
            nearest,
            known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: ImageSizes = ImageSizes {
        original: [400, 200],
        input: [112, 56],
    };

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
    fn model_input_to_absolute_is_the_scaling_of_rec() {
        let b = BoundingBox::from([3.0, 17.0, 55.0, 41.0]);
        assert_eq!(
            BoxFormat::ModelInput.convert(b, BoxFormat::Absolute, SIZES),
            b.scaled(SIZES.input, SIZES.original)
        );
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
