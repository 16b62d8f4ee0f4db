//! A part of the page.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Facts, and what is wrong.
#[derive(Debug)]
pub struct Section {
    /// Its title.
    pub name: &'static str,
    facts: Vec<(String, String)>,
    /// What is wrong, each with a line `hint:`.
    pub problems: Vec<String>,
}

impl Section {
    /// Without facts yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, facts: Vec::new(), problems: Vec::new() }
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push((name.into(), without_home(&value.into())));
    }

    /// Adds what is wrong, and what to do.
    pub fn problem(&mut self, what: impl AsRef<str>, hint: &str) {
        self.problems.push(without_home(&format!("{}\nhint: {hint}", what.as_ref())));
    }

    /// Adds the text of an error that says what to do.
    pub fn error(&mut self, error: &dyn std::error::Error) {
        self.problems.push(without_home(&error.to_string()));
    }

    /// As the page shows it.
    pub fn text(&self) -> String {
        let width = self.facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let line = |(name, value): &(String, String)| format!("  {name:width$}  {value}\n");
        format!("\n{}\n", self.name) + &self.facts.iter().map(line).collect::<String>()
    }

    /// As JSON: `{"facts": {..}, "problems": [..]}`.
    pub fn json(&self) -> Value {
        let facts: Map<String, Value> =
            self.facts.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        json!({ "facts": facts, "problems": self.problems })
    }
}

/// The text with `~` for the user's home.
fn without_home(text: &str) -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    shortened(text, &home)
}

fn shortened(text: &str, home: &str) -> String {
    let home = home.trim_end_matches('/');
    if home.is_empty() || !Path::new(home).is_absolute() {
        return text.to_owned();
    }
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || "-_.".contains(c));
    let mut parts = text.split(home);
    let mut short = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        // Not within a longer path, and not a part of a longer name.
        let begins = !short.ends_with(|c: char| c.is_alphanumeric() || "-_./~".contains(c));
        short += if begins && ends(rest) { "~" } else { home };
        short += rest;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_a_tilde() {
        for (text, short) in [
            ("`/users/a/run`", "`~/run`"),
            ("/users/a", "~"),
            ("/users/ab, /mnt/users/a", "/users/ab, /mnt/users/a"),
            ("x:/users/a:/users/a/b", "x:~:~/b"),
        ] {
            assert_eq!(shortened(text, "/users/a/"), short);
        }
        assert_eq!(shortened("/a", "/"), "/a");
    }

    #[test]
    fn facts_stand_in_a_column() {
        let mut section = Section::new("disk");
        section.fact("free", "1 GB");
        section.fact("locks", "yes");
        section.problem("full", "remove files");
        assert_eq!(section.text(), "\ndisk\n  free   1 GB\n  locks  yes\n");
        let json =
            r#"{"facts":{"free":"1 GB","locks":"yes"},"problems":["full\nhint: remove files"]}"#;
        assert_eq!(section.json().to_string(), json);
    }
}
