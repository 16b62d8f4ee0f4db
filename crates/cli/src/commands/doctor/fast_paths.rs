//! What of the fast paths is proven on this machine: graphs, kernels and copies that were tried beside the plain
//! operations, as whoever tried them wrote it down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::section::Section;

/// One path on one device.
#[derive(Debug, Deserialize)]
struct Verdict {
    /// Which path.
    name: String,
    /// `proven`, `off`, or what else was found.
    verdict: String,
    /// The largest difference from the plain operations.
    error: Option<f64>,
    /// What it may be.
    tolerance: Option<f64>,
    /// How long the trial took.
    seconds: Option<f64>,
}

/// What one run found.
#[derive(Debug, Deserialize)]
struct Found {
    verdicts: Vec<Verdict>,
}

/// Where verdicts are kept.
pub fn verdict_file() -> Option<PathBuf> {
    Some(base::fast_path_file())
}

/// The verdicts of `file`, by card, driver, library, type and sizes.
pub fn section(file: Option<&Path>) -> Section {
    let mut section = Section::new("fast paths proven here");
    let Some(file) = file.filter(|file| file.exists()) else {
        section.fact("none", "tried yet");
        return section;
    };
    match read(file) {
        Ok(all) => {
            for (what, found) in all {
                section.fact("on", what);
                for verdict in found.verdicts {
                    section.fact(verdict.name.clone(), verdict.text());
                }
            }
        }
        Err(error) => section.problem(
            format!("{}: {error}", file.display()),
            "remove the file: the next run tries the paths again",
        ),
    }
    section
}

fn read(file: &Path) -> Result<BTreeMap<String, Found>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

impl Verdict {
    fn text(&self) -> String {
        let number = |value: Option<f64>| value.map_or("?".to_owned(), |x| format!("{x:.1e}"));
        let mut text = self.verdict.clone();
        if self.error.is_some() || self.tolerance.is_some() {
            let (error, tolerance) = (number(self.error), number(self.tolerance));
            text += &format!(", differs by {error} (tolerance {tolerance})");
        }
        if let Some(seconds) = self.seconds {
            text += &format!(", {seconds:.2} s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_shown_as_they_were_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("verdicts.json");
        assert!(section(None).text().contains("none  tried yet"));
        assert!(section(Some(&file)).text().contains("none  tried yet"));
        let text = r#"{"NVIDIA H200, bfloat16": {"verdicts": [
            {"name": "graphs", "verdict": "proven", "error": 2e-7, "tolerance": 1e-5, "seconds": 0.5},
            {"name": "flash attention", "verdict": "off: it throws"}]}}"#;
        std::fs::write(&file, text).unwrap();
        let shown = section(Some(&file)).text();
        for part in [
            "on               NVIDIA H200, bfloat16\n",
            "graphs           proven, differs by 2.0e-7 (tolerance 1.0e-5), 0.50 s",
            "flash attention  off: it throws\n",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
        std::fs::write(&file, "[{}]").unwrap();
        let damaged = section(Some(&file));
        assert!(damaged.problems[0].contains("hint: remove the file"), "{damaged:?}");
    }
}
