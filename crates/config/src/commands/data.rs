//! What `data check` and `data convert` take. The first has the flags of `grpo` that say what is read and
//! how it is rewarded.

use crate::declare::{ColonList, choices};
use crate::ranges::{demand, validate_task_type};
use crate::{BoxFormat, ConfigError, ImageProcessor, Validate, section};

choices! {
    /// Forms of data that rows are made of.
    pub enum DataFormat {
        /// `refs(...).p` and `instances.json`.
        RefCoco = "refcoco",
        /// COCO's instances.
        Coco = "coco",
        /// D-cube's folder of pickles.
        D3 = "d3",
        /// OVDEval's files.
        OvdEval = "ovdeval",
        /// ShareGPT as LLaMA-Factory has it.
        LlamaFactory = "llama-factory",
        /// Tables with images inside.
        Parquet = "parquet",
        /// VLM-R1's evaluation files.
        VlmR1Json = "vlm-r1-json",
    }
}

impl Default for DataFormat {
    /// A placeholder: the field is required.
    fn default() -> Self {
        Self::VlmR1Json
    }
}

choices! {
    /// What a row of RefCOCO is made of.
    pub enum RowPer {
        /// Each expression.
        Sentence = "sentence",
        /// Each object, with one of its expressions.
        Object = "object",
    }
}

section! {
    /// Other people's data as rows.
    pub struct DataConvertConfig {
        "source" {
            /// Form of the source.
            from: DataFormat,
            /// Its files in order: RefCOCO's `refs(...).p`, D3's folder, Parquet files or their folder, JSON.
            input: Vec<String>,
            /// RefCOCO's `instances.json`.
            annotations: Option<String> = None,
            /// The only split that is wanted: RefCOCO's `train`, `val`, ...; of other forms the name of the file.
            split: Option<String> = None,
            /// Folder of the images: rows whose image is not there are left out. Images in Parquet files go there.
            image_folder: Option<String> = None,
            /// Keep rows whose images lie where links in the image folder lead to, outside of it.
            follow_links: bool = false,
            /// Put before the name of each image.
            image_prefix: String = String::new(),
        }
        "columns" {
            /// Parquet: column of the images; without it, `image` or `images`.
            image_column: Option<String> = None,
            /// Parquet: column of the question; without it, `problem`, `question`, `prompt` or `query`.
            question_column: Option<String> = None,
            /// Parquet: column of the answer; without it, `solution`, `answer` or `label`.
            answer_column: Option<String> = None,
            /// Parquet: further columns that rows keep.
            keep_columns: Vec<String> = Vec::new(),
        }
        "rows" {
            /// Where rows go; `{split}` in the name makes a file for each split; without it, stdout.
            output: Option<String> = None,
            /// RefCOCO: a row for each `sentence`, or for each `object` with one sentence that is drawn.
            row_per: RowPer = RowPer::Sentence,
            /// COCO, D3: fewest absent categories asked for beside those that are there.
            min_negatives: usize = 1,
            /// COCO, D3: most of them.
            max_negatives: usize = 3,
            /// COCO, D3: share of images of which only absent categories are asked for; the answer is `None`.
            none_share: f64 = 0.0,
            /// OVDEval: ask for all categories of the file; without it, for `celebrity`, `logo` and `landmark`.
            all_categories: Option<bool> = None,
            /// Seed of the draws.
            seed: u64 = 42,
        }
        "machine" {
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

impl Validate for DataConvertConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(!self.input.is_empty(), "input", "nothing", "at least one file")?;
        demand(
            self.max_negatives >= self.min_negatives,
            "max_negatives",
            self.max_negatives,
            "at least `min_negatives`",
        )?;
        demand((0.0..=1.0).contains(&self.none_share), "none_share", self.none_share, "0 to 1")?;
        demand(
            self.none_share == 0.0 || self.max_negatives > 0,
            "none_share",
            self.none_share,
            "0 where `max_negatives` is 0",
        )?;
        demand(
            self.from != DataFormat::RefCoco || self.annotations.is_some(),
            "annotations",
            "nothing",
            "RefCOCO's `instances.json`",
        )?;
        demand(
            self.from != DataFormat::Parquet || self.image_folder.is_some(),
            "image_folder",
            "nothing",
            "the folder that images in Parquet files go to",
        )
    }
}

section! {
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
            /// Turn images as their EXIF orientation says, as transformers' `load_image` does; VLM-R1 does not.
            apply_exif: bool = false,
            /// Read images where links in an image folder lead to, outside of it.
            follow_links: bool = false,
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
        validate_task_type(self.task_type.as_deref())?;
        demand(self.examples > 0, "examples", 0, "at least 1")?;
        demand(self.html_rows > 0, "html_rows", 0, "at least 1")?;
        demand(
            self.max_pixels >= self.min_pixels,
            "max_pixels",
            self.max_pixels,
            "at least `min_pixels`",
        )?;
        demand(self.dataloader_num_workers != Some(0), "dataloader_num_workers", 0, "at least 1")?;
        demand(
            self.test_image_folders.is_none() || self.test_file_paths.is_some(),
            "test_image_folders",
            "no `test_file_paths`",
            "`test_file_paths` beside it",
        )
    }
}
