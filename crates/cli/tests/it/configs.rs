//! The recipes under configs/ resolve, say what they need on one rank, and stand in their table.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use testing::repository;

use crate::program::{CallResult, call_result, command};

/// Files below configs/, by their path from there.
fn recipes() -> BTreeSet<PathBuf> {
    let root = repository("configs");
    let mut found = BTreeSet::new();
    for folder in fs::read_dir(&root).unwrap() {
        let folder = folder.unwrap().path();
        if folder.is_dir() {
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
            "# 8 ranks: {batch} {unit} x 8 x {steps} = {step}\n# one rank: gradient_accumulation_steps: {}\n",
            8 * steps
        );
        assert!(own.contains(&lines), "{}: {lines}", recipe.display());
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
