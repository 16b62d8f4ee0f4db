//! Several ranks are one: the same completions, gradients and weights, whatever is trained, and the same files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use base::run_folder::StopFlag;
use base::world::Threads;
use config::{
    AdvantageEstimator, ColonList, GrpoConfig, LossType, MultiObjectiveAggregation, OnBadRow,
    RewardBatch, ScaleRewards, SftConfig, ZeroStageSetting,
};
use rewards::{Reward, RewardError, RewardInput, RewardSet};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use torch::ranks::Group;
use train::{Observer, Outcome, Ranks, TrainError, train_grpo_on, train_sft_on};

use crate::golden;
use crate::runs::{bytes, grpo, metrics_lines, sft};

/// No rank waits longer for another.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `work` as each of `size` ranks; one alone has no libtorch between itself and itself.
pub(crate) fn on_ranks<R: Send>(size: usize, work: impl Fn(usize, &Ranks) -> R + Sync) -> Vec<R> {
    if size == 1 {
        return vec![work(0, &Ranks::alone())];
    }
    let worlds = Threads::new(size, LIMIT);
    let groups = Group::of_threads(size, LIMIT);
    let work = &work;
    thread::scope(|scope| {
        let ranks = worlds.into_iter().zip(groups).enumerate();
        let threads: Vec<_> = ranks
            .map(|(rank, (world, group))| {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let ranks =
                        Ranks { world: Rc::new(world), tensors: Rc::new(group), local_rank: rank };
                    work(rank, &ranks)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What a run said; raises a flag after a step.
#[derive(Default)]
struct Told {
    messages: Vec<String>,
    stop: StopFlag,
    stop_after: Option<u64>,
}

impl Observer for Told {
    fn on_step(&mut self, step: u64, _total: u64, _metrics: &Map<String, Value>) {
        if self.stop_after == Some(step) {
            self.stop.raise();
        }
    }

    fn on_message(&mut self, message: &str) {
        self.messages.push(message.to_owned());
    }
}

/// A text's share of vowels; among the completions of its group or of the step, how many have fewer.
struct Vowels(RewardBatch);

impl Reward for Vowels {
    fn name(&self) -> &str {
        "vowels"
    }

    fn batch(&self) -> RewardBatch {
        self.0
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let share = |row: &RewardInput<'_>| {
            let vowels = row.completion.chars().filter(|c| "aeiou0123".contains(*c)).count();
            vowels as f64 / row.completion.chars().count().max(1) as f64
        };
        let shares: Vec<f64> = rows.iter().map(share).collect();
        let place = |own: &f64| shares.iter().filter(|other| *other < own).count() as f64;
        let scores = shares.iter().map(|own| match self.0 {
            RewardBatch::Completion => *own,
            _ => place(own) / shares.len() as f64,
        });
        Ok(scores.map(Some).collect())
    }
}

/// 1 where a text has an `e`: often the same for all completions of a prompt.
struct HasLetter;

impl Reward for HasLetter {
    fn name(&self) -> &str {
        "letter"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        // A reward that does not apply to every row.
        let score = |row: &RewardInput<'_>| {
            let applies = row.problem.is_none_or(|problem| !problem.contains("colour"));
            applies.then_some(f64::from(row.completion.contains('e')))
        };
        Ok(rows.iter().map(score).collect())
    }
}

fn reward_set(batch: RewardBatch) -> RewardSet {
    RewardSet::new(vec![Box::new(Vowels(batch)), Box::new(HasLetter)], Some(&[1.0, 0.25])).unwrap()
}

fn grpo_on(ranks: usize, config: &GrpoConfig, model: &str, batch: RewardBatch) -> Vec<Outcome> {
    let outcomes = on_ranks(ranks, |_, ranks| {
        let (mut told, stop) = (Told::default(), StopFlag::new());
        let rewards = Some(reward_set(batch));
        train_grpo_on(ranks, config, &golden::checkpoint(model), rewards, &mut told, &stop)
            .unwrap_or_else(|error| panic!("rank {}: {}", ranks.world.rank(), chain(&error)))
    });
    assert!(outcomes.iter().all(|outcome| outcome.finished), "{outcomes:?}");
    outcomes
}

fn chain(error: &TrainError) -> String {
    base::console::describe(error)
}

/// Twelve completions a step, whatever ranks there are: three prompts, and two at the end of the epoch.
fn config(folder: &Path, name: &str, ranks: usize) -> GrpoConfig {
    grpo(folder, &format!("{name}-{ranks}")).with(|c| {
        c.machine.device = "cpu".into();
        c.optimizer.per_device_train_batch_size = 12 / ranks;
        c.optimizer.max_steps = 5;
        c.optimizer.learning_rate = 1e-6;
        c.save.save_steps = 1;
    })
}

fn tensors(folder: &str, file: &str) -> BTreeMap<String, Tensor> {
    torch::read_tensors(&PathBuf::from(folder).join(file)).unwrap()
}

/// The trainer state of a checkpoint, each tensor flat, from one file or from a piece of each rank.
fn state(checkpoint: &Path) -> BTreeMap<String, Tensor> {
    let folder = checkpoint.join("trainer_state");
    let whole = folder.join("optimizer.safetensors");
    if whole.exists() {
        let tensors = torch::read_tensors(&whole).unwrap().into_iter();
        return tensors.map(|(key, tensor)| (key, tensor.flatten(0, -1))).collect();
    }
    let index: BTreeMap<String, Vec<(i64, i64, String)>> =
        testing::read_json(folder.join("optimizer.index.json"));
    let pieces = index.into_iter().map(|(key, ranges)| {
        let mut next = 0;
        let parts = ranges.into_iter().map(|(start, len, file)| {
            assert_eq!(start, next, "{key}: a gap");
            next += len;
            tensors(folder.to_str().unwrap(), &file)[&format!("{key}@{start}")].flatten(0, -1)
        });
        let parts: Vec<Tensor> = parts.collect();
        (key, Tensor::cat(&parts, 0))
    });
    pieces.collect()
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).norm().double_value(&[])
}

/// Two runs whose ranks are not as many, but which are the same otherwise.
fn assert_same(name: &str, one: &str, several: &str) {
    let (a, b) = (metrics_lines(one), metrics_lines(several));
    assert_eq!(a.len(), b.len(), "{name}");
    for (index, (a, b)) in a.iter().zip(&b).enumerate() {
        // After an update weights differ by rounding.
        same_metrics(name, a, b, if index == 0 { 1e-6 } else { 1e-5 });
    }
    let rollouts = Path::new(one).join("rollouts");
    if rollouts.exists() {
        for entry in fs::read_dir(rollouts).unwrap() {
            let file = format!("rollouts/{}", entry.unwrap().file_name().to_str().unwrap());
            let [a, b] = [one, several].map(|folder| bytes(Path::new(folder), &file));
            assert!(a == b || are_near(&a, &b), "{name}: {file} differs");
        }
    }
    // After one update the first moment is the gradient, but for a factor.
    let [a, b] = [one, several].map(|folder| state(&Path::new(folder).join("checkpoint-1")));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{name}");
    let gradients = || a.iter().filter(|(key, _)| key.starts_with("exp_avg/"));
    let largest = gradients().map(|(_, tensor)| norm(tensor)).fold(0.0, f64::max);
    assert!(largest > 0.0, "{name}: no gradient");
    for (key, expected) in gradients() {
        let difference = norm(&(expected - &b[key]));
        let scale = norm(expected).max(1e-6 * largest);
        assert!(
            difference <= 1e-6 * scale + 1e-12 * largest,
            "{name}: {key}: {difference:.2e} of {scale:.2e}"
        );
    }
    let last = |folder: &str| {
        let folders = base::run_folder::checkpoints_in(Path::new(folder)).unwrap();
        folders.last().unwrap().1.clone()
    };
    let file = ["model.safetensors", "adapter_model.safetensors"]
        .into_iter()
        .find(|file| last(one).join(file).exists())
        .unwrap();
    let [a, b] = [one, several].map(|folder| tensors(last(folder).to_str().unwrap(), file));
    for (key, expected) in &a {
        let difference = norm(&(expected - &b[key]));
        assert!(difference <= 1e-5 * norm(expected).max(1e-3), "{name}: {key}: {difference:.2e}");
    }
}

/// Whether rows are equal but for advantages, of which a divergence may be a part.
fn are_near(a: &[u8], b: &[u8]) -> bool {
    let rows = |bytes: &[u8]| -> Vec<(f64, Value)> {
        let rows = std::str::from_utf8(bytes).unwrap().lines();
        let parted = rows.map(|row| {
            let mut row: Value = serde_json::from_str(row).unwrap();
            let advantage = row["advantage"].take().as_f64().unwrap_or_default();
            // Where a row begins depends on the digits of those before.
            row["offset"].take();
            (advantage, row)
        });
        parted.collect()
    };
    let (a, b) = (rows(a), rows(b));
    let near = |((a, row), (b, other)): (&(f64, Value), &(f64, Value))| {
        (a - b).abs() < 1e-4 && row == other
    };
    a.len() == b.len() && a.iter().zip(&b).all(near)
}

fn same_metrics(name: &str, one: &Value, several: &Value, tolerance: f64) {
    let (mut one, mut several) = (one.clone(), several.clone());
    for line in [&mut one, &mut several] {
        base::metrics::remove_measured(line.as_object_mut().unwrap());
    }
    let (one, several) = (one.as_object().unwrap(), several.as_object().unwrap());
    assert_eq!(one.keys().collect::<Vec<_>>(), several.keys().collect::<Vec<_>>(), "{name}");
    for (key, a) in one {
        let b = &several[key];
        match (a.as_f64(), b.as_f64()) {
            _ if key == "sampled_vs_trained_max" || key == "sampled_vs_trained_kl" => {}
            (Some(a), Some(b)) => {
                let difference = (a - b).abs();
                assert!(difference <= tolerance * a.abs().max(1.0), "{name}: {key}: {a} and {b}");
            }
            _ => assert_eq!(a, b, "{name}: {key}"),
        }
    }
}

/// A setting of GRPO, and on how many ranks it is tried.
type Case<'a> = (&'a str, usize, RewardBatch, &'a dyn Fn(&mut GrpoConfig));

fn try_cases(model: &str, cases: &[Case<'_>]) {
    for (name, ranks, batch, set) in cases {
        let folder = tempfile::tempdir().unwrap();
        let [one, several] = [1, *ranks].map(|ranks| config(folder.path(), name, ranks).with(set));
        grpo_on(1, &one, model, *batch);
        let outcomes = grpo_on(*ranks, &several, model, *batch);
        assert!(outcomes[0].checkpoint.is_some(), "{name}");
        assert_same(name, &one.run.output_dir, &several.run.output_dir);
    }
}

use RewardBatch::{Completion, Group as OfGroup, Step};

#[test]
fn ranks_give_what_one_rank_gives() {
    try_cases(
        "nested",
        &[
            ("two", 2, Completion, &|_| {}),
            ("two-whole", 2, Completion, &|c| c.shards.zero_stage = ZeroStageSetting::Zero),
            // Three groups, and two at the end of the epoch, on three and four ranks: groups are cut.
            ("three", 3, Completion, &|_| {}),
            ("four", 4, Completion, &|c| c.rollout.share_prompt = false),
            ("reward-of-group", 4, OfGroup, &|_| {}),
            ("reward-of-step", 3, Step, &|c| c.shards.zero_stage = ZeroStageSetting::Zero),
        ],
    );
}

#[test]
fn every_part_of_the_algorithm_is_over_all_ranks() {
    try_cases(
        "nested",
        &[
            ("batch-scale", 2, Completion, &|c| {
                c.algorithm.scale_rewards = ScaleRewards::Batch;
                c.algorithm.loss_type = LossType::Dapo;
                c.algorithm.beta = 0.0;
            }),
            ("kl-in-reward", 4, Completion, &|c| {
                c.algorithm.advantage_estimator = AdvantageEstimator::ReinforcePlusPlus;
                c.algorithm.kl_in_reward = Some(true);
            }),
            ("normalised-then-summed", 2, OfGroup, &|c| {
                c.algorithm.multi_objective_aggregation =
                    MultiObjectiveAggregation::NormalizeThenSum;
                c.algorithm.num_iterations = 2;
            }),
            ("high-entropy", 3, Completion, &|c| {
                c.algorithm.top_entropy_quantile = 0.3;
                c.algorithm.entropy_coef = 0.01;
            }),
            ("dynamic", 2, Completion, &|c| {
                c.algorithm.dynamic_sample = true;
                c.algorithm.max_resample_times = 3;
            }),
            ("dynamic-cut", 4, Step, &|c| {
                c.algorithm.dynamic_sample = true;
                c.algorithm.max_resample_times = 3;
            }),
            ("several-updates", 2, Completion, &|c| {
                c.algorithm.steps_per_generation = Some(2);
            }),
        ],
    );
}

#[test]
fn other_models_adapters_and_frozen_parts_are_the_same_on_ranks() {
    try_cases(
        "nested",
        &[
            ("lora", 2, Completion, &|c| {
                c.model.use_peft = true;
                c.model.lora_r = 4;
                // Its masks are drawn by micro-batch.
                c.model.lora_dropout = 0.0;
            }),
            ("frozen-tower", 3, Completion, &|c| c.model.freeze_vision_modules = true),
        ],
    );
    for family in testing::other_families() {
        try_cases(&format!("{family}/nested"), &[(family, 2, Completion, &|_| {})]);
    }
}

#[test]
fn skipped_rows_and_ranks_without_work_change_nothing() {
    for ranks in [2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs::create_dir(&images).unwrap();
        for entry in fs::read_dir(golden::folder("parity/images")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), images.join(entry.file_name())).unwrap();
        }
        // Cut off: only who decodes it sees that.
        let whole = fs::read(images.join("scene.png")).unwrap();
        fs::write(images.join("broken.png"), &whole[..whole.len() / 2]).unwrap();
        let with = |ranks: usize| {
            config(folder.path(), "skipped", ranks).with(|c| {
                c.data.on_bad_row = OnBadRow::Skip;
                c.data.image_folders = Some(ColonList(images.display().to_string()));
                let path = PathBuf::from(&c.data.data_file_paths.0);
                let row = r#"{"image": "broken.png", "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "x"}]}"#;
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, format!("{text}\n{row}")).unwrap();
            })
        };
        let one = with(1);
        grpo_on(1, &one, "nested", Completion);
        let several = with(ranks);
        grpo_on(ranks, &several, "nested", Completion);
        let skipped = |folder: &str| {
            let lines = metrics_lines(folder);
            lines.iter().map(|line| line["skipped_rows"].as_u64().unwrap()).sum::<u64>()
        };
        assert!(skipped(&one.run.output_dir) > 0);
        assert_same("skipped", &one.run.output_dir, &several.run.output_dir);
    }
}

