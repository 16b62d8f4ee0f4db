//! What the commands take that do not train: `generate`, `logprobs`, `reward`, `demo`.

use super::declare::choices;
use super::ranges::{demand, validate_filters, validate_overlong, validate_task_type};
use super::reward_fields::with_reward_fields;
use super::{BoxFormat, ConfigError, DType, ImageProcessor, Validate};
use crate::config;

choices! {
    /// Model families with rewards of their own.
    pub enum RewardFamily {
        /// Boxes in pixels of the model's input.
        Qwen2_5Vl = "qwen2_5_vl",
        /// Boxes in thousandths of the image.
        InternVl = "internvl",
        /// Boxes in the units of the data.
        Glm4v = "glm4v",
    }
}

/// The fields of what loads a model to ask it; `model` itself is given by the caller, and so is the macro
/// that makes the configuration, with its first words.
macro_rules! with_model_fields {
    (
        [$outer:ident $($first:tt)*]
        $(#[$meta:meta])*
        pub struct $name:ident { model { $($model:tt)* } $($own:tt)* }
    ) => {
        $outer! {
            $($first)*
            $(#[$meta])*
            pub struct $name {
                "model" {
                    $($model)*
                    /// Branch, tag or commit of a model on the hub; without it, `main`.
                    model_revision: Option<String> = None,
                    /// Model under an adapter: a folder, a run or a name on the hub; without it, the one that the adapter
                    /// names.
                    base_model: Option<String> = None,
                    /// Type of the weights and of the computation.
                    dtype: DType = DType::Float32,
                    /// Turn images as their EXIF orientation says, as transformers' `load_image` does; VLM-R1 does not.
                    apply_exif: bool = false,
                    /// Read images where links in an image folder lead to, outside of it.
                    follow_links: bool = false,
                    /// Pixels above which an image is shrunk; without it, what the model's folder says, and in
                    /// `eval` first of all the run that trained it.
                    max_pixels: Option<usize> = None,
                    /// Pixels below which an image is enlarged; without it, as `max_pixels`.
                    min_pixels: Option<usize> = None,
                }
                "machine" {
                    /// `auto`, `cpu` or `cuda:N`.
                    device: String = "auto".into(),
                    /// Threads that compute; without it, libtorch's choice.
                    num_threads: Option<usize> = None,
                    /// Print the resolved configuration and stop.
                    dry_run: bool = false,
                }
                $($own)*
            }
        }
    };
}
pub(super) use with_model_fields;

with_model_fields! {
    [config]
    /// Sampling answers.
    pub struct GenerateConfig {
        model {
            /// Model folder in Hugging Face format, an adapter over one, a run's folder (its newest checkpoint; `RUN@100`,
            /// `RUN@best`), or the name of a model on the hub.
            model: String,
            /// Whose way of resizing images to follow.
            image_processor: ImageProcessor = ImageProcessor::Torchvision,
        }
        "question" {
            /// Images of the question, in order.
            image: Vec<String> = Vec::new(),
            /// The question.
            prompt: Option<String> = None,
            /// File of questions, one JSON object a line: `images`, `prompt`.
            input: Option<String> = None,
            /// Where the answers go, one JSON object a line; without it, their texts go to stdout.
            output: Option<String> = None,
            /// Write these objects, with token ids and log-probabilities, to stdout too.
            json: bool = false,
            /// Folder of the images of `input`; without it, the folder of `input`.
            image_folder: Option<String> = None,
        }
        "sampling" {
            /// Answers to each question.
            num_generations: usize = 1,
            /// Longest answer, tokens.
            max_new_tokens: usize = 2048,
            /// No end of answer before this many tokens.
            min_completion_length: usize = 0,
            /// Divides the logits; 0 takes the likeliest token.
            temperature: f64 = 1.0,
            /// Keep the likeliest tokens up to this sum.
            top_p: f64 = 1.0,
            /// Keep this many likeliest tokens; 0: all.
            top_k: usize = 0,
            /// Keep tokens at least this likely, relative to the likeliest; without it, all.
            min_p: Option<f64> = None,
            /// Divides the logits of tokens that are already there.
            repetition_penalty: f64 = 1.0,
            /// Seed of the random draws.
            seed: u64 = 42,
            /// Answers sampled at the same time.
            max_concurrent_completions: usize = 256,
            /// Decode in steps of fixed shape that a GPU records and replays (untested on a GPU).
            cuda_graphs: bool = false,
        }
    }
}

with_model_fields! {
    [config]
    /// Log-probabilities of given answers.
    pub struct LogprobsConfig {
        model {
            /// Model folder in Hugging Face format, an adapter over one, a run's folder (its newest checkpoint; `RUN@100`,
            /// `RUN@best`), or the name of a model on the hub.
            model: String,
            /// Whose way of resizing images to follow.
            image_processor: ImageProcessor = ImageProcessor::Torchvision,
        }
        "rows" {
            /// File of answers, one JSON object a line: `images`, `prompt`, `completion`.
            input: String,
            /// Where the log-probabilities go; without it, stdout.
            output: Option<String> = None,
            /// Folder of the images of `input`; without it, the folder of `input`.
            image_folder: Option<String> = None,
            /// Divides the logits.
            temperature: f64 = 1.0,
        }
    }
}

with_reward_fields! {
    config;
    /// Trying rewards on given answers.
    pub struct RewardConfig {
        "rows" {
            /// File of answers, one JSON object a line: `completion`, `solution` and more.
            input: Option<String> = None,
            /// Where the rewards go; without it, stdout.
            output: Option<String> = None,
            /// Folder of the images that rows name in `image_path`; without it, the folder of `input`.
            image_folder: Option<String> = None,
            /// Turn images whose size is asked as their EXIF orientation says.
            apply_exif: bool = false,
            /// Read images where links in an image folder lead to, outside of it.
            follow_links: bool = false,
            /// Rows that are scored together.
            batch_size: usize = 256,
            /// Column that says which rows answer one question; without it, `group_id` or `group`.
            group_column: Option<String> = None,
        }
        "shown" {
            /// Add to each row why it scored so.
            explain: bool = false,
            /// Page of pictures with boxes, texts and scores.
            html: Option<String> = None,
            /// Rows on that page, chosen evenly.
            html_rows: usize = 200,
        }
        "server" {
            /// Score what is posted to this address, `HOST:PORT`, instead of a file.
            serve: Option<String> = None,
            /// File of the key that callers must send (`Authorization: Bearer KEY`); without it `VLM_R1_API_KEY`,
            /// else none is needed on this machine.
            api_key_file: Option<String> = None,
            /// Let other machines ask without a key.
            allow_no_key: bool = false,
            /// Names by which this server may be asked, beside those of this machine and IP addresses; `*`: any.
            allowed_hosts: Vec<String> = Vec::new(),
        }
        "rewards" {
            /// Folder of the judge's replies, which are not asked for again; without it, none.
            judge_cache: Option<String> = None,
            /// How `accuracy` compares rows that have no `accu_reward_method` of their own.
            reward_method: Option<String> = None,
            /// Task whose own rewards are meant: `rec`.
            task_type: Option<String> = None,
            /// Family whose rewards those are.
            family: RewardFamily = RewardFamily::Qwen2_5Vl,
            /// Edge of the model's image patches, px.
            patch_size: usize = 14,
            /// Model (a folder, a run or a name on the hub) whose tokenizer counts the tokens of rows without
            /// `completion_tokens`.
            model_name_or_path: Option<String> = None,
            /// Tokens from which the reward `overlong` is -1.
            overlong_max_tokens: usize = 2048,
        }
        "machine" {
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

config! {
    /// The main job on pictures that it draws itself.
    pub struct DemoConfig {
        "run" {
            /// Folder of the demo; one that was stopped is continued.
            out: String = "out/demo".into(),
            /// Seed of the pictures, of the weights and of all random draws.
            seed: u64 = 42,
        }
        "machine" {
            /// `auto`, `cpu` or `cuda:N`.
            device: String = "auto".into(),
            /// Threads that compute; without it, libtorch's choice.
            num_threads: Option<usize> = None,
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

config! {
    /// An adapter put into the weights that it was trained over.
    pub struct MergeConfig {
        "merge" {
            /// Folder of the adapter, as PEFT or a run with `--use_peft true` writes it; a run's folder is its newest
            /// checkpoint, or `RUN@100`, `RUN@best`.
            adapter: String,
            /// Folder of the model under it, or its name on the hub; without it, the one that the adapter names.
            base_model: Option<String> = None,
            /// Branch, tag or commit of a model on the hub; without it, `main`.
            model_revision: Option<String> = None,
            /// Folder of the merged model; it must not exist.
            output_dir: String,
            /// Print the resolved configuration and stop.
            dry_run: bool = false,
        }
    }
}

impl Validate for MergeConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl Validate for GenerateConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(
            self.prompt.is_some() != self.input.is_some(),
            "prompt",
            if self.prompt.is_some() { "both `prompt` and `input`" } else { "nothing" },
            "either `prompt` or `input`",
        )?;
        demand(
            self.input.is_none() || self.image.is_empty(),
            "image",
            self.image.join(" "),
            "nothing beside `input`",
        )?;
        demand(self.num_generations > 0, "num_generations", 0, "at least 1")?;
        demand(self.max_new_tokens > 0, "max_new_tokens", 0, "at least 1")?;
        demand(
            self.min_completion_length <= self.max_new_tokens,
            "min_completion_length",
            self.min_completion_length,
            "at most `max_new_tokens`",
        )?;
        demand(self.temperature >= 0.0, "temperature", self.temperature, "at least 0")?;
        demand(self.max_concurrent_completions > 0, "max_concurrent_completions", 0, "at least 1")?;
        demand(self.num_threads != Some(0), "num_threads", 0, "at least 1")?;
        validate_filters(self.top_p, self.min_p, self.repetition_penalty)
    }
}

impl Validate for LogprobsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(self.num_threads != Some(0), "num_threads", 0, "at least 1")?;
        demand(self.temperature > 0.0, "temperature", self.temperature, "above 0")
    }
}

impl Validate for RewardConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(
            self.input.is_some() != self.serve.is_some(),
            "input",
            if self.input.is_some() { "both `input` and `serve`" } else { "nothing" },
            "either `input` or `serve`",
        )?;
        validate_task_type(self.task_type.as_deref())?;
        let only_of_files = self.output.is_some() || self.html.is_some();
        demand(
            self.serve.is_none() || !only_of_files,
            "serve",
            "`output` or `html` beside it",
            "neither",
        )?;
        let only_of_servers = [
            ("api_key_file", self.api_key_file.is_some()),
            ("allow_no_key", self.allow_no_key),
            ("allowed_hosts", !self.allowed_hosts.is_empty()),
        ];
        for (name, is_given) in only_of_servers {
            demand(
                self.serve.is_some() || !is_given,
                name,
                "no `serve`",
                "an address to `serve` at beside it",
            )?;
        }
        demand(
            self.serve.is_none() || self.image_folder.is_some() || !self.judge_images,
            "judge_images",
            true,
            "an `image_folder` beside `serve`",
        )?;
        demand(self.batch_size > 0, "batch_size", 0, "at least 1")?;
        demand(self.html_rows > 0, "html_rows", 0, "at least 1")?;
        demand(self.patch_size > 0, "patch_size", 0, "at least 1")?;
        validate_overlong(self.overlong_max_tokens, self.overlong_cache_tokens)
    }
}

impl Validate for DemoConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        demand(self.num_threads != Some(0), "num_threads", 0, "at least 1")
    }
}
