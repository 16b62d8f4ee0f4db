//! `data convert`: flags to one pass over a source, rows to files that appear when all is done.

use base::console::count;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use config::DataConvertConfig;
use data::convert::{Columns, ConvertOptions, ConvertReport, LeftOut, WriteError, convert};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::output::{self, Output};
use crate::signals;

/// What a split's name stands for in `--output`.
const SPLIT: &str = "{split}";
const TEMPLATE: &str = "{pos} rows {spinner}";

/// Converts a source and says what was left out.
///
/// # Errors
/// A source that cannot be read, rows that cannot be written, and a source without a row to keep.
pub fn data_convert(config: &DataConvertConfig) -> Result<()> {
    let stop = signals::stop_flag("stopping; no file is written")?;
    if let Some(path) = &config.output {
        output::check_folder(path)?;
    }
    let mut files = Files::new(config.output.as_deref())?;
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style);
    }
    let mut write = |split: &str, row: &Value| -> Result<(), WriteError> {
        bar.inc(1);
        Ok(files.write(split, row)?)
    };
    let report = convert(&options(config), &stop, &mut write);
    bar.finish_and_clear();
    let report = report?;
    let summary = text(&report);
    if report.kept == 0 {
        bail!("no row was kept\n{summary}");
    }
    files.finish()?;
    base::console::say(summary.trim_end());
    Ok(())
}

fn options(config: &DataConvertConfig) -> ConvertOptions {
    let path = |text: &Option<String>| text.as_deref().map(PathBuf::from);
    ConvertOptions {
        format: config.from,
        input: config.input.iter().map(PathBuf::from).collect(),
        annotations: path(&config.annotations),
        split: config.split.clone(),
        image_folder: path(&config.image_folder),
        follow_links: config.follow_links,
        image_prefix: config.image_prefix.clone(),
        row_per: config.row_per,
        negatives: [config.min_negatives, config.max_negatives],
        none_share: config.none_share,
        all_categories: config.all_categories,
        columns: Columns {
            image: config.image_column.clone(),
            question: config.question_column.clone(),
            answer: config.answer_column.clone(),
            kept: config.keep_columns.clone(),
        },
        seed: config.seed,
    }
}

/// One output, or one for each split.
enum Files {
    One(Output),
    Split { name: String, by_split: BTreeMap<String, Output> },
}

impl Files {
    fn new(output: Option<&str>) -> Result<Self> {
        Ok(match output {
            Some(name) if name.contains(SPLIT) => {
                Self::Split { name: name.to_owned(), by_split: BTreeMap::new() }
            }
            output => Self::One(Output::open(output)?),
        })
    }

    fn write(&mut self, split: &str, row: &Value) -> Result<()> {
        match self {
            Self::One(output) => output.write(row),
            Self::Split { name, by_split } => {
                if !by_split.contains_key(split) {
                    let is_word = |c: char| c.is_alphanumeric() || "._-+ ".contains(c);
                    if split.is_empty() || split.starts_with('.') || !split.chars().all(is_word) {
                        bail!(
                            "split `{split}` is no part of a file name\nhint: an output without `{SPLIT}`"
                        );
                    }
                    let output = Output::open(Some(&name.replace(SPLIT, split)))?;
                    by_split.insert(split.to_owned(), output);
                }
                match by_split.get_mut(split) {
                    Some(output) => output.write(row),
                    None => Ok(()),
                }
            }
        }
    }

    /// Gives the files their names.
    fn finish(self) -> Result<()> {
        match self {
            Self::One(output) => output.finish(),
            Self::Split { by_split, .. } => by_split.into_values().try_for_each(Output::finish),
        }
    }
}

/// What became of the source, whole lines.
fn text(report: &ConvertReport) -> String {
    let skipped: u64 = report.skipped.iter().map(|left| left.count).sum();
    let mut text = format!("{} kept, {skipped} left out", count(report.kept, "row"));
    if report.images_written > 0 {
        let _ = write!(text, ", {} written", count(report.images_written, "image"));
    }
    text.push('\n');
    reasons(&mut text, "rows left out", &report.skipped);
    reasons(&mut text, "boxes left out", &report.boxes_left_out);
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn reasons(text: &mut String, heading: &str, left_out: &[LeftOut]) {
    for left in left_out {
        let _ = writeln!(text, "{heading}, {}: {}", left.reason, left.count);
        for example in &left.examples {
            let _ = writeln!(text, "  {}", example.replace('\n', "\n    "));
        }
    }
}
