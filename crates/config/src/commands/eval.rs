//! What `eval` takes: a model and questions, or two folders of results to compare.

use crate::declare::{ColonList, choices};
use crate::ranges::{demand, validate_overlong, validate_task_type};
use crate::sections::{DeviceSection, FilterSection, LoadSection, RanksSection, RewardSection};
use crate::{ConfigError, CudaGraphs, ImageProcessor, Validate, command, section};

choices! {
    /// What is asked and how completions are scored.
    pub enum EvalTask {
        /// One box for an expression.
        Rec = "rec",
        /// Boxes of named objects, by COCO's average precision.
        Ovd = "ovd",
        /// The same by OVDEval's NMS-AP.
        OvdEval = "ovdeval",
        /// The letter of a choice.
        Mcq = "mcq",
        /// Yes or no.
        YesNo = "yes_no",
        /// Equal mathematics.
        Math = "math",
        /// Equal cleaned texts.
        Match = "match",
        /// The same under the name of its reward.
        AllMatch = "all_match",
        /// A point inside a box.
        Gui = "gui",
        /// Any rewards.
        Reward = "reward",
    }
}

choices! {
    /// Which box of a completion counts.
    pub enum Extractor {
        /// The last of whole numbers, in braces in the first answer tag.
        Thinking = "thinking",
        /// The first of any numbers, anywhere.
        Baseline = "baseline",
    }
}

choices! {
    /// Which labels a detection prompt names.
    pub enum LabelList {
        /// All categories of the file.
        All = "all",
        /// Those of the image: its `text` and `neg_text`, or its categories.
        Image = "image",
    }
}

section! {
    /// The model that answers.
    pub struct EvalModelSection {
        "model" {
            /// Model folder in Hugging Face format, an adapter over one, a run's folder (its newest checkpoint; `RUN@100`,
            /// `RUN@best`), or the name of a model on the hub.
            model: Option<String> = None,
            /// Whose way of resizing images to follow; without it, as the model was trained, else `torchvision`.
            image_processor: Option<ImageProcessor> = None,
        }
    }
}

section! {
    /// Questions and their form.
    pub struct TaskSection {
        "task" {
            /// What is asked and how it is scored.
            task: Option<EvalTask> = None,
            /// Files of questions, joined by `:`: VLM-R1's JSONL, a JSON list of `problem` and `solution`, or
            /// COCO's JSON for `ovd` and `ovdeval`.
            data_file_paths: Option<ColonList> = None,
            /// Folders of the images, joined by `:`, one for each file.
            image_folders: Option<ColonList> = None,
            /// Shuffle the rows of each file as Python's `random.seed` and `shuffle` do (VLM-R1: 42).
            shuffle_seed: Option<u64> = None,
            /// Rows of each file to take, after the shuffle (VLM-R1: 2000); without it, all.
            limit: Option<usize> = None,
            /// Question template: a name, a text with `{Question}`, or a file; without it, that of `extractor` where
            /// this is given, else as the model was trained, else that of the task.
            question_template: Option<String> = None,
            /// Labels that a prompt names (`ovd`, `ovdeval`); without it, the rule of the task.
            labels: Option<LabelList> = None,
            /// Leave out categories with more true boxes than this in an image (`ovd`); without it, none.
            max_boxes_per_category: Option<usize> = None,
        }
    }
}

section! {
    /// How many completions, how long, how random.
    pub struct EvalSamplingSection {
        "sampling" {
            /// Completions of each question: pass@k and mean@k.
            num_samples: usize = 1,
            /// Longest completion, tokens; without it, the `max_completion_length` that the model was trained with, else
            /// 256 for a box alone (`rec` without thinking) and 2048 for all others.
            max_new_tokens: Option<usize> = None,
            /// Divides the logits; 0 takes the likeliest token.
            temperature: f64 = 0.0,
        }
    }
}

section! {
    /// How completions are sampled.
    pub struct EvalDecodingSection {
        "sampling" {
            /// Seed of the random draws.
            seed: u64 = 42,
        }
        "machine" {
            /// Threads that read and resize images ahead of need; 0 is 1.
            dataloader_num_workers: usize = 2,
            /// Completions sampled at the same time.
            max_concurrent_completions: usize = 256,
            /// Decode with static shapes and CUDA graphs: `auto`, where they are proven on this device; `true`; `false`.
            cuda_graphs: CudaGraphs = CudaGraphs::Auto,
        }
    }
}

section! {
    /// When a completion is right.
    pub struct ScoringSection {
        "scoring" {
            /// Which box of a completion counts, and which template asks for it (`rec`); without it, as the model was
            /// trained, else `thinking`.
            extractor: Option<Extractor> = None,
            /// A completion is right where its score is above this: its IoU (`rec`), or its first reward.
            correct_above: f64 = 0.5,
            /// Leave bad rows out of the denominators, where else they count as wrong.
            exclude_bad: bool = false,
        }
    }
}

