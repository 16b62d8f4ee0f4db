//! The front answers without libtorch, and becomes the engine for what needs it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::program::{CallResult, call_result, command};
use crate::training::line;

const MAKES_BOTH: &str = "`make build` makes both";

/// Calls the front with `engine` for its engine.
fn with_engine(engine: &Path, line: &str) -> CallResult {
    let mut command = command();
    command.env("VLM_R1_ENGINE", engine);
    call_result(command.args(line.split_whitespace()).output().unwrap())
}

/// A program that says how it was called.
fn stand_in(dir: &Path) -> PathBuf {
    let script = dir.join("stand-in");
    let text = "#!/bin/sh\nprintf '%s\\n' \"$$\" \"${GOMP_SPINCOUNT-unset}\" \"$VLM_R1_FRONT_BUILD\" \"$@\"\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn front() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_vlm-r1"))
}

#[test]
fn the_front_links_no_libtorch() {
    let libraries = |program: &Path| {
        // The loader lists them instead of starting the program.
        let listed = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    };
    let of_front = libraries(&front());
    assert!(of_front.contains("libc.so"), "{of_front}");
    for library in ["libtorch", "libc10", "libgomp", "libcuda", "libstdc++"] {
        assert!(!of_front.contains(library), "{of_front}");
    }
    let of_engine = libraries(&front().with_file_name("vlm-r1-engine"));
    assert!(of_engine.contains("libtorch_cpu"), "the list is of no use: {of_engine}");
}

#[test]
fn what_needs_no_engine_is_answered_without_one() {
    let nowhere = Path::new("/nonexistent/engine");
    for (line, code) in [
        ("--version", 0),
        ("--help", 0),
        ("grpo --help", 0),
        ("grpo --lerning_rate 1", 2),
        ("grop", 2),
        ("reward --dry_run --input rows.jsonl --reward_funcs format", 0),
    ] {
        let result = with_engine(nowhere, line);
        assert_eq!(result.code, Some(code), "{line}: {}", result.stderr);
        assert!(!result.stderr.contains("engine"), "{line}: {}", result.stderr);
    }
    let mut several = command();
    several.env("VLM_R1_ENGINE", nowhere).env("WORLD_SIZE", "2").args(["demo"]);
    let several = call_result(several.output().unwrap());
    assert_eq!(several.code, Some(2), "{}", several.stderr);
}

#[test]
fn an_engine_that_does_not_start_is_named_with_a_way_out() {
    let dir = TempDir::new().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "no program").unwrap();
    for (engine, why) in [
        (Path::new("/nonexistent/engine"), "no such file"),
        (&text, "Permission denied"),
        (&front(), "is the program that starts the engine"),
    ] {
        let result = with_engine(engine, "demo --dry_run");
        assert_eq!((result.code, result.stdout.as_str()), (Some(1), ""), "{}", result.stderr);
        for part in [&*engine.display().to_string(), why, MAKES_BOTH] {
            assert!(result.stderr.contains(part), "{part}: {}", result.stderr);
        }
    }
}

#[test]
fn the_engine_takes_the_place_of_the_front() {
    let dir = TempDir::new().unwrap();
    let script = stand_in(dir.path());
    let told = |set: &[(&str, &str)]| -> Vec<String> {
        let mut command = command();
        for name in ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"] {
            command.env_remove(name);
        }
        command.env("VLM_R1_ENGINE", &script).envs(set.iter().copied());
        command.args(["demo", "--out=a b", "--seed", "7"]).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        let id = child.id().to_string();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(lines[0], id, "another process");
        assert_eq!(lines[3..], ["demo", "--out=a b", "--seed", "7"]);
        lines
    };
    let lines = told(&[]);
    assert_eq!(lines[1], "1000");
    assert!(lines[2].starts_with(env!("CARGO_PKG_VERSION")), "{lines:?}");
    // What the user says of waiting threads counts.
    assert_eq!(told(&[("GOMP_SPINCOUNT", "5")])[1], "5");
    assert_eq!(told(&[("OMP_WAIT_POLICY", "active")])[1], "unset");
}

#[test]
fn a_comparison_asks_no_engine_wherever_it_is_said() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("compare.yaml");
    fs::write(&file, "compare: [a, b]\n").unwrap();
    let script = stand_in(dir.path());
    for line in ["eval --compare a b", &format!("eval --config {}", file.display())] {
        let result = with_engine(&script, line);
        assert_eq!(result.code, Some(1), "{line}: {}", result.stdout);
        assert!(result.stderr.contains("a/results.json"), "{}", result.stderr);
    }
    // What is wrong with it is for whoever acts on it.
    let asked = with_engine(&script, "eval --model m --output_dir o --task rec --no_rows 1");
    assert_eq!(asked.code, Some(2), "{}", asked.stderr);
}

#[test]
fn rewards_of_ones_own_are_not_told_where_libtorch_lies() {
    let dir = TempDir::new().unwrap();
    let (reward, told) = (dir.path().join("told.py"), dir.path().join("told.txt"));
    let text = format!(
        "import os\n\
         open({:?}, 'w').write(str(os.environ.get('LD_LIBRARY_PATH')))\n\
         def told(completions, **kwargs):\n    return [1.0 for _ in completions]\n",
        told.display().to_string()
    );
    fs::write(&reward, text).unwrap();
    let more = format!("--max_steps 1 --reward_funcs {}:told", reward.display());
    let mut command = command();
    command.env_remove("LD_LIBRARY_PATH");
    let line = line("grpo", dir.path(), "run", &more);
    let result = call_result(command.args(line.split_whitespace()).output().unwrap());
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    assert_eq!(fs::read_to_string(&told).unwrap(), "None");
}
