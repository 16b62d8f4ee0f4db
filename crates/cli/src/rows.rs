//! Rows of `--input`: JSON objects, with errors that name file, line and cause.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use base::describe;
use data::{
    ImageFolder, ReadKeys, RowCause, RowTexts, hidden_media, meant, parse_columns, refuse_lost,
    wrapped,
};
use python::json::Lost;
use python::repr::str_of;
use serde_json::{Map, Value};

/// Keys of rows for `generate`.
pub const ASKED: ReadKeys = ReadKeys { image: "images", others: &["prompt"], is_asked: true };
/// Keys of rows for `logprobs`.
pub const WITH_COMPLETION: ReadKeys =
    ReadKeys { image: "images", others: &["prompt", "completion"], is_asked: true };
/// Keys of rows for `reward`.
pub const SCORED: ReadKeys = ReadKeys {
    image: "image_path",
    others: &[
        "completion",
        "solution",
        "problem",
        "accu_reward_method",
        "image_size",
        "image_grid_thw",
        "group_id",
        "completion_tokens",
    ],
    is_asked: false,
};
/// Keys of lines of `rollouts/` and of the output of `generate`, which `reward` reads too.
pub const SCORED_OWN: ReadKeys = ReadKeys {
    image: "images",
    others: &[
        "completion",
        "solution",
        "problem",
        "prompt",
        "accu_reward_method",
        "image_size",
        "image_sizes",
        "input_sizes",
        "image_grid_thw",
        "group_id",
        "completion_tokens",
        "columns",
    ],
    is_asked: false,
};

/// A line of the file.
#[derive(Debug, Default)]
pub struct Row {
    /// `file:line`.
    pub place: String,
    /// The object.
    pub columns: Map<String, Value>,
    /// Values in it that JSON cannot hold.
    pub lost: Vec<Lost>,
}

/// Iterator over the rows of a file; blank lines are skipped.
pub struct Reader {
    path: PathBuf,
    texts: RowTexts,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// Where it cannot be opened, or is no file of rows.
    pub fn open(path: &str) -> Result<Self> {
        Ok(Self { texts: RowTexts::open(Path::new(path))?, path: path.into() })
    }

    /// Bytes of the file; 0 for a pipe.
    pub fn num_bytes(&self) -> u64 {
        self.texts.num_bytes()
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.texts.bytes_read()
    }
}

impl Iterator for Reader {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let text = match self.texts.next()? {
            Ok(text) => text,
            Err(error) => return Some(Err(error.into())),
        };
        let place = text.source(&self.path).to_string();
        let row = text.text.and_then(|text| parse_columns(&text));
        Some(match row {
            Ok((columns, lost)) => Ok(Row { place, columns, lost }),
            Err(cause) => Err(anyhow!("{place}: {cause}")),
        })
    }
}

/// Reads all rows.
///
/// # Errors
/// Where the file cannot be read, has no rows, or a line is no JSON object.
pub fn read(path: &str) -> Result<Vec<Row>> {
    let rows: Vec<Row> = Reader::open(path)?.collect::<Result<_>>()?;
    if rows.is_empty() {
        bail!("{path}: no rows");
    }
    Ok(rows)
}

