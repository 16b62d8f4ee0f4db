//! Runs that learn nothing say so.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::training::{done, line};

/// `name state step` of each line of `alerts.jsonl`.
fn alerts(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("alerts.jsonl")).unwrap_or_default();
    let told = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].as_str().is_some_and(|text| !text.is_empty()));
        let word = |key: &str| line[key].as_str().unwrap().to_owned();
        format!("{} {} {}", word("alert"), word("state"), line["step"])
    };
    text.lines().map(told).collect()
}

#[test]
fn a_run_without_a_reward_says_so_in_every_place_and_when_it_goes_on_too() {
    let dir = TempDir::new().unwrap();
    let command = line(
        "grpo",
        dir.path(),
        "run",
        "--max_steps 22 --save_steps 10 --save_optimizer_limit 3 --rollouts_keep 3",
    );
    let folder = dir.path().join("run");
    let result = done(&command);
    let lines: Vec<&str> = result.stderr.lines().collect();
    assert!(
        lines.iter().any(|line| line.starts_with("step 20/22 ") && line.contains(" [no signal, ")),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("alert `reward_zero` after step 20: ")),
        "{lines:?}"
    );
    let learnt = lines
        .iter()
        .position(|line| *line == "reward 0.0000 over steps 1 to 11, 0.0000 over steps 12 to 22");
    let end = &lines[learnt.expect("a line of what was learnt")..];
    assert!(end[1].starts_with("alert `no_signal`, on since step 20: "), "{end:?}");
    assert!(end.last().unwrap().starts_with("hint: "), "{end:?}");
    let log = fs::read_to_string(folder.join("log.txt")).unwrap();
    assert!(
        log.contains(" step 20/22 reward 0.0000 ")
            && log.contains(" alert `no_signal` after step 20: "),
        "{log}"
    );
    let first = alerts(&folder);
    assert!(
        first.contains(&"no_signal on 20".to_owned())
            && first.contains(&"reward_zero on 20".to_owned()),
        "{first:?}"
    );
    // Going on before they began, and after: each is told once.
    for kept in ["checkpoint-10", "checkpoint-20"] {
        for name in ["checkpoint-20", "checkpoint-22"].into_iter().filter(|name| *name != kept) {
            fs::remove_dir_all(folder.join(name)).unwrap();
        }
        let again = done(&command);
        assert_eq!(alerts(&folder), first, "{kept}");
        assert_eq!(
            again.stderr.contains("alert `no_signal` after step 20"),
            kept == "checkpoint-10",
            "{}",
            again.stderr
        );
        assert!(again.stderr.contains("alert `no_signal`, on since step 20"), "{}", again.stderr);
    }
    // The files of three steps, and a line of each group of all of them.
    let mut kept: Vec<String> = fs::read_dir(folder.join("rollouts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    let files = [20, 21, 22].map(|step| format!("step_{step:06}.jsonl"));
    assert_eq!(kept[0], "index.jsonl");
    assert_eq!(kept[1..], files);
    let index = fs::read_to_string(folder.join("rollouts/index.jsonl")).unwrap();
    let groups: Vec<(u64, u64)> = index
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let number = |key: &str| line[key].as_u64().unwrap();
            (number("step"), number("group"))
        })
        .collect();
    let mut expected = groups.clone();
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(groups, expected, "each once, in order");
    let mut steps: Vec<u64> = groups.iter().map(|(step, _)| *step).collect();
    steps.dedup();
    assert_eq!(steps, (1..=22).collect::<Vec<_>>());
    // The command that the message names says what the rewards read.
    let rollouts = folder.join("rollouts/step_000020.jsonl");
    let named = format!("`vlm-r1 reward --input {} --explain true`", rollouts.display());
    assert!(result.stderr.contains(&named), "{}", result.stderr);
    let explained = done(&format!(
        "reward --input {} --explain true --reward_method all_match",
        rollouts.display()
    ));
    assert!(explained.stdout.contains("explanations"), "{}", explained.stdout);
}

#[test]
fn a_run_shorter_than_the_window_is_judged_at_its_end() {
    let dir = TempDir::new().unwrap();
    let result = done(&line("grpo", dir.path(), "run", "--max_steps 2"));
    assert!(result.stderr.contains("alert `reward_zero`, on since step 2: "), "{}", result.stderr);
    assert!(alerts(&dir.path().join("run")).contains(&"no_signal on 2".to_owned()));
    // SFT has no rewards: it says what became of the loss.
    let result = done(&line("sft", dir.path(), "sft", "--max_steps 2"));
    let last = result.stderr.lines().last().unwrap();
    assert!(last.starts_with("loss ") && last.contains(" in step 1, "), "{}", result.stderr);
    assert!(!dir.path().join("sft/alerts.jsonl").exists());
}
