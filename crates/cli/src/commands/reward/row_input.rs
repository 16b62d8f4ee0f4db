//! A row as input of rewards. Rows of `rollouts/` and of `generate` name some of it otherwise ([`super::origin`]).

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data::Tokenizer;
use data::image::{MAX_DECODED_PIXELS, decode_upright};
use rewards::RewardInput;

use super::origin::Origin;
use crate::rows::{Images, Row};

/// How rows are read, and what is known beside them.
pub struct RowOptions {
    /// Folder that image names are relative to and may not leave; without one, images are never
    /// opened and their names not passed on.
    pub image_folder: Option<Images>,
    /// Folder that image names of `rollouts/` are relative to, where no image folder was named.
    pub run_folder: Option<PathBuf>,
    /// Accuracy method of rows that name none.
    pub reward_method: Option<String>,
    /// Whether rewards go by the accuracy method of a row.
    pub needs_method: bool,
    /// Edge of the model's image patches, px.
    pub patch_size: usize,
    /// Whether images are turned as their EXIF orientation says.
    pub apply_exif: bool,
    /// Counts the tokens of rows that do not say how many they are.
    pub tokenizer: Option<Tokenizer>,
}

impl RowOptions {
    /// Image files of a row.
    ///
    /// # Errors
    /// On a name that is none, and on an image outside its folder.
    pub fn images(&self, row: &Row) -> Result<Vec<PathBuf>> {
        images(row, &Origin::of(row)?, self)
    }
}

/// A row in the form that rewards take.
pub struct RowInput<'a> {
    row: &'a Row,
    origin: Origin<'a>,
    completion: &'a str,
    solution: Cow<'a, str>,
    accu_reward_method: Option<&'a str>,
    images: Vec<PathBuf>,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
    completion_tokens: Option<usize>,
}

impl<'a> RowInput<'a> {
    /// Reads a row; images are opened where it gives no sizes.
    ///
    /// # Errors
    /// Where something is missing or of another type, and on an image outside its folder.
    pub fn read(row: &'a Row, row_options: &'a RowOptions) -> Result<Self> {
        let origin = Origin::of(row)?;
        let images = images(row, &origin, row_options)?;
        Ok(Self {
            row,
            completion: row.text("completion")?,
            solution: row.answer("solution")?,
            accu_reward_method: origin.method(row, row_options)?,
            image_sizes: image_sizes(row, &images, row_options.apply_exif)?,
            image_grid_thw: origin.grids(row, row_options.patch_size)?,
            completion_tokens: completion_tokens(row, &origin, row_options.tokenizer.as_ref())?,
            images,
            origin,
        })
    }

    /// As rewards take it.
    pub fn input(&'a self) -> RewardInput<'a> {
        RewardInput {
            completion: self.completion,
            solution: &self.solution,
            problem: self.origin.problem,
            accu_reward_method: self.accu_reward_method,
            images: &self.images,
            image_sizes: &self.image_sizes,
            image_grid_thw: &self.image_grid_thw,
            columns: self.origin.columns,
            sample: Some(self.origin.sample.unwrap_or(&self.row.place)),
            step: self.origin.step,
            completion_tokens: self.completion_tokens,
        }
    }
}

fn images(row: &Row, origin: &Origin<'_>, row_options: &RowOptions) -> Result<Vec<PathBuf>> {
    let Some(folder) = &row_options.image_folder else {
        return Ok(Vec::new());
    };
    let names = origin.image_names(row)?;
    if origin.is_rollout
        && let Some(folder) = &row_options.run_folder
    {
        // As the run wrote them, wherever that is.
        return Ok(names.iter().map(|name| folder.join(name)).collect());
    }
    let paths = names.iter().map(|name| folder.path(name, &row.place));
    paths.collect()
}

fn image_sizes(row: &Row, images: &[PathBuf], apply_exif: bool) -> Result<Vec<[u32; 2]>> {
    for key in ["image_size", "image_sizes"] {
        if let Some(sizes) = row.tuples::<2>(key)? {
            return sizes
                .into_iter()
                .map(|[width, height]| Ok([u32::try_from(width)?, u32::try_from(height)?]))
                .collect::<Result<_>>()
                .with_context(|| format!("{}: `{key}`", row.place));
        }
    }
    let sizes = images.iter().map(|path| size_of(path, row, apply_exif));
    sizes.collect()
}

fn completion_tokens(
    row: &Row,
    origin: &Origin<'_>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<usize>> {
    if let Some(count) = row.optional_count("completion_tokens")? {
        return Ok(Some(count));
    }
    if let Some(count) = origin.completion_tokens {
        return Ok(Some(count));
    }
    let Some(tokenizer) = tokenizer else {
        return Ok(None);
    };
    let ids = tokenizer.encode(row.text("completion")?);
    Ok(Some(ids.with_context(|| row.place.clone())?.len()))
}

/// Width and height of an image file, px.
fn size_of(path: &Path, row: &Row, apply_exif: bool) -> Result<[u32; 2]> {
    let image = decode_upright(path, MAX_DECODED_PIXELS, apply_exif)
        .with_context(|| format!("{}\nhint: give its `image_size` in the row", row.place))?;
    Ok([image.width(), image.height()])
}
