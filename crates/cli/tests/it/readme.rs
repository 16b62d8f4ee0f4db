//! README.md keeps its word: every command in it is run, every file and flag that it names exists.
//!
//! Commands run as they are written, in a folder that holds what they name, with two stand-ins on the
//! path. `make` prints what it would do. `vlm-r1` is the binary, with `grpo` and `sft` cut to one step,
//! short completions, and `demo` to its settings (the tests of `demo` walk its whole way at a small size).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::command::Command as Verb;
use config::compat_flags_of_grpo;
use serde_json::Value;
use tempfile::TempDir;
use testing::{checkpoint, golden, repository};

use crate::program::{CallResult, call, call_result};

const MAKE: &str = "#!/bin/sh\nPATH=$OUTER_PATH\nexport PATH\nexec make --dry-run --directory \"$REPOSITORY\" \"$@\"\n";

const VLM_R1_CUT_SHORT: &str = "#!/bin/sh
case \"$1\" in
grpo) exec \"$BINARY\" \"$@\" --max_steps 1 --max_completion_length 8 ;;
launch) exec \"$BINARY\" \"$@\" --max_steps 1 --max_completion_length 8 ;;
sft) exec \"$BINARY\" \"$@\" --max_steps 1 ;;
demo) exec \"$BINARY\" \"$@\" --dry_run ;;
*) exec \"$BINARY\" \"$@\" ;;
esac
";

fn text(name: &str) -> String {
    fs::read_to_string(repository(name)).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> BTreeSet<String> {
    let help = call("--help").stdout;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.map_while(|line| line.strip_prefix("  ")?.split_whitespace().next());
    let names: BTreeSet<String> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.len() > 5, "{help}");
    names
}

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let (mut blocks, mut fence) = (Vec::new(), None);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut fence) {
            (Some(name), None) => fence = Some((name == language, String::new())),
            (Some(_), Some((wanted, block))) => {
                if *wanted {
                    blocks.push(std::mem::take(block));
                }
                fence = None;
            }
            (None, Some((_, block))) => block.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    assert!(fence.is_none(), "a block without an end");
    blocks
}

