//! `--dry_run`: what keeps the work from beginning, all of it in one message.

use anyhow::{Result, anyhow, bail};
use base::console::{count, describe};

/// All that is wrong, found before any of it stops the work.
#[derive(Default)]
pub struct Problems(Vec<anyhow::Error>);

impl Problems {
    /// Keeps the error of a result.
    pub fn note<T>(&mut self, result: Result<T, impl Into<anyhow::Error>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(error.into());
                None
            }
        }
    }

    /// Adds a problem that was not named yet.
    pub fn add(&mut self, problem: String) {
        // Several rewards may have the same fault.
        if self.0.iter().all(|known| known.to_string() != problem) {
            self.0.push(anyhow!(problem));
        }
    }

    /// Fails where anything was found.
    ///
    /// # Errors
    /// All problems in one message.
    pub fn done(mut self) -> Result<()> {
        if self.0.len() < 2 {
            return self.0.pop().map_or(Ok(()), Err);
        }
        let texts = self.0.iter().map(|error| describe(error.as_ref()));
        let texts: Vec<String> = texts.collect();
        let problems = count(texts.len() as u64, "problem");
        bail!("{problems} keep the work from beginning\n{}", texts.join("\n"))
    }
}
