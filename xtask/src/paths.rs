//! Refuses machine paths (somebody's home or working folder) in tracked files.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

// In two halves, so that this file does not hold what it looks for.
const MARKS: [&str; 5] = [
    concat!("/", "home/"),
    concat!("/", "root/"),
    concat!("/", "work/"),
    concat!("/", "Users/"),
    concat!("/opt/", "ref"),
];

/// Fails on the first hundred places where a file that git tracks holds a machine path.
pub fn run(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for name in tracked(root)? {
        match fs::read(root.join(&name)) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                found.extend(machine_paths(&text).map(|line| format!("{name}:{line}")));
            }
            // Removed in the working tree, not yet in the index; or a link to a folder.
            Err(error)
                if [ErrorKind::NotFound, ErrorKind::IsADirectory].contains(&error.kind()) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read `{name}`")),
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    found.truncate(100);
    bail!(
        "machine paths in tracked files\n  {}\nhint: write them relative, or as `DIR`",
        found.join("\n  ")
    )
}

pub(crate) fn tracked(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .context("cannot run `git`")?;
    if !output.status.success() {
        bail!("`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
    Ok(names.split_terminator('\0').map(String::from).collect())
}

/// Numbers of the lines that hold a machine path, from 1.
fn machine_paths(text: &str) -> impl Iterator<Item = usize> + '_ {
    let lines = text.lines().enumerate();
    lines.filter(|(_, line)| holds_machine_path(line)).map(|(index, _)| index + 1)
}

fn holds_machine_path(line: &str) -> bool {
    // `target/…` and addresses of web pages go on from a word: no machine path begins there.
    let begins = |at: usize| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-/".contains(c)))
    };
    MARKS.iter().any(|mark| line.match_indices(mark).any(|(at, _)| begins(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_found_and_others_not() {
        let home = MARKS[0];
        assert!(holds_machine_path(&format!("cd {home}me/x")));
        assert!(holds_machine_path(&format!("\"{home}me\"")));
        assert!(holds_machine_path(&format!("root: file=\"{}x\"", MARKS[2])));
        assert!(!holds_machine_path(&format!("https://example.org{home}page")));
        assert!(!holds_machine_path("out/demo, ~/.cache, /usr/lib"));
        let text = format!("a\nb {home}c\n\n{home}\n");
        assert_eq!(machine_paths(&text).collect::<Vec<_>>(), [2, 4]);
    }
}
