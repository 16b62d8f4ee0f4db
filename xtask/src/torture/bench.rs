//! The tiny runs that are tortured, and what they come to when nobody disturbs them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// No tiny run takes as long, on any machine.
const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 8;
/// Metrics that measure the machine.
const MEASURED: [&str; 5] =
    ["secs", "tokens_per_sec", "peak_memory_bytes", "live_bytes", "peak_live_bytes"];

/// A tiny run: its name and its flags.
pub struct Tiny {
    /// Of its folders.
    pub name: &'static str,
    flags: &'static str,
}

/// All of them.
pub const RUNS: [Tiny; 4] = [
    Tiny {
        name: "grpo",
        flags: "grpo --num_generations 3 --per_device_train_batch_size 6 --max_completion_length 6 --reward_funcs accuracy --save_steps 2 --save_optimizer_limit 3",
    },
    Tiny {
        name: "sft",
        flags: "sft --per_device_train_batch_size 2 --save_steps 1 --save_total_limit 2",
    },
    Tiny {
        name: "grpo-eval",
        flags: "grpo --num_generations 2 --per_device_train_batch_size 4 --max_completion_length 6 --reward_funcs accuracy --save_steps 3 --val_split_ratio 0.4 --eval_steps 3",
    },
    Tiny {
        name: "sft-lora",
        flags: "sft --use_peft true --per_device_train_batch_size 1 --save_steps 3 --save_optimizer_limit 2",
    },
];

/// What a run comes to.
pub struct Undisturbed {
    /// SHA-256 of each file of weights and moments of the last checkpoint.
    weights: BTreeMap<PathBuf, String>,
    metrics: Vec<Value>,
    /// How long it took.
    pub secs: f64,
}

/// The binary, what the runs read, and what they come to.
pub struct Bench {
    /// The program.
    pub binary: PathBuf,
    /// Images of the rows.
    pub images: PathBuf,
    /// A tiny model.
    pub model: PathBuf,
    /// Good rows.
    pub data: PathBuf,
    undisturbed: Vec<Undisturbed>,
}

/// How a process ended.
pub struct Ended {
    /// None where it had to be killed, as it did not end.
    pub status: Option<ExitStatus>,
    /// All that it said.
    pub said: String,
}

impl Bench {
    /// Writes the rows into `folder` and lets each run go undisturbed there.
    pub fn prepare(root: &Path, binary: &Path, folder: &Path) -> Result<Self> {
        let golden = root.join("golden/parity");
        let data = folder.join("train.jsonl");
        fs::write(&data, rows().concat()).with_context(|| data.display().to_string())?;
        let mut bench = Self {
            binary: binary.to_owned(),
            images: golden.join("images"),
            model: golden.join("checkpoints/nested"),
            data,
            undisturbed: Vec::new(),
        };
        for run in &RUNS {
            let trial = folder.join(format!("undisturbed-{}", run.name));
            fs::create_dir_all(&trial)?;
            let start = Instant::now();
            let ended = bench.go_on(run, &trial)?;
            if !ended.is_done() {
                bail!("`{}` fails undisturbed: {}", run.name, ended.said);
            }
            let out = trial.join("out");
            let last = out.join(format!("checkpoint-{STEPS}"));
            let weights = weights(&last)?;
            // Else no weights could come out wrong.
            let first = checkpoints(&out).into_iter().next();
            let first = first.map(|(_, first)| sums(&first)).transpose()?;
            // Older checkpoints may hold the model alone.
            if first
                .is_none_or(|first| first.iter().all(|(name, sum)| weights.get(name) == Some(sum)))
            {
                bail!("`{}` does not learn", run.name);
            }
            bench.undisturbed.push(Undisturbed {
                weights,
                metrics: metrics(&out).map_err(|cause| anyhow::anyhow!(cause))?,
                secs: start.elapsed().as_secs_f64(),
            });
        }
        Ok(bench)
    }

    /// What the run of that number in [`RUNS`] comes to.
    pub fn undisturbed(&self, run: usize) -> &Undisturbed {
        &self.undisturbed[run]
    }

