//! What a row says of an answer, in the form that rewards take.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data::Tokenizer;
use data::image::{MAX_DECODED_PIXELS, decode_upright};
use rewards::RewardInput;

use crate::rows::{self, Row};

/// What is known beside the rows.
pub struct Reading {
    /// Folder that image names are relative to and may not leave; without one, images are never
    /// opened and their names not passed on.
    pub image_folder: Option<PathBuf>,
    /// Accuracy method of rows that name none.
    pub reward_method: Option<String>,
    /// Whether images are turned as their EXIF orientation says.
    pub apply_exif: bool,
    /// Counts the tokens of rows that do not say how many they are.
    pub tokenizer: Option<Tokenizer>,
}

impl Reading {
    /// Image files of a row.
    ///
    /// # Errors
    /// On a name that is none, and on an image outside its folder.
    pub fn images(&self, row: &Row) -> Result<Vec<PathBuf>> {
        match &self.image_folder {
            Some(folder) => images(row, folder),
            None => Ok(Vec::new()),
        }
    }
}

/// What a row says of an answer.
pub struct Answer<'a> {
    row: &'a Row,
    completion: &'a str,
    solution: &'a str,
    problem: Option<&'a str>,
    accu_reward_method: Option<&'a str>,
    images: Vec<PathBuf>,
    image_sizes: Vec<[u32; 2]>,
    image_grid_thw: Vec<[usize; 3]>,
    completion_tokens: Option<usize>,
}

impl<'a> Answer<'a> {
    /// Reads a row; images are opened where it gives no sizes.
    ///
    /// # Errors
    /// Where something is missing or of another type, and on an image outside its folder.
    pub fn read(row: &'a Row, reading: &'a Reading) -> Result<Self> {
        let images = reading.images(row)?;
        let image_sizes = match row.tuples::<2>("image_size")? {
            Some(sizes) => sizes
                .into_iter()
                .map(|[width, height]| Ok([u32::try_from(width)?, u32::try_from(height)?]))
                .collect::<Result<_>>()
                .with_context(|| format!("{}: `image_size`", row.place))?,
            None => images
                .iter()
                .map(|path| size_of(path, row, reading.apply_exif))
                .collect::<Result<_>>()?,
        };
        let method = row.optional_text("accu_reward_method")?;
        Ok(Self {
            row,
            completion: row.text("completion")?,
            solution: row.text("solution")?,
            problem: row.optional_text("problem")?,
            accu_reward_method: method.or(reading.reward_method.as_deref()),
            images,
            image_sizes,
            image_grid_thw: row.tuples("image_grid_thw")?.unwrap_or_default(),
            completion_tokens: completion_tokens(row, reading.tokenizer.as_ref())?,
        })
    }

    /// As rewards take it.
    pub fn input(&'a self) -> RewardInput<'a> {
        RewardInput {
            completion: self.completion,
            solution: self.solution,
            problem: self.problem,
            accu_reward_method: self.accu_reward_method,
            images: &self.images,
            image_sizes: &self.image_sizes,
            image_grid_thw: &self.image_grid_thw,
            columns: &self.row.columns,
            sample: Some(&self.row.place),
            step: None,
            completion_tokens: self.completion_tokens,
        }
    }
}

fn images(row: &Row, folder: &Path) -> Result<Vec<PathBuf>> {
    let names = row.texts("image_path")?;
    let paths = names
        .iter()
        .map(|name| rows::image_path(folder, name, &row.place));
    paths.collect()
}

fn completion_tokens(row: &Row, tokenizer: Option<&Tokenizer>) -> Result<Option<usize>> {
    match (row.optional_count("completion_tokens")?, tokenizer) {
        (None, Some(tokenizer)) => {
            let ids = tokenizer.encode(row.text("completion")?);
            Ok(Some(ids.with_context(|| row.place.clone())?.len()))
        }
        (count, _) => Ok(count),
    }
}

/// Width and height of an image file, px.
fn size_of(path: &Path, row: &Row, apply_exif: bool) -> Result<[u32; 2]> {
    let image = decode_upright(path, MAX_DECODED_PIXELS, apply_exif)
        .with_context(|| format!("{}\nhint: give its `image_size` in the row", row.place))?;
    Ok([image.width(), image.height()])
}
