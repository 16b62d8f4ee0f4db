//! Checkpoints: damage is seen and gone round, nothing of use is lost to an error, and nothing of no use is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use config::{GrpoConfig, LrSchedulerType};
use rewards::{Reward, RewardError, RewardInput, RewardSet};
use train::{Outcome, TrainError, train_grpo_with_rewards, train_sft};

use crate::golden;
use crate::runs::{Watch, bytes, grpo, metrics, sft, share, watch};

const OPTIMIZER: &str = "trainer_state/optimizer.safetensors";
const STATE: &str = "trainer_state/state.json";
const SUMS: &str = "trainer_state/sums.json";

fn run(config: &GrpoConfig, watch: &mut Watch) -> Result<Outcome, TrainError> {
    run_with(config, share(char::is_ascii_lowercase), watch)
}

fn run_with(
    config: &GrpoConfig,
    rewards: RewardSet,
    watch: &mut Watch,
) -> Result<Outcome, TrainError> {
    let (model, stop) = (golden::checkpoint("nested"), watch.stop.clone());
    train_grpo_with_rewards(config, &model, rewards, watch, &stop)
}

/// Three steps, each with a checkpoint to go on from.
fn config(folder: &Path, out: &str) -> GrpoConfig {
    grpo(folder, out).with(|c| {
        c.optimizer.max_steps = 3;
        c.save.save_steps = 1;
        c.algorithm.num_generations = 2;
        c.optimizer.per_device_train_batch_size = 4;
        c.sampling.max_completion_length = 6;
    })
}

fn in_run(config: &GrpoConfig, path: &str) -> PathBuf {
    Path::new(&config.run.output_dir).join(path)
}

fn log(config: &GrpoConfig) -> String {
    fs::read_to_string(in_run(config, "log.txt")).unwrap()
}

/// As a cable or a disk would: one bit in the middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_newest_checkpoint_is_set_aside_and_the_run_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let whole = config(folder.path(), "whole");
    let end = run(&whole, &mut watch(None)).unwrap().checkpoint.unwrap();
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        (OPTIMIZER, flip),
        ("model.safetensors", flip),
        ("tokenizer.json", |path| fs::write(path, "{}").unwrap()),
        (STATE, |path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace("\"seed\": 42", "\"seed\": 43")).unwrap();
        }),
        (OPTIMIZER, |path| fs::remove_file(path).unwrap()),
        (SUMS, |path| fs::write(path, "{\"a\":").unwrap()),
        // Of a checkpoint without sums what cannot be read is seen all the same.
        (OPTIMIZER, |path| {
            fs::remove_file(path.with_file_name("sums.json")).unwrap();
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ];
    for (index, (file, damage)) in damages.into_iter().enumerate() {
        let parts = config(folder.path(), &format!("parts-{index}"));
        run(&parts, &mut watch(Some(2))).unwrap();
        damage(&in_run(&parts, &format!("checkpoint-2/{file}")));
        let mut heard = watch(None);
        let outcome = run(&parts, &mut heard).unwrap();
        let said = heard.said.join("\n");
        assert!(said.contains("checkpoint-2.damaged-1"), "{file}: {said}");
        assert!(said.contains("resuming after step 1"), "{file}: {said}");
        assert!(in_run(&parts, "checkpoint-2.damaged-1").is_dir());
        for file in ["model.safetensors", OPTIMIZER] {
            let of = bytes(&outcome.checkpoint.clone().unwrap(), file);
            assert!(of == bytes(&end, file), "{index}: {file}");
        }
        assert_eq!(metrics(&whole.run.output_dir), metrics(&parts.run.output_dir));
    }
}

#[test]
fn a_damaged_checkpoint_without_another_is_refused_with_ways_out() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "one").with(|c| c.save.save_optimizer_limit = 1);
    run(&config, &mut watch(Some(2))).unwrap();
    // Of older ones the model is left, whole and of use.
    assert!(!in_run(&config, "checkpoint-1/trainer_state").exists());
    assert!(in_run(&config, "checkpoint-1/model.safetensors").is_file());
    flip(&in_run(&config, &format!("checkpoint-2/{OPTIMIZER}")));
    let error = run(&config, &mut watch(None)).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, TrainError::NoWholeCheckpoint { .. }), "{said}");
    for part in [OPTIMIZER, "--model_name_or_path", "--verify_checkpoint false"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(log(&config).contains("damaged"));
    assert!(in_run(&config, "checkpoint-2").is_dir());
    let unverified = config.with(|c| c.save.verify_checkpoint = false);
    assert!(run(&unverified, &mut watch(None)).unwrap().finished);
}

