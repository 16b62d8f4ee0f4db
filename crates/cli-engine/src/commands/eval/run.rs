//! Questions to a model, from the settings to metrics and a page.

use base::console::count;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use base::run_folder::ResultFolder;
use config::EvalConfig;
use engine::EngineError;
use eval::evaluation::SUMMARY;
use eval::questions::Questions;
use eval::{Metric, Summary};
use eval_runner::{AskError, Kept};
use pages::eval as page;

use super::progress::EvalProgress;
use super::trained_as::TrainedAs;
use super::warnings::Warned;
use crate::model::Located;
use crate::ranks::Joined;
use cli::signals::{self, Stopped};
use cli::which_model::folder_or_name;

/// Bad rows that are named at the start.
const MAX_NAMED: usize = 10;

/// Evaluates a model, going on where an earlier call was stopped.
///
/// # Errors
/// Where something cannot be used, and where it was asked to stop.
pub fn run(joined: &Joined, config: &EvalConfig) -> Result<()> {
    let world = joined.ranks.world.as_ref();
    let stop = signals::stop_flag_of_work("stopping; completions so far are kept")?;
    let mut config = config.clone();
    let name = folder_or_name(config.asked.model.as_deref().unwrap_or_default())?;
    config.asked.model = Some(name.clone());
    config.machine.device.clone_from(&joined.device);
    let trained_as = TrainedAs::of_model(Path::new(&name));
    let family = joined.first_of_machine_first(|| Located::find(&config)?.texts())?;
    let following = trained_as.map(|trained_as| trained_as.lay_under(&mut config, family));
    let config = &config;
    let model = Located::find(config)?;
    let output = Path::new(config.run.output_dir.as_deref().unwrap_or_default());
    let processor = Arc::new(model.processor()?);
    let mut evaluation = eval_runner::set_up(config, output, processor, model.family()?)?;
    if let Some(following) = &following {
        following.log("");
        evaluation.note_training(following.to_json());
    }
    name_odd_rows(evaluation.questions());
    let mut warned = Warned::default();
    warned.log(&evaluation.doubts(), "");
    let opened = world.is_main().then(|| -> Result<_> {
        let folder = ResultFolder::open(output)?;
        let store = evaluation.open(&folder)?;
        Ok((folder, store))
    });
    let mut opened = opened.transpose()?;
    let is_missing = opened.as_ref().is_some_and(|(_, store)| !evaluation.is_complete(store));
    if world.any("completions are missing", is_missing)? {
        let weights = model.weights()?;
        let done = opened.as_ref().map_or(0, |(_, store)| store.len());
        let mut progress = EvalProgress::new(done, String::new(), Duration::ZERO);
        stop.begin();
        base::console::be_heard();
        let kept = opened.as_mut().map(|(folder, store)| Kept { folder, store });
        let sampled = eval_runner::sample_missing(
            world,
            &evaluation,
            weights.as_ref(),
            kept,
            &mut progress,
            &|| stop.is_raised(),
        );
        progress.finish();
        // How it ended rank 0 says for all.
        base::console::speak_as(world.rank());
        let kept = opened.as_ref().map_or(0, |(_, store)| store.len());
        sampled.map_err(|error| explained(error, kept))?;
    }
    let Some((folder, store)) = opened else { return Ok(()) };
    let outcome = evaluation.finish(&folder, &store)?;
    let page = folder.path().join(page::REPORT);
    page::write(&page, &outcome, config.run.html_rows)?;
    base::console::say(metric_lines(&outcome.summary, config.scoring.exclude_bad).trim_end());
    warned.log(&outcome.warnings, "");
    base::print_data!("{}", folder.path().join(SUMMARY).display());
    Ok(())
}

/// Names rows that cannot be asked, and what else is odd.
pub fn name_odd_rows(questions: &Questions) {
    for note in &questions.notes {
        base::say!("{note}");
    }
    let bad: Vec<(&str, &str)> = questions.bad().collect();
    for (place, cause) in bad.iter().take(MAX_NAMED) {
        base::say!("bad row: {place}: {cause}");
    }
    if bad.len() > MAX_NAMED {
        base::say!("bad row: ... and {} more", bad.len() - MAX_NAMED);
    }
}

fn explained(error: AskError, kept: usize) -> anyhow::Error {
    match error {
        AskError::Engine(EngineError::Cancelled { .. }) => anyhow!(Stopped(format!(
            "stopped with {}\nhint: the same command goes on from there",
            count(kept as u64, "completion")
        ))),
        error => error.into(),
    }
}

/// The metrics as lines.
fn metric_lines(summary: &Summary, exclude_bad: bool) -> String {
    let mut text = String::new();
    for (name, metrics) in &summary.subsets {
        text.push_str(&format!("{name}\n{}", lines(metrics, "  ")));
    }
    if !summary.subsets.is_empty() {
        text.push_str("all\n");
    }
    let indent = if summary.subsets.is_empty() { "" } else { "  " };
    text.push_str(&lines(&summary.metrics, indent));
    let bad = match (summary.num_bad, exclude_bad) {
        (0, _) => String::new(),
        (bad, true) => format!(", {} left out", count(bad as u64, "bad row")),
        (1, false) => ", 1 of them a bad row that counts as wrong".to_owned(),
        (bad, false) => format!(", {bad} of them bad rows that count as wrong"),
    };
    text.push_str(&format!("{}{bad}\n", count(summary.num_questions as u64, "question")));
    text
}

fn lines(metrics: &[Metric], indent: &str) -> String {
    let width = metrics.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let line = |metric: &Metric| format!("{indent}{:width$}  {}\n", metric.name, metric.interval);
    metrics.iter().map(line).collect()
}
