//! `demo`: the main job from nothing. Draws scenes, builds a tiny Qwen2.5-VL, gives it a cold start by
//! SFT, improves it by GRPO, and measures on held-out scenes what that was worth.
//!
//! A demo that was stopped goes on where it stood; a finished one only has its report written anew.

mod dataset;
mod model;
mod plan;
mod stages;
mod tokenizer_corpus;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use config::DemoConfig;
use pages::demo::Results;
use serde_json::{Value, json};

use crate::model::prepare_device;
use cli::signals;
use dataset::Dataset;
use plan::Plan;
use stages::{Demo, SamplingMode, Times};

/// Runs the demo and prints the path of its report.
///
/// # Errors
/// A folder that holds another demo, a file that cannot be written, a demo that was asked to stop.
pub fn run(config: &DemoConfig) -> Result<()> {
    let results = run_plan(
        config,
        &Plan::FULL,
        signals::stop_flag("what is under way is finished and saved")?,
    )?;
    base::say!("{}", results.headline());
    base::print_data!("{}", Path::new(&config.demo.out).join("report.html").display());
    Ok(())
}

fn run_plan(config: &DemoConfig, plan: &Plan, stop: base::run_folder::StopFlag) -> Result<Results> {
    let out = PathBuf::from(&config.demo.out);
    fs::create_dir_all(out.join("eval")).with_context(|| out.display().to_string())?;
    prepare_device(&config.machine.device, config.machine.num_threads)?;
    let mut times = Times::open(out.join("times.json"))?;
    let dataset = times.measure("drawing scenes", || prepare(&out, config, plan))?;
    let mut demo = Demo { config, plan, out, dataset, stop, times };
    let results = work(&mut demo)?;
    results.write(&demo.out.join("summary.json"))?;
    pages::demo::write(
        &pages::demo::Demo {
            out: &demo.out,
            images: demo.dataset.images.clone(),
            grpo_steps: plan.grpo_steps,
            settings: serde_json::to_string_pretty(plan)?,
            secs: &demo.times.secs,
            num_threads: tch::get_num_threads().max(0) as u64,
        },
        &results,
    )?;
    Ok(results)
}

