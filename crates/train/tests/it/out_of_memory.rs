//! Micro-batches that memory does not hold are cut, and the run is the same as if they had been.

use std::path::{Path, PathBuf};
use std::process::Command;

use base::run_folder::StopFlag;
use config::{GrpoConfig, SftConfig};
use serde_json::{Map, Value};
use torch::limit_live_bytes;
use train::{Observer, TrainError, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{grpo, metrics_lines, share};

/// Runs an ignored test in a process of its own: a limit holds for all threads of one.
fn in_a_process(test: &str) {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    let passed = run.status.success() && said.contains("1 passed");
    assert!(passed, "{said}\n{errors}");
    // Panics that are caught are not printed.
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn sft_that_finds_no_memory_is_cut() {
    in_a_process("out_of_memory::sft_under_a_limit");
}

#[test]
fn grpo_that_finds_no_memory_is_cut() {
    in_a_process("out_of_memory::grpo_under_a_limit");
}

#[derive(Default)]
struct Heard(Vec<String>);

impl Observer for Heard {
    fn on_step(&mut self, _step: u64, _total: u64, _metrics: &Map<String, Value>) {}

    fn on_message(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

impl Heard {
    /// The bounds that were lowered to, from what the user is told to write.
    fn lowered(&self) -> Vec<usize> {
        let flag = "--max_tokens_per_microbatch ";
        let number = |line: &String| {
            let (_, rest) = line.split_once(flag)?;
            Some(rest.split(' ').next().unwrap().parse().unwrap())
        };
        self.0.iter().filter_map(number).collect()
    }
}

/// A run's messages, or its error, under a limit on living bytes.
fn under<C>(
    limit: Option<u64>,
    config: &C,
    train: fn(&C, &mut Heard) -> Result<(), TrainError>,
) -> Result<Heard, TrainError> {
    let mut heard = Heard::default();
    limit_live_bytes(limit);
    let result = train(config, &mut heard);
    limit_live_bytes(None);
    result.map(|()| heard)
}

fn sft_run(config: &SftConfig, heard: &mut Heard) -> Result<(), TrainError> {
    train_sft(config, &golden::checkpoint("nested"), heard, &StopFlag::new()).map(drop)
}

fn grpo_run(config: &GrpoConfig, heard: &mut Heard) -> Result<(), TrainError> {
    let rewards = share(char::is_ascii_lowercase);
    let model = golden::checkpoint("nested");
    train_grpo_with_rewards(config, &model, rewards, heard, &StopFlag::new()).map(drop)
}

fn sft(folder: &Path, out: &str, max_tokens: Option<usize>) -> SftConfig {
    let like = grpo(folder, out);
    SftConfig::default().with(|c| {
        c.model.model_name_or_path = like.model.model_name_or_path;
        c.data.data_file_paths = like.data.data_file_paths;
        c.data.image_folders = like.data.image_folders;
        c.run.output_dir = like.run.output_dir;
        c.optimizer.per_device_train_batch_size = 5;
        c.optimizer.learning_rate = 1e-2;
        // Updates in proportion to gradients: rounding is not blown up to the learning rate.
        c.optimizer.adam_epsilon = 1.0;
        c.optimizer.max_steps = 3;
        c.save.save_steps = 0;
        c.data.min_pixels = 3136;
        c.data.max_pixels = 31360;
        c.machine.device = torch::name_of_test_device();
        c.machine.num_threads = Some(1);
        c.machine.max_tokens_per_microbatch = max_tokens;
    })
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key}: {line}"))
}

/// The run's highest count of living bytes, and that of its end.
fn bytes(out: &str) -> (u64, u64) {
    let lines = metrics_lines(out);
    let most = |key| lines.iter().map(|l| number(l, key) as u64).max().unwrap();
    (most("peak_live_bytes"), most("live_bytes"))
}

/// The same steps and weights but for the order of sums.
fn same(one: &str, other: &str, steps: u64) {
    let close = |a: f64, b: f64| (a - b).abs() <= 2e-5 * a.abs().max(1.0);
    for (a, b) in metrics_lines(one).iter().zip(&metrics_lines(other)) {
        for key in ["loss", "entropy", "grad_norm", "completion_length"] {
            let (a, b) = (number(a, key), number(b, key));
            assert!(close(a, b), "{key}: {a}, {b}");
        }
    }
    let weights = |out: &str| {
        let folder = PathBuf::from(out).join(format!("checkpoint-{steps}/trainer_state"));
        torch::read_tensors(&folder.join("optimizer.safetensors")).unwrap()
    };
    let (ours, theirs) = (weights(one), weights(other));
    assert_eq!(ours.len(), theirs.len());
    for (name, a) in &ours {
        let difference = f64::try_from((a - &theirs[name]).abs().max()).unwrap();
        assert!(difference <= 2e-5, "{name}: {difference}");
    }
}

fn retries(out: &str) -> Vec<f64> {
    let lines = metrics_lines(out);
    lines.iter().map(|l| number(l, "oom_retries")).collect()
}

#[test]
#[ignore = "run by sft_that_finds_no_memory_is_cut in a process of its own"]
fn sft_under_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = |out: &str, tokens| sft(folder.path(), out, tokens);
    let (whole, single) = (config("whole", None), config("single", Some(1)));
    for free in [&whole, &single] {
        let heard = under(None, free, sft_run).unwrap();
        assert!(heard.lowered().is_empty());
        assert_eq!(retries(&free.run.output_dir), [0.0; 3]);
    }
    let (most, _) = bytes(&whole.run.output_dir);
    let (least, held) = bytes(&single.run.output_dir);
    assert!(least + (1 << 19) < most, "{least} {most}");
    let limited = config("limited", None);
    let heard = under(Some(most - (most - least) / 3), &limited, sft_run).unwrap();
    let lowered = heard.lowered();
    assert!(!lowered.is_empty() && lowered.is_sorted_by(|a, b| a > b), "{:?}", heard.0);
    let found = retries(&limited.run.output_dir);
    assert!(found[0] >= 1.0, "{found:?}");
    let budget = config("budget", lowered.last().copied());
    under(None, &budget, sft_run).unwrap();
    same(&limited.run.output_dir, &budget.run.output_dir, 3);
    resumed(&limited, *lowered.last().unwrap());
    let error = under(Some(held + (least - held) / 4), &config("small", None), sft_run);
    let text = error.err().unwrap().to_string();
    assert!(text.contains("single completion"), "{text}");
    assert!(text.contains("hint: --gradient_checkpointing true"), "{text}");
}

/// Has no byte to spare from the last step on, until the user is told.
#[derive(Default)]
struct Tight {
    said: Vec<String>,
    forever: bool,
}

impl Observer for Tight {
    fn on_step(&mut self, step: u64, total: u64, _metrics: &Map<String, Value>) {
        if step == total {
            limit_live_bytes(torch::live_bytes(torch::device_of_tests()).map(|bytes| bytes.now));
        }
    }

    fn on_message(&mut self, message: &str) {
        if message.contains("no memory while the checkpoint") && !self.forever {
            limit_live_bytes(None);
        }
        self.said.push(message.to_owned());
    }
}

#[test]
fn a_checkpoint_that_finds_no_memory_is_written_once_more() {
    in_a_process("out_of_memory::saving_under_a_limit");
}

#[test]
#[ignore = "run by a_checkpoint_that_finds_no_memory_is_written_once_more in a process of its own"]
fn saving_under_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    // Weights in files of another type than the layers': writing them takes copies.
    let config = |out: &str| sft(folder.path(), out, None).with(|c| c.model.bf16 = true);
    let run = |config: &SftConfig, mut tight: Tight| {
        let model = golden::checkpoint("nested");
        let result = train_sft(config, &model, &mut tight, &StopFlag::new());
        limit_live_bytes(None);
        (result, tight.said.join("\n"))
    };
    let once = config("once");
    let (result, said) = run(&once, Tight::default());
    assert!(said.contains("no memory while the checkpoint of step 3"), "{said}");
    assert!(result.unwrap().finished);
    let free = config("free");
    under(None, &free, sft_run).unwrap();
    same(&once.run.output_dir, &free.run.output_dir, 3);
    let forever = Tight { forever: true, ..Tight::default() };
    let (result, _) = run(&config("never"), forever);
    let error = base::console::describe(&result.unwrap_err());
    assert!(error.contains("checkpoint of step 3"), "{error}");
}

/// What was found is kept over an interruption: the run is over, and opened once more.
fn resumed(config: &SftConfig, tokens: usize) {
    let heard = under(None, config, sft_run).unwrap();
    let line = format!("at most {tokens} tokens at a time, as before");
    assert!(heard.0.iter().any(|l| l.contains(&line)), "{:?}", heard.0);
}

#[test]
#[ignore = "run by grpo_that_finds_no_memory_is_cut in a process of its own"]
fn grpo_under_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = |out: &str, tokens| {
        grpo(folder.path(), out).with(|c| {
            c.optimizer.max_steps = 2;
            c.optimizer.learning_rate = 1e-2;
            c.optimizer.adam_epsilon = 1.0;
            c.algorithm.num_generations = 8;
            c.algorithm.num_iterations = 2;
            c.algorithm.beta = 0.04;
            c.sampling.max_completion_length = 48;
            c.machine.max_tokens_per_microbatch = tokens;
        })
    };
    let (whole, single) = (config("whole", None), config("single", Some(1)));
    for free in [&whole, &single] {
        under(None, free, grpo_run).unwrap();
    }
    let (most, _) = bytes(&whole.run.output_dir);
    let (least, _) = bytes(&single.run.output_dir);
    assert!(least + (1 << 20) < most, "{least} {most}");
    let limited = config("limited", None);
    let heard = under(Some(most - (most - least) / 3), &limited, grpo_run).unwrap();
    let lowered = heard.lowered();
    assert!(!lowered.is_empty(), "{:?}", heard.0);
    let budget = config("budget", lowered.last().copied());
    under(None, &budget, grpo_run).unwrap();
    same(&limited.run.output_dir, &budget.run.output_dir, 2);
    same(&limited.run.output_dir, &whole.run.output_dir, 2);
}
