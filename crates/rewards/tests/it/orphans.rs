//! Processes of rewards do not outlive the process that asks them, however that ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rewards::{PluginOptions, RewardOptions, RewardSet};
use serde_json::Map;

use crate::{generic_options, input};

const REWARD: &str = "VLM_R1_TEST_REWARD";

/// Starts a child, notes both and keeps the interpreter's lock: no other thread of it runs.
const PYTHON: &str = r#"
import os, re, subprocess
def busy(completions):
    child = subprocess.Popen(["sleep", "600"])
    with open(os.environ["PIDS"] + ".part", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(os.environ["PIDS"] + ".part", os.environ["PIDS"])
    re.match("(a+)+$", "a" * 60 + "b")
    return [0.0] * len(completions)
"#;

/// Reads nothing more and does not obey SIGTERM.
const SHELL: &str = r#"
trap '' HUP TERM INT PIPE
sleep 600 &
echo "$$ $!" > "$PIDS.part"
mv "$PIDS.part" "$PIDS"
while :; do :; done
"#;

/// The process that is killed: it asks the reward that the environment names.
#[test]
#[ignore = "started by the test below"]
fn asks_until_it_is_killed() {
    let Ok(name) = std::env::var(REWARD) else {
        return;
    };
    let plugins = PluginOptions { timeout_secs: 600.0, ..PluginOptions::default() };
    let options = RewardOptions { plugins, ..generic_options() };
    let set = RewardSet::build(&[name], None, &options).expect("a reward");
    let columns = Map::new();
    // It hangs.
    let _ = set.score(&[input("a", "b", &columns)]);
}

/// A zombie waits for whoever adopted it, and does no harm.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn asked_by_one_that_is_killed(name: &str, folder: &Path) {
    let pids = folder.join("pids");
    let mut asking = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "orphans::asks_until_it_is_killed", "--ignored"])
        .env(REWARD, name)
        .env("PIDS", &pids)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("the reward is asked", || pids.exists());
    let text = fs::read_to_string(&pids).expect("two numbers");
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(pids.len(), 2, "{text}");
    assert!(pids.iter().all(|pid| is_alive(pid)), "{text}");
    asking.kill().expect("SIGKILL");
    asking.wait().expect("its end");
    for pid in pids {
        wait_until(&format!("`{name}`: {pid} is alive"), || !is_alive(pid));
    }
}

#[test]
fn a_busy_reward_ends_with_the_process_that_asks_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let python = folder.path().join("busy.py");
    let shell = folder.path().join("busy.sh");
    fs::write(&python, PYTHON).expect("written");
    fs::write(&shell, SHELL).expect("written");
    for (index, name) in
        [format!("{}:busy", python.display()), format!("program:sh {}", shell.display())]
            .iter()
            .enumerate()
    {
        let own = folder.path().join(index.to_string());
        fs::create_dir(&own).expect("a folder");
        asked_by_one_that_is_killed(name, &own);
    }
}

/// A reward that ends by itself takes along what it started.
#[test]
fn what_a_reward_started_ends_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let pid = folder.path().join("pid");
    let shell = folder.path().join("leaves.sh");
    let text =
        format!("sleep 600 >/dev/null 2>&1 </dev/null &\necho $! > {}\nexit 3\n", pid.display());
    fs::write(&shell, text).expect("written");
    let options = RewardOptions { plugins: PluginOptions::default(), ..generic_options() };
    let name = format!("program:sh {}", shell.display());
    let set = RewardSet::build(&[name], None, &options).expect("a reward");
    let columns = Map::new();
    let error = set.score(&[input("a", "b", &columns)]).expect_err("it ends");
    assert!(error.to_string().contains("ended (exit status: 3)"), "{error}");
    let pid = fs::read_to_string(&pid).expect("a number");
    wait_until("the child ends", || !is_alive(pid.trim()));
}
