//! How each model family writes and compares boxes: one table, by `model_type` of `config.json`.
//!
//! | | boxes | data | IoU | form |
//! |---|---|---|---|---|
//! | Qwen2-VL, Qwen2.5-VL | pixels of the model's input, scaled to the image | pixels | `iou_vlm_r1` | box in braces |
//! | Qwen3-VL | thousandths | pixels | `iou_vlm_r1` | box in braces |
//! | InternVL | thousandths | alike | `iou_vlm_r1` | box |
//! | GLM | pixels | alike | `iou_plain` | think, then answer |
//! | all others | thousandths | pixels | `iou_vlm_r1` | box |
//!
//! The first, third and fourth row are VLM-R1's modules (commit 90052f4), which compare lists of boxes as they stand.
//! Its module of Qwen serves Qwen2-VL too, although that model was made to write thousandths. It refuses Qwen3-VL,
//! whose authors say thousandths. Flags come first: [`BoxUnits`](crate::BoxUnits).

use config::BoxFormat;

use crate::boxes::{BoundingBox, find_in_answer, find_thinking, iou_plain, iou_vlm_r1};
use crate::error::known;

/// The rewards of boxes of one model family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewardFamily {
    /// `model_type` of its models; none of the default.
    pub model_types: &'static [&'static str],
    /// Units in which its models write boxes.
    pub boxes: BoxFormat,
    /// Whether the data is taken to have the one box of a row in these units too, rather than in pixels of the image.
    pub data_alike: bool,
    /// Whether lists of boxes are compared as they stand; else as one box is.
    pub lists_alike: bool,
    /// How a box is compared with the true one.
    pub iou: BoxIou,
    /// What an answer with a box must look like.
    pub form: BoxForm,
}

/// An IoU of two boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxIou {
    /// [`iou_vlm_r1`].
    VlmR1,
    /// [`iou_plain`].
    Plain,
}

/// The form of a well-formed answer to a question of REC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxForm {
    /// A thought, then an answer with a box in braces.
    InBraces,
    /// A thought, then an answer with a box.
    Bare,
    /// A thought that need not end, then an answer.
    Tags,
}

/// VLM-R1's module of Qwen.
const QWEN: RewardFamily = RewardFamily {
    model_types: &["qwen2_5_vl", "qwen2_vl"],
    boxes: BoxFormat::ModelInput,
    data_alike: false,
    lists_alike: true,
    iou: BoxIou::VlmR1,
    form: BoxForm::InBraces,
};

const FAMILIES: [RewardFamily; 4] = [
    QWEN,
    RewardFamily { model_types: &["qwen3_vl"], form: BoxForm::InBraces, ..RewardFamily::DEFAULT },
    RewardFamily {
        model_types: &["internvl", "internvl_chat"],
        data_alike: true,
        lists_alike: true,
        ..RewardFamily::DEFAULT
    },
    RewardFamily {
        model_types: &["glm4v"],
        boxes: BoxFormat::Absolute,
        data_alike: true,
        lists_alike: true,
        iou: BoxIou::Plain,
        form: BoxForm::Tags,
    },
];

impl RewardFamily {
    /// Of models that the table does not name.
    pub const DEFAULT: Self = Self {
        model_types: &[],
        boxes: BoxFormat::Relative1000,
        data_alike: false,
        lists_alike: false,
        iou: BoxIou::VlmR1,
        form: BoxForm::Bare,
    };

    /// Where no model is at hand: that of VLM-R1's own runs.
    pub const WITHOUT_MODEL: Self = QWEN;

    /// Units in which the data has its boxes, unless a flag says otherwise.
    pub fn data_boxes(self) -> BoxFormat {
        if self.data_alike { self.boxes } else { BoxFormat::Absolute }
    }
}

impl BoxIou {
    /// The IoU of a box that was found with the true one.
    pub fn of(self, found: BoundingBox, truth: BoundingBox) -> f64 {
        match self {
            Self::VlmR1 => iou_vlm_r1(found, truth),
            Self::Plain => iou_plain(found, truth),
        }
    }
}

impl BoxForm {
    /// The box that VLM-R1's evaluation reads in the first answer: in braces the last, else the first.
    pub fn find(self, completion: &str) -> Option<BoundingBox> {
        match self {
            Self::InBraces => find_thinking(completion),
            Self::Bare | Self::Tags => find_in_answer(completion),
        }
    }
}

/// The family of a model by the `model_type` of its `config.json`. Where the table does not name it the default is
/// taken, with a note that is said once.
pub fn family_of(model_type: &str) -> RewardFamily {
    let named = FAMILIES.iter().find(|family| family.model_types.contains(&model_type));
    named.copied().unwrap_or_else(|| {
        base::console::say_once(&note(model_type));
        RewardFamily::DEFAULT
    })
}

/// What is taken for a model that the table does not name.
fn note(model_type: &str) -> String {
    let names: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
    format!(
        "note: family `{model_type}` has no rewards of its own: where boxes are compared, the model's are taken for {}, those of the data \
         for {}, unless `--box_format` and `--solution_box_format` say otherwise (families with their own: {})",
        RewardFamily::DEFAULT.boxes.described(),
        RewardFamily::DEFAULT.data_boxes().described(),
        known(&names)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_type_has_one_family_and_others_the_default() {
        let mut all: Vec<&str> = FAMILIES.iter().flat_map(|f| f.model_types).copied().collect();
        for model_type in &all {
            assert!(family_of(model_type).model_types.contains(model_type));
        }
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
        assert_eq!(family_of("molmo2"), RewardFamily::DEFAULT);
        assert_eq!(family_of("qwen2_vl"), family_of("qwen2_5_vl"));
    }

    #[test]
    fn evaluation_reads_the_box_in_the_form_that_is_trained() {
        let bare = "<answer>[1, 2, 3, 4] or [5, 6, 7, 8]</answer>";
        let braced = "<answer>{[1, 2, 3, 4], [5, 6, 7, 8]}</answer>";
        let found = |form: BoxForm, text| form.find(text).map(<[f64; 4]>::from);
        assert_eq!(found(BoxForm::InBraces, bare), None);
        assert_eq!(found(BoxForm::InBraces, braced), Some([5.0, 6.0, 7.0, 8.0]));
        for form in [BoxForm::Bare, BoxForm::Tags] {
            assert_eq!(found(form, bare), Some([1.0, 2.0, 3.0, 4.0]));
            assert_eq!(found(form, braced), Some([1.0, 2.0, 3.0, 4.0]));
        }
    }

    #[test]
    fn the_note_says_what_is_taken() {
        let text = note("molmo2");
        for part in ["`molmo2`", "thousandths", "pixels of the image", "--box_format", "`glm4v`"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
