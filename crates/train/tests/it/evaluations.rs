//! Evaluations during a run: when they happen, that they change nothing, and what a stop or a failure leaves.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use base::DrawKey;
use base::run_folder::{StopFlag, read_scalars};
use config::{EvalStrategy, GrpoConfig, SftConfig};
use data::{Processor, ProcessorOptions, ResizeBackend};
use engine::{Generator, Request, SamplingParams};
use serde_json::{Map, Value};
use train::{
    EvalMetrics, EvaluationError, Observer, Outcome, PolicyAt, TrainError, train_grpo_with_rewards,
    train_sft,
};

use crate::golden;
use crate::runs::{bytes, grpo, metrics, metrics_lines, sft, share};

/// What happens in an evaluation.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    /// The run is asked to stop, and the evaluation breaks off.
    Stop,
    /// The run is asked to stop when the evaluation is over.
    StopLate,
    Failure,
    NotANumber,
}

/// Samples from the policy: what it finds tells every bit of the weights apart.
struct Looker {
    request: Request,
    event: Option<(u64, Event)>,
    stop: StopFlag,
    /// Steps at which it looked.
    looked: Vec<u64>,
    steps: Vec<u64>,
}

fn looker(event: Option<(u64, Event)>) -> Looker {
    let options = ProcessorOptions {
        resize_backend: ResizeBackend::Torchvision,
        min_pixels: Some(3136),
        max_pixels: Some(31360),
        apply_exif: false,
        max_prompt_length: None,
    };
    let processor = Processor::from_dir(&golden::checkpoint("nested"), &options).unwrap();
    let image = processor.load_image(&golden::folder("parity/images/scene.png"));
    let prompt = processor.prompt("What is it?", &[Arc::new(image.unwrap())]);
    Looker {
        request: Request {
            prompt: prompt.unwrap(),
            num_completions: 3,
            key: DrawKey { seed: 1, step: 0, prompt: 0, completion: 0 },
        },
        event,
        stop: StopFlag::new(),
        looked: Vec::new(),
        steps: Vec::new(),
    }
}

impl Observer for Looker {
    fn on_step(&mut self, step: u64, _total: u64, _metrics: &Map<String, Value>) {
        self.steps.push(step);
    }

    fn on_message(&mut self, _message: &str) {}

    fn evaluate(&mut self, policy: &PolicyAt<'_>) -> Result<Option<EvalMetrics>, EvaluationError> {
        self.looked.push(policy.step);
        let params = SamplingParams { max_new_tokens: 8, ..SamplingParams::default() };
        let generator = Generator::new(policy.model, params, 2)?;
        let requests = std::slice::from_ref(&self.request);
        let generation = generator.generate(requests, &mut |_, _, _| (), &|| false)?;
        let logprobs = generation.completions.iter().flatten();
        let logprobs = logprobs.flat_map(|c| &c.sampled_logprobs);
        let sum: f64 = logprobs.map(|logprob| f64::from(*logprob)).sum();
        fs::write(policy.results.unwrap().folder.join("sum.txt"), sum.to_string())?;
        let event = self.event.filter(|(step, _)| *step == policy.step);
        match event.map(|(_, event)| event) {
            Some(Event::Stop) => {
                self.stop.raise();
                return Ok(None);
            }
            Some(Event::StopLate) => self.stop.raise(),
            Some(Event::Failure) => return Err("the judge is away".into()),
            Some(Event::NotANumber) => return Ok(Some(vec![("sum".into(), f64::NAN)])),
            None => {}
        }
        Ok(Some(vec![("look/sum".into(), sum)]))
    }
}

/// `eval_config` stands for what a `Looker` does: without it, evaluations would have nothing to do.
fn every_two(config: GrpoConfig) -> GrpoConfig {
    config.with(|c| {
        c.eval.eval_steps = Some(2);
        c.eval.eval_on_start = true;
        c.eval.eval_config = Some("of the observer".into());
        c.optimizer.max_steps = 5;
    })
}

fn run(config: &GrpoConfig, looker: &mut Looker) -> Result<Outcome, TrainError> {
    let (model, stop) = (golden::checkpoint("nested"), looker.stop.clone());
    train_grpo_with_rewards(config, &model, share(char::is_ascii_lowercase), looker, &stop)
}

