//! A file of rows, scored batch by batch: only one batch is in memory at a time, beside the rows that
//! the page shows and a few numbers of each row.

use base::console::count;
use std::path::Path;

use anyhow::{Result, bail};
use base::run_folder::StopFlag;
use config::RewardConfig;
use data::Notices;
use indicatif::{ProgressBar, ProgressStyle};

use super::page::PageRows;
use super::scorer::{Failure, Scorer};
use super::summary::summary;
use super::tally::Tally;
use crate::output::{Output, check_folder};
use crate::rows::{Reader, Row, SCORED};
use crate::signals::Stopped;

const TEMPLATE: &str = "{bytes}/{total_bytes} {bar:30} {msg} ETA {eta}";

/// Scores the rows of `input` and writes what was asked for.
///
/// # Errors
/// Where a row cannot be read or scored, or something cannot be written.
pub fn score(config: &RewardConfig, input: &str, scorer: &Scorer, stop: &StopFlag) -> Result<()> {
    if let Some(path) = &config.shown.html {
        check_folder(path)?;
    }
    let mut reader = Reader::open(input)?;
    let mut output = Output::open(config.rows.output.as_deref())?;
    let mut tally = Tally::new(scorer.names(), config.rows.group_column.clone());
    let mut notices = Notices::new(SCORED, config.rows.apply_exif);
    let mut shown =
        PageRows::new(if config.shown.html.is_some() { config.shown.html_rows } else { 0 });
    let bar = progress_bar(reader.num_bytes());
    loop {
        let rows: Vec<Row> = reader.by_ref().take(config.rows.batch_size).collect::<Result<_>>()?;
        if rows.is_empty() {
            break;
        }
        let scored = scorer.score(&rows, config.shown.explain);
        let scored = scored.map_err(|Failure { error, .. }| error)?;
        tally.add(&rows, &scored)?;
        rows.iter().for_each(|row| scorer.inspect(row, &mut notices));
        for (index, row) in rows.into_iter().enumerate() {
            shown.keep(&row, index, &scored.scores);
            output.write(&scorer.output(row, index, &scored))?;
        }
        if stop.is_raised() {
            bail!(Stopped(format!(
                "{input}: stopped after {}",
                count(tally.num_rows() as u64, "row")
            )));
        }
        bar.set_position(reader.bytes_read());
        bar.set_message(count(tally.num_rows() as u64, "row"));
    }
    bar.finish_and_clear();
    if tally.num_rows() == 0 {
        bail!("{input}: no rows");
    }
    output.finish()?;
    notices.say();
    if let Some(text) = box_warning(config).or_else(|| scorer.box_warning()) {
        base::say!("warning: {text}");
    }
    if let Some(path) = &config.shown.html {
        shown.page(config, input, scorer, &tally)?.write(Path::new(path))?;
    }
    base::console::say(summary(&tally).trim_end());
    for (reward, counter, count) in scorer.rewards.counters() {
        base::say!("{reward}: {counter} {count}");
    }
    Ok(())
}

/// That no reward compares boxes though the task is to find one.
fn box_warning(config: &RewardConfig) -> Option<String> {
    // A method of comparison was chosen.
    if config.task.reward_method.is_some() {
        return None;
    }
    rewards::missing_box_reward(
        config.task.task_type.as_deref(),
        &config.rewards.reward_funcs,
        config.rewards.is_reward_customized_from_vlm_module,
    )
}

/// A bar on a terminal, nothing elsewhere.
fn progress_bar(num_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(num_bytes);
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style);
    }
    bar
}