fn sft_on(ranks: usize, config: &SftConfig) {
    on_ranks(ranks, |_, ranks| {
        let (mut told, stop) = (Told::default(), StopFlag::new());
        let outcome = train_sft_on(ranks, config, &golden::checkpoint("nested"), &mut told, &stop);
        assert!(outcome.unwrap_or_else(|error| panic!("{}", chain(&error))).finished);
    });
}

#[test]
fn sft_on_ranks_is_sft_on_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = |ranks: usize| {
        sft(folder.path(), &format!("sft-{ranks}")).with(|c| {
            c.machine.device = "cpu".into();
            c.optimizer.per_device_train_batch_size = 12 / ranks;
            c.optimizer.max_steps = 5;
            c.optimizer.learning_rate = 1e-6;
            c.save.save_steps = 1;
        })
    };
    sft_on(1, &config(1));
    for ranks in [2, 3, 4] {
        sft_on(ranks, &config(ranks));
        let folders = [1, ranks].map(|ranks| config(ranks).run.output_dir);
        assert_same("sft", &folders[0], &folders[1]);
    }
}

/// Bytes of the model and numbers of the state after the last step.
fn end(config: &GrpoConfig) -> (Vec<u8>, BTreeMap<String, Tensor>) {
    let folders = base::run_folder::checkpoints_in(Path::new(&config.run.output_dir)).unwrap();
    let last = &folders.last().unwrap().1;
    (bytes(last, "model.safetensors"), state(last))
}

