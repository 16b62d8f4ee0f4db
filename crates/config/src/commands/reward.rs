//! What `reward` takes.

use crate::ranges::{demand, validate_overlong, validate_task_type};
use crate::sections::{DryRunSection, RewardSection};
use crate::{ConfigError, Validate, command, section};

section! {
    /// The rows that are scored.
    pub struct RewardRowSection {
        "rows" {
            /// File of completions, one JSON object a line: `completion`, `solution` and more.
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
    }
}

section! {
    /// What the output shows.
    pub struct ShownSection {
        "shown" {
            /// Add to each row why it scored so.
            explain: bool = false,
            /// Page of images with boxes, texts and scores.
            html: Option<String> = None,
            /// Rows on that page, chosen evenly.
            html_rows: usize = 200,
        }
    }
}

section! {
    /// Scoring over HTTP.
    pub struct ServerSection {
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
    }
}

section! {
    /// The task and the model family, which rows do not name.
    pub struct RewardTaskSection {
        "rewards" {
            /// Folder of the judge's replies, which are not asked for again; without it, none.
            judge_cache: Option<String> = None,
            /// How `accuracy` compares rows that have no `accu_reward_method` of their own.
            reward_method: Option<String> = None,
            /// Task whose own rewards are meant: `rec`.
            task_type: Option<String> = None,
            /// `model_type` of the family whose rewards those are; without it, `qwen2_5_vl`.
            family: Option<String> = None,
            /// Edge of the model's image patches, px.
            patch_size: usize = 14,
            /// Model (a folder, a run or a name on the hub) whose tokenizer counts the tokens of rows without
            /// `completion_tokens`.
            model_name_or_path: Option<String> = None,
            /// Tokens from which the reward `overlong` is -1.
            overlong_max_tokens: usize = 2048,
        }
    }
}

command! {
    /// Trying rewards on given completions.
    pub struct RewardConfig {
        rewards: RewardSection,
        rows: RewardRowSection,
        shown: ShownSection,
        server: ServerSection,
        task: RewardTaskSection,
        machine: DryRunSection,
    }
}

impl Validate for RewardConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let (rows, serve) = (&self.rows, self.server.serve.is_some());
        let got = if rows.input.is_some() { "both `input` and `serve`" } else { "nothing" };
        demand(rows.input.is_some() != serve, "input", got, "either `input` or `serve`")?;
        validate_task_type(self.task.task_type.as_deref())?;
        let only_of_files = rows.output.is_some() || self.shown.html.is_some();
        demand(!serve || !only_of_files, "serve", "`output` or `html` beside it", "neither")?;
        self.server.validate()?;
        demand(
            !serve || rows.image_folder.is_some() || !self.rewards.judge_images,
            "judge_images",
            true,
            "an `image_folder` beside `serve`",
        )?;
        demand(rows.batch_size > 0, "batch_size", 0, "at least 1")?;
        demand(self.shown.html_rows > 0, "html_rows", 0, "at least 1")?;
        demand(self.task.patch_size > 0, "patch_size", 0, "at least 1")?;
        validate_overlong(self.task.overlong_max_tokens, self.rewards.overlong_cache_tokens)
    }
}

impl ServerSection {
    fn validate(&self) -> Result<(), ConfigError> {
        let only_of_servers = [
            ("api_key_file", self.api_key_file.is_some()),
            ("allow_no_key", self.allow_no_key),
            ("allowed_hosts", !self.allowed_hosts.is_empty()),
        ];
        let expected = "an address to `serve` at beside it";
        let mut given = only_of_servers.iter();
        given.try_for_each(|(name, is_given)| {
            demand(self.serve.is_some() || !is_given, name, "no `serve`", expected)
        })
    }
}