section! {
    /// What rewards compare with, where the rows do not say.
    pub struct EvalRewardSection {
        "rewards" {
            /// How `accuracy` compares, joined by `:`, one for each file; a row's own
            /// `accu_reward_method` comes first.
            reward_method: Option<ColonList> = None,
            /// Task whose own rewards are meant (task `reward`): `rec`.
            task_type: Option<String> = None,
            /// Folder of the judge's replies, which are not asked for again; without it, `judge_cache` in
            /// `output_dir`.
            judge_cache: Option<String> = None,
            /// Tokens from which the reward `overlong` is -1.
            overlong_max_tokens: usize = 2048,
        }
    }
}

section! {
    /// Where results go, and comparing them.
    pub struct EvalRunSection {
        "run" {
            /// Folder of the results; an evaluation that it holds is continued.
            output_dir: Option<String> = None,
            /// Completions on the page `report.html`, chosen evenly.
            html_rows: usize = 200,
            /// Continue although settings that alter the completions have changed.
            allow_changed: bool = false,
            /// Two folders of results to compare instead: is the second better?
            compare: Vec<String> = Vec::new(),
            /// Page of the comparison.
            html: Option<String> = None,
        }
    }
}

command! {
    /// Questions to a model, its completions scored.
    pub struct EvalConfig {
        rewards: RewardSection,
        asked: EvalModelSection,
        load: LoadSection,
        machine: DeviceSection,
        ranks: RanksSection,
        questions: TaskSection,
        sampling: EvalSamplingSection,
        filters: FilterSection,
        decoding: EvalDecodingSection,
        scoring: ScoringSection,
        references: EvalRewardSection,
        run: EvalRunSection,
    }
}

/// What `task` may be; held to the words of [`EvalTask`] by a test.
const TASKS: &str = "a task: `rec`, `ovd`, `ovdeval`, `mcq`, `yes_no`, `math`, `match`, `all_match`, `gui` or `reward`";

impl EvalConfig {
    fn validate_compare(&self) -> Result<(), ConfigError> {
        let folders = self.run.compare.len();
        demand(folders == 2, "compare", format!("{folders} folders"), "two folders")?;
        let is_alone = self.asked.model.is_none() && self.run.output_dir.is_none();
        demand(is_alone, "compare", "`model` or `output_dir` beside it", "neither")
    }

    fn validate_run(&self) -> Result<(), ConfigError> {
        let needs = |given: bool, key, expected| demand(given, key, "nothing", expected);
        let (task, sampling) = (&self.questions, &self.sampling);
        needs(self.asked.model.is_some(), "model", "a model, or `compare` with two folders")?;
        needs(task.task.is_some(), "task", TASKS)?;
        needs(task.data_file_paths.is_some(), "data_file_paths", "files of questions")?;
        needs(self.run.output_dir.is_some(), "output_dir", "a folder")?;
        demand(
            self.run.html.is_none(),
            "html",
            "a page without `compare`",
            "nothing: `report.html` is always written",
        )?;
        demand(sampling.num_samples > 0, "num_samples", 0, "at least 1")?;
        demand(task.limit != Some(0), "limit", 0, "at least 1")?;
        demand(sampling.max_new_tokens != Some(0), "max_new_tokens", 0, "at least 1")?;
        demand(sampling.temperature >= 0.0, "temperature", sampling.temperature, "at least 0")?;
        demand(
            sampling.num_samples == 1 || sampling.temperature > 0.0,
            "num_samples",
            sampling.num_samples,
            "1 where `temperature` is 0: greedy completions are all the same",
        )?;
        self.filters.validate()
    }
}

impl Validate for EvalConfig {
    fn free_groups() -> &'static [&'static str] {
        // Completions that are there are scored anew.
        &["run", "machine", "ranks", "scoring", "rewards"]
    }

    fn validate(&self) -> Result<(), ConfigError> {
        validate_task_type(self.references.task_type.as_deref())?;
        match self.run.compare.is_empty() {
            true => self.validate_run()?,
            false => self.validate_compare()?,
        }
        for (key, value) in [
            ("max_concurrent_completions", self.decoding.max_concurrent_completions),
            ("html_rows", self.run.html_rows),
            ("reward_workers", self.rewards.reward_workers),
            ("judge_concurrency", self.rewards.judge_concurrency),
        ] {
            demand(value > 0, key, value, "at least 1")?;
        }
        self.machine.validate()?;
        self.ranks.validate()?;
        validate_overlong(self.references.overlong_max_tokens, self.rewards.overlong_cache_tokens)
    }
}