fn assert_equal(
    name: &str,
    a: &(Vec<u8>, BTreeMap<String, Tensor>),
    b: &(Vec<u8>, BTreeMap<String, Tensor>),
) {
    assert!(a.0 == b.0, "{name}: model.safetensors differs");
    assert_eq!(a.1.keys().collect::<Vec<_>>(), b.1.keys().collect::<Vec<_>>(), "{name}");
    for (key, tensor) in &a.1 {
        assert!(tensor.equal(&b.1[key]), "{name}: {key} differs");
    }
}

/// A run that learns, with one micro-batch a rank and a checkpoint at its end.
fn learning(folder: &Path, name: &str, ranks: usize, stage: ZeroStageSetting) -> GrpoConfig {
    config(folder, name, ranks).with(|c| {
        c.optimizer.learning_rate = 3e-3;
        c.optimizer.max_steps = 4;
        c.save.save_steps = 0;
        c.shards.zero_stage = stage;
    })
}

#[test]
fn shards_change_no_bit() {
    use ZeroStageSetting::{Two, Zero};
    for (name, set) in [
        ("f32", &(|_: &mut GrpoConfig| {}) as &dyn Fn(&mut GrpoConfig)),
        ("bf16", &|c| c.model.bf16 = true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [whole, shards] = [("whole", Zero), ("shards", Two)].map(|(out, stage)| {
            let config = learning(folder.path(), &format!("{name}-{out}"), 3, stage).with(set);
            grpo_on(3, &config, "nested", Completion);
            config
        });
        assert_equal(name, &end(&whole), &end(&shards));
        let lines = |config: &GrpoConfig| crate::runs::metrics(&config.run.output_dir);
        assert_eq!(lines(&whole), lines(&shards), "{name}");
    }
}

/// Steps up to `stop` of a run on so many ranks.
fn steps_on(ranks: usize, config: &GrpoConfig, stop: Option<u64>) {
    on_ranks(ranks, |rank, ranks| {
        // A signal that one rank gets ends all.
        let stop_after = stop.filter(|_| rank == 0);
        let mut told = Told { stop_after, ..Told::default() };
        let (model, flag) = (golden::checkpoint("nested"), told.stop.clone());
        let rewards = Some(reward_set(Completion));
        let outcome = train_grpo_on(ranks, config, &model, rewards, &mut told, &flag);
        let outcome = outcome.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(outcome.finished, stop.is_none());
        assert!(stop.is_none_or(|stop| outcome.steps == stop), "{outcome:?}");
    });
}

#[test]
fn resumed_ranks_equal_uninterrupted_ones() {
    use ZeroStageSetting::{Two, Zero};
    for stage in [Zero, Two] {
        let folder = tempfile::tempdir().unwrap();
        let whole = learning(folder.path(), "whole", 2, stage);
        steps_on(2, &whole, None);
        let parts = learning(folder.path(), "parts", 2, stage);
        for stop in [Some(1), Some(3), None] {
            steps_on(2, &parts, stop);
        }
        assert_equal("resumed", &end(&whole), &end(&parts));
        let lines = |config: &GrpoConfig| crate::runs::metrics(&config.run.output_dir);
        assert_eq!(lines(&whole), lines(&parts));
    }
}

/// Four ranks, then two, one and three: each goes on from the numbers of the last, whatever is in shards.
#[test]
fn other_ranks_go_on_from_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let of = |ranks: usize, stage| {
        learning(folder.path(), "run", ranks, stage)
            .with(|c| c.run.output_dir = folder.path().join("run").display().to_string())
    };
    use ZeroStageSetting::{Two, Zero};
    for (ranks, stage, stop) in
        [(4, Two, Some(1)), (2, Zero, Some(2)), (1, Two, Some(3)), (3, Two, None)]
    {
        steps_on(ranks, &of(ranks, stage), stop);
    }
    let one = learning(folder.path(), "one", 1, Zero);
    steps_on(1, &one, None);
    let ((_, a), (_, b)) = (end(&one), end(&of(3, Two)));
    for (key, expected) in a {
        let difference = norm(&(&expected - &b[&key]));
        assert!(difference <= 1e-3 * norm(&expected).max(1e-3), "{key}: {difference:.2e}");
    }
    // With other completions a step it would be another run.
    let other = of(2, Two).with(|c| c.optimizer.per_device_train_batch_size = 4);
    let refused = on_ranks(2, |_, ranks| {
        let (mut told, stop) = (Told::default(), StopFlag::new());
        let rewards = Some(reward_set(Completion));
        let model = golden::checkpoint("nested");
        chain(&train_grpo_on(ranks, &other, &model, rewards, &mut told, &stop).unwrap_err())
    });
    assert!(refused[0].contains("per_device_train_batch_size"), "{refused:?}");
}
