//! Holds numbers that docs name to the constants of the code.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Page, its words, crate, constant, its value as the code has it.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

const TABLE: [Row; 30] = [
    ("docs/architecture.md", "512 rows at a time", "train", "CHUNK_ROWS", "512"),
    ("docs/architecture.md", "std + 1e-4", "train", "STD_EPSILON", "1e-4"),
    ("docs/glossary.md", "std + 1e-4", "train", "STD_EPSILON", "1e-4"),
    ("docs/memory.md", "6 weights travel while the next 6", "train", "UPDATE_CHUNK", "6"),
    ("docs/memory.md", "fewer than 4,096 numbers", "train", "LEAST_8BIT", "4096"),
    ("docs/memory.md", "each 256 share", "torch", "BLOCK", "256"),
    ("docs/glossary.md", "a scale for each 256", "torch", "BLOCK", "256"),
    ("docs/memory.md", "up to 32 rows", "train", "SAMPLED_ROWS", "32"),
    ("docs/data-tools.md", "0.75 after rounding", "cli", "FULL_BOX_SCORE", "0.75"),
    ("docs/data-tools.md", "first 32 digits", "data", "NAME_BYTES", "16"),
    ("docs/evaluation.md", "over questions (2,000 draws", "report", "RESAMPLES", "2_000"),
    ("docs/evaluation.md", "1,000 for metrics of whole sets", "eval", "SET_DRAWS", "1_000"),
    ("docs/maths.md", "3,000 bytes of LaTeX", "mathverify", "MAX_LENGTH", "3_000"),
    ("docs/maths.md", "1,500 tokens", "mathverify", "MAX_TOKENS", "1_500"),
    ("docs/maths.md", "60 levels", "mathverify", "MAX_DEPTH", "60"),
    ("docs/maths.md", "4,096 bits", "mathverify", "MAX_BITS", "4_096"),
    ("docs/models.md", "up to 5 times without progress", "cli", "TRIES", "5"),
    ("docs/models.md", "silent for 30 s", "cli", "SILENCE_SECS", "30"),
    ("docs/rewards.md", "falling to 0.5 at 1,024", "rewards", "MAX_TOKENS", "1024"),
    ("docs/rewards.md", "an accuracy of 0.7", "rewards", "RIGHT", "0.7"),
    ("docs/rewards.md", "60 s at most", "rewards", "LONGEST_ASKED", "Duration::from_secs(60)"),
    (
        "docs/rewards.md",
        "pauses of up to 15 s",
        "rewards",
        "LONGEST_PAUSE",
        "Duration::from_secs(15)",
    ),
    ("docs/rewards.md", "A reply is at most 16 MiB", "rewards", "MAX_ANSWER_BYTES", "16 << 20"),
    ("docs/rewards.md", "its head 64 KiB", "rewards", "MAX_HEAD_BYTES", "64 << 10"),
    ("docs/rewards.md", "Images over 640 px", "pages", "MAX_SIDE_PX", "640"),
    ("docs/data.md", "64 MiB", "data", "MAX_BYTES", "64 << 20"),
    ("docs/data.md", "178,956,970", "data", "MAX_DECODED_PIXELS", "178_956_970"),
    ("docs/data.md", "ratio is over 200", "data", "MAX_ASPECT_RATIO", "200.0"),
    ("docs/run-folder.md", "last 20 steps", "train", "WINDOW", "20"),
    ("docs/run-folder.md", "over 1e50", "rewards", "MAX_SIZE", "1e50"),
];

/// Fails where a page or the code says otherwise than the table.
pub fn run(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for (page, words, krate, name, value) in TABLE {
        let text = fs::read_to_string(root.join(page)).with_context(|| page.to_owned())?;
        // Lines are wrapped.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if !text.contains(words) {
            wrong.push(format!("{page}: nowhere `{words}` (`{name}` of {krate} is {value})"));
        }
        let values = values(&root.join("crates").join(krate).join("src"), name)?;
        if !values.iter().any(|got| got == value) {
            wrong.push(format!(
                "{krate}: `{name}` is {}, and {page} says `{words}`, which is {value}",
                if values.is_empty() { "nowhere".to_owned() } else { values.join(" or ") }
            ));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "docs and constants differ\n  {}\nhint: mend the page, and the table in xtask/src/constants.rs",
        wrong.join("\n  ")
    )
}

/// What the constants of that name hold, anywhere in the folder.
fn values(folder: &Path, name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in sources(folder)? {
        let text = fs::read_to_string(&path)?;
        found.extend(text.lines().filter_map(|line| value_of(line, name)));
    }
    Ok(found)
}

/// `4` of `const NAME: usize = 4;`.
fn value_of(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once("const ")?;
    let (head, value) = rest.split_once(" = ")?;
    let (found, _) = head.split_once(':')?;
    (found == name).then(|| value.split(';').next().unwrap_or_default().to_owned())
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_read_off_its_line() {
        let line = "    pub(crate) const ROWS: i64 = 1 << 9; // rows";
        assert_eq!(value_of(line, "ROWS").as_deref(), Some("1 << 9"));
        assert_eq!(value_of(line, "ROW"), None);
        assert_eq!(value_of("let rows = 3;", "rows"), None);
    }
}