    /// The command of a run into `trial/out`.
    pub fn command(&self, run: &Tiny, trial: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(run.flags.split_whitespace());
        command.args(["--device", "cpu", "--num_threads", "1"]);
        command.args(["--learning_rate", "1e-3", "--max_steps", &STEPS.to_string()]);
        let paths = [
            ("--model_name_or_path", &self.model),
            ("--data_file_paths", &self.data),
            ("--image_folders", &self.images),
        ];
        for (flag, path) in paths {
            command.arg(flag).arg(path);
        }
        command.arg("--output_dir").arg(trial.join("out"));
        for variable in ["WORLD_SIZE", "HF_HUB_OFFLINE", "HF_TOKEN"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Starts it, with all that it says added to `trial/said.txt`.
    pub fn start(&self, run: &Tiny, trial: &Path) -> Result<Child> {
        let said = trial.join("said.txt");
        let said = File::options().create(true).append(true).open(said)?;
        let mut command = self.command(run, trial);
        command.stdout(said.try_clone()?).stderr(said);
        command.spawn().context("cannot start the binary")
    }

    /// Lets it go to its end.
    pub fn go_on(&self, run: &Tiny, trial: &Path) -> Result<Ended> {
        let before = read(&trial.join("said.txt")).len();
        let mut child = self.start(run, trial)?;
        let status = wait(&mut child, LIMIT)?;
        let said = read(&trial.join("said.txt"));
        let said = String::from_utf8_lossy(&said[before..]).into_owned();
        Ok(Ended { status, said })
    }

    /// What differs from the run that nobody disturbed, in weights and in metrics.
    pub fn differs(&self, run: usize, out: &Path) -> Result<(), String> {
        self.weights_differ(run, out)?;
        let (found, expected) = (metrics(out)?, &self.undisturbed[run].metrics);
        if found == *expected {
            return Ok(());
        }
        let steps = |rows: &[Value]| {
            let steps = rows.iter().map(|row| row["step"].to_string());
            steps.collect::<Vec<_>>().join(" ")
        };
        Err(format!("other metrics: expected steps {}, got {}", steps(expected), steps(&found)))
    }

    /// What differs in the weights and moments of the last checkpoint.
    pub fn weights_differ(&self, run: usize, out: &Path) -> Result<(), String> {
        let last = out.join(format!("checkpoint-{STEPS}"));
        let found = weights(&last).map_err(|error| format!("{error:#}"))?;
        let expected = &self.undisturbed[run].weights;
        if found == *expected {
            return Ok(());
        }
        let names = expected.iter().filter(|(name, hash)| found.get(*name) != Some(hash));
        let names: Vec<String> = names.map(|(name, _)| name.display().to_string()).collect();
        Err(format!("other weights than undisturbed: {}", names.join(", ")))
    }
}

impl Ended {
    /// Whether it did all that it should.
    pub fn is_done(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Whether it refused in an orderly way; else what it did.
    pub fn refused(&self) -> Result<&str, String> {
        let Some(status) = self.status else {
            return Err(format!("hangs: {}", tail(&self.said)));
        };
        if self.said.contains("panicked at") {
            return Err(format!("panics: {}", tail(&self.said)));
        }
        match (status.code(), self.said.rfind("error: ")) {
            (Some(1), Some(at)) => Ok(&self.said[at..]),
            _ => Err(format!("ends with {status}: {}", tail(&self.said))),
        }
    }
}

/// The end of what was said, in one line.
pub fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().rev().take(6).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

/// Waits for the end; none where it had to be killed.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Checkpoints of a run, oldest first.
pub fn checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = names(out)
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix("checkpoint-")?.parse().ok()?, out.join(&name))))
        .collect();
    found.sort();
    found
}

/// Names in a folder, sorted; none where there is no folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// All files in a folder and below.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in names(folder).into_iter().map(|name| folder.join(name)) {
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Rows about the images of the parity tests.
pub fn rows() -> Vec<String> {
    let images = ["scene.png", "small.png", "grey.png", "rgba.png", "small.png"];
    let row = |(index, image): (usize, &str)| {
        let question = format!("<image>Where is thing {index}?");
        let answer = format!("[1, 2, 3, {}]", 4 + index);
        let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
        format!("{}\n", json!({"image": image, "conversations": turns}))
    };
    images.into_iter().enumerate().map(row).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_default()
}

fn weights(checkpoint: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let weights = sums(checkpoint)?;
    if weights.len() < 2 {
        bail!("{}: no weights and moments", checkpoint.display());
    }
    Ok(weights)
}

/// SHA-256 of each file of tensors.
fn sums(checkpoint: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut weights = BTreeMap::new();
    for path in files(checkpoint) {
        if path.extension().is_some_and(|end| end == "safetensors") {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let hash = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            weights.insert(path.strip_prefix(checkpoint)?.to_owned(), hash);
        }
    }
    Ok(weights)
}

/// Metrics that are computed, line by line.
fn metrics(out: &Path) -> Result<Vec<Value>, String> {
    let path = out.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(|error| format!("metrics.jsonl: {error}"))?;
    let row = |line: &str| {
        let mut row: Value =
            serde_json::from_str(line).map_err(|error| format!("metrics.jsonl: {error}"))?;
        if let Some(row) = row.as_object_mut() {
            // Of the feature cache, what is counted since the process began.
            let is_measured =
                |name: &str| MEASURED.contains(&name) || name.starts_with("feature_cache/");
            row.retain(|name, _| !is_measured(name));
        }
        Ok(row)
    };
    text.lines().map(row).collect()
}