/// Dataset and untrained model. `demo.json` is written last: where it stands, both are whole.
fn prepare(out: &Path, config: &DemoConfig, plan: &Plan) -> Result<Dataset> {
    let (marker, data) = (out.join("demo.json"), out.join("data"));
    let family = &config.demo.family;
    let wanted = json!({
        "seed": config.demo.seed,
        "family": family,
        "plan": plan,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if marker.exists() {
        let text = fs::read_to_string(&marker).with_context(|| marker.display().to_string())?;
        let found: Value =
            serde_json::from_str(&text).with_context(|| marker.display().to_string())?;
        if found != wanted {
            bail!(
                "{}: holds another demo (seed {}, family {})\nhint: give another folder with --out, or remove this one",
                out.display(),
                found["seed"],
                found["family"]
            );
        }
        return Ok(Dataset::at(&data));
    }
    base::say!("drawing scenes into {}", data.display());
    let dataset = Dataset::write(&data, &plan.data, config.demo.seed)?;
    model::write(&out.join("model"), family, &plan.model, config.demo.seed)?;
    fs::write(&marker, format!("{wanted:#}\n")).with_context(|| marker.display().to_string())?;
    Ok(dataset)
}

/// The job itself: cold start, look, GRPO, look again, and what else the same steps would have done.
fn work(demo: &mut Demo<'_>) -> Result<Results> {
    let held_out = demo.held_out()?;
    let shuffled = eval::shuffled_images(&held_out);

    base::say!("cold start by SFT, {} steps", demo.plan.cold_start_steps);
    let start = demo.cold_start()?;
    let start_greedy = demo.evaluate("start-greedy", &start, &held_out, SamplingMode::Greedy)?;
    let start_sampled = demo.evaluate("start-sampled", &start, &held_out, SamplingMode::Sampled)?;
    let start_shuffled =
        demo.evaluate("start-shuffled", &start, &shuffled, SamplingMode::Greedy)?;

    base::say!("GRPO, {} steps", demo.plan.grpo_steps);
    let end = demo.grpo(&start)?;
    let end_greedy = demo.evaluate("end-greedy", &end, &held_out, SamplingMode::Greedy)?;
    let end_sampled = demo.evaluate("end-sampled", &end, &held_out, SamplingMode::Sampled)?;
    let end_shuffled = demo.evaluate("end-shuffled", &end, &shuffled, SamplingMode::Greedy)?;

    base::say!("for comparison: as many steps of SFT");
    let more = demo.more_cold_start(&start)?;
    let more_greedy = demo.evaluate("more-sft-greedy", &more, &held_out, SamplingMode::Greedy)?;
    let more_sampled =
        demo.evaluate("more-sft-sampled", &more, &held_out, SamplingMode::Sampled)?;
    let answers = demo.sft_on_train_rows(&start)?;
    let answers_greedy =
        demo.evaluate("answers-sft-greedy", &answers, &held_out, SamplingMode::Greedy)?;
    let answers_sampled =
        demo.evaluate("answers-sft-sampled", &answers, &held_out, SamplingMode::Sampled)?;

    let truths = eval::true_boxes(&held_out)?;
    let results = Results::new(
        [
            ("start (SFT)", start_greedy, start_sampled),
            ("end (GRPO)", end_greedy, end_sampled),
            ("further cold start", more_greedy, more_sampled),
            ("SFT on GRPO's rows", answers_greedy, answers_sampled),
        ],
        [start_shuffled, end_shuffled],
        &truths,
        &demo.times.secs,
        demo.config.demo.seed,
    )?;
    Ok(results)
}

#[cfg(test)]
mod tests {
    use base::run_folder::StopFlag;

    use super::*;

    fn config(folder: &Path, seed: u64) -> DemoConfig {
        DemoConfig::default().with(|c| {
            c.demo.out = folder.display().to_string();
            c.demo.seed = seed;
            // Tests run side by side: more threads would wait for one another.
            c.machine.num_threads = Some(1);
        })
    }

    #[test]
    fn the_whole_way_at_a_small_size() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), 3);
        let stopped = StopFlag::new();
        stopped.raise();
        let error = run_plan(&config, &Plan::QUICK, stopped).err().unwrap();
        assert!(error.to_string().contains("the same command goes on"), "{error}");

        let results = run_plan(&config, &Plan::QUICK, StopFlag::new()).unwrap();
        let loss = |run: &str, place: usize| {
            let rows =
                report::read_metrics(&folder.path().join(run).join("metrics.jsonl")).unwrap();
            let at = if place == 0 { 0 } else { rows.len() - 1 };
            rows[at]["loss"].as_f64().unwrap()
        };
        // From about ln(548) over a vocabulary it does not know to answers of the right form.
        assert!(
            loss("sft", 0) > 4.0 && loss("sft", 1) < 1.5,
            "{} {}",
            loss("sft", 0),
            loss("sft", 1)
        );
        let grpo = report::read_metrics(&folder.path().join("grpo/metrics.jsonl")).unwrap();
        assert_eq!(grpo.len(), Plan::QUICK.grpo_steps);
        assert!(grpo.iter().all(|row| row["rewards/format"].as_f64().is_some()), "{grpo:?}");
        // The sampler's and the trainer's log-probabilities are of one model.
        assert!(
            grpo.iter().all(|row| row["sampled_vs_trained_kl"].as_f64().unwrap().abs() < 1e-4),
            "{grpo:?}"
        );
        let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(
            page.contains("best constant box") && page.contains("<figure"),
            "no table or images"
        );
        let summary: Value =
            serde_json::from_str(&fs::read_to_string(folder.path().join("summary.json")).unwrap())
                .unwrap();
        assert!(
            summary["models"]["end (GRPO)"]["greedy"]["iou"]["mean"].as_f64().is_some(),
            "{summary}"
        );

        // A finished demo is not done again: evaluations are read, and nothing is trained.
        let first = fs::read(folder.path().join("grpo/metrics.jsonl")).unwrap();
        fs::remove_file(folder.path().join("report.html")).unwrap();
        let again = run_plan(&config, &Plan::QUICK, StopFlag::new()).unwrap();
        assert_eq!(fs::read(folder.path().join("grpo/metrics.jsonl")).unwrap(), first);
        assert!(folder.path().join("report.html").exists());
        assert_eq!(again.to_json()["models"], results.to_json()["models"]);
    }

    #[test]
    fn another_demo_in_the_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("demo.json"), r#"{"seed": 7}"#).unwrap();
        let error = prepare(folder.path(), &config(folder.path(), 8), &Plan::QUICK)
            .unwrap_err()
            .to_string();
        assert!(error.contains("seed 7") && error.contains("--out"), "{error}");
    }
}
