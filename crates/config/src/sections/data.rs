//! Training data.

use crate::ranges::{FRACTION, demand, validate_task_type};
use crate::{ColonList, ConfigError, ImageProcessor, OnBadRow, section};

section! {
    /// The rows that are trained on.
    pub struct DataSection {
        "data" {
            /// Training files in VLM-R1's JSONL, joined by `:`.
            data_file_paths: ColonList,
            /// Folders of the images, joined by `:`, one for each training file.
            image_folders: Option<ColonList> = None,
            /// Chooses the question template: `rec`, `ic`, `odLength` or any other.
            task_type: Option<String> = None,
            /// Question template with `{Question}` in it; without it, that of the task.
            question_template: Option<String> = None,
            /// Part of the rows set aside for evaluation during training, 0 to 1.
            val_split_ratio: f64 = 0.0,
            /// Pixels above which an image is shrunk.
            max_pixels: usize = 12_845_056,
            /// Pixels below which an image is enlarged.
            min_pixels: usize = 3_136,
            /// Whose way of resizing images to follow (VLM-R1 ran `pillow`).
            image_processor: ImageProcessor = ImageProcessor::Torchvision,
            /// Turn images as their EXIF orientation says, as transformers' `load_image` does; VLM-R1 does not.
            apply_exif: bool = false,
            /// Read images where links in an image folder lead to, outside of it.
            follow_links: bool = false,
            /// What to do with a bad row: `skip` counts and lists them.
            on_bad_row: OnBadRow = OnBadRow::Stop,
        }
    }
}

impl DataSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        validate_task_type(self.task_type.as_deref())?;
        let share = self.val_split_ratio;
        demand((0.0..1.0).contains(&share), "val_split_ratio", share, FRACTION)?;
        let is_range = self.max_pixels >= self.min_pixels;
        demand(is_range, "max_pixels", self.max_pixels, "at least `min_pixels`")
    }
}
