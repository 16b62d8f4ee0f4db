//! `cargo xtask test-device`: the tests of the crates that hold tensors, and the commands end to end, on `cuda:0` of the stand-in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::stand_in;

/// Their tests take their device from `torch::device_of_tests`.
const CRATES: [&str; 5] = ["torch", "models", "engine", "train", "cli"];

/// Of `cli`, which starts the program.
const COMMANDS: &str = "device";

/// Tests that count what the whole process does, or switch what it uses, are in modules of this name and run alone.
const ALONE: [&str; 3] = ["device::", "--ignored", "--test-threads=1"];

/// Tests that `make test-long` alone runs, with any device, are in modules of this name.
const LONG: [&str; 2] = ["long::", "--ignored"];

/// Left to `make test-long`, of each crate: tests that compute on the CPU whatever the device, and tests of what a device
/// takes no part in, or of what others try on it. `make test` runs them all.
const LEFT_OUT: [(&str, &[&str]); 3] = [
    (
        "torch",
        &["fused::tests::", "linear::tests::", "ranks::tests::", "segment_attention::tests::"],
    ),
    // All of it: ranks of the CPU.
    ("ranks", &[""]),
    (
        "train",
        &[
            "checkpoints::a_damaged_newest_checkpoint_is_set_aside_and_the_run_is_the_same",
            "evaluations::a_killed_run_evaluates_again_what_was_cut_off",
            "evaluations::an_evaluation_that_is_broken_off_is_made_up_for_once",
            "offload::eight_bits_follow_the_curve",
            "plugins::a_python_reward_trains",
            "plugins::a_reward_over_http_trains",
            "ranks::",
            "shards::",
            "step_batch::tests::no_variant_depends_on_what_micro_batches_there_are",
        ],
    ),
];

/// With `rest`, the arguments of a test binary: only what they choose. `--long`: what is left out without it.
pub fn run(root: &Path, rest: &[String]) -> Result<()> {
    let lib = stand_in::build(root)?;
    let mut failed = Vec::new();
    for test in binaries(root)? {
        for arguments in runs_of(&test, rest) {
            let started = Instant::now();
            let status = Command::new(&test.executable)
                .args(&arguments)
                .current_dir(&test.folder)
                .env("LD_LIBRARY_PATH", &lib)
                .env("VLM_R1_TEST_DEVICE", "cuda:0")
                // Operations run on the CPU: threads of tests and of operations share the cores.
                .env("OMP_NUM_THREADS", "1")
                .status()
                .with_context(|| test.executable.display().to_string())?;
            let name = format!("{} {} {}", test.krate, test.target, arguments.join(" "));
            println!("{}: {:.0} s", name.trim(), started.elapsed().as_secs_f64());
            if !status.success() {
                failed.push(name.trim().to_owned());
            }
        }
    }
    ensure!(failed.is_empty(), "failed on the stand-in: {}", failed.join(", "));
    Ok(())
}

/// The arguments of each start of a test binary.
fn runs_of<'a>(test: &TestBinary, rest: &'a [String]) -> Vec<Vec<&'a str>> {
    let lists = LEFT_OUT.iter().filter(|(krate, _)| *krate == test.krate);
    let left_out: Vec<&str> = lists.flat_map(|(_, names)| names.iter().copied()).collect();
    match rest {
        [] => {
            let mut runs = vec![left_out.iter().flat_map(|name| ["--skip", *name]).collect()];
            if test.target == "it" {
                runs.push(ALONE.to_vec());
            }
            runs
        }
        [only] if only == "--long" => {
            let mut runs = vec![LONG.to_vec()];
            if !left_out.is_empty() {
                runs.push(left_out);
            }
            runs
        }
        chosen => vec![chosen.iter().map(String::as_str).collect()],
    }
}

struct TestBinary {
    krate: String,
    target: String,
    executable: PathBuf,
    /// The crate's, where cargo starts its tests.
    folder: PathBuf,
}

/// Compiles the tests of the workspace, with the features of `make test`.
fn binaries(root: &Path) -> Result<Vec<TestBinary>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["test", "--release", "--workspace", "--no-run", "--message-format=json"])
        .args(["--lib", "--bins", "--test", "it", "--test", COMMANDS])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests do not compile");
    let text = String::from_utf8(output.stdout)?;
    let mut found: Vec<TestBinary> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| test_binary(&message))
        .filter(|test| test.krate != "cli" || test.target == COMMANDS)
        .collect();
    found.sort_by_key(|test| {
        (CRATES.iter().position(|name| *name == test.krate), test.target.clone())
    });
    if found.len() < CRATES.len() {
        bail!("{} test binaries of {}", found.len(), CRATES.join(", "));
    }
    Ok(found)
}

fn test_binary(message: &Value) -> Option<TestBinary> {
    let is_test = message["profile"]["test"].as_bool()?;
    let executable = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let krate = folder.file_name()?.to_str()?.to_owned();
    let target = message["target"]["name"].as_str()?.to_owned();
    (is_test && CRATES.contains(&krate.as_str())).then_some(TestBinary {
        krate,
        target,
        executable,
        folder,
    })
}
