//! The registry of metrics against what was written by it and what is written about it.

use std::fs;

use base::metrics::{Command, TABLE, undeclared, with_tables};
use serde_json::{Map, Value};

#[test]
fn the_page_lists_all_metrics() {
    let path = testing::repository("docs/run-folder.md");
    let page = testing::read(&path);
    let expected = with_tables(&page).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "docs/run-folder.md differs from base::metrics; `UPDATE_DOCS=1` renews it"
    );
}

#[test]
fn metrics_of_older_programs_are_declared() {
    for (command, name) in [(Command::Grpo, "grpo"), (Command::Sft, "sft")] {
        for file in [format!("{name}/metrics.jsonl"), format!("{name}-expected.jsonl")] {
            let path = testing::golden("runs/4c679db").join(file);
            for line in testing::cases::<Map<String, Value>>(path, 2) {
                assert_eq!(undeclared(command, &line), [""; 0]);
                assert!(line.len() > 10, "{line:?}");
            }
        }
    }
}

#[test]
fn a_pattern_says_what_stands_in_it() {
    for metric in TABLE.iter().filter(|metric| metric.is_pattern()) {
        let filled = metric.name.replace(['{', '}'], "");
        let found = base::metrics::find(&filled).map(|found| found.name);
        assert_eq!(found, Some(metric.name));
    }
}
