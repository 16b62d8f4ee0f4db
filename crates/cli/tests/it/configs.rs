//! The recipes under configs/ resolve, say what they need on one rank, and stand in their table.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use testing::repository;

use crate::program::{CallResult, call_result, command};

/// Files below configs/, by their path from there.
fn recipes() -> BTreeSet<PathBuf> {
    let root = repository("configs");
    let mut found = BTreeSet::new();
    for folder in fs::read_dir(&root).unwrap() {
        let folder = folder.unwrap().path();
        // `launch` holds no settings.
        if folder.is_dir() && !folder.ends_with("launch") {
            let files = fs::read_dir(folder).unwrap();
            let files = files.map(|file| file.unwrap().path());
            found.extend(files.map(|file| file.strip_prefix(&root).unwrap().to_owned()));
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

fn text(recipe: &Path) -> String {
    fs::read_to_string(repository("configs").join(recipe)).unwrap()
}

/// The command that a file is for: its name begins so.
fn command_of(recipe: &Path) -> &str {
    let name = recipe.file_name().unwrap().to_str().unwrap();
    let word = name.split(['_', '.']).next().unwrap();
    assert!(
        ["grpo", "sft", "eval", "evaluations"].contains(&word) && name.ends_with(".yaml"),
        "{name}: for which command?"
    );
    word
}

fn from_repository(words: &[&str]) -> CallResult {
    let output = command().args(words).current_dir(repository("")).output();
    call_result(output.unwrap())
}

/// A dry run; what the recipe says must have an effect.
fn resolved(command: &str, recipe: &Path, more: &[&str]) -> String {
    let file = Path::new("configs").join(recipe).display().to_string();
    let words = [&[command, "--config", &file, "--dry_run"], more].concat();
    let result = from_repository(&words);
    // Models and data are elsewhere, which a dry run says too.
    assert!(!result.stdout.is_empty(), "{file}: {}", result.stderr);
    assert!(!result.stderr.contains("warning:"), "{file}: {}", result.stderr);
    result.stdout
}

fn value<'a>(yaml: &'a str, key: &str) -> Option<&'a str> {
    let line = yaml.lines().find_map(|line| line.strip_prefix(key));
    Some(line?.strip_prefix(": ")?.split(" #").next()?.trim())
}

#[test]
fn every_recipe_resolves() {
    let recipes = recipes();
    let mut evaluations = BTreeSet::new();
    for recipe in &recipes {
        match command_of(recipe) {
            "eval" => {
                resolved("eval", recipe, &["--model", "m", "--output_dir", "o"]);
            }
            "evaluations" => {}
            command => {
                // Reads the evaluations too.
                let yaml = resolved(command, recipe, &[]);
                evaluations.extend(value(&yaml, "eval_config").map(PathBuf::from));
            }
        }
    }
    for recipe in &recipes {
        let named = Path::new("configs").join(recipe);
        assert!(
            command_of(recipe) != "evaluations" || evaluations.contains(&named),
            "{}: no run asks for it",
            named.display()
        );
    }
}

#[test]
fn every_run_says_how_one_rank_makes_the_same_step() {
    for recipe in recipes() {
        let own = text(&recipe);
        let (number, unit) = match command_of(&recipe) {
            "grpo" => (8, "completions"),
            "sft" => (1, "rows"),
            _ => continue,
        };
        let of = |key: &str| -> usize { value(&own, key).unwrap().parse().unwrap() };
        let (batch, steps) = (of("per_device_train_batch_size"), of("gradient_accumulation_steps"));
        let all = batch * 8 * steps;
        let step = match unit {
            "rows" => format!("{all} rows a step."),
            _ => format!("{all} completions, {} prompts a step.", all / number),
        };
        let lines = format!(
            "# 8 ranks: {batch} {unit} x 8 x {steps} = {step}\n# one rank: gradient_accumulation_steps: {}",
            8 * steps
        );
        let more = own.split(&lines).nth(1).unwrap_or("missing").lines().next().unwrap();
        // In shards over 8 ranks the state of all weights fits where that of one rank does not.
        let is_whole =
            value(&own, "use_peft").is_none() && value(&own, "offload_optimizer").is_none();
        let expected = if is_whole { ", offload_optimizer: true" } else { "" };
        assert_eq!(more, expected, "{}: {lines}", recipe.display());
        if unit == "completions" {
            assert_eq!(of("num_generations"), number, "{}", recipe.display());
        }
    }
}

#[test]
fn the_page_names_every_recipe_and_its_commands_are_commands() {
    let page = text(Path::new("README.md"));
    for recipe in recipes() {
        let link = format!("]({})", recipe.display());
        assert!(page.contains(&link), "{link}");
    }
    let lines = page.lines().filter(|line| line.starts_with("vlm-r1 "));
    let mut called = 0;
    for line in lines {
        // Quotes are for shells.
        let words: Vec<String> = line
            .split_whitespace()
            .skip(1)
            .map(|word| word.trim_matches('\'').to_owned())
            .chain(["--dry_run".to_owned()])
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let result = from_repository(&words);
        assert!(!result.stdout.is_empty(), "{line}\n{}", result.stderr);
        called += 1;
    }
    assert!(called > 6, "only {called}");
}

/// A folder of programs for `PATH`: what a cluster has, and a `vlm-r1` whose engine says which rank it is.
fn cluster() -> TempDir {
    let dir = TempDir::new().unwrap();
    let engine = "echo \"rank $RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT\"";
    // As srun starts its tasks; none has the variables of a launcher.
    let srun =
        "for task in 0 1 2 3; do SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) \"${@:2}\"; done";
    for (name, text) in [
        ("scontrol", "printf 'node-a\\nnode-b\\n'"),
        ("srun", srun),
        ("engine", engine),
        ("vlm-r1", "exec \"$BINARY\" \"$@\""),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

fn on_cluster(cluster: &TempDir, program: &str) -> Command {
    let mut bash = Command::new(program);
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
        bash.env_remove(name);
    }
    let path = format!("{}:{}", cluster.path().display(), std::env::var("PATH").unwrap());
    bash.env("PATH", path)
        .env("BINARY", env!("CARGO_BIN_EXE_vlm-r1"))
        .env("VLM_R1_ENGINE", cluster.path().join("engine"))
        .current_dir(repository(""));
    bash
}

#[test]
fn the_job_of_slurm_starts_ranks() {
    let job = repository("configs/launch/slurm.sh");
    let checked = Command::new("bash").arg("-n").arg(&job).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let text = fs::read_to_string(&job).unwrap();
    for asked in ["--nodes=", "--ntasks-per-node=8", "--gpus-per-node=8", "--signal=USR1@"] {
        assert!(text.contains(&format!("\n#SBATCH {asked}")), "{asked}");
    }
    let cluster = cluster();
    let mut bash = on_cluster(&cluster, "bash");
    bash.arg(&job).args(["grpo", "--config", "configs/rec/grpo.yaml"]);
    bash.env("SLURM_JOB_NODELIST", "node-[a-b]").env("SLURM_JOB_ID", "123456");
    bash.env("SLURM_NTASKS", "4").env("SLURM_NTASKS_PER_NODE", "2");
    let result = call_result(bash.output().unwrap());
    assert_eq!(result.code, Some(0), "{}", result.stderr);
    let lines: Vec<&str> = result.stdout.lines().collect();
    let expected: Vec<String> =
        (0..4).map(|rank| format!("rank {rank} of 4, {} of 2 at node-a:23456", rank % 2)).collect();
    assert_eq!(lines, expected);
}

#[test]
fn the_job_of_kubernetes_starts_ranks() {
    let path = repository("configs/launch/pytorchjob.yaml");
    let job = config::parse_mapping(&path, &fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(
        (&job["apiVersion"], &job["kind"]),
        (&"kubeflow.org/v1".into(), &"PyTorchJob".into())
    );
    let replicas = &job["spec"]["pytorchReplicaSpecs"];
    let name = job["metadata"]["name"].as_str().unwrap();
    let cluster = cluster();
    for (index, kind) in ["Master", "Worker"].into_iter().enumerate() {
        assert_eq!(replicas[kind]["replicas"], 1, "{kind}");
        let container = &replicas[kind]["template"]["spec"]["containers"][0];
        // The operator looks for this name.
        assert_eq!(container["name"], "pytorch");
        assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], 8);
        let words: Vec<&str> = container["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let mut shell = on_cluster(&cluster, words[0]);
        // What the operator sets.
        shell.args(&words[1..]).env("PET_NODE_RANK", index.to_string()).env("WORLD_SIZE", "16");
        let result = call_result(shell.output().unwrap());
        assert_eq!(result.code, Some(0), "{}", result.stderr);
        let first = 8 * index;
        let line = format!("rank {first} of 16, 0 of 8 at {name}-master-0:23456");
        assert!(result.stdout.contains(&line), "{}", result.stdout);
        assert_eq!(result.stdout.lines().count(), 8, "{}", result.stdout);
    }
}
