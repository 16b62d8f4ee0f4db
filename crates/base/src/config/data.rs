//! What `data check` takes: the flags of `grpo` that say what is read and how it is rewarded.

use super::declare::ColonList;
use super::ranges::demand;
use super::{BoxFormat, ConfigError, ImageProcessor, Validate};
use crate::config;

config! {
    /// A look at data before a run.
    pub struct DataCheckConfig {
        "data" {
            /// Training files in VLM-R1's JSONL, joined by `:`.
            data_file_paths: ColonList,
            /// Folders of the images, joined by `:`, one for each training file.
            image_folders: Option<ColonList> = None,
            /// Test files, joined by `:`: none of their images should be among those trained on.
            test_file_paths: Option<ColonList> = None,
            /// Folders of their images, joined by `:`, one for each test file.
            test_image_folders: Option<ColonList> = None,
            /// Chooses the question template: `rec`, `ic`, `odLength` or any other.
            task_type: Option<String> = None,
            /// Question template with `{Question}` in it; without it, that of the task.
            question_template: Option<String> = None,
            /// Pixels above which an image is shrunk.
            max_pixels: usize = 12_845_056,
            /// Pixels below which an image is enlarged.
            min_pixels: usize = 3_136,
            /// Whose way of resizing images to follow (VLM-R1 ran `pillow`).
            image_processor: ImageProcessor = ImageProcessor::Torchvision,
        }
        "model" {
            /// Model folder or name on the hub, whose tokenizer counts the tokens of prompts; without it, nobody does.
            model_name_or_path: Option<String> = None,
            /// Longest prompt, tokens; without it, any.
            max_prompt_length: Option<usize> = None,
        }
        "rewards" {
            /// Rewards that true answers are scored by; those that need a model or another program are left out.
            reward_funcs: Vec<String> = vec!["accuracy".into(), "format".into()],
            /// How `accuracy` compares, joined by `:`, one for each training file; a row's own
            /// `accu_reward_method` comes first.
            reward_method: Option<ColonList> = None,
            /// Take the model family's own rewards for the task.
            is_reward_customized_from_vlm_module: bool = false,
            /// Units of the boxes that the model writes; without it, the family's own.
            box_format: Option<BoxFormat> = None,
            /// Units of the boxes in solutions; without it, pixels.
            solution_box_format: Option<BoxFormat> = None,
        }
        "report" {
            /// File for all that was found, as JSON.
            json: Option<String> = None,
            /// Page with what was found and a sample of rows with drawn boxes.
            html: Option<String> = None,
            /// Rows on that page, chosen evenly, beside the first bad ones.
            html_rows: usize = 40,
            /// Examples told of each kind of finding.
            examples: usize = 5,
            /// Whether warnings fail the command as errors do.
            strict: bool = false,
        }
        "machine" {
            /// Threads that decode images; without it, one for each core.
            dataloader_num_workers: Option<usize> = None,
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

impl Validate for DataCheckConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(self.examples > 0, "examples", 0, "at least 1")?;
        demand(self.html_rows > 0, "html_rows", 0, "at least 1")?;
        demand(
            self.max_pixels >= self.min_pixels,
            "max_pixels",
            self.max_pixels,
            "at least `min_pixels`",
        )?;
        demand(
            self.dataloader_num_workers != Some(0),
            "dataloader_num_workers",
            0,
            "at least 1",
        )?;
        demand(
            self.test_image_folders.is_none() || self.test_file_paths.is_some(),
            "test_image_folders",
            "no `test_file_paths`",
            "`test_file_paths` beside it",
        )
    }
}