/// A folder with all that the commands name.
fn workplace() -> TempDir {
    let dir = TempDir::new().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    let write = |folder: &Path, name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    write(&folder("stand-ins"), "make", MAKE);
    write(&folder("target/release"), "vlm-r1", VLM_R1_CUT_SHORT);
    let model = folder("Qwen/Qwen2.5-VL-3B-Instruct");
    for file in fs::read_dir(checkpoint("nested")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let shown_image = golden("parity/images/scene.png");
    fs::copy(shown_image, folder("images").join("1.png")).unwrap();
    let rows = blocks(&text("README.md"), "json");
    assert_eq!(rows.len(), 1, "README.md shows one row");
    write(dir.path(), "train.jsonl", &rows[0]);
    write(dir.path(), "answers.jsonl", &completed_row());
    dir
}

/// The row that docs/data.md shows for the other commands.
fn completed_row() -> String {
    let rows = blocks(&text("docs/data.md"), "json");
    let row = rows.iter().find(|row| row.contains("\"completion\""));
    row.expect("docs/data.md shows a row with a completion").clone()
}

/// Runs a block of commands in `dir`.
fn run(block: &str, dir: &Path) -> CallResult {
    let outer = std::env::var("PATH").unwrap();
    let path = format!("{}:{outer}", dir.join("stand-ins").display());
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", block])
        .current_dir(dir)
        .env("PATH", path)
        .env("OUTER_PATH", outer)
        .env("REPOSITORY", repository(""))
        .env("BINARY", env!("CARGO_BIN_EXE_vlm-r1"))
        .env("HF_HUB_OFFLINE", "1");
    for variable in ["WORLD_SIZE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        bash.env_remove(variable);
    }
    call_result(bash.output().unwrap())
}

/// Gives the checkpoints that a block names their names: runs cut short have only an earlier one.
fn provide_checkpoints(block: &str, dir: &Path) {
    let names = block
        .split_whitespace()
        .filter(|word| word.starts_with("out/") && word.contains("/checkpoint-"));
    for name in names {
        let path = dir.join(name);
        if !path.exists() {
            let first = path.with_file_name("checkpoint-1");
            assert!(first.exists(), "no run before this block made {name}");
            symlink(first, path).unwrap();
        }
    }
}

#[test]
fn every_command_runs() {
    let dir = workplace();
    let readme = text("README.md");
    let scripts = blocks(&readme, "bash");
    let mut printed = String::new();
    // As a shell keeps it from the block that sets it.
    let set_path = scripts
        .iter()
        .find_map(|block| block.lines().next()?.strip_prefix("make build && "))
        .expect("README.md says how the program gets on the path");
    for block in &scripts {
        provide_checkpoints(block, dir.path());
        let result = run(&format!("{set_path}\n{block}"), dir.path());
        assert_eq!(result.code, Some(0), "{block}\n{}\n{}", result.stdout, result.stderr);
        for mislead in ["without a reward of boxes", "otherwise than the model was trained"] {
            assert!(!result.stderr.contains(mislead), "{block}\n{}", result.stderr);
        }
        printed.push_str(&result.stdout);
    }
    let all = scripts.concat();
    for name in commands() {
        assert!(all.contains(&format!("vlm-r1 {name} ")), "{name} is not run");
    }
    for target in ["make demo", "make test", "make build"] {
        assert!(all.contains(target), "{target} is not run");
    }
    let row = |name: &str| -> Value {
        let lines = fs::read_to_string(dir.path().join(name)).unwrap();
        serde_json::from_str(lines.trim_end()).unwrap()
    };
    for model in ["out/rec/checkpoint-1", "out/sft/checkpoint-1", "out/merged"] {
        let file = dir.path().join(model).join("model.safetensors");
        assert!(file.exists(), "{model}");
    }
    let logprobs = row("logprobs.jsonl");
    assert_eq!(
        logprobs["logprobs"].as_array().unwrap().len(),
        logprobs["completion_ids"].as_array().unwrap().len()
    );
    // Each is asked as it was trained.
    for (folder, extractor) in [("out/eval", "thinking"), ("out/eval-sft", "baseline")] {
        let config = fs::read_to_string(dir.path().join(folder).join("config.yaml")).unwrap();
        assert!(config.contains(&format!("extractor: {extractor}\n")), "{config}");
    }
    let compared: Value = serde_json::from_str(
        &fs::read_to_string(dir.path().join("out/eval/summary.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(compared["num_questions"], 1);
    assert!(printed.contains("\"verdict\""), "{printed}");
    let scored = row("scored.jsonl");
    assert_eq!(scored["rewards"]["format"], 1.0);
    let accuracy = scored["rewards"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.0 && accuracy < 1.0, "{scored}");
    assert!(printed.contains("80GB, recomputed"), "{printed}");
    assert!(printed.contains("seed: 7"), "{printed}");
}

#[test]
fn what_make_demo_calls_is_a_demo() {
    let mut make = Command::new("make");
    make.args(["--dry-run", "demo"]).current_dir(repository(""));
    let recipe = call_result(make.env_remove("MAKEFLAGS").output().unwrap());
    assert_eq!(recipe.code, Some(0), "{}", recipe.stderr);
    let flags = recipe
        .stdout
        .lines()
        .find_map(|line| line.split_once(" -- demo "))
        .expect("make demo calls the binary")
        .1;
    let resolved = call(&format!("demo {flags} --dry_run"));
    assert_eq!(resolved.code, Some(0), "{}", resolved.stderr);
    assert!(
        text("README.md").contains("out/demo/report.html")
            && resolved.stdout.contains("out: out/demo\n"),
        "{}",
        resolved.stdout
    );
}

#[test]
fn the_table_lists_the_commands_of_the_binary() {
    let readme = text("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let listed: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    assert_eq!(listed, commands());
}

/// README.md, the pages under docs/ and that of the recipes.
fn pages() -> Vec<PathBuf> {
    let names = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "configs/README.md",
        "tools/golden/README.md",
    ];
    let mut pages = names.map(repository).to_vec();
    let docs = fs::read_dir(repository("docs")).unwrap();
    pages.extend(
        docs.map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "md")),
    );
    assert!(pages.len() > 4, "{pages:?}");
    pages
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().unwrap();
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.with_file_name(file),
            };
            let found =
                target.exists() && (anchor.is_empty() || headings(&target).contains(anchor));
            if !found {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// The anchors of a page's headings.
fn headings(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_flag_exists() {
    let fields = Verb::ALL.iter().flat_map(|verb| verb.entry().fields);
    let mut known: BTreeSet<&str> = fields.map(|field| field.name).collect();
    known.extend(compat_flags_of_grpo().iter().map(|flag| flag.name));
    known.extend(["config", "set", "help", "version"]);
    // torchrun's.
    known.insert("no_python");
    let mut checked = 0;
    for page in [
        "README.md",
        "docs/data.md",
        "docs/run-folder.md",
        "docs/architecture.md",
        "docs/memory.md",
        "docs/data-tools.md",
        "docs/evaluation.md",
        "docs/models.md",
        "docs/migrating.md",
        "docs/distributed.md",
        "configs/README.md",
    ] {
        let text = text(page);
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))) {
            let Some(flag) = word.strip_prefix("--") else {
                continue;
            };
            if flag.is_empty() || flag.starts_with('-') {
                continue;
            }
            let name = config::canonical(flag);
            assert!(known.contains(name.as_str()), "{page}: --{flag}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} flags found");
}

#[test]
fn a_command_that_fails_is_noticed() {
    // Neither the stand-ins nor the line after may hide it.
    let dir = workplace();
    for bad in [
        "make no-such-target",
        "target/release/vlm-r1 grpo --no_such_flag 1\ntrue",
        "target/release/vlm-r1 demo --sed 7",
    ] {
        assert_ne!(run(bad, dir.path()).code, Some(0), "{bad}");
    }
    let two = "```bash\na\n```\n```json\nb\n```\n```bash\nc\nd\n```\n";
    assert_eq!(blocks(two, "bash"), ["a\n", "c\nd\n"]);
}