impl Row {
    /// The text under `key`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.optional_text(key)?.ok_or_else(|| {
            let place = &self.place;
            if let Some(cause) = wrapped(&self.columns) {
                return anyhow!("{place}: {cause}");
            }
            match meant(key, &self.columns) {
                Some(other) => anyhow!(
                    "{place}: missing key `{key}`; `{other}` is not read\nhint: rename it to `{key}`"
                ),
                None => anyhow!("{place}: missing key `{key}`"),
            }
        })
    }

    /// Refuses a row whose only images are under an unread key: the model would answer without seeing them.
    ///
    /// # Errors
    /// The key, and what is read.
    pub fn refuse_hidden_media(&self, read: &ReadKeys) -> Result<()> {
        match hidden_media(&self.columns, read) {
            None => Ok(()),
            Some(found) => bail!(
                "{}: {}\nhint: {}",
                self.place,
                found.text_of_blind_row(read.image),
                found.hint(read)
            ),
        }
    }

    /// The text under `key`, if there is one.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn optional_text(&self, key: &str) -> Result<Option<&str>> {
        match self.read(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "text")),
        }
    }

    /// The text under `key`, or what VLM-R1 makes of another value: Python's `str` of it.
    ///
    /// # Errors
    /// Where there is none.
    pub fn answer(&self, key: &str) -> Result<Cow<'_, str>> {
        match self.read(key)? {
            None | Some(Value::Null | Value::String(_)) => self.text(key).map(Cow::Borrowed),
            Some(other) => Ok(Cow::Owned(str_of(other))),
        }
    }

    /// The value under `key`.
    fn read(&self, key: &str) -> Result<Option<&Value>> {
        refuse_lost(&self.lost, |path| path.first() == Some(&key))
            .map_err(|cause| anyhow!("{}: {cause}", self.place))?;
        Ok(self.columns.get(key))
    }

    /// The whole number under `key`, if there is one.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        match self.read(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(Some(count.try_into()?)),
                None => Err(self.wrong(key, value, "a whole number")),
            },
        }
    }

    /// The texts under `key`: a list, or one text.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        match self.read(key)? {
            None | Some(Value::Null) => Ok(vec![]),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(values)) => values
                .iter()
                .map(|value| {
                    value.as_str().ok_or_else(|| self.wrong(key, value, "a list of texts"))
                })
                .collect(),
            Some(other) => Err(self.wrong(key, other, "a list of texts")),
        }
    }

    /// `N` whole numbers under `key`, or a list of such; `None` where the key is missing.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn tuples<const N: usize>(&self, key: &str) -> Result<Option<Vec<[usize; N]>>> {
        let value = match self.read(key)? {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let tuple = |value: &Value| -> Option<[usize; N]> {
            let numbers: Vec<usize> = value
                .as_array()?
                .iter()
                .map(|n| n.as_u64().map(|n| n as usize))
                .collect::<Option<_>>()?;
            numbers.try_into().ok()
        };
        let one = tuple(value).map(|one| vec![one]);
        let all = || value.as_array()?.iter().map(tuple).collect::<Option<Vec<_>>>();
        one.or_else(all)
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, &format!("{N} whole numbers, or a list of such")))
    }

    fn wrong(&self, key: &str, got: &Value, expected: &str) -> anyhow::Error {
        anyhow!("{}: `{key}`: got {}, expected {expected}", self.place, describe(got))
    }
}

/// Where the images lie that rows name.
#[derive(Debug)]
pub struct Images {
    /// The folder that names are relative to.
    path: PathBuf,
    folder: ImageFolder,
    follow_links: bool,
}

impl Images {
    /// Those of a folder; with `follow_links` also what its links lead to.
    pub fn new(path: PathBuf, follow_links: bool) -> Self {
        let folder = ImageFolder::new(Some(&path));
        Self { path, folder, follow_links }
    }

    /// Those that rows of `input` name: in the given folder, else beside the input.
    pub fn of(given: Option<&str>, input: &str, follow_links: bool) -> Self {
        let path = match given {
            Some(folder) => folder.into(),
            None => match Path::new(input).parent() {
                Some(folder) if folder != Path::new("") => folder.to_owned(),
                _ => ".".into(),
            },
        };
        Self::new(path, follow_links)
    }

    /// The path of an image that a row names.
    ///
    /// # Errors
    /// Where it leads out of the folder, or is no file.
    pub fn path(&self, name: &str, place: &str) -> Result<PathBuf> {
        match self.folder.resolve(name, self.follow_links) {
            Ok(path) => Ok(path),
            // Named by whoever opens it: not every row needs its images.
            Err(RowCause::ImageMissing { .. } | RowCause::MissingImageFolder { .. })
                if Path::new(name).is_relative() =>
            {
                Ok(self.path.join(name))
            }
            Err(cause) => bail!("{place}: {cause}"),
        }
    }
}
