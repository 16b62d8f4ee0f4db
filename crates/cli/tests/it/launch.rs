//! `launch`, with shell scripts in the place of the engine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program::{CallResult, call_result, command};
use crate::training::signal;

const GRPO: &str = "grpo --model_name_or_path m --data_file_paths d --output_dir o";

/// An engine that is a script; what it writes goes to `$DIR`.
struct Engine {
    dir: TempDir,
}

impl Engine {
    fn new(script: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("engine");
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Engine { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, flags: &str, launched: &str) -> Command {
        let mut command = command();
        for name in ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(name);
        }
        command.env("VLM_R1_ENGINE", self.path("engine")).env("DIR", self.dir.path());
        command.arg("launch").args(flags.split_whitespace());
        command.arg("--").args(launched.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    fn call(&self, flags: &str) -> CallResult {
        call_result(self.command(flags, GRPO).output().unwrap())
    }

    fn start(&self, flags: &str) -> Child {
        let mut command = self.command(flags, GRPO);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until ranks have left files of these names, and gives their texts.
    fn wait_for(&self, names: &[&str]) -> Vec<String> {
        let read = |name: &&str| fs::read_to_string(self.path(name)).ok();
        let start = Instant::now();
        loop {
            let texts: Vec<String> =
                names.iter().filter_map(read).filter(|text| text.ends_with('\n')).collect();
            if texts.len() == names.len() {
                return texts;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{names:?}: only {texts:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process that is there and no zombie.
fn runs(id: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(id.trim()).join("status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

#[test]
fn ranks_have_the_variables_of_torchrun_and_all_but_the_first_are_named() {
    let engine = Engine::new(
        "echo \"$*\"; echo $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE, $GROUP_RANK, $MASTER_ADDR\n\
         echo \"port $MASTER_PORT, restarts $TORCHELASTIC_RESTART_COUNT, ${VLM_R1_LAUNCHER-none}\" >&2",
    );
    let result = engine.call("--nproc_per_node 3");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let expected: BTreeSet<String> = (0..3)
        .flat_map(|rank| {
            let before = if rank == 0 { String::new() } else { format!("rank {rank}: ") };
            [format!("{before}{GRPO}"), format!("{before}{rank} of 3, {rank} of 3, 0, 127.0.0.1")]
        })
        .collect();
    let lines: BTreeSet<String> = result.stdout.lines().map(str::to_owned).collect();
    assert_eq!(lines, expected);
    let ports: BTreeSet<&str> =
        result.stderr.lines().map(|line| line.split_once("port ").unwrap().1).collect();
    assert_eq!(ports.len(), 1, "{}", result.stderr);
    let port = ports.first().unwrap().strip_suffix(", restarts 0, none").unwrap();
    assert!(port.parse::<u16>().unwrap() > 1023, "{port}");

    let second =
        "--nproc_per_node 2 --nnodes 3 --node-rank 1 --master_addr 10.0.0.1 --master_port 29500";
    let result = engine.call(second);
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    for line in ["rank 2: 2 of 6, 0 of 2, 1, 10.0.0.1", "rank 3: 3 of 6, 1 of 2, 1, 10.0.0.1"] {
        assert!(result.stdout.lines().any(|got| got == line), "{line}: {}", result.stdout);
    }
    assert!(result.stderr.contains("rank 3: port 29500, "), "{}", result.stderr);
}

/// One rank is killed, one leaves at SIGTERM, one hears nothing.
#[test]
fn a_rank_that_is_killed_takes_the_others_with_it() {
    let engine = Engine::new(
        "case $RANK in\n\
         0) trap 'echo asked; exit 1' TERM ;;\n\
         1) trap '' TERM ;;\n\
         2) kill -9 $$ ;;\n\
         esac\n\
         echo $$ > $DIR/$RANK\n\
         while true; do sleep 0.1; done",
    );
    let start = Instant::now();
    let result = engine.call("--nproc_per_node 3");
    assert!(start.elapsed() < Duration::from_secs(40));
    assert_eq!(result.code, Some(1), "{}", result.stderr);
    assert_eq!(result.stdout, "asked\n");
    assert_eq!(result.stderr, "error: rank 2 was killed by SIGKILL\n");
    for id in engine.wait_for(&["0", "1"]) {
        assert!(!runs(&id), "{id}");
    }
}

#[test]
fn exit_codes_are_passed_on() {
    // All leave by a vote, one of them late; wrong use; a panic; two of them at once.
    for (script, code, said) in [
        ("[ $RANK = 0 ] && sleep 4; exit 143", 143, "rank 1 ended with exit code 143"),
        ("exit 2", 2, "ended with exit code 2"),
        ("[ $RANK = 1 ] && exit 101; exit 0", 1, "rank 1 ended with exit code 101"),
        ("[ $RANK = 1 ] && exit 130; sleep 1; exit 1", 1, "rank 0 ended with exit code 1"),
    ] {
        let result = Engine::new(script).call("--nproc_per_node 2");
        assert_eq!(result.code, Some(code), "{script}: {}", result.stderr);
        assert!(result.stderr.contains(said), "{script}: {}", result.stderr);
    }
}

#[test]
fn signals_are_passed_on_to_all() {
    let engine = Engine::new(
        "trap 'exit 130' INT\ntrap 'exit 143' TERM\ntrap 'exit 138' USR1\necho $$ > $DIR/$RANK\n\
         for i in {1..600}; do sleep 0.1; done",
    );
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-USR1", 138)] {
        for rank in ["0", "1"] {
            drop(fs::remove_file(engine.path(rank)));
        }
        let child = engine.start("--nproc_per_node 2 --max_restarts 3");
        engine.wait_for(&["0", "1"]);
        signal(&child, name);
        let result = call_result(child.wait_with_output().unwrap());
        assert_eq!(result.code, Some(code), "{name}: {}", result.stderr);
        let passed_on = format!("SIG{}: passed on to 2 ranks\n", &name[1..]);
        assert!(result.stderr.starts_with(&passed_on), "{}", result.stderr);
    }
}

#[test]
fn no_rank_outlives_a_launcher_that_is_killed() {
    let engine =
        Engine::new("trap '' TERM HUP INT\necho $$ > $DIR/$RANK\nwhile true; do sleep 0.1; done");
    let mut child = engine.start("--nproc_per_node 2");
    let ids = engine.wait_for(&["0", "1"]);
    assert!(ids.iter().all(|id| runs(id)), "{ids:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    while ids.iter().any(|id| runs(id)) {
        assert!(start.elapsed() < Duration::from_secs(10), "{ids:?} are left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn after_a_fault_all_start_anew_as_often_as_asked() {
    let fails = "[ $RANK = 1 ] && [ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && exit 1\n\
                 [ $TORCHELASTIC_RESTART_COUNT -lt 2 ] && exec sleep 100\necho again $RANK";
    let engine = Engine::new(fails);
    let result = engine.call("--nproc_per_node 2 --max_restarts 2");
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert!(result.stdout.contains("again 0\n") && result.stdout.contains("rank 1: again 1\n"));
    let said = "rank 1 ended with exit code 1\nall ranks start anew, 1 of 2 times\n\
                rank 1 ended with exit code 1\nall ranks start anew, 2 of 2 times\n";
    assert_eq!(result.stderr, said);
}

#[test]
fn what_every_rank_would_refuse_is_refused_once() {
    let engine = Engine::new("echo started; exit 0");
    for (flags, launched, code, said) in [
        (
            "",
            "reward --input a --reward_funcs format",
            1,
            "`reward` has no ranks: expected `grpo`, `sft` or `eval`",
        ),
        ("--nproc_per_node 2", "grop", 2, "unknown command `grop`\nhint: did you mean `grpo`?"),
        ("--nproc_per_node 2", "grpo --model_name_or_path m", 2, "missing `--data_file_paths`"),
        ("--nproc_per_node 0", GRPO, 2, "`nproc_per_node`: got 0, expected at least 1"),
        ("--nnodes 2", GRPO, 2, "`master_addr`: got nothing, expected the address of machine 0"),
        ("--nnodes 2 --master_addr a", GRPO, 2, "`master_port`: got nothing"),
        ("--nnodes 2 --master_addr a --master_port 1 --node_rank 2", GRPO, 2, "below `nnodes`"),
        ("--master_port 70000", GRPO, 2, "at most 65535"),
        ("--nproc 2", GRPO, 2, "unknown flag `--nproc`"),
    ] {
        let result = call_result(engine.command(flags, launched).output().unwrap());
        assert_eq!((result.code, &*result.stdout), (Some(code), ""), "{flags}: {}", result.stderr);
        assert!(result.stderr.contains(said), "{flags}: {}", result.stderr);
    }
    // The flags of ranks stand before the command.
    let behind =
        call_result(engine.command("", &format!("{GRPO} --nproc_per_node 8")).output().unwrap());
    assert_eq!(behind.code, Some(2));
    assert!(
        behind.stderr.contains("vlm-r1 launch --nproc_per_node 8 -- grpo"),
        "{}",
        behind.stderr
    );
    // The two dashes between may be left out.
    let mut plain = command();
    plain.env("VLM_R1_ENGINE", engine.path("engine")).arg("launch").args(["--nproc_per_node", "1"]);
    let plain = call_result(plain.args(GRPO.split_whitespace()).output().unwrap());
    assert_eq!((plain.code, plain.stdout.as_str()), (Some(0), "started\n"), "{}", plain.stderr);
    let nothing = call_result(engine.command("", "").output().unwrap());
    assert_eq!(nothing.code, Some(2), "{}", nothing.stderr);
}