fn run_sft(config: &SftConfig, looker: &mut Looker) -> Result<Outcome, TrainError> {
    let stop = looker.stop.clone();
    train_sft(config, &golden::checkpoint("nested"), looker, &stop)
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries.map(|entry| name(entry).into_string().unwrap()).collect();
    names.sort();
    names
}

fn evaluations(output_dir: &str) -> Vec<String> {
    names(&Path::new(output_dir).join("eval"))
}

fn without_eval_metrics(mut lines: Vec<Value>) -> Vec<Value> {
    lines.retain(|line| line["step"] != 0);
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.retain(|key, _| !key.starts_with("eval/"));
    }
    lines
}

fn same_files(a: &Path, b: &Path, files: &[&str]) {
    for file in files {
        assert!(bytes(a, file) == bytes(b, file), "{file} differs");
    }
}

const WEIGHTS: [&str; 2] = ["model.safetensors", "trainer_state/optimizer.safetensors"];
const ADAPTER: [&str; 2] = ["adapter_model.safetensors", "trainer_state/optimizer.safetensors"];

#[test]
fn evaluations_change_no_bit_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let whole = |out: &str| grpo(folder.path(), out).with(|c| c.optimizer.max_steps = 5);
    let lora = |out: &str| {
        whole(out).with(|c| {
            c.model.use_peft = true;
            c.model.lora_dropout = 0.2;
            c.optimizer.learning_rate = 1e-2;
        })
    };
    for (without, with, files) in [
        (whole("without"), whole("with"), WEIGHTS),
        (lora("lora-without"), lora("lora-with"), ADAPTER),
    ] {
        let with = every_two(with);
        let first = run(&without, &mut looker(None)).unwrap();
        let mut looker = looker(None);
        let second = run(&with, &mut looker).unwrap();
        assert_eq!(looker.looked, [0, 2, 4, 5]);
        let checkpoints = [first, second].map(|outcome| outcome.checkpoint.unwrap());
        same_files(&checkpoints[0], &checkpoints[1], &files);
        let found = metrics(&without.run.output_dir);
        assert_eq!(without_eval_metrics(metrics_but_secs(&with.run.output_dir)), found);
        let sums: Vec<f64> = metrics_lines(&with.run.output_dir)
            .iter()
            .filter_map(|line| line["eval/look/sum"].as_f64())
            .collect();
        // It is the policy of the step that is looked at, not the one of the start.
        assert!(sums.windows(2).all(|two| two[0] != two[1]), "{sums:?}");
    }
}

/// As [`metrics`]; the line before the first step has evaluation metrics and seconds only.
fn metrics_but_secs(output_dir: &str) -> Vec<Value> {
    let path = Path::new(output_dir).join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let after_start = |line: &&str| !line.starts_with("{\"step\":0,");
    let rest: Vec<&str> = text.lines().filter(after_start).collect();
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join("metrics.jsonl"), rest.join("\n")).unwrap();
    metrics(&copy.path().display().to_string())
}

#[test]
fn eval_metrics_are_in_the_line_of_their_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = every_two(grpo(folder.path(), "lines")).with(|c| {
        // Lines of evaluated steps are written all the same.
        c.run.logging_steps = 3;
        c.data.val_split_ratio = 0.2;
    });
    let mut looker = looker(None);
    run(&config, &mut looker).unwrap();
    assert_eq!(looker.steps, [1, 2, 3, 4, 5]);
    let lines = metrics_lines(&config.run.output_dir);
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 2, 3, 4, 5]);
    for line in &lines {
        let is_evaluated = line["step"] != 3;
        for key in ["eval/look/sum", "eval/reward", "eval/rewards/share"] {
            assert_eq!(line[key].is_f64(), is_evaluated, "{key}: {line}");
        }
        let secs = &line["secs"];
        assert_eq!(secs["evaluation"].is_f64(), is_evaluated, "{line}");
        let [part, all] = ["evaluation", "total"].map(|key| secs[key].as_f64().unwrap_or(0.0));
        assert!(part <= all && (line["step"] != 0 || part == all), "{line}");
    }
    let named = ["step_000000", "step_000002", "step_000004", "step_000005"];
    assert_eq!(evaluations(&config.run.output_dir), named);
    let run_folder = Path::new(&config.run.output_dir);
    let sum = fs::read_to_string(run_folder.join("eval/step_000004/sum.txt")).unwrap();
    assert_eq!(lines[3]["eval/look/sum"], sum.parse::<f64>().unwrap());
    let events = run_folder.join("tensorboard");
    let points = read_scalars(&events.join(&names(&events)[0])).unwrap();
    let curve = points.iter().filter(|point| point.tag == "eval/look/sum");
    assert_eq!(curve.map(|point| point.step).collect::<Vec<_>>(), [0, 2, 4, 5]);
    let log = fs::read_to_string(run_folder.join("log.txt")).unwrap();
    assert!(log.contains("evaluated after step 4: ") && log.contains("look/sum"), "{log}");
}

