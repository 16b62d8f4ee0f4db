//! Ranks as a user has them: processes that `launch` starts, and what becomes of them when one fails.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base::run_folder::checkpoints_in;

use crate::program::command;

/// `--ddp_timeout`, seconds, where ranks come late on purpose. Elsewhere it is longer than any wait on a busy machine.
const LIMIT: u64 = 15;
/// Within what ranks leave that learn of a fault, seconds: five times the goal.
const LEAVES: f64 = 10.0;

fn grpo(folder: &Path, ranks: usize, flags: &str) -> Command {
    let rows = folder.join("rows.jsonl");
    let row = |image: &str, question: &str| {
        format!(
            "{{{image}\"conversations\": [{{\"from\": \"human\", \"value\": \"{question}\"}}, \
             {{\"from\": \"gpt\", \"value\": \"x\"}}]}}\n"
        )
    };
    let scene = r#""image": "scene.png", "#;
    let texts = row(scene, "<image>Where is it?") + &row("", "How many?") + &row("", "Which?");
    fs::write(&rows, texts).unwrap();
    let mut launch = command();
    launch.args(["launch", "--nproc_per_node", &ranks.to_string(), "--", "grpo"]);
    let flags = format!(
        "--model_name_or_path {} --data_file_paths {} --image_folders {} --output_dir {} --num_generations 4 \
         --per_device_train_batch_size 4 --max_completion_length 16 --reward_funcs length --device cpu --min_pixels 3136 \
         --max_pixels 31360 --ddp_timeout 120 {flags}",
        testing::checkpoint("nested").display(),
        rows.display(),
        testing::golden("parity/images").display(),
        folder.join("out").display(),
    );
    launch.args(flags.split_whitespace());
    launch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    launch
}

/// What a launch said, and its exit code.
struct Ended {
    code: Option<i32>,
    text: String,
    secs: f64,
}

/// Waits for the end, but not for ever.
fn end(mut launch: Child, since: Instant) -> Ended {
    let mut pipes: Vec<Box<dyn Read + Send>> =
        vec![Box::new(launch.stdout.take().unwrap()), Box::new(launch.stderr.take().unwrap())];
    let readers: Vec<_> = pipes
        .drain(..)
        .map(|mut pipe| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        match launch.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                launch.kill().unwrap();
                panic!("the launch hangs");
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let secs = since.elapsed().as_secs_f64();
    let text = readers.into_iter().map(|reader| reader.join().unwrap()).collect::<String>();
    Ended { code: status.code(), text, secs }
}

/// The process of a rank, once the run has done a step.
fn process_of(launch: &Child, rank: usize, folder: &Path) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let metrics = fs::read_to_string(folder.join("out/metrics.jsonl")).unwrap_or_default();
        if metrics.lines().count() > 1
            && let Some(process) = children(launch.id()).into_iter().find(|process| {
                let variables = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
                let own = format!("RANK={rank}");
                variables.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes())
            })
        {
            return process;
        }
        assert!(Instant::now() < deadline, "no step was done");
        thread::sleep(Duration::from_millis(20));
    }
}

fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(status.unwrap().success());
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let found = checkpoints_in(&folder.join("out")).unwrap_or_default();
    found.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn ranks_write_one_run_folder_and_other_ranks_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let flags =
        "--max_steps 3 --save_steps 2 --val_split_ratio 0.3 --eval_strategy steps --eval_steps 2";
    let ended = end(grpo(folder.path(), 2, flags).spawn().unwrap(), start);
    assert_eq!(ended.code, Some(0), "{}", ended.text);
    assert!(ended.text.contains("step 3/3") && !ended.text.contains("rank 1:"), "{}", ended.text);
    let state = folder.path().join("out/checkpoint-3/trainer_state");
    for file in ["optimizer-00002-of-00002.safetensors", "optimizer.index.json", "state.json"] {
        assert!(state.join(file).exists(), "{file}");
    }
    let metrics = fs::read_to_string(folder.path().join("out/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 3);
    assert!(metrics.contains("eval/reward"), "{metrics}");
    // One rank with as many completions.
    let more = flags.replace("--max_steps 3", "--max_steps 5");
    let more = format!("{more} --gradient_accumulation_steps 2 --allow_changed true");
    let ended = end(grpo(folder.path(), 1, &more).spawn().unwrap(), Instant::now());
    assert_eq!(ended.code, Some(0), "{}", ended.text);
    assert!(ended.text.contains("resuming after step 3"), "{}", ended.text);
}

#[test]
fn a_rank_that_is_killed_ends_the_others_and_is_named() {
    for rank in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        let flags = "--max_steps 100000 --save_steps 1 --save_total_limit 3";
        let launch = grpo(folder.path(), 3, flags).spawn().unwrap();
        let process = process_of(&launch, rank, folder.path());
        let others = children(launch.id());
        let killed = Instant::now();
        signal(process, "KILL");
        let ended = end(launch, killed);
        assert_eq!(ended.code, Some(1), "{}", ended.text);
        assert!(ended.secs < LEAVES, "{}", ended.secs);
        let named = format!("rank {rank} (host ");
        assert!(ended.text.contains(&named), "{}", ended.text);
        assert!(ended.text.contains("step ") && ended.text.contains("ended"), "{}", ended.text);
        for other in others {
            assert!(!Path::new(&format!("/proc/{other}")).exists(), "{other} lives on");
        }
        // What was whole stays whole: the same command goes on from it.
        assert!(!checkpoints(folder.path()).is_empty());
        let steps = checkpoints_in(&folder.path().join("out")).unwrap().last().unwrap().0;
        let again = format!("--max_steps {} --save_steps 1 --allow_changed true", steps + 2);
        let ended = end(grpo(folder.path(), 3, &again).spawn().unwrap(), Instant::now());
        assert_eq!(ended.code, Some(0), "{}", ended.text);
        assert!(ended.text.contains(&format!("resuming after step {steps}")), "{}", ended.text);
    }
}

#[test]
fn a_signal_to_one_rank_stops_all_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let launch = grpo(folder.path(), 3, "--max_steps 100000").spawn().unwrap();
    let process = process_of(&launch, 2, folder.path());
    signal(process, "TERM");
    let ended = end(launch, Instant::now());
    assert_eq!(ended.code, Some(143), "{}", ended.text);
    assert!(ended.text.contains("stopped after step"), "{}", ended.text);
    assert_eq!(checkpoints(folder.path()).len(), 1);
}

#[test]
fn a_rank_that_sleeps_is_named_with_what_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("--max_steps 100000 --ddp_timeout {LIMIT}");
    let launch = grpo(folder.path(), 3, &flags).spawn().unwrap();
    let process = process_of(&launch, 1, folder.path());
    let asleep = Instant::now();
    signal(process, "STOP");
    let ended = end(launch, asleep);
    assert_eq!(ended.code, Some(1), "{}", ended.text);
    // `launch` ends the one that sleeps.
    assert!(ended.secs < LIMIT as f64 + 2.0 * LEAVES, "{}", ended.secs);
    assert!(ended.text.contains(&format!("waited {LIMIT} s for rank 1")), "{}", ended.text);
    assert!(
        ended.text.contains("it was at step ") && ended.text.contains("waits for"),
        "{}",
        ended.text
    );
}

#[test]
fn ranks_with_other_settings_or_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Each rank has its own environment, but not its own flags: a file that differs between hosts.
    let place = |rank: &str, port: &str, flags: &str| {
        let launch = grpo(folder.path(), 1, flags);
        let mut one = command();
        let words: Vec<_> = launch.get_args().skip(4).map(|word| word.to_owned()).collect();
        one.args(words).env("RANK", rank).env("WORLD_SIZE", "2").env("LOCAL_RANK", rank);
        one.env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
        one.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        one.spawn().unwrap()
    };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let first = place("0", &port, "--max_steps 3 --learning_rate 1e-5");
    let second = place("1", &port, "--max_steps 3 --learning_rate 2e-5");
    for ended in [end(first, Instant::now()), end(second, Instant::now())] {
        assert_eq!(ended.code, Some(1), "{}", ended.text);
        assert!(ended.text.contains("the ranks do not run the same"), "{}", ended.text);
        assert!(
            ended.text.contains("learning_rate: 0.00001`, rank 1 `learning_rate: 0.00002"),
            "{}",
            ended.text
        );
    }
    assert!(checkpoints(folder.path()).is_empty());
}

/// Two network namespaces joined by a cable, as two machines.
struct Machines {
    names: [String; 2],
    addresses: [String; 2],
}

