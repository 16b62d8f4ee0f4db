//! Rows that other commands of ours wrote: what they call otherwise, and what of it rewards were told.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::row_input::RowOptions;
use crate::rows::Row;

/// What a row says beside its own keys.
pub struct Origin<'a> {
    /// Whether a run wrote it to `rollouts/`.
    pub is_rollout: bool,
    /// Whether `generate` wrote it.
    is_generated: bool,
    /// The question.
    pub problem: Option<&'a str>,
    /// Place of the row that the completion is to.
    pub sample: Option<&'a str>,
    /// Step of the run.
    pub step: Option<u64>,
    /// The row that the completion is to, as it came.
    pub columns: &'a Map<String, Value>,
    /// Tokens without the one that ends the completion.
    pub completion_tokens: Option<usize>,
}

impl<'a> Origin<'a> {
    /// Looks at a row.
    ///
    /// # Errors
    /// Where a key is of another type.
    pub fn of(row: &'a Row) -> Result<Self> {
        let has = |key: &str| row.columns.contains_key(key);
        let is_rollout = ["completion_index", "finish_reason", "advantage"].map(has) == [true; 3];
        let text = |key: &str| row.columns.get(key).and_then(Value::as_str);
        // One's own rows may call a list of chat messages so.
        let problem = row.optional_text("problem")?.or(text("prompt"));
        let ended = text("finish_reason") == Some("stop");
        let counted = match is_rollout {
            true => row.optional_count("tokens")?,
            false => {
                let ids = row.columns.get("completion_ids").and_then(Value::as_array);
                ids.filter(|_| has("finish_reason")).map(Vec::len)
            }
        };
        let columns = row.columns.get("columns").filter(|_| is_rollout);
        Ok(Self {
            is_rollout,
            is_generated: has("prompt_ids") && has("completion_ids"),
            problem,
            sample: text("sample").filter(|_| is_rollout),
            step: match is_rollout {
                true => row.optional_count("step")?.map(|step| step as u64),
                false => None,
            },
            columns: columns.and_then(Value::as_object).unwrap_or(&row.columns),
            completion_tokens: counted.map(|count| count.saturating_sub(usize::from(ended))),
        })
    }

    /// Whether another command of ours wrote it.
    pub fn is_own(&self) -> bool {
        self.is_rollout || self.is_generated
    }

    /// How `accuracy` compares the row.
    ///
    /// # Errors
    /// Where a run did not write by which method it did.
    pub fn method(&self, row: &'a Row, row_options: &'a RowOptions) -> Result<Option<&'a str>> {
        const KEY: &str = "accu_reward_method";
        let given = row_options.reward_method.as_deref();
        if self.is_rollout
            && row_options.needs_method
            && given.is_none()
            && !row.columns.contains_key(KEY)
        {
            bail!(
                "{}: missing key `{KEY}`, which runs of older versions did not write\n\
                 hint: --reward_method, `default` where the data named none",
                row.place
            );
        }
        Ok(row.optional_text(KEY)?.or(given))
    }

    /// Names of the images.
    ///
    /// # Errors
    /// Where something else stands there.
    pub fn image_names(&self, row: &'a Row) -> Result<Vec<&'a str>> {
        let named = row.columns.contains_key("image_path");
        // In other rows `images` may be anything.
        row.texts(if self.is_own() && !named { "images" } else { "image_path" })
    }

    /// Patches of each image in time, height and width: as they stand, else by the sizes that the model saw.
    ///
    /// # Errors
    /// Where the sizes are not whole patches, and where a run's patches have another side.
    pub fn grids(&self, row: &Row, patch_size: usize) -> Result<Vec<[usize; 3]>> {
        let grids = row.tuples("image_grid_thw")?;
        let sizes = match self.is_rollout {
            true => row.tuples::<2>("input_sizes")?.unwrap_or_default(),
            false => Vec::new(),
        };
        let Some(grids) = grids else {
            let grid = |size| whole_patches(size, patch_size).with_context(|| row.place.clone());
            return sizes.into_iter().map(grid).collect();
        };
        if let (Some([_, _, columns]), Some([width, _])) = (grids.first(), sizes.first())
            && columns * patch_size != *width
        {
            let side = width / columns.max(&1);
            bail!(
                "{}: the model saw {width} px in {columns} patches, of {side} px each, and `patch_size` is {patch_size}\n\
                 hint: --patch_size {side}",
                row.place
            );
        }
        Ok(grids)
    }
}

fn whole_patches([width, height]: [usize; 2], patch_size: usize) -> Result<[usize; 3]> {
    if width % patch_size != 0 || height % patch_size != 0 {
        bail!(
            "`input_sizes`: {width} x {height} px are no whole patches of {patch_size} px\n\
             hint: --patch_size"
        );
    }
    Ok([1, height / patch_size, width / patch_size])
}

/// The folder that image names in a file of `rollouts/` are relative to: where the run was started, as its
/// `env.json` says; else here.
pub fn run_folder(input: &str) -> PathBuf {
    let from_environment = || -> Option<PathBuf> {
        let run = Path::new(input).parent()?.join("..");
        let environment = fs::read_to_string(run.join("env.json")).ok()?;
        let environment: Value = serde_json::from_str(&environment).ok()?;
        environment.get("cwd")?.as_str().map(PathBuf::from)
    };
    from_environment().unwrap_or_default()
}
