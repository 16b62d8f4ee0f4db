//! What was tried, what survived, and how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// One thing that was tried.
pub struct Tried {
    /// What was done to the program.
    pub what: String,
    /// How it survived, or why it did not.
    pub how: Result<String, String>,
}

impl Tried {
    /// Of `what`, with its result.
    pub fn new(what: impl Into<String>, how: Result<String, String>) -> Self {
        let what = what.into();
        Self { what, how }
    }
}

/// Counts of all trials.
#[derive(Default)]
pub struct Tally {
    rows: BTreeMap<(String, String), Row>,
    /// What did not survive: part, what, why, the folder kept.
    failures: Vec<[String; 4]>,
    /// What could not be tried here.
    skipped: Vec<String>,
}

#[derive(Default)]
struct Row {
    tried: u64,
    survived: u64,
    how: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts a trial of `part` in `folder`; says what did not survive.
    pub fn add(&mut self, part: &str, folder: &Path, tried: Vec<Tried>) {
        for Tried { what, how } in tried {
            self.count(part, &what, 1, &how, folder);
        }
    }

    /// Counts `number` things of one kind that went the same way.
    pub fn count(
        &mut self,
        part: &str,
        what: &str,
        number: u64,
        how: &Result<String, String>,
        folder: &Path,
    ) {
        let row = self.rows.entry((part.into(), what.into())).or_default();
        row.tried += number;
        match how {
            Ok(how) => {
                row.survived += number;
                *row.how.entry(how.clone()).or_default() += number;
            }
            Err(why) => {
                let kept = folder.display().to_string();
                eprintln!("torture: NOT SURVIVED: {part}: {what}: {why}\n  kept: {kept}");
                self.failures.push([part.into(), what.into(), why.clone(), kept]);
            }
        }
    }

    /// Says that something cannot be tried on this machine.
    pub fn skip(&mut self, what: &str) {
        eprintln!("torture: skipped: {what}");
        self.skipped.push(what.to_owned());
    }

    /// What did not survive, a text each.
    pub fn failures(&self) -> Vec<String> {
        let say = |[part, what, why, kept]: &[String; 4]| {
            format!("{part}: {what}: {why}\n  kept: {kept}")
        };
        self.failures.iter().map(say).collect()
    }

    /// A table in Markdown, as it stands in the docs.
    pub fn table(&self) -> String {
        let mut table =
            String::from("| part | what | tried | survived | how |\n|---|---|---|---|---|\n");
        let (mut tried, mut survived) = (0, 0);
        for ((part, what), row) in &self.rows {
            let how: Vec<String> = row.how.iter().map(|(how, n)| format!("{how}: {n}")).collect();
            let how = how.join("; ");
            table += &format!("| {part} | {what} | {} | {} | {how} |\n", row.tried, row.survived);
            (tried, survived) = (tried + row.tried, survived + row.survived);
        }
        table + &format!("| all | | {tried} | {survived} | |\n")
    }

    /// The same for programs.
    pub fn json(&self, facts: Value) -> Value {
        let row = |((part, what), row): (&(String, String), &Row)| json!({"part": part, "what": what, "tried": row.tried, "survived": row.survived, "how": row.how});
        let failure = |[part, what, why, kept]: &[String; 4]| json!({"part": part, "what": what, "why": why, "kept": kept});
        json!({
            "run": facts,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
            "skipped": self.skipped,
        })
    }
}

/// Removes a trial's folder unless something in it did not survive.
pub fn clear(folder: &PathBuf, tried: &[Tried]) {
    if tried.iter().all(|tried| tried.how.is_ok()) {
        // What stays costs room and nothing else.
        let _ = std::fs::remove_dir_all(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts() {
        let mut tally = Tally::default();
        let tried = vec![
            Tried::new("SIGKILL", Ok("went on".into())),
            Tried::new("SIGKILL", Ok("went on".into())),
            Tried::new("SIGKILL", Err("other weights".into())),
        ];
        tally.add("kills", Path::new("x"), tried);
        let table = tally.table();
        assert!(table.contains("| kills | SIGKILL | 3 | 2 | went on: 2 |"), "{table}");
        assert!(table.ends_with("| all | | 3 | 2 | |\n"), "{table}");
        assert_eq!(tally.failures(), ["kills: SIGKILL: other weights\n  kept: x"]);
        let json = tally.json(json!({"seed": 1}));
        assert_eq!(json["failures"][0]["why"], "other weights");
        assert_eq!(json["rows"][0]["survived"], 2);
    }
}
