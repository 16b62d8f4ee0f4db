//! What the binary does on signals, and with which code it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testing::checkpoint;

use crate::program::{CallResult, call_result, command};
use crate::training::{checkpoints, line, metrics, signal};

const SIGNALS: [(&str, &str, i32); 4] = [
    ("-INT", "SIGINT", 130),
    ("-TERM", "SIGTERM", 143),
    ("-USR1", "SIGUSR1", 138),
    ("-HUP", "SIGHUP", 129),
];

/// Starts the binary by `by`, so that this test's own handling of signals is not handed on.
fn start(by: &[&str], line: &str) -> Child {
    let binary = command();
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(binary.get_program());
    command.args(line.split_whitespace()).env_remove("WORLD_SIZE");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

const PLAIN: [&str; 2] = ["env", "--default-signal=HUP,INT,USR1,TERM"];

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {what} in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(child: Child) -> CallResult {
    call_result(child.wait_with_output().unwrap())
}

#[test]
fn each_signal_ends_the_step_with_a_checkpoint_and_a_code_of_its_own() {
    let dir = TempDir::new().unwrap();
    let runs = SIGNALS.map(|(kill, ..)| {
        let line = line("sft", dir.path(), kill, "--max_steps 100000 --save_steps 0");
        (start(&PLAIN, &line), dir.path().join(kill))
    });
    for ((child, folder), (kill, name, code)) in runs.into_iter().zip(SIGNALS) {
        wait_for("step", || folder.join("metrics.jsonl").exists());
        signal(&child, kill);
        let ended = end(child);
        assert_eq!(ended.code, Some(code), "{kill}: {}", ended.stderr);
        let next = format!(
            "\n{name}: the step under way is finished and saved, then the run ends; once more"
        );
        assert!(ended.stderr.contains(&next), "{}", ended.stderr);
        let steps = metrics(&folder).len();
        assert_eq!(checkpoints(&folder), [format!("checkpoint-{steps}")]);
        let last = format!(
            "stopped after step {steps}, saved in {}\nhint: the same",
            folder.join(format!("checkpoint-{steps}")).display()
        );
        assert!(ended.stderr.contains(&last), "{}", ended.stderr);
        let log = fs::read_to_string(folder.join("log.txt")).unwrap();
        assert!(log.contains(&format!(" {name}: ")), "{log}");
    }
}

#[test]
fn under_nohup_a_lost_terminal_ends_nothing() {
    let dir = TempDir::new().unwrap();
    let line = line("sft", dir.path(), "run", "--max_steps 100000 --save_steps 0");
    let child = start(&["nohup"], &line);
    let steps = || {
        fs::read_to_string(dir.path().join("run/metrics.jsonl"))
            .map_or(0, |text| text.lines().count())
    };
    wait_for("step", || steps() > 0);
    signal(&child, "-HUP");
    let seen = steps();
    wait_for("further step", || steps() > seen + 3);
    signal(&child, "-TERM");
    let ended = end(child);
    assert_eq!(ended.code, Some(143), "{}", ended.stderr);
    assert!(!ended.stderr.contains("SIGHUP"), "{}", ended.stderr);
}

/// A reward that sends its own process all signals, as a scheduler does, says so and takes its time.
fn slow_reward(dir: &Path, secs: f64) -> String {
    let script = dir.join("slow.py");
    let code = format!(
        "import os, signal, time\n\n\ndef slow(completions, **kwargs):\n    for name in ('INT', 'TERM', 'USR1', 'HUP'):\n        \
         os.kill(os.getpid(), getattr(signal, 'SIG' + name))\n    open({:?}, 'w').close()\n    time.sleep({secs})\n    \
         return [1.0] * len(completions)\n",
        dir.join("scoring")
    );
    fs::write(&script, code).unwrap();
    format!("--reward_funcs {}:slow", script.display())
}

#[test]
fn a_signal_in_the_last_step_loses_nothing_and_the_run_has_finished() {
    let dir = TempDir::new().unwrap();
    let more = format!("--max_steps 1 {}", slow_reward(dir.path(), 1.0));
    let child = start(&PLAIN, &line("grpo", dir.path(), "run", &more));
    wait_for("reward", || dir.path().join("scoring").exists());
    signal(&child, "-TERM");
    let ended = end(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nSIGTERM: "), "{}", ended.stderr);
    assert_eq!(checkpoints(&dir.path().join("run")), ["checkpoint-1"]);
}

#[test]
fn a_second_signal_ends_at_once_but_not_one_that_was_announced() {
    let dir = TempDir::new().unwrap();
    let more = format!("--max_steps 2 {}", slow_reward(dir.path(), 60.0));
    let mut child = start(&PLAIN, &line("grpo", dir.path(), "run", &more));
    wait_for("reward", || dir.path().join("scoring").exists());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut heard = |part: &str| {
        let mut line = String::new();
        while !line.starts_with(part) {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "no `{part}`");
        }
    };
    let begun = Instant::now();
    // A scheduler's warning, and what it warned of.
    signal(&child, "-USR1");
    heard("SIGUSR1: the step under way");
    // Else both would be one request.
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-TERM");
    heard("SIGTERM: stopping already");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, "-TERM");
    heard("SIGTERM: stops at once");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(checkpoints(&dir.path().join("run")).is_empty());
}

/// The system does not keep their order, so neither may cost the checkpoint.
#[test]
fn signals_that_come_together_are_one_request() {
    let dir = TempDir::new().unwrap();
    for (number, pair) in
        [["-USR1", "-TERM"], ["-TERM", "-USR1"], ["-TERM", "-HUP"]].into_iter().enumerate()
    {
        let run = format!("run-{number}");
        let line = line("sft", dir.path(), &run, "--max_steps 100000 --save_steps 0");
        let child = start(&PLAIN, &line);
        let folder = dir.path().join(&run);
        wait_for("a step", || folder.join("metrics.jsonl").exists());
        pair.iter().for_each(|name| signal(&child, name));
        let ended = child.wait_with_output().unwrap();
        let result = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_some_and(|code| code > 128), "{result}");
        assert_eq!(checkpoints(&folder).len(), 1, "{pair:?}: {result}");
    }
}

#[test]
fn before_there_is_anything_to_lose_a_signal_ends_at_once() {
    let dir = TempDir::new().unwrap();
    // A hub that takes the question and never answers.
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    for (kill, name, code) in [SIGNALS[0], SIGNALS[2]] {
        let line = line("grpo", dir.path(), "run", "");
        let local = checkpoint("nested");
        let line = line.replace(&local.display().to_string(), "owner/none");
        let mut command = command();
        command.args(line.split_whitespace()).stderr(Stdio::piped());
        command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr().unwrap()));
        command.env("HF_HOME", dir.path());
        let child = command.spawn().unwrap();
        let (mut asked, _) = hub.accept().unwrap();
        assert!(asked.read(&mut [0; 16]).unwrap() > 0);
        signal(&child, kill);
        let ended = end(child);
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(
            ended.stderr.ends_with(&format!("{name}: stops; nothing was begun yet\n")),
            "{}",
            ended.stderr
        );
    }
}
