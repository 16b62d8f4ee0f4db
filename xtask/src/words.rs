//! Refuses words of the project's own past in code and prose: the field has its words ([glossary](../../docs/glossary.md)).

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::paths::tracked;

/// Names as they stand, whole, with the word that is meant.
const NAMES: [(&str, &str); 26] = [
    ("heed", "check_cancelled"),
    ("reseat", "dirty"),
    ("Attend", "AttentionBackend"),
    ("DecodeKeys", "KvView"),
    ("Chooser", "TokenSampler"),
    ("fuses", "has_cpu_kernel"),
    ("TOGETHER", "UPDATE_CHUNK"),
    ("Tape", "Checkpointing"),
    ("PolicyBatch", "GrpoMicroBatch"),
    ("BatchBuilder", "InputsBuilder"),
    ("PackedBatch", "ModelInputs"),
    ("EpochSampler", "EpochOrder"),
    ("Board", "RewardInbox"),
    ("Listeners", "ScoringQueue"),
    ("Misfit", "TypeMismatch"),
    ("ForeignEffect", "CompatEffect"),
    ("idle_fields", "inactive_fields"),
    ("census", "parameter_counts"),
    ("Figures", "Metrics"),
    ("KeyFigure", "KeyMetric"),
    ("StoredAnswer", "StoredCompletion"),
    ("AnswerStore", "CompletionStore"),
    ("RecAnswer", "RecCompletion"),
    ("NoAnswers", "NoCompletions"),
    ("pictures", "images"),
    ("picture", "image"),
];

/// Phrases, in any case.
const PHRASES: [(&str, &str); 7] = [
    ("on the way back", "in the backward pass"),
    ("loops of our own", "CPU kernels"),
    ("loop of our own", "CPU kernel"),
    ("both ways", "forward and backward"),
    ("finds no memory", "runs out of memory"),
    ("memory ends", "out of memory"),
    ("weights in two halves", "a bf16 value and a 16-bit residual"),
];

/// History, results as they were printed, this list, what makes golden numbers, and columns that data of others has.
const EXCEPT: [&str; 9] = [
    "docs/log.md",
    "benchmarks/results/",
    "xtask/src/words.rs",
    "golden/",
    "tools/golden/",
    "CHANGELOG.md",
    "benchmarks/make_model.py",
    "crates/data/src/unread",
    "crates/data/tests/it/odd_rows.rs",
];

/// The section of the architecture page that translates old names.
const OLD_NAMES: &str = "## Old names";

/// Fails on files that still say it the old way.
pub fn run(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for name in tracked(root)? {
        let is_read = [".rs", ".h", ".cpp", ".md", ".py", ".sh", ".toml"];
        let skipped = EXCEPT.iter().any(|except| name.starts_with(except));
        if skipped || !is_read.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let Ok(text) = fs::read_to_string(root.join(&name)) else { continue };
        found.extend(old_words(&text).map(|(line, say)| format!("{name}:{line}: {say}")));
    }
    if found.is_empty() {
        return Ok(());
    }
    let count = found.len();
    found.truncate(100);
    bail!("{count} place(s) with a word that the field does not use\n  {}", found.join("\n  "))
}

/// Lines, from 1, and what is wrong in them.
fn old_words(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut is_old = false;
    let lines = text.lines().enumerate().filter(move |(_, line)| {
        is_old = (is_old && !line.starts_with("## ")) || line.starts_with(OLD_NAMES);
        !is_old
    });
    lines.flat_map(|(index, line)| {
        let lower = line.to_lowercase();
        let phrases = PHRASES.iter().filter(move |(phrase, _)| lower.contains(phrase));
        let names = NAMES.iter().filter(|(name, _)| has_name(line, name));
        phrases
            .chain(names)
            .map(move |(old, new)| (index + 1, format!("`{old}`: say `{new}`")))
            .collect::<Vec<_>>()
    })
}

/// Whether `name` stands in the line as a whole.
fn has_name(line: &str, name: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(name).any(|(at, _)| {
        !is_part(line[..at].chars().next_back()) && !is_part(line[at + name.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        old_words(text).map(|(line, _)| line).collect()
    }

    #[test]
    fn old_words_are_found_and_parts_of_others_not() {
        assert_eq!(lines("fn heed() {}\nlet heeded = 1;\n// On the way back.\n"), [1, 3]);
        assert_eq!(lines("Tapes, pictures\n"), [1]);
        assert!(lines("unheeded, MAX_TOGETHER\n").is_empty());
    }

    #[test]
    fn the_table_of_old_names_may_hold_them() {
        assert_eq!(lines("Tape\n## Old names\n| Tape |\n## Next\nTape\n"), [1, 5]);
    }
}