#[test]
fn an_evaluation_that_is_broken_off_is_made_up_for_once() {
    let folder = tempfile::tempdir().unwrap();
    let whole = every_two(grpo(folder.path(), "whole"));
    let expected = run(&whole, &mut looker(None)).unwrap();
    for (name, save_steps, event) in [
        ("stop", 0, Event::Stop),
        ("late", 0, Event::StopLate),
        ("failure", 0, Event::Failure),
        ("saved", 1, Event::Stop),
        ("number", 2, Event::NotANumber),
    ] {
        let config = every_two(grpo(folder.path(), name)).with(|c| c.save.save_steps = save_steps);
        // At the start there is nothing to keep: the run begins anew.
        for (step, line_before) in [(0, None), (2, Some(1)), (4, Some(3)), (5, Some(4))] {
            let mut looker = looker(Some((step, event)));
            let ended = run(&config, &mut looker);
            assert_eq!(looker.looked.last(), Some(&step), "{name}");
            let logged = metrics_lines_if_any(&config.run.output_dir);
            let last = logged.last().map(|line| line["step"].as_u64().unwrap());
            let is_over = event == Event::StopLate;
            match ended {
                Ok(outcome) => {
                    assert_eq!(outcome.steps, step, "{name}");
                    assert_eq!(outcome.finished, is_over && step == 5, "{name}");
                    assert_eq!(outcome.checkpoint.is_some(), step > 0, "{name}");
                }
                Err(error) => {
                    let said = match event {
                        Event::Failure => format!("evaluation after step {step}"),
                        _ => format!("step {step}: `sum`: expected a finite number, got NaN"),
                    };
                    assert!(error.to_string().contains(&said), "{name}: {error}");
                }
            }
            let expected = if is_over { Some(step) } else { line_before };
            assert_eq!(last, expected, "{name}");
            let kept = evaluations(&config.run.output_dir);
            assert_eq!(kept.contains(&format!("step_{step:06}")), is_over, "{name}: {kept:?}");
            assert!(kept.iter().all(|kept| !kept.starts_with('.')), "{kept:?}");
        }
        let mut looker = looker(None);
        let resumed = run(&config, &mut looker).unwrap();
        assert!(resumed.finished);
        let missing: &[u64] = if event == Event::StopLate { &[] } else { &[5] };
        assert_eq!(looker.looked, missing, "{name}");
        let checkpoints = [&expected, &resumed].map(|o| o.checkpoint.clone().unwrap());
        same_files(&checkpoints[0], &checkpoints[1], &WEIGHTS);
        assert_eq!(
            metrics_but_secs(&whole.run.output_dir),
            metrics_but_secs(&config.run.output_dir),
            "{name}"
        );
        assert_eq!(evaluations(&whole.run.output_dir), evaluations(&config.run.output_dir));
        for step in evaluations(&whole.run.output_dir) {
            let sum = |run: &str| {
                fs::read(Path::new(run).join("eval").join(&step).join("sum.txt")).unwrap()
            };
            assert_eq!(sum(&whole.run.output_dir), sum(&config.run.output_dir), "{name}");
        }
    }
}

fn metrics_lines_if_any(output_dir: &str) -> Vec<Value> {
    match Path::new(output_dir).join("metrics.jsonl").exists() {
        true => metrics_lines(output_dir),
        false => Vec::new(),
    }
}