#[test]
fn numbers_of_a_checkpoint_without_sums_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "old");
    run(&config, &mut watch(Some(1))).unwrap();
    let at = |file: &str| in_run(&config, &format!("checkpoint-1/{file}"));
    fs::remove_file(at(SUMS)).unwrap();
    let tensors = torch::read_tensors(&at(OPTIMIZER)).unwrap();
    for wrong in ["weight/", "exp_avg/", "exp_avg_sq/"] {
        let list: Vec<(String, tch::Tensor)> = tensors
            .iter()
            .map(|(name, tensor)| {
                let tensor = tensor.copy();
                if name.starts_with(wrong) {
                    let _ = tensor.view([-1]).get(0).fill_(f64::NAN);
                }
                (name.clone(), tensor)
            })
            .collect();
        torch::write_tensors(&at(OPTIMIZER), &list).unwrap();
        let error = run(&config, &mut watch(None)).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("not finite"), "{error}");
    }
    let list: Vec<(String, tch::Tensor)> = tensors.into_iter().collect();
    torch::write_tensors(&at(OPTIMIZER), &list).unwrap();
    let state = fs::read_to_string(at(STATE)).unwrap();
    fs::write(at(STATE), state.replace("\"seed\": 42", "\"seed\": 43")).unwrap();
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("`seed`: was 43, is 42"), "{error}");
    fs::write(at(STATE), state).unwrap();
    let mut heard = watch(None);
    assert!(run(&config, &mut heard).unwrap().finished);
    assert!(heard.said.join("\n").contains("sums.json"), "{:?}", heard.said);
}

#[test]
fn lost_settings_are_those_of_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "settings");
    run(&config, &mut watch(Some(1))).unwrap();
    let path = in_run(&config, "config.yaml");
    fs::write(&path, "learning_rate: [").unwrap();
    let other = config.clone().with(|c| c.optimizer.learning_rate = 1e-2);
    let error = run(&other, &mut watch(None)).unwrap_err();
    assert!(matches!(error, TrainError::Changed { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(run(&config, &mut watch(None)).unwrap().finished);
    fs::remove_file(&path).unwrap();
    let file = "checkpoint-3/trainer_state/config.yaml";
    fs::remove_file(in_run(&config, file)).unwrap();
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("--allow_changed"), "{error}");
}

#[test]
fn settings_are_those_of_the_checkpoint_whatever_became_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "cut").with(|c| c.algorithm.beta = 0.5);
    run(&config, &mut watch(Some(1))).unwrap();
    let path = in_run(&config, "config.yaml");
    // A file that lost a line is still one.
    let yaml = fs::read_to_string(&path).unwrap();
    let cut = yaml.lines().filter(|line| !line.starts_with("beta:"));
    fs::write(&path, cut.collect::<Vec<_>>().join("\n")).unwrap();
    let other = config.clone().with(|c| c.algorithm.beta = 0.0);
    let error = run(&other, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("`beta`: was 0.5, is 0"), "{error}");
    // How rewards are asked may change; what was changed on request is said.
    let asked = config.clone().with(|c| c.rewards.reward_timeout_secs = 99.0);
    assert!(!run(&asked, &mut watch(Some(2))).unwrap().finished);
    let fewer = config.clone().with(|c| {
        c.optimizer.max_steps = 1;
        c.start.allow_changed = true;
    });
    let mut heard = watch(None);
    assert!(run(&fewer, &mut heard).unwrap().finished);
    let said = heard.said.join("\n");
    assert!(said.contains("2 steps done, of 1: nothing is left to do"), "{said}");
    let changed = log(&config);
    assert!(changed.contains("`max_steps`: was 3, is 1"), "{changed}");
    // Never on the run of another command.
    let taught = sft(folder.path(), "cut").with(|c| {
        c.run.output_dir = config.run.output_dir.clone();
        c.start.allow_changed = true;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let error = train_sft(&taught, &golden::checkpoint("nested"), &mut watch, &stop).unwrap_err();
    assert!(error.to_string().contains("holds a run of `grpo`"), "{error}");
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_damage_and_no_wait() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "pipe");
    run(&config, &mut watch(Some(2))).unwrap();
    for file in [SUMS, STATE, "trainer_state/config.yaml"] {
        let path = in_run(&config, &format!("checkpoint-2/{file}"));
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let mut heard = watch(Some(2));
        run(&config, &mut heard).unwrap();
        assert!(heard.said.join("\n").contains("damaged-1"), "{file}");
        fs::remove_dir_all(in_run(&config, "checkpoint-2.damaged-1")).unwrap();
    }
}

/// Cut off inside a value, settings are still a mapping, and not those of the run.
#[test]
fn settings_that_are_cut_off_are_not_taken_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "cut off");
    run(&config, &mut watch(Some(2))).unwrap();
    let cut = |path: &Path| {
        let yaml = fs::read_to_string(path).unwrap();
        let end = yaml.find("bf16: fa").unwrap() + "bf16: fa".len();
        fs::write(path, &yaml[..end]).unwrap();
    };
    cut(&in_run(&config, "checkpoint-2/trainer_state/config.yaml"));
    let mut heard = watch(Some(2));
    run(&config, &mut heard).unwrap();
    assert!(heard.said.join("\n").contains("damaged-1"), "{:?}", heard.said);
    for step in [1, 2] {
        let _ = fs::remove_file(in_run(
            &config,
            &format!("checkpoint-{step}/trainer_state/config.yaml"),
        ));
    }
    let file = in_run(&config, "config.yaml");
    cut(&file);
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("config.yaml:") && error.contains("`bf16`: got `fa`"), "{error}");
    assert!(error.contains("\nhint: ") && error.contains("--allow_changed true"), "{error}");
}