impl Machines {
    /// None where this user may not make them.
    fn new() -> Option<Self> {
        let number = std::process::id();
        let net = number % 250;
        let machines = Machines {
            names: [0, 1].map(|index| format!("vlm{number}n{index}")),
            addresses: [1, 2].map(|host| format!("10.77.{net}.{host}")),
        };
        let [a, b] = &machines.names;
        let mut lines = vec![
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("link add {a} netns {a} type veth peer name {b} netns {b}"),
        ];
        for (name, address) in machines.names.iter().zip(&machines.addresses) {
            lines.push(format!("-n {name} address add {address}/24 dev {name}"));
            lines.push(format!("-n {name} link set {name} up"));
            lines.push(format!("-n {name} link set lo up"));
        }
        for line in lines {
            let output = Command::new("ip").args(line.split_whitespace()).output();
            let done = output.is_ok_and(|output| output.status.success());
            if !done {
                let why = format!("`ip {line}` needs root and network namespaces");
                assert!(std::env::var_os("CI").is_none(), "{why}");
                println!("skipped: {why}");
                return None;
            }
        }
        Some(machines)
    }

    fn ip(&self, line: &str) {
        let status = Command::new("ip").args(line.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {line}");
    }

    /// A launch on each, with a rank each.
    fn launch(&self, folder: &Path, flags: &str) -> [Child; 2] {
        [0, 1].map(|index| {
            let of_one = grpo(folder, 1, flags);
            let mut launch = Command::new("ip");
            // With a name of its own, as a machine has one.
            launch.args(["netns", "exec", &self.names[index], "unshare", "--uts", "sh", "-c"]);
            launch.args([r#"hostname "$0" && exec "$@""#, &self.names[index]]);
            launch.arg(of_one.get_program());
            launch.args(["launch", "--nproc_per_node", "1", "--nnodes", "2", "--node_rank"]);
            launch.arg(index.to_string()).args(["--master_addr", &self.addresses[0]]);
            launch.args(["--master_port", "29511"]).args(of_one.get_args().skip(3));
            launch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            launch.spawn().unwrap()
        })
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn wait_for_step(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while fs::read_to_string(folder.join("out/metrics.jsonl")).unwrap_or_default().lines().count()
        < 2
    {
        assert!(Instant::now() < deadline, "no step was done");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_machines_meet_train_and_notice_a_pulled_cable() {
    let Some(machines) = Machines::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let both = machines.launch(folder.path(), "--max_steps 2");
    for ended in both.map(|launch| end(launch, Instant::now())) {
        assert_eq!(ended.code, Some(0), "{}", ended.text);
    }
    assert_eq!(checkpoints(folder.path()).len(), 1);
    // 10 ms and 100 Mbit/s.
    for name in &machines.names {
        let line =
            format!("netns exec {name} tc qdisc add dev {name} root netem delay 10ms rate 100mbit");
        let output = Command::new("ip").args(line.split_whitespace()).output();
        if !output.is_ok_and(|output| output.status.success()) {
            println!("skipped: a slow cable, as this kernel has no `netem`");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("--max_steps 100000 --ddp_timeout {LIMIT}");
    let both = machines.launch(folder.path(), &flags);
    wait_for_step(folder.path());
    let pulled = Instant::now();
    machines.ip(&format!("-n {0} link set {0} down", machines.names[1]));
    for ended in both.map(|launch| end(launch, pulled)) {
        assert_eq!(ended.code, Some(1), "{}", ended.text);
        assert!(ended.secs < LIMIT as f64 + LEAVES, "{}", ended.secs);
        assert!(ended.text.contains("waited") && ended.text.contains("rank "), "{}", ended.text);
    }
}

/// A reward that fails on one rank ends all with a checkpoint; one that sleeps is named.
#[test]
fn a_reward_of_ones_own_that_fails_on_a_rank_ends_all_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let rule = folder.path().join("rule.py");
    let text = "import os\n\
         def reward_func(completions, step, **kwargs):\n    \
             if os.environ['RANK'] == '1' and step > 2:\n        \
                 raise ValueError('no such thing')\n    \
             return [float(len(c)) / 100 for c in completions]\n";
    fs::write(&rule, text).unwrap();
    let flags = format!(
        "--max_steps 100000 --reward_funcs {}:reward_func --reward_batch completion --reward_workers 1",
        rule.display()
    );
    let launch = grpo(folder.path(), 2, &flags).spawn().unwrap();
    let ended = end(launch, Instant::now());
    assert_eq!(ended.code, Some(1), "{}", ended.text);
    assert!(ended.text.contains("no such thing"), "{}", ended.text);
    assert!(ended.text.contains("rank 1 failed"), "{}", ended.text);
    assert_eq!(checkpoints(folder.path()).len(), 1, "{}", ended.text);
}