#[test]
fn a_killed_run_evaluates_again_what_was_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let whole = every_two(grpo(folder.path(), "whole")).with(|c| c.save.save_steps = 2);
    run(&whole, &mut looker(None)).unwrap();
    let out = Path::new(&whole.run.output_dir);
    let before = (metrics_but_secs(&whole.run.output_dir), bytes(out, "metrics.jsonl"));
    // Killed in the evaluation after step 4: its checkpoint is there, its line is not.
    let lines = String::from_utf8(before.1).unwrap();
    let kept: String = lines
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("{\"step\":4,") && !line.starts_with("{\"step\":5,"))
        .collect();
    fs::write(out.join("metrics.jsonl"), &kept).unwrap();
    fs::remove_dir_all(out.join("checkpoint-5")).unwrap();
    fs::create_dir_all(out.join("eval/.tmp-step_000004")).unwrap();
    fs::write(out.join("eval/step_000004/sum.txt"), "of the killed process").unwrap();
    let mut second = looker(None);
    assert!(run(&whole, &mut second).unwrap().finished);
    assert_eq!((second.looked, second.steps), (vec![4, 5], vec![4, 5]));
    assert_eq!(metrics_but_secs(&whole.run.output_dir), before.0);
    assert!(bytes(out, "eval/step_000004/sum.txt") != b"of the killed process");
    assert_eq!(evaluations(&whole.run.output_dir).len(), 4);
    // Killed later: the line is there, nothing is done twice.
    fs::remove_dir_all(out.join("checkpoint-5")).unwrap();
    let mut third = looker(None);
    assert!(run(&whole, &mut third).unwrap().finished);
    assert_eq!((third.looked, third.steps), (vec![5], vec![5]));
    assert_eq!(metrics_but_secs(&whole.run.output_dir), before.0);
    // A run that is over has nothing to do.
    let mut fourth = looker(None);
    assert!(run(&whole, &mut fourth).unwrap().finished);
    assert!(fourth.looked.is_empty() && fourth.steps.is_empty());
}

#[test]
fn a_step_that_waits_is_logged_where_evaluations_were_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let config = every_two(grpo(folder.path(), "off"));
    assert!(!run(&config, &mut looker(Some((2, Event::Stop)))).unwrap().finished);
    let off = config.with(|c| c.eval.eval_strategy = Some(EvalStrategy::No));
    let mut looker = looker(None);
    assert!(run(&off, &mut looker).unwrap().finished);
    assert_eq!(looker.looked, [0; 0]);
    let steps = metrics_lines(&off.run.output_dir);
    let steps = steps.iter().map(|line| line["step"].as_u64().unwrap());
    assert_eq!(steps.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn sft_evaluates_too() {
    let folder = tempfile::tempdir().unwrap();
    let without = sft(folder.path(), "without").with(|c| {
        c.optimizer.max_steps = 5;
        c.data.val_split_ratio = 0.2;
    });
    let with = |out: &str| {
        without.clone().with(|c| {
            c.eval.eval_steps = Some(2);
            c.run.output_dir = folder.path().join(out).display().to_string();
        })
    };
    let (whole, parts) = (with("whole"), with("parts"));
    let first = run_sft(&without, &mut looker(None)).unwrap();
    let second = run_sft(&whole, &mut looker(None)).unwrap();
    assert!(!run_sft(&parts, &mut looker(Some((4, Event::Stop)))).unwrap().finished);
    let third = run_sft(&parts, &mut looker(None)).unwrap();
    let [first, second, third] = [first, second, third].map(|o| o.checkpoint.unwrap());
    same_files(&first, &second, &WEIGHTS);
    same_files(&first, &third, &WEIGHTS);
    let lines = metrics(&whole.run.output_dir);
    assert_eq!(lines, metrics(&parts.run.output_dir));
    assert_eq!(without_eval_metrics(lines.clone()), metrics(&without.run.output_dir));
    let evaluated: Vec<bool> = lines
        .iter()
        .map(|line| line["eval/loss"].is_f64() && line["eval/look/sum"].is_f64())
        .collect();
    assert_eq!(evaluated, [false, true, false, true, true]);
}
