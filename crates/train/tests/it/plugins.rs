//! Runs by rewards of the user's own, in another process and on a server, that break meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use base::run_folder::StopFlag;
use config::RewardBatch;
use serde_json::{Map, Value, json};
use train::{Observer, Outcome, train_grpo, train_grpo_with_rewards};

use crate::golden;
use crate::runs::{bytes, grpo, share, watch};

/// Collects rewards; kills the process that a file names after the second step.
struct Killer {
    process: PathBuf,
    rewards: Vec<f64>,
    steps: Vec<u64>,
}

impl Observer for Killer {
    fn on_step(&mut self, step: u64, _total: u64, metrics: &Map<String, Value>) {
        self.rewards.extend(metrics.get("reward").and_then(Value::as_f64));
        self.steps.push(step);
        if step == 2 && self.process.exists() {
            let process = fs::read_to_string(&self.process).unwrap();
            let killed = Command::new("kill").args(["-9", &process]).status();
            assert!(killed.unwrap().success());
        }
    }

    fn on_message(&mut self, _message: &str) {}
}

/// The share of small letters, with a note of each process that computed it.
const PYTHON: &str = r#"
import os
folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "process"), "w") as file:
    file.write(str(os.getpid()))
with open(os.path.join(folder, "starts"), "a") as file:
    file.write("x")

def small_letters(completions, step, **kwargs):
    with open(os.path.join(folder, "steps"), "a") as file:
        file.write(f"{step} {len(completions)}\n")
    return [sum("a" <= c <= "z" for c in text) / max(len(text), 1) for text in completions]
"#;

/// Rewards by step and the trained weights.
type Trained = (Vec<f64>, Vec<u8>);

fn by_rust(folder: &Path) -> Trained {
    let config = grpo(folder, "rust");
    let mut observer = watch(None);
    let of = share(char::is_ascii_lowercase);
    let model = golden::checkpoint("nested");
    let outcome = train_grpo_with_rewards(&config, &model, of, &mut observer, &StopFlag::new());
    (observer.rewards, weights(&outcome.unwrap()))
}

fn by_name(folder: &Path, out: &str, reward: String, batch: RewardBatch) -> Trained {
    let config = grpo(folder, out).with(|c| {
        c.rewards.reward_funcs = vec![reward];
        c.scoring.reward_batch = batch;
    });
    let mut observer =
        Killer { process: folder.join("process"), rewards: Vec::new(), steps: Vec::new() };
    let model = golden::checkpoint("nested");
    let outcome = train_grpo(&config, &model, &mut observer, &StopFlag::new());
    assert_eq!(observer.steps, [1, 2, 3, 4, 5, 6]);
    (observer.rewards, weights(&outcome.unwrap()))
}

fn weights(outcome: &Outcome) -> Vec<u8> {
    bytes(outcome.checkpoint.as_ref().unwrap(), "model.safetensors")
}

#[test]
fn a_python_reward_trains_as_the_same_rule_in_rust_though_its_worker_is_killed() {
    let folder = tempfile::TempDir::new().unwrap();
    let folder = folder.path();
    let file = folder.join("mine.py");
    fs::write(&file, PYTHON).unwrap();
    let python =
        by_name(folder, "python", format!("{}:small_letters", file.display()), RewardBatch::Step);
    assert_eq!(fs::read_to_string(folder.join("starts")).unwrap(), "xx");
    let steps = fs::read_to_string(folder.join("steps")).unwrap();
    // Two groups of four, and of the fifth row one.
    assert_eq!(steps, "1 8\n2 8\n3 4\n4 8\n5 8\n6 4\n", "one batch a step");
    let rust = by_rust(folder);
    assert!(python.0.iter().any(|reward| *reward > 0.0), "{:?}", python.0);
    assert!(python == rust, "{:?} {:?}", python.0, rust.0);
}

#[test]
fn completions_scored_while_others_are_sampled_train_as_those_scored_after() {
    let folder = tempfile::TempDir::new().unwrap();
    let folder = folder.path();
    let rust = by_rust(folder);
    for (out, batch) in [("group", RewardBatch::Group), ("completion", RewardBatch::Completion)] {
        let own = folder.join(out);
        fs::create_dir(&own).unwrap();
        let file = own.join("mine.py");
        fs::write(&file, PYTHON).unwrap();
        let reward = format!("{}:small_letters", file.display());
        let early = by_name(folder, &format!("run_{out}"), reward, batch);
        assert!(early == rust, "{:?} {:?}", early.0, rust.0);
        let steps = fs::read_to_string(own.join("steps")).unwrap();
        match batch {
            RewardBatch::Group => assert_eq!(
                steps, "1 4\n1 4\n2 4\n2 4\n3 4\n4 4\n4 4\n5 4\n5 4\n6 4\n",
                "a batch a group"
            ),
            _ => assert_eq!(completions_by_step(&steps), [8, 8, 4, 8, 8, 4]),
        }
    }
}

/// Sums of what was asked for in the batches of each step.
fn completions_by_step(lines: &str) -> [usize; 6] {
    let mut sums = [0; 6];
    for line in lines.lines() {
        let (step, count) = line.split_once(' ').unwrap();
        sums[step.parse::<usize>().unwrap() - 1] += count.parse::<usize>().unwrap();
    }
    sums
}

#[test]
fn a_reward_over_http_trains_as_the_same_rule_in_rust_though_connections_break() {
    let folder = tempfile::TempDir::new().unwrap();
    let (address, requests) = serve();
    let reward = format!("http://{address}/score");
    let http = by_name(folder.path(), "http", reward, RewardBatch::Step);
    assert_eq!(requests.load(Ordering::SeqCst), 6 + 2, "two were cut");
    let rust = by_rust(folder.path());
    assert!(http == rust, "{:?} {:?}", http.0, rust.0);
}

/// Scores by the share of small letters, but cuts the second and the fifth request.
fn serve() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            if ![1, 4].contains(&count.fetch_add(1, Ordering::SeqCst)) {
                answer(stream);
            }
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(&stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    let share = |row: &Value| {
        let text = row["completion"].as_str().unwrap();
        let small = text.chars().filter(char::is_ascii_lowercase).count();
        small as f64 / text.chars().count().max(1) as f64
    };
    let scores: Vec<f64> = request["rows"].as_array().unwrap().iter().map(share).collect();
    let body = json!({"id": request["id"], "scores": scores}).to_string();
    let head =
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
}