/// Raises at its call number `at`, once.
struct Raising {
    inner: RewardSet,
    calls: AtomicU64,
    at: u64,
}

impl Reward for Raising {
    fn name(&self) -> &str {
        "share"
    }

    fn batch(&self) -> rewards::RewardBatch {
        rewards::RewardBatch::Step
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            return Err(RewardError::NoReward { known: "the scorer is gone".into() });
        }
        let scores = self.inner.score(rows)?;
        Ok(scores.total.into_iter().map(Some).collect())
    }
}

fn raising(at: u64) -> RewardSet {
    let reward = Raising { inner: share(char::is_ascii_lowercase), calls: AtomicU64::new(0), at };
    RewardSet::new(vec![Box::new(reward)], None).unwrap()
}

#[test]
fn an_error_between_steps_costs_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let settings = |out: &str| config(folder.path(), out).with(|c| c.save.save_steps = 0);
    let whole = settings("whole");
    let end = run(&whole, &mut watch(None)).unwrap().checkpoint.unwrap();
    let parts = settings("parts");
    let mut heard = watch(None);
    run_with(&parts, raising(3), &mut heard).unwrap_err();
    let said = heard.said.join("\n");
    assert!(said.contains("checkpoint-2 holds step 2"), "{said}");
    // The log tells it all: how it went, what ended it.
    assert!(log(&parts).contains("the scorer is gone"), "{}", log(&parts));
    // At once again, before any step: the checkpoint stands.
    let mut heard = watch(None);
    run_with(&parts, raising(1), &mut heard).unwrap_err();
    assert!(heard.said.join("\n").contains("checkpoint-2 holds step 2"));
    let resumed = run(&parts, &mut watch(None)).unwrap();
    assert!(resumed.finished);
    for file in ["model.safetensors", OPTIMIZER] {
        assert!(bytes(&end, file) == bytes(&resumed.checkpoint.clone().unwrap(), file));
    }
    assert_eq!(metrics(&whole.run.output_dir), metrics(&parts.run.output_dir));
    // Before the first step there is nothing to keep.
    let none = settings("none");
    let mut heard = watch(None);
    run_with(&none, raising(1), &mut heard).unwrap_err();
    assert!(heard.said.join("\n").contains("no checkpoint was written"));
}

/// A learning rate at which one update spoils the weights.
const HUGE: f64 = 1e30;

#[test]
fn a_diverged_run_writes_nothing_that_cannot_be_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    // Every update is saved; the last alone; within a step of several updates.
    for (out, save_steps, iterations) in [("each", 1, 1), ("last", 0, 1), ("torn", 1, 3)] {
        let diverging = config(folder.path(), out).with(|c| {
            c.optimizer.learning_rate = HUGE;
            c.optimizer.lr_scheduler_type = LrSchedulerType::Constant;
            c.save.save_steps = save_steps;
            c.algorithm.num_iterations = iterations;
        });
        let error = run(&diverging, &mut watch(None)).unwrap_err();
        let said = error.to_string();
        if iterations == 1 {
            assert!(matches!(error, TrainError::Diverged { step: 1, .. }), "{said}");
            assert!(said.contains("--learning_rate"), "{said}");
        }
        let names = fs::read_dir(&diverging.run.output_dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| name.contains("checkpoint")).collect();
        assert!(left.is_empty(), "{out}: {left:?}");
    }
    let diverging = sft(folder.path(), "sft").with(|c| {
        c.optimizer.learning_rate = HUGE;
        c.optimizer.lr_scheduler_type = LrSchedulerType::Constant;
        c.optimizer.max_steps = 2;
    });
    let mut watch = watch(None);
    let stop = watch.stop.clone();
    let model = golden::checkpoint("nested");
    let error = train_sft(&diverging, &model, &mut watch, &stop).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { step: 1, .. }), "{error}");
}

#[test]
fn the_model_alone_is_enough_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "alone").with(|c| c.save.save_only_model = true);
    let mut heard = watch(Some(2));
    run(&config, &mut heard).unwrap();
    let said = heard.said.join("\n");
    // What checkpoints will take is said before the first step.
    assert!(said.contains("a checkpoint: ") && said.contains(" free"), "{said}");
    assert!(said.contains("0 bytes to go on from"), "{said}");
    for step in [1, 2] {
        let checkpoint = in_run(&config, &format!("checkpoint-{step}"));
        assert!(checkpoint.join("model.safetensors").is_file());
        assert!(!checkpoint.join("trainer_state").exists());
    }
    let error = run(&config, &mut watch(None)).unwrap_err().to_string();
    assert!(error.contains("checkpoint-2") && error.contains("model alone"), "{error}");
    // It is refused before anything of the run is touched.
    assert!(in_run(&config, "metrics.jsonl").is_file());
}
