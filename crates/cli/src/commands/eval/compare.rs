//! `--compare A B`: what changed from one evaluation to another, as JSON, in words, and as a page.

use base::console::count;
use std::path::Path;

use anyhow::{Context, Result, bail};
use config::{EvalConfig, Resolved};
use eval::{Comparison, Results};
use pages::compare::{self as compare_page, Side};

use crate::arguments::Invocation;
use crate::problems::Problems;
use crate::program::resolved;

/// Whether two evaluations are to be compared, which asks no model.
pub fn is_comparison(invocation: &Invocation) -> bool {
    // What can be read once alone is left to whoever acts on it.
    let is_file = invocation.config.as_ref().is_none_or(|path| path.is_file());
    let compares = |resolved: Resolved<EvalConfig>| !resolved.config.run.compare.is_empty();
    is_file && resolved(invocation).is_ok_and(compares)
}

/// Whether the folders are there.
///
/// # Errors
/// All that are not, in one message.
pub fn check_comparison(config: &EvalConfig) -> Result<()> {
    let mut problems = Problems::default();
    for folder in config.run.compare.iter().filter(|folder| !Path::new(folder).is_dir()) {
        problems.add(format!("`compare`: no folder `{folder}`"));
    }
    problems.done()
}

/// Compares the two folders of results that `--compare` names.
///
/// # Errors
/// Folders without results, and results that have no question in common.
pub fn compare(config: &EvalConfig) -> Result<()> {
    let [before, after] = config.run.compare.as_slice() else {
        bail!("`compare`: expected two folders, got {}", config.run.compare.len());
    };
    let (html, html_rows) = (config.run.html.as_deref(), config.run.html_rows);
    if let Some(path) = html {
        check_folder(path)?;
    }
    let read = |folder: &str| -> Result<Results> {
        if Path::new(folder).is_file() {
            bail!(
                "--compare {folder}: a file, expected a folder that `vlm-r1 eval --output_dir` wrote"
            );
        }
        Ok(Results::read(Path::new(folder))?)
    };
    let [first, second] = [read(before)?, read(after)?];
    let comparison =
        eval::compare(&first, &second).with_context(|| format!("{before} and {after}"))?;
    if let Some(path) = html {
        let sides = [(before, &first), (after, &second)];
        let sides = sides.map(|(name, results)| Side { name, results });
        compare_page::write(Path::new(path), &comparison, &sides, html_rows)?;
    }
    base::console::say(summary(&comparison, before, after).trim_end());
    if let Some(cut_off) = comparison.cut_off_sentence() {
        base::say!("warning: {cut_off}");
    }
    if let Some(different) = comparison.setting_differences.sentence() {
        base::say!("warning: {different}");
    }
    base::print_data!("{:#}", comparison.to_json(&first, &second));
    Ok(())
}

fn summary(comparison: &Comparison, before: &str, after: &str) -> String {
    let mut text = format!("A: {before}\nB: {after}\n");
    let names = comparison.differences.iter().map(|d| d.name.len());
    let width = names.max().unwrap_or(0);
    for difference in &comparison.differences {
        let interval = difference.difference;
        let shown =
            [difference.before, difference.after, interval.mean, interval.low, interval.high];
        let [before, after, mean, low, high] =
            shown.map(|value| base::console::plain_zero(value, 4));
        text.push_str(&format!(
            "{:width$}  {before:.4} to {after:.4}: {mean:+.4} [{low:+.4}, {high:+.4}]\n",
            difference.name,
        ));
    }
    let [only_before, only_after] = comparison.unpaired;
    if only_before + only_after > 0 {
        text.push_str(&format!(
            "left out: {} of A alone, {only_after} of B alone\n",
            count(only_before as u64, "question")
        ));
    }
    text.push_str(&format!(
        "B better on {}, worse on {}, sign test p = {}\n{}\n",
        comparison.better,
        comparison.worse,
        comparison.p_shown(),
        comparison.sentence()
    ));
    text
}

/// Refuses to write a page where there is no folder for it.
fn check_folder(path: &str) -> Result<()> {
    let parent = Path::new(path).parent().context("a page needs a name")?;
    if parent != Path::new("") && !parent.is_dir() {
        bail!("{path}: no folder `{}`", parent.display());
    }
    Ok(())
}
